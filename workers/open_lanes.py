"""The lanes of a worker without `max_threads`: opened as they are needed.

The number is decided by the master before the fork; a worker opens its own. Lanes are shared memory, whose size cannot
change: there are more of them than a process can have threads to any use, and only those that are open cost anything.
"""

from prefork.metrics.scoreboard import LANES_OPEN, Slot

MOST_LANES = 4096
OPENED_AT_ONCE = 64


def lanes_of(max_threads: int | None) -> tuple[int, int]:
    """Return how many lanes a worker has, and how many of them are open at first; 0 means all."""
    return (MOST_LANES, OPENED_AT_ONCE) if max_threads is None else (max_threads, 0)


class OpenLanes:
    """The lanes of one slot, in the worker that writes it."""

    def __init__(self, slot: Slot, listener: int = 0) -> None:
        """`listener`: the number of the one by which the requests come that are counted there."""
        self._slot = slot.of_listener(listener)
        self._open = slot.words[LANES_OPEN] or slot.lanes

    def first(self) -> Slot:
        return self._slot.part(0, self._open)

    def more(self) -> Slot | None:
        """Return the next lanes, or None when there are no more."""
        first, lanes = self._open, min(OPENED_AT_ONCE, self._slot.lanes - self._open)
        if not lanes:
            return None
        self._open = self._slot.words[LANES_OPEN] = first + lanes
        return self._slot.part(first, lanes)
