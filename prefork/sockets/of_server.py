"""The socket of a server, which may have none: a class over BaseServer needs no more than a descriptor to wait for.

Pure. Runs in any process that has the server.
"""

from typing import Any


def socket_of(server: Any) -> Any:
    """Return the server's socket, or a wrapper of one; None if there is none."""
    found = getattr(server, "socket", None)
    return found if hasattr(found, "getsockname") else None


def is_closed(server: Any) -> bool:
    """Return True if there is no descriptor to wait for any more. What is no socket may raise then."""
    try:
        return bool(server.fileno() < 0)
    except (OSError, ValueError):
        return True
