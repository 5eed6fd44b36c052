"""The meaning of an error of `get_request()` to the loop that accepts.

Pure, and the same for every loop: that of a worker, and that of a process that serves by itself.
"""

import errno
import sys

from prefork.metrics.facts import AcceptError

# Seconds without accepting when descriptors or memory are short: ten attempts a second instead of 190,000.
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
    """Return the AcceptError for this exception.

    `get_request()` may be the user's, and raise a TLS error, whose number is not an errno.
    """
    if exc.errno is None or _is_tls(exc):
        return AcceptError.OTHER
    return _FACTS.get(exc.errno, AcceptError.OTHER)


def is_resource_error(exc: OSError) -> bool:
    """Return whether descriptors or memory are short, so that retrying at once would fail again and again."""
    return accept_error(exc) in _RESOURCES


def is_shortage(exc: Exception) -> bool:
    """Return whether a request could not be started because the system is out of threads or processes."""
    if isinstance(exc, RuntimeError):
        return "can't start new thread" in str(exc)  # CPython gives no other sign of it
    return isinstance(exc, OSError) and (exc.errno == errno.EAGAIN or is_resource_error(exc))


def _is_tls(exc: OSError) -> bool:
    ssl = sys.modules.get("ssl")  # if it is not imported, the error cannot be one of its own
    return ssl is not None and isinstance(exc, ssl.SSLError)
