"""The listener of a worker whose handler opens files: each connection opens them for less than socket.socket does.

Runs in a worker, after the fork: the master's listener stays what it is. Owns no socket.
"""

import socket
from typing import Any

from prefork.workers.keeps import is_keeping
from prefork.workers.plain_accept import STANDARD_ACCEPT
from prefork.workers.socket_files import AcceptedSocket, accepted_class
from prefork.workers.stay import KeptSocket
from prefork.workers.unnamed_peer import UNNAMED

from .listener import Listener, family_of, type_of


def accept_for(sock: Any, handler: Any) -> None:
    """Have a listener accept connections as this handler class reads them. One that the program has wrapped is left."""
    if type(sock) is Listener:
        if is_keeping(handler):
            sock.__class__ = KeptListener
        elif accepted_class(handler) is AcceptedSocket:
            sock.__class__ = FileListener


class FileListener(Listener):
    """A Listener whose connections are of the class AcceptedSocket."""

    __slots__ = ()

    def accept(self) -> tuple[socket.socket, Any]:
        if socket.socket.accept is not STANDARD_ACCEPT:
            return super().accept()
        fd, address = self._accept()  # type: ignore[attr-defined]
        return AcceptedSocket(family_of(self), type_of(self), self.proto, fd), address or UNNAMED


class KeptListener(Listener):
    """A Listener whose connections can be kept, by a handler that asks for it."""

    __slots__ = ()

    def accept(self) -> tuple[KeptSocket, Any]:
        fd, address = self._accept()  # type: ignore[attr-defined]
        return KeptSocket(family_of(self), type_of(self), self.proto, fd), address or UNNAMED
