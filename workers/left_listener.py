"""A listener that a process has closed before its requests are finished: it still tells its address.

Runs in a child that serves one request, and in a worker that drains. The port is not held for longer than it must be;
but a handler may ask `self.server.socket.getsockname()`, which in the standard library is open until the end.
"""

import socket
from typing import Any


def leave(listener: Any) -> None:
    """Close the listener. It tells its address from now on as it did before."""
    leave_as(listener, left(listener))


def left(listener: Any) -> type | None:
    """Return the class of this listener after its close; None if it has no address to tell.

    To make a class costs a new child twenty pages: its parent can do it.
    """
    name = _name_of(listener)
    if name is None:
        return None
    kind = type(listener)
    own = {"__slots__": (), "__module__": kind.__module__, "__doc__": kind.__doc__, "getsockname": lambda self: name}
    return type(kind.__name__, (kind,), own)


def leave_as(listener: Any, kind: type | None) -> None:
    """Close the listener, which is of this class from now on."""
    listener.close()
    if kind is not None:
        try:
            listener.__class__ = kind
        except TypeError:  # a class of the program's, of which there can be no other
            pass


def _name_of(listener: Any) -> Any:
    try:
        return listener.getsockname() if isinstance(listener, socket.socket) else None
    except OSError:
        return None
