"""The supervisor's clock: monotonic seconds less the time this process was stopped.

So no deadline comes nearer while the master does not run (SIGSTOP, a suspended machine), and no healthy child is killed
for the master's own pause. A `service_actions()` of the program's that always takes seconds is none: the children run
on. One object per supervisor; it holds no descriptor. Runs in the process that serves.
"""

from collections import deque
from collections.abc import Callable, Iterable
from time import monotonic_ns

PAUSES_MAX = 100  # that are told apart; what began before them counts those before for its own


class Clock:
    def __init__(
        self, paused: float = 0.0, pauses: Iterable[tuple[float, float]] = (), *,
        stamp_ns: Callable[[], int] = monotonic_ns,
    ) -> None:  # fmt: skip
        """`paused`, `pauses`: what the image before had, so that times it noted keep their meaning. `stamp_ns`: the
        clock that all processes of the machine share."""
        self.stamp_ns = stamp_ns
        self._paused = paused
        self._pauses = deque(pauses, PAUSES_MAX)  # the last first, each its begin and end in monotonic seconds

    @property
    def paused(self) -> float:
        """The seconds that this process was stopped, earlier images of it included."""
        return self._paused

    @property
    def pauses(self) -> list[tuple[float, float]]:
        """The last hundred of its pauses, the newest first."""
        return list(self._pauses)

    def now(self) -> float:
        return self.stamp_ns() / 1e9 - self._paused

    def note_pause(self, seconds: float) -> None:
        """Note that this process did not run for the last `seconds`."""
        end = self.stamp_ns() / 1e9
        self._paused += seconds
        self._pauses.appendleft((end - seconds, end))

    def at(self, stamp_ns: int) -> float:
        """Convert a `monotonic_ns()` stamp of another process to a time of this clock."""
        stamp, paused = stamp_ns / 1e9, self._paused
        for begin, end in self._pauses:
            if stamp >= end:
                break
            stamp, paused = min(stamp, begin), paused - (end - begin)
        return stamp - paused
