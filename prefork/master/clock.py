"""The supervisor's clock: monotonic seconds less the time this process was stopped.

So no deadline comes nearer while the master does not run (SIGSTOP, a suspended machine), and no healthy child is killed
for the master's own pause. A `service_actions()` of the program's that always takes seconds is none: the children run
on. One object of each class per supervisor; they hold no descriptor. Runs in the process that serves.
"""

from collections import deque
from collections.abc import Callable, Iterable
from time import monotonic, monotonic_ns

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


class BetweenTurns:
    """The time between two turns of the supervisor, less what the program's `service_actions()` takes in each.

    That is no pause: no deadline would ever come.
    """

    def __init__(self, now: float) -> None:
        self.last = now  # when the last turn began
        self._acting_since: float | None = None  # monotonic, while service_actions() runs
        self._acted = 0.0  # how long that has run since the last look, in seconds
        self._usually = 0.0  # the same at the look before

    def acting(self) -> None:
        """Note that `service_actions()` begins; it may call the turn."""
        self._acting_since = monotonic()

    def acted(self) -> None:
        """Note that it has returned."""
        self._add()
        self._acting_since = None

    def passed(self, now: float, due: float) -> tuple[float, float]:
        """Return how late this turn is, and the time since the last one, both without what is no pause."""
        if self._acting_since is not None:
            self._add()
        acted = min(self._acted, self._usually)  # a longer one may be a stop in the midst of it
        self._acted, self._usually = 0.0, self._acted
        return now - due - acted, now - self.last - acted

    def _add(self) -> None:
        now, since = monotonic(), self._acting_since
        self._acting_since = now
        self._acted += 0.0 if since is None else now - since
