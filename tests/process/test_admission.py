"""Who is served, in a real pool: by address, by the first byte, and by how long a connection has waited."""

import contextlib
import socket
from pathlib import Path
from time import sleep
from typing import Any

import pytest

from tests.support.clients.connections import HUNG, Connection, ask_datagram, connect, dial
from tests.support.programs.service import Service, script

BASES = ["PreForkingTCPServer", "PreForkingMixIn, ThreadingTCPServer", "PreForkingMixIn, ForkingTCPServer"]


def closed(sock: socket.socket) -> None:
    """Without an answer."""
    with Connection(sock) as client:
        try:
            client.wait_end()
        except ConnectionResetError:
            pass


@pytest.mark.parametrize("bases", BASES)
def test_by_address(bases: str, tmp_path: Path) -> None:
    networks: dict[str, Any] = {"allowed_clients": "127.0.0.0/30", "denied_clients": "127.0.0.3"}
    with Service(tmp_path, script(bases=bases, max_children=2, **networks)) as service:
        service.wait_ready(2)
        for source in ("127.0.0.3", "127.0.0.4"):
            closed(dial(service.address, source=source))
        for source in ("127.0.0.1", "127.0.0.2"):
            with Connection(dial(service.address, source=source)) as client:
                assert client.ask(b"pid").isdigit()
        found = service.settled()
        assert (found["completed"], found["rejected"], found["failed"]) == (2, 2, 0)
        assert "closed: it is in denied_clients" in service.log
        assert "closed: it is not in allowed_clients" in service.log


@pytest.mark.parametrize("bases", BASES)
def test_by_the_first_byte(bases: str, tmp_path: Path) -> None:
    """Who says nothing in time is closed; who speaks is served."""
    with Service(tmp_path, script(bases=bases, max_children=2, first_byte_timeout=0.3)) as service:
        service.wait_ready(2)
        closed(dial(service.address))
        tries = 1
        answered = False
        while not answered:  # a pause before it speaks is a silence
            with connect(service.address) as client:
                with contextlib.suppress(ConnectionError):
                    client.send(b"pid")
                answered = client.answer_or_end() is not None
            tries += 1
        found = service.settled()
        assert (found["completed"], found["rejected"], found["failed"]) == (1, tries - 1, 0)
        assert "closed: it said nothing within first_byte_timeout" in service.log


@pytest.mark.parametrize("own", ["", "accepts"])
@pytest.mark.parametrize("bases", BASES)
def test_hooks_of_the_program_never_see_what_is_refused(bases: str, own: str, tmp_path: Path) -> None:
    """Unless its own get_request() has accepted it: then its shutdown_request() closes it."""
    definitions = "from tests.process.programs.closing_hooks import Accepts, Hooks\n"
    definitions += "class Hooks(Accepts, Told): pass\n" if own else "class Hooks(Hooks, Told): pass\n"
    source = script(definitions, bases=bases, max_children=1, denied_clients="127.0.0.3")
    with Service(tmp_path, source) as service:
        service.wait_ready(1)
        closed(dial(service.address, source="127.0.0.3"))
        with connect(service.address) as client:
            assert client.ask(b"pid").isdigit()
        assert service.settled()["rejected"] == 1
        seen = [fact["peer"][0] for fact in service.facts if fact["event"] == "shut down"]
        assert seen == (["127.0.0.3", "127.0.0.1"] if own else ["127.0.0.1"])


def test_datagrams_by_address(tmp_path: Path) -> None:
    definitions = "class Handler(DatagramRequestHandler):\n    def handle(self): self.wfile.write(self.packet)\n"
    source = script(definitions, bases="PreForkingUDPServer", max_children=2, denied_clients="127.0.0.3")
    with Service(tmp_path, source) as service:
        service.wait_ready(2)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as denied:
            denied.bind(("127.0.0.3", 0))
            denied.sendto(b"denied", service.address)
            assert ask_datagram(service.address, b"hello") == b"hello"
            while service.settled()["rejected"] == 0:
                pass
            denied.setblocking(False)
            with pytest.raises(BlockingIOError):
                denied.recv(99)


def test_who_has_waited_too_long_is_closed_and_the_living_are_served(tmp_path: Path) -> None:
    with Service(tmp_path, script(max_children=1, max_queue_wait=2.0)) as service:
        service.wait_ready(1)
        with service.hold():
            late = [dial(service.address) for _ in range(3)]
            for sock in late:
                sock.sendall(b"pid\n")
            sleep(2.3)  # an input: how long they wait
        for sock in late:
            closed(sock)
        with connect(service.address, HUNG) as client:
            assert client.ask(b"pid").isdigit()
        assert service.settled()["rejected"] == 3
