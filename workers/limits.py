"""When a worker is due for replacement: its count of requests, samples of its memory. Pure, but for `sample()`.

Runs in the worker. A worker that is due says so and serves on; the master replaces it. (Age is the master's to judge:
an idle worker is not woken for it.)
"""

import logging
import random
from collections import deque
from dataclasses import dataclass

from prefork.metrics.facts import ExitReason
from prefork.metrics.kernel import descriptors
from prefork.metrics.log_events import LogEvent, event

log = logging.getLogger("prefork.server")

JITTER = 0.1  # workers that started together do not leave together: up to a tenth earlier
SAMPLE_EVERY_S = 10.0
CONFIRM_EVERY_S = 1.0
SAMPLES = 3  # one large request is no reason


def jittered(limit: float, rng: random.Random) -> float:
    """`limit`, or up to a tenth less of it."""
    return limit * (1 - JITTER * rng.random())


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """The limits one worker watches itself; None is no limit."""

    max_requests: int | None
    max_memory: int | None  # bytes, private memory

    def due(self, served: int, memory: deque[int]) -> ExitReason | None:
        if self.max_requests is not None and served >= self.max_requests:
            return ExitReason.MAX_REQUESTS
        if self.too_large(memory) and len(memory) == SAMPLES:
            return ExitReason.MAX_MEMORY
        return None

    def too_large(self, memory: deque[int]) -> bool:
        return self.max_memory is not None and bool(memory) and min(memory) > self.max_memory

    def next_sample_s(self, memory: deque[int]) -> float:
        """Seconds until the next sample: rarely, and closely once the last one was too large."""
        over = self.max_memory is not None and bool(memory) and memory[-1] > self.max_memory
        return CONFIRM_EVERY_S if over else SAMPLE_EVERY_S


@dataclass(frozen=True, slots=True)
class CostSample:
    """What a worker costs, as it sees itself."""

    private_memory: int  # bytes that it shares with nobody: Private_Clean + Private_Dirty
    open_fds: int
    fds_limit: int
    cpu_user_s: float
    cpu_system_s: float


def sample() -> CostSample | None:
    """Of this process; None where it cannot be had: no descriptor is left, or there is no /proc. Costs milliseconds
    when it is large, so it is taken rarely and between requests."""
    import psutil  # only where a limit or the metrics ask for it: 3 MB that the others do not need

    try:
        process = psutil.Process()
        cpu, memory = process.cpu_times(), process.memory_full_info().uss
    except (psutil.Error, OSError, ValueError) as exc:  # ValueError: a /proc that is another one's
        log.warning(
            "could not measure this worker, which goes on unmeasured: %s",
            str(exc) or type(exc).__name__,
            extra=event(LogEvent.MEASURE_FAILED),
        )
        return None
    opened, limit = descriptors()
    return CostSample(memory, opened or 0, limit or 0, cpu.user, cpu.system)
