"""A listener that a process has closed before its requests are finished: it still tells its address.

Runs in a child that serves one request, and in a worker that drains. The port is not held for longer than it must be;
but a handler may ask `self.server.socket.getsockname()`, which in the standard library is open until the end.
"""

import socket
from typing import Any


def leave(listener: Any) -> None:
    """Close the listener. It tells its address from now on as it did before."""
    name = _name_of(listener)
    listener.close()
    if name is None:
        return
    kind = type(listener)
    own = {"__slots__": (), "__module__": kind.__module__, "__doc__": kind.__doc__, "getsockname": lambda self: name}
    try:
        listener.__class__ = type(kind.__name__, (kind,), own)
    except TypeError:  # a class of the program's, of which there can be no other
        pass


def _name_of(listener: Any) -> Any:
    try:
        return listener.getsockname() if isinstance(listener, socket.socket) else None
    except OSError:
        return None
