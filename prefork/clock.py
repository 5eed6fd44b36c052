"""The supervisor's clock: monotonic seconds less the time this process was stopped.

So no deadline moves while nobody looks (SIGSTOP, a suspended machine, a `service_actions` of the user's that takes
seconds): a healthy child is not killed for the master's own pause. One object per supervisor; holds no descriptor.
"""

from time import monotonic


class Clock:
    def __init__(self, paused: float = 0.0) -> None:
        """`paused`: of an earlier image of this process, so that the times it noted go on to mean the same."""
        self._paused = paused
        self._pause = (0.0, 0.0)  # the last one, in monotonic seconds

    @property
    def paused(self) -> float:
        return self._paused

    def now(self) -> float:
        return monotonic() - self._paused

    def note_pause(self, seconds: float) -> None:
        """This process was not there for so long, until now."""
        end = monotonic()
        self._paused += seconds
        self._pause = (end - seconds, end)

    def at(self, stamp_ns: int) -> float:
        """When another process's `monotonic_ns()` was, on this clock."""
        stamp, (begin, end) = stamp_ns / 1e9, self._pause
        if stamp >= end:
            return stamp - self._paused
        return min(stamp, begin) - (self._paused - (end - begin))
