"""How long a server takes to start and to stop, and to replace a worker that is killed."""

import os
import select
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from .contenders import Contender, started
from .figures import table
from .meter import children
from .traffic import drive

HUNG_S = 30.0


@dataclass(frozen=True)
class Life:
    """In ms, the median of the rounds. `start`: from exec until every worker serves, interpreter and imports included;
    `stop`: from TERM to the exit; `replace`: from the death of a worker until its successor serves, None: nobody does.
    """

    contender: str
    workers: int
    start: float
    start_cpu: float
    stop: float
    replace: float | None


def measure(contenders: Sequence[Contender], workers: int, rounds: int) -> list[Life]:
    found: dict[str, list[Life]] = {each.name: [] for each in contenders}
    for _ in range(rounds):
        for each in contenders:
            found[each.name].append(live(each, workers))
    return [middle(lives) for lives in found.values()]


def live(contender: Contender, workers: int) -> Life:
    began = time.perf_counter()
    with started([contender], contender.traffic[0], workers) as (server,):
        start = time.perf_counter() - began
        cpu = server.meter.usage_ns(server.pid) / 1e6
        drive(server.traffic, server.address, 0, 10)
        replaced = None
        if contender.ours and contender.processes is None:
            killed = time.perf_counter()
            os.kill(a_worker(server.pid), signal.SIGKILL)
            server.another()
            replaced = (time.perf_counter() - killed) * 1000
        root = children(server.pid)[0] if contender.run.startswith("others.") else server.pid  # ours waits beside it
        told = time.perf_counter()
        pidfd = os.pidfd_open(root)
        try:
            os.kill(root, signal.SIGTERM)
            if not select.select([pidfd], [], [], HUNG_S)[0]:
                raise RuntimeError(f"{contender.name} does not stop")
        finally:
            os.close(pidfd)
        return Life(contender.name, workers, start * 1000, cpu, (time.perf_counter() - told) * 1000, replaced)


def a_worker(master: int) -> int:
    return next(pid for pid in children(master) if b"worker" in Path(f"/proc/{pid}/cmdline").read_bytes())


def middle(lives: Sequence[Life]) -> Life:
    first = lives[0]
    replaced = [one.replace for one in lives if one.replace is not None]
    start, cpu, stop = (median(getattr(one, name) for one in lives) for name in ("start", "start_cpu", "stop"))
    return Life(first.contender, first.workers, start, cpu, stop, median(replaced) if replaced else None)


def report(found: Sequence[Life]) -> Iterator[str]:
    yield f"Start, stop and a killed worker, with {found[0].workers} workers"
    rows = [
        [one.contender, f"{one.start:.0f}", f"{one.start_cpu:.0f}", f"{one.stop:.0f}",
         "" if one.replace is None else f"{one.replace:.0f}"]
        for one in found
    ]  # fmt: skip
    yield table(("life", "start, ms", "CPU ms of it", "stop, ms", "replace, ms"), rows)
