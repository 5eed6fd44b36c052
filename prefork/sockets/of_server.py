"""The socket of a server, which may have none: a class over BaseServer needs no more than a descriptor to wait for.

Pure. Runs in any process that has the server.
"""

import socket
from typing import Any

_type_of = socket.SocketType.type.__get__  # without an enum member, which costs a new child twenty pages


def socket_of(server: Any) -> Any:
    """Return the server's socket, or a wrapper of one; None if there is none."""
    found = getattr(server, "socket", None)
    return found if hasattr(found, "getsockname") else None


def is_stream(sock: Any) -> bool:
    """Return True if this socket, or wrapper of one, is of a stream."""
    kind = _type_of(sock) if isinstance(sock, socket.SocketType) else sock.type
    return bool(kind == socket.SOCK_STREAM)


def is_closed(server: Any) -> bool:
    """Return True if there is no descriptor to wait for any more. What is no socket may raise then."""
    try:
        return bool(server.fileno() < 0)
    except (OSError, ValueError):
        return True
