"""CPU time, user plus system, of a whole process tree, its dead included, in nanoseconds.

Owns one control group per server. utime and stime of /proc are in ticks of 10 ms and taken only where there is no
control group: then for the dead alone, as the sum that their parent has waited for; the living have their CPU clocks.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

V1 = Path("/sys/fs/cgroup/cpuacct")
V2 = Path("/sys/fs/cgroup")
NS_PER_TICK = 10**9 // os.sysconf("SC_CLK_TCK")


class Meter:
    """The account of one server tree. `procs` is the file by which a process joins it, "" where there is none."""

    def __init__(self, name: str) -> None:
        self._group: Path | None = None
        for base, usage in ((V1, "cpuacct.usage"), (V2, "cpu.stat")):
            with contextlib.suppress(OSError):
                (base / name).mkdir()
                if (base / name / usage).exists():
                    self._group, self._usage = base / name, base / name / usage
                    break
                (base / name).rmdir()
        self.procs = str(self._group / "cgroup.procs") if self._group else ""
        self.kind = f"{usage} of a control group per server" if self._group else "CPU clocks, and waited-for children"

    def usage_ns(self, root: int) -> int:
        """What the tree below `root` has used since it was started."""
        if self._group is None:
            return _tree_usage_ns(root)
        text = self._usage.read_text()
        return int(text) if text.strip().isdigit() else int(text.split()[1]) * 1000  # cpu.stat: "usage_usec N" first

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        """Remove the group. Those who were in it have been killed, and are gone in a moment."""
        for _ in range(200 if self._group else 0):
            with contextlib.suppress(OSError):
                assert self._group is not None
                self._group.rmdir()
                return
            time.sleep(0.01)


def cpu_clock_ns(pid: int) -> int:
    """What this process has used, with all its threads, but not its children."""
    return time.clock_gettime_ns((~pid << 3) | 2)  # clock_getcpuclockid(3), as Linux makes the id


def private_mb(pid: int) -> float:
    """What this process shares with nobody: Private_Clean and Private_Dirty of proc_pid_smaps_rollup(5), the USS."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def faults(root: int) -> int:
    """Page faults of the tree below `root`, and of what it has waited for."""
    found = 0
    for pid in tree(root):
        with contextlib.suppress(OSError):  # gone meanwhile
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            found += int(fields[7]) + int(fields[8])  # minflt, cminflt
    return found


def wakeups(pid: int) -> dict[int, int]:
    """Voluntary context switches of each of its threads that lives: every wait that ended."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # it has just ended
            lines = (task / "status").read_text().splitlines()
            found[int(task.name)] = next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt"))
    return found


def tree(root: int) -> Iterator[int]:
    """Yield the pids of a process and of all below it that are there."""
    yield root
    with contextlib.suppress(OSError):
        for child in children(root):
            yield from tree(child)


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def _tree_usage_ns(root: int) -> int:
    total = 0
    for pid in tree(root):
        with contextlib.suppress(OSError):  # gone meanwhile
            waited_for = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[13:15]  # cutime, cstime
            total += cpu_clock_ns(pid) + sum(map(int, waited_for)) * NS_PER_TICK
    return total
