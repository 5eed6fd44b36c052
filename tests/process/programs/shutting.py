"""Handlers that shut down the socket of their server, shutdown(2), for every process that has it."""

import contextlib
import os
import socket
from typing import Any

from prefork import DatagramRequestHandler, KeepAliveMixIn, StreamRequestHandler


def shut(server: Any, how: bytes) -> None:
    """Of datagrams it says that there is no client, and is done all the same."""
    with contextlib.suppress(OSError):
        server.socket.shutdown({b"read": socket.SHUT_RD, b"both": socket.SHUT_RDWR}[how])


class Shutting(StreamRequestHandler):
    """Answers with its pid; shuts first if told how."""

    def handle(self) -> None:
        for line in self.rfile:
            if (how := line.strip()) != b"pid":
                shut(self.server, how)
            self.wfile.write(b"%d\n" % os.getpid())


class Kept(KeepAliveMixIn, Shutting):
    """The same, of a connection that is kept."""


class Datagrams(DatagramRequestHandler):
    """The same, of datagrams."""

    def handle(self) -> None:
        if (how := self.rfile.read().strip()) != b"pid":
            shut(self.server, how)
        self.wfile.write(b"%d" % os.getpid())


class Hooked:
    """A hook before the thread, so that the main thread accepts."""

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return True
