"""Datagrams to a pool that listens at every address of the host."""

import os
import shutil
import socket
from pathlib import Path

import pytest

from tests.support.hosts.namespaces import network_of
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


# Two addresses and a link-local one, in a network of its own.
IPV6 = """\
ip link set lo up && ip link add d0 type veth peer name d1 && ip link set d1 up && ip link set d0 up &&
for address in fd00::1 fd00::2 fe80::77; do ip addr add $address/64 dev d0 nodad || exit; done && exec "$@"
"""


@pytest.mark.once
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="needs root, to make a network")
@pytest.mark.parametrize(
    ("bound", "asked"), [("::", ("fd00::2", "fd00::1", "fe80::77%d0")), ("fe80::77%d0", ("fe80::77%d0",))]
)
def test_over_ipv6(bound: str, asked: tuple[str, ...], tmp_path: Path) -> None:
    """So too over IPv6, at an address of one interface as well; and such a one can be bound, and is shown with it."""
    before = ("unshare", "-n", "sh", "-c", IPV6, "sh")
    source = script(ECHO, bases="PreForkingUDPServer", address=(bound, 0), max_children=1)
    with Service(tmp_path, source, before=before) as service:
        port = service.address[1]
        with network_of(service.pid):
            for host in asked:
                family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
                with socket.socket(family, kind) as client:
                    client.settimeout(HUNG)
                    client.connect(address)
                    client.send(b"hello")
                    assert client.recv(100) == b"HELLO"
    assert f"listening on [{bound}]:{port}\n" in service.log
