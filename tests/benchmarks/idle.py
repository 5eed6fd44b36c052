"""What a pool costs that has nothing to do: memory of each process, CPU time and wake-ups of an idle pool.

    python -m tests.benchmarks.idle [--workers N] [--seconds S] [--json FILE]       from the checkout; 45 s

Memory is read when the pool is ready, and again when it has served. Private is what the process shares with nobody
(Private_Clean + Private_Dirty, also called USS); PSS adds its share of what is shared, and so depends on how many
processes there are. A wake-up is a voluntary context switch: every wait that ended.
"""

import argparse
import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from .contenders import BARE, CONTENDERS, POOL, Started, started
from .meter import children, cpu_clock_ns
from .traffic import drive

SERVED = 4000
QUIET_S = 1.0  # after the last request, before idleness is measured
MASTER_AT_MOST = 1.0  # wake-ups a second


@dataclass
class Process:
    """One process of a pool; memory in MB, CPU time in ms over the idle time."""

    server: str
    name: str
    pid: int
    rss: float = 0.0
    pss: float = 0.0
    private_fresh: float = 0.0
    private: float = 0.0
    cpu_ms: float = 0.0
    wakeups_per_s: float = 0.0


def memory(pid: int) -> dict[str, float]:
    """MB, by the names of proc_pid_smaps(5)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines}


def private(pid: int) -> float:
    figures = memory(pid)
    return figures["Private_Clean"] + figures["Private_Dirty"]


def wakeups(pid: int) -> int:
    statuses = (task / "status" for task in Path(f"/proc/{pid}/task").iterdir())
    lines = (line for status in statuses for line in status.read_text().splitlines())
    return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))


def fresh(server: Started) -> list[Process]:
    name = server.contender.name
    found = [Process(name, "master", server.pid)]
    found += [Process(name, f"worker {n}", pid) for n, pid in enumerate(sorted(children(server.pid)), 1)]
    for process in found:
        process.private_fresh = private(process.pid)
    return found


def rest(processes: Iterable[Process], seconds: float) -> None:
    """Let them do nothing for so long, and see what they did."""
    before = {process.pid: (cpu_clock_ns(process.pid), wakeups(process.pid)) for process in processes}
    time.sleep(seconds)
    for process in processes:
        cpu_ns, count = before[process.pid]
        process.cpu_ms = (cpu_clock_ns(process.pid) - cpu_ns) / 1e6
        process.wakeups_per_s = (wakeups(process.pid) - count) / seconds


def measure(name: str, workers: int, seconds: float) -> list[Process]:
    contender = next(each for each in CONTENDERS if each.name == name)
    with started([contender], "stream", workers) as (server,):
        time.sleep(QUIET_S)
        processes = fresh(server)
        drive(server.traffic, server.address, 0, SERVED)
        for process in processes:
            figures = memory(process.pid)
            process.rss, process.pss, process.private = figures["Rss"], figures["Pss"], private(process.pid)
        time.sleep(QUIET_S)
        rest(processes, seconds)
    return processes


def report(processes: list[Process], seconds: float) -> None:
    columns = ("RSS MB", "PSS MB", "private, new", "private, served", f"CPU ms in {seconds:g} s", "wake-ups/s")
    print(f"{'server':22}{'process':11}" + "".join(f"{column:>17}" for column in columns))
    for p in processes:
        figures = (p.rss, p.pss, p.private_fresh, p.private, p.cpu_ms, p.wakeups_per_s)
        print(f"{p.server:22}{p.name:11}" + "".join(f"{figure:17.2f}" for figure in figures))
    ours = [p for p in processes if p.server == POOL]
    met = ours[0].wakeups_per_s <= MASTER_AT_MOST and not any(p.wakeups_per_s for p in ours[1:])
    print(f"idle: master at most 1 wake-up a second, workers none: {'met' if met else 'MISSED'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long the pool is left idle")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    processes = [p for name in (BARE, POOL) for p in measure(name, options.workers, options.seconds)]
    report(processes, options.seconds)
    if options.json:
        options.json.write_text(json.dumps([asdict(process) for process in processes], indent=1) + "\n")


if __name__ == "__main__":
    main()
