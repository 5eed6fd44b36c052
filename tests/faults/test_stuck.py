"""Workers that are stuck outside a request, beside clients that wait: `stall_timeout`; and who never is."""

import contextlib
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients.connections import Load, ask
from tests.support.clients.scraping import get
from tests.support.programs.service import HUNG, Service, Watch, script
from tests.support.tools.figures import figure, ms
from tests.support.tools.proc import nothing_for

STALL = 0.5
TICK = 1.0  # the master looks at the queue at least this often
SLACK = 1.5  # cut, replaced, booted
THREADED = "PreForkingMixIn, ThreadingTCPServer"
DUMPS = 400  # of stacks; read without the GIL, one of twenty ended the worker
HOLDING = "from tests.faults.programs.stuck import Holding as Handler\n"
STUCK = "idle beside a queue for longer than stall_timeout"


def stalled(tmp_path: Path, definitions: str, **settings: Any) -> Service:
    settings = {"stall_timeout": STALL, "graceful_timeout": 10.0, **settings}
    return Service(tmp_path, script(definitions, **settings))


@pytest.mark.quick_faults
@pytest.mark.parametrize("bases", ["PreForkingTCPServer", THREADED])
def test_the_gil_is_held(bases: str, tmp_path: Path) -> None:
    """A pool of one whose worker has a thread that holds the GIL in C, for a minute: its stacks are logged, it is
    killed and replaced, reason stalled, and the client that waited is answered."""
    with stalled(tmp_path, HOLDING, bases=bases, max_children=1) as service:
        service.expect(STUCK)
        service.wait_ready(1)
        with service.connect() as client:
            stuck = int(client.ask(b"hold_after 60"))
        service.wait("holding")
        with Watch(stuck) as watch:
            began = time.monotonic()
            assert int(ask(service.address, b"pid\n")) != stuck
            took = time.monotonic() - began
            watch.wait_dead()
        service.wait_ready(1, stalled=1)
        statistics = service.statistics()
    figure(f"{bases}, the GIL held: a waiting client answered after", ms(took), ms(STALL + TICK + SLACK))
    assert STALL < took < STALL + TICK + SLACK
    assert (statistics["exits"], statistics["lost"]) == ({"stalled": 1}, 0)
    assert " in hold_the_gil\n" in service.log


@pytest.mark.quick_faults
def test_stacks_of_busy_threads(tmp_path: Path) -> None:
    """They are written as long as anybody asks, while every thread begins and ends one function after another."""
    with Service(tmp_path, script(bases=THREADED, max_children=1, max_threads=4)) as service:
        service.wait_ready(1)
        (worker,) = service.workers()
        with Load(service.address, 3) as load:
            for _ in range(DUMPS):
                os.kill(worker, signal.SIGUSR1)
                load.wait_answered(3)
        while "stacks of its threads" not in service.log:
            service.statistics()
        statistics = service.settled()
    figure(f"{DUMPS} stacks of a busy worker", f"{load.tally.answered} answered, {load.tally.failures} failed")
    assert (statistics["exits"], load.tally.failures) == ({}, 0)


@pytest.mark.quick_faults
def test_every_idle_worker_is_stopped(tmp_path: Path) -> None:
    """All idle workers in SIGSTOP: they are continued, so that one of them may answer the client that waited, and all
    end in good order; and replaced."""
    with stalled(tmp_path, "", max_children=2) as service:
        service.expect(STUCK)
        service.wait_ready(2)
        stopped = service.workers()
        for pid in stopped:
            service.signal(signal.SIGSTOP, pid)
        with Watch(*stopped) as watch, service.connect() as client:
            began = time.monotonic()
            client.ask(b"pid")
            took = time.monotonic() - began
            client.close()
            watch.wait_dead()
        service.wait_ready(2, stalled=2)
        assert service.statistics()["exits"] == {"stalled": 2}
        stopping = {fact["pid"] for fact in service.facts if fact["event"] == "worker_stopping"}
    figure("all idle workers stopped: a client answered after", ms(took), ms(STALL + TICK + SLACK))
    assert STALL < took < STALL + TICK + SLACK
    assert stopping >= set(stopped)
    assert "stacks of its threads" in service.log


