"""What a pool costs that has nothing to do: CPU time and wake-ups of master and workers."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .contenders import Contender, started
from .figures import table
from .meter import cpu_clock_ns, tree, wakeups
from .traffic import drive

SERVED = 1000  # requests before
QUIET_S = 1.0  # after the last request, before idleness is measured


@dataclass(frozen=True)
class Idle:
    """Of all processes of a contender, per second."""

    contender: str
    workers: int
    cpu_us: float
    wakeups: float
    of_workers: float  # wake-ups of all but the root


def measure(contenders: Sequence[Contender], workers: int, seconds: float) -> list[Idle]:
    """All at once, for as long: they do nothing."""
    with started(contenders, "recv", workers) as servers:
        for server in servers:
            drive(server.traffic, server.address, 0, SERVED)
        time.sleep(QUIET_S)
        pids = {server.pid: list(tree(server.pid)) for server in servers}
        before = {pid: (cpu_clock_ns(pid), wakeups(pid)) for those in pids.values() for pid in those}
        time.sleep(seconds)
        after = {pid: (cpu_clock_ns(pid), wakeups(pid)) for those in pids.values() for pid in those}
        found = []
        for server in servers:
            cpu = sum(after[pid][0] - before[pid][0] for pid in pids[server.pid]) / 1000 / seconds
            woken = {
                pid: sum(count - before[pid][1].get(thread, 0) for thread, count in after[pid][1].items()) / seconds
                for pid in pids[server.pid]
            }
            found.append(
                Idle(server.contender.name, workers, cpu, sum(woken.values()), sum(woken.values()) - woken[server.pid])
            )
        return found


def report(found: Sequence[Idle]) -> Iterator[str]:
    yield f"Idle, with {found[0].workers} workers"
    head = ("idle", "CPU, µs/s", "wake-ups/s", "of these not of the first process")
    yield table(
        head, [[one.contender, f"{one.cpu_us:.0f}", f"{one.wakeups:.1f}", f"{one.of_workers:.1f}"] for one in found]
    )
