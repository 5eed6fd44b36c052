"""What an error of `get_request()` means to the loop that accepts.

Pure, and the same for every loop: the worker's, and that of a process which serves by itself.
"""

import errno
import sys

from prefork.metrics.facts import AcceptError

# Seconds without accepting when descriptors or memory are short: ten tries a second instead of 190,000.
ACCEPT_PAUSE = 0.1

_FACTS = {
    errno.EMFILE: AcceptError.EMFILE,
    errno.ENFILE: AcceptError.ENFILE,
    errno.ENOBUFS: AcceptError.NOMEM,
    errno.ENOMEM: AcceptError.NOMEM,
    errno.ECONNABORTED: AcceptError.ABORTED,
}
_RESOURCES = {AcceptError.EMFILE, AcceptError.ENFILE, AcceptError.NOMEM}


def accept_error(exc: OSError) -> AcceptError:
    """Which of the closed list this error is. `get_request()` may be the user's: a TLS error's number is no errno."""
    if exc.errno is None or _is_tls(exc):
        return AcceptError.OTHER
    return _FACTS.get(exc.errno, AcceptError.OTHER)


def is_resource_error(exc: OSError) -> bool:
    """Whether descriptors or memory are short, so that trying again at once would fail again, without end."""
    return accept_error(exc) in _RESOURCES


def is_shortage(exc: Exception) -> bool:
    """Whether a request could not be begun because the system has no more threads or processes for us."""
    if isinstance(exc, RuntimeError):
        return "can't start new thread" in str(exc)  # CPython has no other sign of it
    return isinstance(exc, OSError) and (exc.errno == errno.EAGAIN or is_resource_error(exc))


def _is_tls(exc: OSError) -> bool:
    ssl = sys.modules.get("ssl")  # not imported: then the error is not one of its
    return ssl is not None and isinstance(exc, ssl.SSLError)
