"""Two hundred deaths and as many requests: descriptors, mappings, memfds, threads and memory stay flat."""

import contextlib
import os
import signal
from pathlib import Path
from time import monotonic

import psutil
import pytest

from tests.support.clients.connections import ask
from tests.support.programs.service import HUNG, Service, script
from tests.support.tools.figures import figure

WARM_UP = 300  # until the allocator has touched the whole of the arena that it is in, 1 MiB
MORE_MEMORY = 0.02  # of the master's RSS
ONE_ARENA = {"MALLOC_ARENA_MAX": "1"}  # the C library makes up to sixteen as threads happen to meet, and keeps them


def held_by(pid: int) -> dict[str, int]:
    """What a process holds: counts that must not grow with time, and its memory."""
    descriptors = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed since: a client's, in the middle of a turn
            descriptors.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {
        "descriptors": len(descriptors),
        "memfds": sum("memfd:" in name for name in descriptors),
        "slots mapped": Path(f"/proc/{pid}/maps").read_text().count("prefork-slot"),
        "mappings": len(Path(f"/proc/{pid}/maps").read_text().splitlines()),
        "threads": int(status["Threads"]),
        "RSS KiB": int(status["VmRSS"].split()[0]),
    }


def settled(service: Service) -> dict[str, int]:
    """The figures of a plain server between two turns of its loop, when no child and no thread of a request is left."""
    deadline = monotonic() + HUNG
    while monotonic() < deadline:
        reaped = not psutil.Process(service.pid).children()
        service.statistics()  # told at the end of a turn
        held = held_by(service.pid)
        if reaped and held["threads"] == 1:
            return held
    raise AssertionError("hung: the last request does not end")


def compare(name: str, before: dict[str, int], after: dict[str, int]) -> None:
    grown = {what: after[what] - count for what, count in before.items()}
    memory = grown.pop("RSS KiB") / before["RSS KiB"]
    mappings = grown.pop("mappings")
    figure(f"{name}: grown", {**grown, "mappings": mappings}, "+0")
    figure(f"{name}: RSS", f"{memory:+.1%}", f"{MORE_MEMORY:.0%}")
    assert grown == dict.fromkeys(grown, 0)
    assert mappings <= 8  # stacks that are kept for the next thread
    assert memory < MORE_MEMORY


@pytest.mark.parametrize("bases", ["PreForkingTCPServer", "PreForkingMixIn, ThreadingTCPServer"])
def test_two_hundred_kills(bases: str, tmp_path: Path) -> None:
    """kill -9 of a worker, 200 times: the master holds what it held, and every death is on the account."""
    with Service(tmp_path, script(bases=bases, max_children=2), env=ONE_ARENA) as service:
        for number in range(WARM_UP + 200):
            service.wait_ready(2, **({"killed": number} if number else {}))
            if number == WARM_UP:
                before = held_by(service.pid)
            if number % 2:
                with service.hold() as held:
                    service.signal(signal.SIGKILL, held.pid)
            else:
                service.signal(signal.SIGKILL, service.workers()[0])
        service.wait_ready(2, killed=WARM_UP + 200)
        compare(f"{bases}, 200 kills", before, held_by(service.pid))
        statistics = service.statistics()
        assert statistics["accepted"] == statistics["lost"] == (WARM_UP + 200) // 2
        assert statistics["spawned"] == WARM_UP + 200 + 2


@pytest.mark.quick_faults
@pytest.mark.parametrize("bases", ["ForkingTCPServer", "ThreadingTCPServer"])
def test_two_hundred_requests_of_a_plain_server(bases: str, tmp_path: Path) -> None:
    """A child, or a thread, per request, 200 times, some ending badly: nothing is kept of them."""
    with Service(tmp_path, script(bases=bases), env=ONE_ARENA) as service:
        service.expect("RuntimeError: asked to raise")
        for number in range(WARM_UP + 200):
            if number == WARM_UP:
                before = settled(service)
            ask(service.address, b"raise\n" if number % 10 == 1 else b"pid\n")
        compare(f"{bases}, 200 requests", before, settled(service))
        service.signal(signal.SIGKILL)
        service.wait_exit()
        service.wait_gone()
