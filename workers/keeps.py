"""The servers whose connections may be kept. Pure.

Asked in the master, which makes queues and a holder for them, and in a worker, which parks them.
"""

import functools
import socket
from typing import Any


class KeepsConnections:
    """The base of KeepAliveMixIn, by which a handler class is known whose connections may be kept."""


def keeps(server: Any) -> bool:
    """Return whether a pool may keep the connections of this server: a stream server with such a handler class."""
    handler = getattr(server, "RequestHandlerClass", None)
    while isinstance(handler, functools.partial):
        handler = handler.func
    streams = getattr(server, "socket_type", None) == socket.SOCK_STREAM
    return streams and isinstance(handler, type) and issubclass(handler, KeepsConnections)
