"""EPOLLEXCLUSIVE wakes one worker; what if that one is gone, or stopped, before it accepts, and nothing else comes?"""

import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from prefork.workers.signals import DRAIN_SIGNAL
from tests.support.clients.connections import ask, ask_datagram
from tests.support.programs.service import HUNG, Service, script
from tests.support.tools.figures import figure, ms
from tests.support.tools.proc import switches, waits

ANSWERED = 1.2  # seconds, for a connection whose wake-up died
TIMES = 4

KINDS: dict[str, Any] = {
    "PreForkingTCPServer": ("127.0.0.1", 0),
    "PreForkingMixIn, ThreadingTCPServer": ("127.0.0.1", 0),
    "PreForkingUnixStreamServer": "s",
    "PreForkingUDPServer": ("127.0.0.1", 0),
}


def walking(hooks: str, bases: str, **settings: Any) -> str:
    """A program whose workers walk into the trap; three of them, unless told otherwise."""
    definitions = f"from tests.faults.programs.trapped import Datagram, {hooks} as Hooks"
    if "UDP" in bases:
        definitions += "\nHandler = Datagram"
    return script(definitions, bases=bases, address=KINDS[bases], **{"max_children": 3, **settings})


def answered_by(service: Service, bases: str) -> int:
    """One request, with nothing else going on; the pid of who answered."""
    return int(ask_datagram(service.address, b"x") if "UDP" in bases else ask(service.address, b"pid\n"))


def answered_in(service: Service, bases: str) -> float:
    """One request, with nothing else going on; the seconds until it was answered."""
    began = time.monotonic()
    assert answered_by(service, bases)
    return time.monotonic() - began


def lay_trap(service: Service) -> None:
    """As soon as every worker waits: who has looked for the trap, and not accepted yet, would answer unharmed."""
    deadline = time.monotonic() + HUNG
    while not all(map(waits, service.workers())):
        assert time.monotonic() < deadline, "hung: a worker does not wait for requests"
    (service.directory / "trap").touch()


def wait_stopped(pid: int) -> None:
    """Until the process is stopped: a CONT that comes before its STOP does nothing."""
    deadline = time.monotonic() + HUNG
    while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < deadline, f"hung: pid {pid} is not stopped"


@pytest.mark.quick_faults
@pytest.mark.parametrize("name", ["KILL", "STOP"])
@pytest.mark.parametrize("bases", KINDS)
def test_woken_and_gone(bases: str, name: str, tmp_path: Path) -> None:
    """The worker that was woken is killed, or stopped, before it accepts: a sibling answers, with no other traffic."""
    slowest = 0.0
    with Service(tmp_path, walking("Hooks", bases, trap=name)) as service:
        if name == "KILL":
            service.expect(r"killed \(killed by SIGKILL\)")
        for time_ in range(1, TIMES + 1):
            service.wait_ready(3)
            lay_trap(service)
            mark = service.mark()
            slowest = max(slowest, answered_in(service, bases))
            trapped = service.wait("trapped", after=mark)["pid"]
            if name == "STOP":
                wait_stopped(trapped)
                service.signal(signal.SIGCONT, trapped)
            else:
                service.wait_ready(3, killed=time_)
        statistics = service.settled()
    figure(f"{bases}, woken worker in SIG{name}: slowest answer", ms(slowest), ms(ANSWERED))
    assert slowest < ANSWERED
    assert statistics["accepted"] == statistics["completed"] == TIMES
    assert statistics["exits"] == ({} if name == "STOP" else {"killed": TIMES})


