"""A datagram service that stops receiving when it is told to `hold`, until the gate, a FIFO, has been opened and closed
by the test. Its socket holds little."""

import socket
from pathlib import Path

from prefork import DatagramRequestHandler
from tests.support.programs.served import Told, tell


class Hooks(Told):
    def server_bind(self) -> None:
        super().server_bind()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)


class Handler(DatagramRequestHandler):
    def handle(self) -> None:
        if self.rfile.read() == b"hold":
            tell("held")
            Path("gate").read_bytes()
