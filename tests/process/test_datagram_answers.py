"""Datagrams to a pool that listens at every address of the host."""

import socket
from pathlib import Path

from tests.support.programs.service import HUNG, Service, script

ECHO = """
class Handler(socketserver.DatagramRequestHandler):
    def handle(self):
        self.wfile.write(self.packet.upper())
"""


def test_the_answer_comes_from_where_it_was_asked(tmp_path: Path) -> None:
    """Whichever address of the host a client asks, it hears from that one; over the standard library's classes too."""
    bases = "PreForkingMixIn, socketserver.ThreadingUDPServer"
    with Service(tmp_path, script(ECHO, bases=bases, address=("0.0.0.0", 0), max_children=2)) as service:
        for host in ("127.0.0.1", "127.0.0.2", "127.9.8.7"):
            with socket.socket(type=socket.SOCK_DGRAM) as client:
                client.settimeout(HUNG)
                client.connect((host, service.address[1]))
                client.send(b"hello")
                assert client.recv(100) == b"HELLO"
