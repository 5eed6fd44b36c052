"""What an error of accept means: a shortage, a request that is gone, or nothing we know."""

import errno
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import pytest

from prefork.metrics.facts import AcceptError
from prefork.workers.accepting import accept_error, is_resource_error, is_shortage
from prefork.workers.plain_accept import accepted_by


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


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A listener with one client in its queue."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
        yield listener


@pytest.mark.parametrize("timeout", [None, 10.0])
@pytest.mark.parametrize("default", [None, 5.0])
def test_accepted(timeout: float | None, default: float | None, listener: socket.socket) -> None:
    """What is accepted is what socket.accept() returns: class, kind, address, and timeout."""
    listener.settimeout(timeout)
    socket.setdefaulttimeout(default)
    try:
        with socket.create_connection(listener.getsockname()):
            (ours, ours_address), (theirs, theirs_address) = accepted_by(listener), listener.accept()
    finally:
        socket.setdefaulttimeout(None)
    with ours, theirs:
        assert type(ours) is type(theirs) is socket.socket
        kinds = [(each.family, each.type, each.proto, each.gettimeout(), each.getblocking()) for each in (ours, theirs)]
        assert kinds[0] == kinds[1]
        assert ours_address[0] == theirs_address[0]
        assert ours.getpeername() == ours_address


def test_accept_of_the_programs_own(listener: socket.socket) -> None:
    """A class of sockets with an `accept()` of its own has it called."""

    class Own(socket.socket):
        def accept(self) -> tuple[socket.socket, object]:
            return super().accept()[0], "mine"

    with Own(fileno=listener.detach()) as own:
        request, address = accepted_by(own)
        request.close()
    assert address == "mine"


@pytest.mark.parametrize(
    ("exc", "short"),
    [
        (OSError(errno.EAGAIN, "no process"), True), (OSError(errno.ENOMEM, "no memory"), True),
        (OSError(errno.EPERM, "no"), False), (RuntimeError("can't start new thread"), True),
        (RuntimeError("another"), False), (ValueError("no number"), False),
    ],
)  # fmt: skip
def test_what_a_shortage_is(exc: Exception, short: bool) -> None:
    """No process or thread can be had; what has no number at all is none."""
    assert is_shortage(exc) == short


class Proxy:
    """An object that stands for a socket, and passes on whatever it is asked."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


def test_a_listener_that_is_no_socket() -> None:
    """An object that stands for one is asked itself; so is one with an `accept` of its own."""

    class Own(socket.socket):
        pass

    with socket.create_server(("127.0.0.1", 0)) as listener, Own(fileno=listener.detach()) as own:
        for each in (Proxy(own), own):
            with socket.create_connection(own.getsockname()) as client:
                request, address = accepted_by(each)
                assert (request.getpeername(), address) == (client.getsockname(), client.getsockname())
                request.close()
        own.accept = lambda: ("a request", "somebody")  # type: ignore[method-assign,assignment,return-value]
        assert accepted_by(own) == ("a request", "somebody")
