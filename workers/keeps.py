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
    streams = getattr(server, "socket_type", None) == socket.SOCK_STREAM
    return streams and is_keeping(getattr(server, "RequestHandlerClass", None))


def is_keeping(handler: Any) -> bool:
    """Return whether this is such a handler class."""
    found = class_of(handler)
    return isinstance(found, type) and issubclass(found, KeepsConnections)


def class_of(handler: Any) -> Any:
    """Return the class of which handlers are made."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    return handler
