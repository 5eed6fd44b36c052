"""The limits after which a worker is due for replacement: requests served, memory sampled. Pure, except `sample()` and
`record()`.

Runs in the worker; `record()` in a companion, too. A worker that is due says so and keeps serving; the master replaces
it. The master judges a worker's age, so that an idle worker need not be woken for it.
"""

import logging
import os
from collections import deque
from typing import NamedTuple

from prefork.metrics.facts import ExitReason
from prefork.metrics.kernel import descriptors
from prefork.metrics.log_events import LogEvent, event
from prefork.metrics.scoreboard import CPU_SYSTEM_NS, CPU_USER_NS, FDS_LIMIT, OPEN_FDS, PRIVATE_MEMORY

log = logging.getLogger("prefork.server")

JITTER = 0.1  # up to a tenth earlier, so that workers that started together do not leave together
SAMPLE_EVERY_S = 10.0
CONFIRM_EVERY_S = 1.0
SAMPLES = 3  # in a row: one large request is no reason to replace a worker


def jittered(limit: float) -> float:
    """Return `limit`, reduced at random by up to a tenth. (`random` would seed itself anew in each child, in 70 kB.)"""
    return limit * (1 - JITTER * int.from_bytes(os.urandom(4)) / 2**32)


class WorkerLimits(NamedTuple):
    """The limits that a worker checks itself; None means no limit."""

    max_requests: int | None
    max_memory: int | None  # bytes of private memory

    def due(self, served: int, memory: deque[int]) -> ExitReason | None:
        if self.max_requests is not None and served >= self.max_requests:
            return ExitReason.MAX_REQUESTS
        if self.too_large(memory) and len(memory) == SAMPLES:
            return ExitReason.MAX_MEMORY
        return None

    def too_large(self, memory: deque[int]) -> bool:
        return self.max_memory is not None and bool(memory) and min(memory) > self.max_memory

    def next_sample_s(self, memory: deque[int]) -> float:
        """Return the seconds until the next sample: fewer once the last one was over the limit."""
        over = self.max_memory is not None and bool(memory) and memory[-1] > self.max_memory
        return CONFIRM_EVERY_S if over else SAMPLE_EVERY_S


class Usage:
    """The requests and the memory that a worker has used so far; it looks at that now and then, between requests.

    `measures`: look even where there is no limit, because somebody may want to know.
    """

    def __init__(self, limits: WorkerLimits, words: memoryview, *, measures: bool) -> None:
        if limits.max_requests is not None:
            limits = WorkerLimits(max(1, round(jittered(limits.max_requests))), limits.max_memory)
        self.limits = limits
        self.served = 0
        self.memory: deque[int] = deque(maxlen=SAMPLES)
        self.next_sample_ns = 0
        self._words = words
        self._measures = measures or limits.max_memory is not None

    def due(self, now_ns: int) -> ExitReason | None:
        """Return the limit that is reached, if any; look at the memory first where that is due."""
        if self._measures and now_ns >= self.next_sample_ns:
            self.sample(now_ns)
        return self.limits.due(self.served, self.memory)

    def sample(self, now_ns: int) -> None:
        if (seen := record(self._words)) is not None:
            self.memory.append(seen.private_memory)
        self.next_sample_ns = now_ns + int(self.limits.next_sample_s(self.memory) * 1e9)


class CostSample(NamedTuple):
    """The memory, descriptors and CPU time that a process of ours measured of itself."""

    private_memory: int  # bytes shared with no other process: Private_Clean + Private_Dirty
    open_fds: int
    fds_limit: int
    cpu_user_s: float
    cpu_system_s: float


def record(words: memoryview) -> CostSample | None:
    """Measure this process, and write the result to its slot, whose `words` these are."""
    seen = sample()
    if seen is not None:
        words[PRIVATE_MEMORY], words[OPEN_FDS] = seen.private_memory, seen.open_fds
        words[FDS_LIMIT] = seen.fds_limit
        words[CPU_USER_NS], words[CPU_SYSTEM_NS] = int(seen.cpu_user_s * 1e9), int(seen.cpu_system_s * 1e9)
    return seen


def sample() -> CostSample | None:
    """Measure this process. Return None where that is impossible: no descriptor left, or no /proc.

    Takes milliseconds in a large process, so do it rarely, and between requests.
    """
    import psutil  # 3 MB, so only where a limit or the metrics need it

    try:
        process = psutil.Process()
        cpu, memory = process.cpu_times(), process.memory_full_info().uss
    except (psutil.Error, OSError, ValueError) as exc:  # ValueError: the /proc of something else
        log.warning(
            "could not measure this process, which goes on unmeasured: %s",
            str(exc) or type(exc).__name__,
            extra=event(LogEvent.MEASURE_FAILED),
        )
        return None
    opened, limit = descriptors()
    return CostSample(memory, opened or 0, limit or 0, cpu.user, cpu.system)
