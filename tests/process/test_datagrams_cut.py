"""Datagrams longer than `max_packet_size` in a pool: what the handler gets, and what is counted and told."""

import os
import signal
import socket
from pathlib import Path

import pytest

from tests.support.clients.connections import HUNG, ask_datagram
from tests.support.clients.scraping import get, total
from tests.support.programs.releases import Released
from tests.support.programs.service import Service, script

pytestmark = pytest.mark.once  # nothing of it is the interpreter's

ECHO = "class Handler(DatagramRequestHandler):\n    def handle(self): self.wfile.write(self.packet)\n"
COUNTED = "prefork_datagrams_truncated_total"


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize(
    "bases", ["PreForkingUDPServer", "PreForkingMixIn, ThreadingUDPServer", "PreForkingMixIn, ForkingUDPServer",
              "PreForkingMixIn, socketserver.ThreadingUDPServer"]
)  # fmt: skip
def test_the_handler_gets_what_fits(bases: str, host: str, tmp_path: Path) -> None:
    """Each one is counted, over a reload, and no other; a line names a peer and the limit."""
    source = script(ECHO, bases=bases, address=(host, 0), max_children=2, max_packet_size=100, metrics_address="m")
    with Released(tmp_path, source=source) as service:
        service.wait_ready(2)
        address = "127.0.0.1", service.address[1]
        for size in (100, 101, 9000, 0, 101):
            assert ask_datagram(address, b"x" * size) == b"x" * min(size, 100)
        service.signal(signal.SIGHUP)
        service.wait_reloads(ok=1)
        assert ask_datagram(address, b"x" * 101) == b"x" * 100
        where = os.path.relpath(tmp_path / "m")
        service.settled()
        assert total(get(where).samples, COUNTED) == 4
    assert "a datagram from 127.0.0.1:" in service.log
    assert "is longer than max_packet_size, and cut to its first 100 bytes" in service.log


def test_over_unix_datagrams(tmp_path: Path) -> None:
    """From a client without a name; and the count outlives the worker, which its handler ends."""
    source = script(ECHO.replace("self.wfile.write(self.packet)", "os._exit(0)"), bases="PreForkingUnixDatagramServer",
                    address="d", max_children=1, max_packet_size=4, metrics_address="m")  # fmt: skip
    with Service(tmp_path, source) as service, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        service.wait_ready(1)
        service.expect("exited .exit status 0. by the program")
        client.settimeout(HUNG)
        client.connect(os.path.relpath(tmp_path / "d"))
        client.send(b"12345")
        service.wait_pool(lambda pool: pool["spawned"] == 2)
        assert total(get(os.path.relpath(tmp_path / "m")).samples, COUNTED) == 1
    assert "a datagram from an unnamed client is longer" in service.log
