"""What an error of accept means: a shortage, a request that is gone, or nothing we know."""

import errno
import ssl

import pytest

from prefork.metrics.facts import AcceptError
from prefork.workers.accepting import accept_error, is_resource_error


@pytest.mark.parametrize(
    ("number", "fact", "shortage"),
    [
        (errno.EMFILE, AcceptError.EMFILE, True),
        (errno.ENFILE, AcceptError.ENFILE, True),
        (errno.ENOBUFS, AcceptError.NOMEM, True),
        (errno.ENOMEM, AcceptError.NOMEM, True),
        (errno.ECONNABORTED, AcceptError.ABORTED, False),
        (errno.EPERM, AcceptError.OTHER, False),
    ],
)
def test_system_errors(number: int, fact: AcceptError, shortage: bool) -> None:
    """Four numbers say that descriptors or memory are short; the rest cost one request."""
    exc = OSError(number, "as the kernel says it")
    assert (accept_error(exc), is_resource_error(exc)) == (fact, shortage)


@pytest.mark.parametrize(
    "exc",
    [OSError("no number"), ssl.SSLError(errno.ENOMEM, "not an errno"), ssl.SSLError(errno.EMFILE, "not one either")],
)
def test_numbers_that_are_no_errno(exc: OSError) -> None:
    """The number of a TLS error is OpenSSL's, and an OSError may have none."""
    assert accept_error(exc) is AcceptError.OTHER
    assert not is_resource_error(exc)
