"""A handler shuts the listener down, shutdown(2), and it cannot be mended: its name is taken by those who have it."""

import socket
from pathlib import Path

import pytest

from tests.process.test_shut_listeners import FROM, STREAMS
from tests.support.clients.connections import ask_datagram, connect
from tests.support.programs.service import Service, script
from tests.support.tools.figures import figure
from tests.support.tools.proc import cpu_seconds, nothing_for

AFTER_S = 0.6  # an input
CPU = 0.05


def spent(service: Service) -> float:
    """The share of a CPU that the busiest of workers and master takes from now on."""
    pids = [*service.workers(), service.pid]
    before = [cpu_seconds(pid) for pid in pids]
    passed = nothing_for(AFTER_S)
    return max(cpu_seconds(pid) - since for pid, since in zip(pids, before, strict=True)) / passed


@pytest.mark.parametrize(
    ("model", "how"), [*((model, b"read") for model in STREAMS), ("sync", b"both"), ("threads", b"both")]
)
def test_nobody_spins(model: str, how: bytes, tmp_path: Path) -> None:
    """It is said once, and nobody asks again and again for clients that cannot come."""
    bases, definitions = STREAMS[model]
    address = "\0" + str(tmp_path)[-90:]
    source = script(definitions, bases=f"{bases}, UnixStreamServer", address=address, max_children=2)
    with Service(tmp_path, source) as service:
        service.wait_ready(2)
        with connect(address) as client:
            assert client.ask(how)
        while "until a restart" not in service.log:
            service.statistics()
        if model == "forked ahead":
            service.wait_ready(2, max_requests=1)
        share = spent(service)
        service.expect("no new client can connect there until a restart")
    figure(f"{model}, shut down by {how.decode()}: the busiest process", f"{share:.1%}", f"{CPU:.0%}")
    assert share < CPU
    assert service.log.count("was shut down by a process of the service") == 1


@pytest.mark.parametrize("how", [b"read", b"both"])
@pytest.mark.parametrize("bases", ["PreForkingUDPServer", "PreForkingMixIn, ThreadingUDPServer"])
def test_nobody_spins_for_datagrams(bases: str, how: bytes, tmp_path: Path) -> None:
    """Nor at a socket for datagrams, which looks readable from then on; before the next one, and after it."""
    with Service(tmp_path, script(FROM.format("Datagrams"), bases=bases, max_children=2)) as service:
        service.wait_ready(2)
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.connect(service.address)
            client.send(how)
            while "until a restart" not in service.log:
                service.statistics()
            shares = [spent(service)]
            client.send(b"pid")
            shares.append(spent(service))
        if how == b"read":
            assert ask_datagram(service.address, b"pid")
        service.expect("answers may fail until a restart")
        service.allow("could not finish the request from .*Broken")
    figure(f"{bases}, shut down by {how.decode()}: the busiest", [f"{share:.1%}" for share in shares], f"{CPU:.0%}")
    assert max(shares) < CPU