@pytest.mark.parametrize("name", ["KILL", "STOP"])
def test_woken_by_one_of_several_and_gone(name: str, tmp_path: Path) -> None:
    """The same of a pool with three listeners, whichever of them it was that woke the worker: a sibling has been woken
    for no other, and tries them all when the master wakes it."""
    slowest, bases = 0.0, "PreForkingTCPServer"
    with Service(tmp_path, walking("Beside", bases, trap=name)) as service:
        if name == "KILL":
            service.expect(r"killed \(killed by SIGKILL\)")
        beside = os.path.relpath(tmp_path / "beside")
        udp = tuple(service.wait("beside")["address"])
        for time_, where in enumerate((service.address, beside, udp), 1):
            service.wait_ready(3)
            lay_trap(service)
            mark, began = service.mark(), time.monotonic()
            assert ask_datagram(where, b"x") if where is udp else ask(where, b"pid\n")
            slowest = max(slowest, time.monotonic() - began)
            trapped = service.wait("trapped", after=mark)["pid"]
            if name == "STOP":
                wait_stopped(trapped)
                service.signal(signal.SIGCONT, trapped)
            else:
                service.wait_ready(3, killed=time_)
        statistics = service.settled()
    figure(f"three listeners, woken worker in SIG{name}: slowest answer", ms(slowest), ms(ANSWERED))
    assert slowest < ANSWERED
    assert statistics["accepted"] == statistics["completed"] == 3


def test_woken_and_stopped_for_good(tmp_path: Path) -> None:
    """A worker stopped between wake-up and accept for good: request_timeout finds it, and it is replaced."""
    source = walking("Hooks", "PreForkingTCPServer", trap="STOP", max_children=2, request_timeout=1.0)
    with Service(tmp_path, source) as service:
        service.expect("a request has run for longer than request_timeout")
        service.wait_ready(2)
        lay_trap(service)
        slowest = answered_in(service, "")
        replaced = service.wait_ready(2, timeout=1)
        took = replaced["at"] - service.wait("trapped")["at"]
    figure("stopped in accept: answered after", ms(slowest), ms(ANSWERED))
    figure("stopped in accept: replaced after", ms(took), "1 to 2.5 s")
    assert slowest < ANSWERED
    assert 0.9 < took < 2.5


@pytest.mark.parametrize("bases", KINDS)
def test_told_to_leave_when_woken(bases: str, tmp_path: Path) -> None:
    """A worker that is told to leave between its wake-up and accept takes what it alone was woken for, and then goes:
    it answers itself, and the master need not poke anybody."""
    with Service(tmp_path, walking("Unpoked", bases, trap=DRAIN_SIGNAL.name.removeprefix("SIG"))) as service:
        for time_ in range(1, TIMES + 1):
            service.wait_ready(3)
            lay_trap(service)
            mark = service.mark()
            answered = answered_by(service, bases)
            assert answered == service.wait("trapped", after=mark)["pid"]
            service.wait_ready(3, drained=time_)
        statistics = service.settled()
    assert statistics["accepted"] == statistics["completed"] == TIMES


IDLE = 8
CONNECTIONS = 200


def test_one_connection_wakes_one_worker(tmp_path: Path) -> None:
    """Of eight idle workers one wakes for each connection, and goes back to sleep, not all of them."""
    with Service(tmp_path, script(max_children=IDLE)) as service:
        service.wait_ready(IDLE)
        assert ask(service.address, b"pid\n")
        workers, woken = service.workers(), 0
        for _ in range(CONNECTIONS):
            before = {pid: switches(pid) for pid in workers}
            answered = int(ask(service.address, b"pid\n"))
            woken += sum(switches(pid) != count for pid, count in before.items() if pid != answered)
    figure("eight idle workers: others that woke, for each connection", woken / CONNECTIONS, 1)
    assert woken / CONNECTIONS < 1  # one may still be on its way to sleep, from the connection before


def test_leaving_worker_takes_what_it_was_woken_for(tmp_path: Path) -> None:
    """Workers that are replaced without pause, one connection at a time: each is answered within the bound."""
    with Service(tmp_path, script(max_children=2, max_requests=1)) as service:
        service.wait_ready(2)
        slowest = 0.0
        for _ in range(200):
            began = time.monotonic()
            with socket.create_connection(service.address, 30) as client:
                client.sendall(b"pid\n")
                assert client.recv(100)
            slowest = max(slowest, time.monotonic() - began)
        statistics = service.statistics()
    figure("200 connections at workers that serve one each: slowest answer", ms(slowest), ms(ANSWERED))
    assert slowest < ANSWERED
    assert statistics["accepted"] == 200
    assert statistics["lost"] == 0
