"""The wait between two requests of a connection that is served in a loop, as it cannot be kept.

Runs where a handler does: in a plain server, with `--single`, and in a pool for connections over TLS, and those that
the program has wrapped, which may be any object. Must not take bytes out of the handler's file.
"""

import contextlib
import select
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

from .stay import UNIX_MOST, WHOLE_MAX, KeptSocket, bytes_wanted, peek

INCOMPLETE_S = 10.0  # for a request that comes in parts, where the server has no `incomplete_timeout`
LOOK_S = 0.25  # between two calls of `alive`
_LOOK_S = 0.02  # between two looks, where the kernel cannot be told for how many bytes to wait
_FULL_S = 1.0  # after which a Unix socket to which nothing comes any more may be full

_plain = (socket.SocketType.recv, socket.SocketType.recv_into)


def wait_for_bytes(request: Any, rfile: Any, idle_s: float | None, alive: Callable[[], bool] | None = None) -> bool:
    """Wait for the next request; return False if the client has hung up or was silent for `idle_s` seconds.

    The request's own timeout is a limit, too. `alive` is called now and then: if it returns False the wait is over.
    Raises what a read raises, but for a connection that was lost, and TimeoutError where the client was silent.
    """
    limits = [each for each in (idle_s, _timeout_of(request)) if each is not None]
    limit = min(limits, default=None)
    if alive is not None and not _alive_until_readable(request, rfile, limit, alive):
        return False
    try:
        if hasattr(rfile, "peek"):
            with _limited(request, limit):
                return not rfile.closed and bool(rfile.peek(1))
        if is_plain(request):
            with _limited(request, limit):
                return bool(request.recv(1, socket.MSG_PEEK))
    except ConnectionError:
        return False
    if not _is_readable(request, limit):
        raise TimeoutError
    return True


def _alive_until_readable(request: Any, rfile: Any, limit: float | None, alive: Callable[[], bool]) -> bool:
    """Wait until something is there, or the end; return False where `alive` did. Raises TimeoutError at the limit."""
    deadline = None if limit is None else time.monotonic() + limit
    if _ahead(request, rfile):
        return True
    while not _is_readable(request, LOOK_S):
        if not alive() or getattr(request, "fileno", int)() == -1:
            return False
        if deadline is not None and time.monotonic() >= deadline:
            raise TimeoutError
    return True


def wait_until_complete(request: Any, rfile: Any, complete: Callable[[bytes], Any], limit_s: float | None) -> None:
    """Wait until the bytes at hand are a whole request, where these can be told. Raises TimeoutError if they never are,
    and what `complete()` does."""
    if not is_plain(request):
        return
    deadline = time.monotonic() + (INCOMPLETE_S if limit_s is None else limit_s)
    unread, asked, seen, full_at = _ahead(request, rfile), 0, 0, 0.0
    try:
        while wanted := bytes_wanted(request, unread, complete):
            now = time.monotonic()
            if (left := deadline - now) <= 0:
                raise TimeoutError
            is_full = wanted == asked
            if is_full and request.family == socket.AF_UNIX:
                if (at_hand := len(peek(request, WHOLE_MAX) or b"")) > seen:
                    seen, full_at = at_hand, now + _FULL_S
                is_full = wanted == UNIX_MOST and now >= full_at
            if is_full:
                return  # the kernel has no room for more: the handler reads the rest as it comes
            asked = wanted
            _wait_for_so_many(request, wanted, left)
    finally:
        if asked:
            request.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)


def is_plain(request: Any) -> bool:
    """Return True for a socket that receives as the kernel does."""
    kind = type(request)
    return isinstance(request, socket.socket) and ((kind.recv, kind.recv_into) == _plain or kind is KeptSocket)


def _timeout_of(request: Any) -> float | None:
    timeout = request.gettimeout() if hasattr(request, "gettimeout") else None
    return timeout or None


@contextlib.contextmanager
def _limited(request: Any, limit: float | None) -> Iterator[None]:
    """Have reads within the block wait no longer than that."""
    if limit is None or not hasattr(request, "settimeout"):
        yield
        return
    own = request.gettimeout()
    request.settimeout(limit)
    try:
        yield
    finally:
        if request.fileno() != -1:
            request.settimeout(own)


def _is_readable(request: Any, limit: float | None) -> bool:
    """Wait without reading: a file without a buffer over an object that cannot peek, as of TLS."""
    if getattr(request, "pending", int)() or not hasattr(request, "fileno"):
        return True
    if (fd := request.fileno()) == -1:
        return False
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(None if limit is None else limit * 1000))


def _ahead(request: Any, rfile: Any) -> bytes:
    """Return what the file has read ahead, and perhaps more that is there."""
    if not hasattr(rfile, "peek"):
        return b""
    with _limited(request, 0):
        try:
            ahead: bytes = rfile.peek()
        except OSError:  # nothing at hand, as TLS says it; an error is met again by who reads
            return b""
    return ahead


def _wait_for_so_many(request: socket.socket, wanted: int, limit: float) -> None:
    if request.family == socket.AF_UNIX:  # there poll(2) pays no regard to SO_RCVLOWAT
        time.sleep(min(_LOOK_S, limit))
        return
    request.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wanted)
    poll = select.poll()
    poll.register(request, select.POLLIN | select.POLLRDHUP)
    poll.poll(limit * 1000)
