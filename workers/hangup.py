"""The current requests, whose read side is shut down when the worker drains, with `drain_connections = "eof"`.

Runs in a worker. A handler that loops over `rfile` reads what was already sent and then sees end of file; its answers
still go out. `hang_up()` runs in the handler of SIGURG, which the master repeats while requests are left.
"""

import ctypes
import os
import socket
import sys
from time import monotonic_ns
from typing import Any

from .definitions import evaluated, put

# The first bytes of a connection that was just accepted may still be on their way: shut down, it would end before it
# began. Less than the 250 ms after which the master signals a draining worker again.
FIRST_BYTES_NS = 200_000_000

_libc = ctypes.CDLL(None)


def end_quietly() -> None:
    """Have TLS connections of this process take the end that `hang_up()` makes for an end.

    OpenSSL 3 takes it for an attack: it sends the client an alert, and no answer after it. Only for connections on
    which ssl passes over such an end anyway (suppress_ragged_eofs), and in a program that has imported it.
    """
    ssl = sys.modules.get("ssl")
    if ssl is None:
        return
    wrap, ignore = ssl.SSLContext.wrap_socket, ssl.OP_IGNORE_UNEXPECTED_EOF

    def wrap_socket(
        self: Any, sock: Any, server_side: bool = False, do_handshake_on_connect: bool = True,
        suppress_ragged_eofs: bool = True, *args: Any, **kwargs: Any,
    ) -> Any:  # fmt: skip
        if server_side and suppress_ragged_eofs and not self.options & ignore:
            self.options |= ignore
        return wrap(self, sock, server_side, do_handshake_on_connect, suppress_ragged_eofs, *args, **kwargs)

    ssl.SSLContext.wrap_socket = wrap_socket


class InHand:
    """The connections that handlers work on now.

    Each is known by its descriptor and inode: the program may have wrapped the request that we saw in another object,
    or do so in its handler (TLS), and that object's own shutdown() would go on in the clear.
    """

    def __init__(self) -> None:
        self._connections: dict[object, tuple[int, int, int]] = {}

    def bind(self, server: Any) -> None:
        """Track the requests that this server instance finishes from now on."""
        end_quietly()
        finish, connections = evaluated(server, "finish_request"), self._connections

        def finish_request(request: Any, *more: Any, **named: Any) -> Any:
            fd = request.fileno() if hasattr(request, "fileno") else -1  # a datagram has none
            if fd < 0:
                return finish(request, *more, **named)
            key = object()
            connections[key] = fd, os.fstat(fd).st_ino, monotonic_ns()
            try:
                return finish(request, *more, **named)
            finally:
                connections.pop(key, None)

        put(server, "finish_request", finish_request)

    def hang_up(self) -> None:
        """Shut down the read side of each connection that is old enough. Data sent so far can still be read."""
        now_ns = monotonic_ns()
        for key, (fd, inode, since_ns) in list(self._connections.items()):
            if now_ns - since_ns >= FIRST_BYTES_NS:
                self._connections.pop(key, None)
                if _inode(fd) == inode:
                    _libc.shutdown(fd, socket.SHUT_RD)  # it fails where the client closed first


def _inode(fd: int) -> int | None:
    try:
        return os.fstat(fd).st_ino
    except OSError:  # the handler has closed it
        return None
