"""Answers to datagrams: from which address, from which process, and after more of them."""

import os
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.support.hosts.namespaces import network_of
from tests.support.programs.service import HUNG, Service, script

pytestmark = pytest.mark.once  # nothing of it is the interpreter's

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


FROM_CHILDREN = ["fork", "returning", "process", "finish", "thread"]


def asking(service: Service) -> socket.socket:
    client = socket.socket(type=socket.SOCK_DGRAM)
    client.settimeout(HUNG)
    client.connect(("127.0.0.1", service.address[1]))
    return client


def datagrams(bases: str, host: str = "127.0.0.1", **settings: Any) -> str:
    hooks = "Hooks" if "PreFork" in bases else "Plain as Hooks"
    definitions = f"from tests.process.programs.datagrams import Handler, {hooks}"
    return script(definitions, bases=bases, address=(host, 0), **settings)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize(
    "bases", ["PreForkingUDPServer", "PreForkingMixIn, ThreadingUDPServer", "PreForkingMixIn, ForkingUDPServer",
              "PreForkingMixIn, socketserver.UDPServer", "SupervisedMixIn, UDPServer", "ThreadingUDPServer"]
)  # fmt: skip
def test_from_processes_of_the_program(bases: str, host: str, tmp_path: Path) -> None:
    """A process that a handler or a hook forks, in whichever way, answers as it would without a pool."""
    settings = {"max_children": 2} if "PreFork" in bases else {}
    with Service(tmp_path, datagrams(bases, host, **settings)) as service, asking(service) as client:
        for way in FROM_CHILDREN:
            if way == "returning" and "PreFork" not in bases:
                continue  # there it would go on to serve
            client.send(way.encode())
            assert client.recv(100) == way.upper().encode()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("bases", ["PreForkingUDPServer", "SupervisedMixIn, UDPServer"])
def test_a_conversation(bases: str, host: str, tmp_path: Path) -> None:
    """A handler that receives on the server's socket waits for it, as long as the timeout says that it sets."""
    settings = {"max_children": 1} if "PreFork" in bases else {}
    with Service(tmp_path, datagrams(bases, host, **settings)) as service, asking(service) as client:
        for _ in range(2):
            client.send(b"conversation")
            assert client.recv(100) == b"go on"
            client.send(b"more")
            assert client.recv(100) == b"MORE"


@pytest.mark.parametrize("bases", ["PreForkingUDPServer", "PreForkingTCPServer"])
def test_a_process_that_outlives_the_service(bases: str, tmp_path: Path) -> None:
    """One that a worker has started for itself, before any request, does not hold the port after the service's end."""
    held, ours = os.pipe()
    definitions = "from tests.process.programs.datagrams import Handler, Lasting as Hooks"
    source = script(definitions, bases=bases, max_children=1)
    with Service(tmp_path, source, env={"HELD": str(held)}, fds=[held]) as service:
        service.wait_ready(1)
        service.signal(signal.SIGTERM)
        assert service.wait_exit() == 0
        with socket.socket(type=socket.SOCK_DGRAM if "UDP" in bases else socket.SOCK_STREAM) as another:
            another.bind(service.address)
        os.close(held)
        os.close(ours)
        service.wait_gone()
