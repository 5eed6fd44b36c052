"""The lanes of a server that a worker serves beside its first: the same lanes, with words of their own.

Runs in a worker. Each server has its Lanes, for it has its hooks, its way and its counts; but a lane carries one
request at a time, whichever server that is for. Which are free, the first server's Lanes know.
"""

from typing import Any

from prefork.metrics.scoreboard import IDLE, STATE, Slot

from .contexts import Lane
from .lanes import Lanes


class LanesBeside(Lanes):
    """The lanes of one of the other servers. None is ever taken from here: `like()` gives the words of one that is."""

    def __init__(self, first: Lanes, slot: Slot, **more: Any) -> None:
        super().__init__(slot, **more)
        self._first = first

    def like(self, lane: Lane) -> Lane:
        """Return the words that count on this lane of the first server's what comes for this server."""
        index = _index(self._first.all_lanes, lane)
        while index >= len(self.all_lanes) and self._more is not None and (slot := self._more()) is not None:
            self._add(slot)
        return self.all_lanes[index]

    def give_back(self, lane: Lane) -> None:
        lane[STATE] = IDLE
        self._first.give_back(self._first.all_lanes[_index(self.all_lanes, lane)])


def _index(lanes: list[Lane], lane: Lane) -> int:
    """Return the place of this very view: two views of equal words are equal."""
    return next(index for index, each in enumerate(lanes) if each is lane)
