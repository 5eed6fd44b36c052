"""The supervisor's clock: monotonic seconds less the time this process was stopped.

So no deadline moves while nobody looks (SIGSTOP, a suspended machine, a `service_actions` of the user's that takes
seconds): a healthy child is not killed for the master's own pause. One object per supervisor; holds no descriptor.
"""

from collections.abc import Callable
from time import monotonic_ns


class Clock:
    def __init__(self, paused: float = 0.0, *, stamp_ns: Callable[[], int] = monotonic_ns) -> None:
        """`paused`: of an earlier image of this process, so that the times it noted go on to mean the same;
        `stamp_ns`: this moment as every process of the machine stamps it."""
        self.stamp_ns = stamp_ns
        self._paused = paused
        self._pause = (0.0, 0.0)  # the last one, in monotonic seconds

    @property
    def paused(self) -> float:
        return self._paused

    def now(self) -> float:
        return self.stamp_ns() / 1e9 - self._paused

    def note_pause(self, seconds: float) -> None:
        """This process was not there for so long, until now."""
        end = self.stamp_ns() / 1e9
        self._paused += seconds
        self._pause = (end - seconds, end)

    def at(self, stamp_ns: int) -> float:
        """When another process's `monotonic_ns()` was, on this clock."""
        stamp, (begin, end) = stamp_ns / 1e9, self._pause
        if stamp >= end:
            return stamp - self._paused
        return min(stamp, begin) - (self._paused - (end - begin))