@pytest.mark.once
def test_ready_is_honest(tmp_path: Path) -> None:
    """A request that holds the GIL is not cut by stall_timeout, but with a client waiting and no worker that answers
    /-/ready is red, and green again when one does."""
    definitions = "from tests.faults.programs.stuck import Exporting as Hooks, Holding as Handler\n"
    with stalled(tmp_path, definitions, bases=THREADED, max_children=1, metrics_address=("127.0.0.1", 0)) as service:
        service.wait_ready(1)
        exporter = tuple(service.wait("exporting")["address"])
        with service.hold() as held:
            assert get(exporter, "/-/ready").status == 200
            held.send(b"hold 4")
            service.wait("holding")
            with service.connect() as client:
                client.send(b"pid")
                wait_for_status(exporter, 503)
                assert get(exporter, "/-/healthy").status == 200
                assert int(client.answer()) == int(held.answer())
            wait_for_status(exporter, 200)
        assert service.statistics()["exits"] == {}
    assert STUCK not in service.log


def wait_for_status(exporter: tuple[Any, ...], status: int) -> None:
    deadline = time.monotonic() + HUNG
    while get(exporter, "/-/ready").status != status:
        assert time.monotonic() < deadline, f"hung: /-/ready is never {status}"
        time.sleep(0.05)  # a poll: nothing tells


@pytest.mark.once
@pytest.mark.parametrize("how", ["sync", "threads", "unix"])
def test_a_full_pool_is_not_stuck(how: str, tmp_path: Path) -> None:
    """With every lane busy, and clients waiting for several stall_timeouts, in some of which the master is stopped,
    nobody is replaced."""
    bases = {"threads": THREADED, "unix": "PreForkingUnixStreamServer"}.get(how, "PreForkingTCPServer")
    address: Any = "socket" if how == "unix" else ("127.0.0.1", 0)
    with stalled(tmp_path, "", bases=bases, address=address, max_children=2, max_threads=2) as service:
        service.wait_ready(2)
        before = service.workers()
        with contextlib.ExitStack() as stack:
            held = [stack.enter_context(service.hold()) for _ in range(4 if how == "threads" else 2)]
            waiting = [stack.enter_context(service.connect()) for _ in range(8)]
            for each in waiting:
                each.send(b"pid")
            time.sleep(TICK + 2 * STALL)  # an input: how long they wait
            service.signal(signal.SIGSTOP)
            time.sleep(2 * STALL)  # an input
            service.signal(signal.SIGCONT)
            service.statistics()
            for each in held:
                each.close()
            for each in waiting:
                assert int(each.answer()) in before
                each.close()
        assert service.statistics()["exits"] == {}
    assert STUCK not in service.log


@pytest.mark.once
def test_off(tmp_path: Path) -> None:
    """Without stall_timeout a worker that is stopped beside a queue stays, and answers when it is continued."""
    with stalled(tmp_path, "", max_children=1, stall_timeout=None) as service:
        service.wait_ready(1)
        (stopped,) = service.workers()
        service.signal(signal.SIGSTOP, stopped)
        with service.connect() as client:
            client.send(b"pid")
            nothing_for(TICK + 3 * STALL, client.sock)
            service.signal(signal.SIGCONT, stopped)
            assert int(client.answer()) == stopped
        assert service.statistics()["exits"] == {}


@pytest.mark.once
def test_a_flooded_datagram_service_is_not_stuck(tmp_path: Path) -> None:
    """One worker beside a queue of datagrams that lasts for several stall_timeouts is left to answer each."""
    definitions = "from tests.faults.programs.stuck import Slow as Handler\n"
    with stalled(tmp_path, definitions, bases="PreForkingUDPServer", max_children=1) as service:
        service.wait_ready(1)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(HUNG)
            client.connect(service.address)
            for _ in range(50):
                client.send(b"x")
            assert {client.recv(100) for _ in range(50)} == {b"%d" % service.workers()[0]}
        assert service.statistics()["exits"] == {}
    assert STUCK not in service.log
