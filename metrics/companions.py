"""The table of the companions: what each has done over all its processes, in a memory that outlives them.

One memfd, made when a service first has companions, handed on over the exec, and shared by fork with each exporter. A
row is a page, so that a companion maps its own and no other. The master writes `UP`, `RESTARTS` and what a run left
that ended with its process, the companion the record of its runs. Not on the board, whose layout has no room for names:
those are in the heap of who reads.
"""

import mmap
import os
from collections.abc import Mapping
from time import time_ns
from typing import NamedTuple

from .scoreboard import mapped, sealed_memory

# Words of a row; from the third on they are those of a periodic job. ENDED_AT is of the wall clock, TOOK a duration,
# the others monotonic. While a run is on, STARTED is not 0, and LATE is when it is over its time (0: never).
(
    UP, RESTARTS, RUNS_OK, RUNS_FAILED, RUN_ENDED_AT_NS, RUN_TOOK_NS, NEXT_RUN_NS, RUN_STARTED_NS, RUN_LATE_NS,
    RUNS_TIMED_OUT, RUNS_LOST,
) = range(11)  # fmt: skip
WORDS = RUNS_LOST + 1
COMPANIONS_MAX = 64
ROWS_MAX = 4 * COMPANIONS_MAX  # those of earlier images may live on for a while
ROW_BYTES = mmap.ALLOCATIONGRANULARITY
TABLE_BYTES = ROWS_MAX * ROW_BYTES  # of which only what is written takes memory


class CompanionCounts(NamedTuple):
    """A row at one moment. `interval`, in seconds, is that of a periodic job."""

    name: str
    interval: float | None
    up: bool
    restarts: int
    runs_ok: int
    runs_failed: int
    run_ended_at_ns: int
    run_took_ns: int
    next_run_ns: int
    run_started_ns: int
    run_late_ns: int
    runs_timed_out: int
    runs_lost: int

    @property
    def runs_bad(self) -> int:
        return self.runs_failed + self.runs_timed_out + self.runs_lost


class CompanionTable:
    """The rows of the companions that this process knows, by name."""

    def __init__(self, fd: int | None = None, rows: Mapping[str, int] | None = None) -> None:
        """Make a table, or with `fd` adopt one, and the rows in it that are taken.

        Raises ValueError when that has another size, OSError when descriptors or memory are short.
        """
        if fd is None:
            self.fd, self._memory = sealed_memory("prefork-companions", TABLE_BYTES)
        elif os.fstat(fd).st_size != TABLE_BYTES:
            raise ValueError("this memory is no table of companions of this version")
        else:
            self.fd, self._memory = fd, mapped(fd, TABLE_BYTES)
        self.rows = dict(rows or {})
        self.intervals: dict[str, float | None] = {}
        self._words = memoryview(self._memory).cast("Q")

    def words(self, name: str) -> memoryview:
        """Return the row of a companion."""
        start = self.rows[name] * ROW_BYTES // 8
        return self._words[start : start + WORDS]

    def enter(self, name: str, interval: float | None) -> None:
        """Know of a companion from now on; it has the row that it had, or an empty one."""
        self.intervals[name] = interval
        if name not in self.rows:
            taken = set(self.rows.values())
            self.rows[name] = next(row for row in range(ROWS_MAX) if row not in taken)
            for word in range(WORDS):
                self.words(name)[word] = 0

    def drop(self, name: str) -> None:
        """Forget a companion, and give its row away."""
        self.rows.pop(name, None)
        self.intervals.pop(name, None)

    def end_run(self, name: str, outcome: int, now_ns: int) -> None:
        """Write the end of a run that ended with its process, which is reaped. `outcome`: the word that counts it."""
        words = self.words(name)
        began_ns, words[RUN_STARTED_NS] = words[RUN_STARTED_NS], 0
        words[outcome] += 1
        words[RUN_TOOK_NS] = max(0, now_ns - began_ns)
        words[RUN_ENDED_AT_NS] = time_ns()

    def read(self) -> tuple[CompanionCounts, ...]:
        return tuple(self.counts(name) for name in self.intervals)

    def counts(self, name: str) -> CompanionCounts:
        up, *words = self.words(name).tolist()
        return CompanionCounts(name, self.intervals[name], bool(up), *words)

    def keep_only(self, name: str) -> memoryview:
        """Called in a companion: return its own row, and let go of the table."""
        own = mmap.mmap(self.fd, ROW_BYTES, offset=self.rows[name] * ROW_BYTES)
        self.close()
        return memoryview(own).cast("Q")

    def close(self) -> None:
        self._words.release()
        self._memory.close()
        os.close(self.fd)
