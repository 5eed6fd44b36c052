"""No descriptor left: in the workers, in one of two, in the master. The limit is set on live processes, from here."""

import contextlib
import signal
import time
from pathlib import Path

import pytest

from tests.support.clients.connections import Load, ask, connect
from tests.support.programs.service import Service, script
from tests.support.tools.figures import figure, ms
from tests.support.tools.proc import accept_queue, cpu_seconds, no_descriptor_left, nothing_for

SHORT_S = 1.2  # an input: how long there is no descriptor
TRIES = 20  # a second
CPU = 0.05
RECOVERED = 1.0  # seconds
BASES = ["PreForkingTCPServer", "PreForkingMixIn, ThreadingTCPServer"]


@pytest.mark.quick_faults
@pytest.mark.parametrize("bases", BASES)
def test_in_a_worker(bases: str, tmp_path: Path) -> None:
    """Out of descriptors a worker does not spin and says so once, the queue keeps the connections, and each is served
    afterwards."""
    with Service(tmp_path, script(bases=bases, max_children=1)) as service, contextlib.ExitStack() as stack:
        service.wait_ready(1)
        [worker] = service.workers()
        before = service.statistics()
        cpu = cpu_seconds(worker), cpu_seconds(service.pid)
        with no_descriptor_left(worker):
            waiting = [stack.enter_context(connect(service.address)) for _ in range(4)]
            for client in waiting:
                client.send(b"pid")
            passed = nothing_for(SHORT_S, *(client.sock for client in waiting))
            assert accept_queue(service.address[1]) == 4
            spent = cpu_seconds(worker) - cpu[0], cpu_seconds(service.pid) - cpu[1]
            after = service.statistics()
        lifted = time.monotonic()
        for client in waiting:
            assert int(client.answer()) == worker
            client.close()
        took = time.monotonic() - lifted
        assert service.statistics()["exits"] == {}
        assert service.log.count("could not accept: [Errno 24] Too many open files; trying again every 0.1 s") == 1
    tries = after["accept_errors"]["emfile"] - before["accept_errors"].get("emfile", 0)
    figure(f"{bases}, no descriptor in the worker: tries a second", f"{tries / passed:.1f}", TRIES)
    figure(f"{bases}, no descriptor in the worker: its CPU, the master's",
           [f"{seconds / passed:.1%}" for seconds in spent], f"{CPU:.0%}")  # fmt: skip
    figure(f"{bases}, no descriptor in the worker: all served after", ms(took), ms(RECOVERED))
    assert 1 <= tries <= TRIES * passed
    assert max(spent) < CPU * passed
    assert took < RECOVERED


@pytest.mark.parametrize("bases", BASES)
def test_in_one_of_two_workers(bases: str, tmp_path: Path) -> None:
    """A worker without descriptors keeps no connection from its sibling, one at a time and under load."""
    slowest = 0.0
    with Service(tmp_path, script(bases=bases, max_children=2)) as service:
        service.wait_ready(2)
        short, other = service.workers()
        cpu, began = cpu_seconds(short), time.monotonic()
        with no_descriptor_left(short):
            while time.monotonic() < began + SHORT_S:
                asked = time.monotonic()
                assert int(ask(service.address, b"pid\n")) == other
                slowest = max(slowest, time.monotonic() - asked)
            passed, spent = time.monotonic() - began, cpu_seconds(short) - cpu
            tries = service.statistics()["accept_errors"].get("emfile", 0)
            with Load(service.address, 4) as load:
                load.wait_answered(500)
        for _ in range(100):
            assert int(ask(service.address, b"pid\n"))
        assert service.statistics()["exits"] == {}
    figure(f"{bases}, one of two without descriptors: slowest answer", ms(slowest), ms(1.2))
    figure(f"{bases}, one of two without descriptors: its tries a second", f"{tries / passed:.1f}", TRIES)
    figure(f"{bases}, one of two without descriptors: failed", load.tally.failures, 0)
    assert slowest < 1.2
    assert load.tally.failures == 0
    assert tries <= TRIES * passed
    assert spent < CPU * passed


@pytest.mark.quick_faults
def test_in_the_master(tmp_path: Path) -> None:
    """A master without descriptors starts no worker, says so once, serves with those it has, and recovers by itself."""
    with Service(tmp_path, script(max_children=2)) as service:
        service.expect("could not fork a worker: too many open files")
        service.wait_ready(2)
        cpu = cpu_seconds(service.pid)
        with no_descriptor_left(service.pid):
            service.signal(signal.SIGTTIN)
            service.wait_pool(lambda pool: pool["fork_failures"] >= 1)
            service.signal(signal.SIGKILL, service.workers()[0])
            service.wait_ready(2, killed=1)  # what the dead one gave back is enough for one
            with Load(service.address, 2) as load:
                passed = nothing_for(SHORT_S)
            failures = service.statistics()["fork_failures"]
            spent = cpu_seconds(service.pid) - cpu
        lifted = time.monotonic()
        took = service.wait_ready(3, killed=1)["at"] - lifted
        assert int(ask(service.address, b"pid\n"))
        log = service.log
    figure("no descriptor in the master: tries to fork a second", f"{failures / passed:.1f}", TRIES)
    figure("no descriptor in the master: CPU", f"{spent / passed:.1%}", f"{CPU:.0%}")
    figure("no descriptor in the master: full pool after", ms(took), ms(RECOVERED))
    figure("no descriptor in the master: requests failed", f"{load.tally.failures} of {load.tally.opened}", 0)
    assert failures <= TRIES * passed
    assert spent < CPU * passed
    assert took < RECOVERED
    assert load.tally.failures == 0
    assert log.count("could not fork a worker: too many open files") == 1


def test_in_a_forking_server(tmp_path: Path) -> None:
    """A server that accepts and forks by itself does so too, short from its first request on."""
    bases = "ForkingTCPServer"
    with Service(tmp_path, script(bases=bases)) as service, contextlib.ExitStack() as stack:
        service.wait("listening")
        before, cpu = service.statistics(), cpu_seconds(service.pid)
        with no_descriptor_left(service.pid):
            waiting = [stack.enter_context(connect(service.address)) for _ in range(4)]
            for client in waiting:
                client.send(b"pid")
            passed = nothing_for(SHORT_S, *(client.sock for client in waiting))
            after, spent = service.statistics(), cpu_seconds(service.pid) - cpu
        lifted = time.monotonic()
        for client in waiting:
            assert int(client.answer())
            client.close()
        took = time.monotonic() - lifted
        service.signal(signal.SIGKILL)
        service.wait_exit()
        service.wait_gone()
    tries = after["accept_errors"].get("emfile", 0) - before["accept_errors"].get("emfile", 0)
    figure(f"{bases}, no descriptor: tries a second", f"{tries / passed:.1f}", TRIES)
    figure(f"{bases}, no descriptor: CPU", f"{spent / passed:.1%}", f"{CPU:.0%}")
    figure(f"{bases}, no descriptor: all served after", ms(took), ms(RECOVERED))
    assert after["failed"] == 0
    assert 1 <= tries <= TRIES * passed
    assert spent < CPU * passed
    assert took < RECOVERED
