"""Kept connections at one moment: where those are that are open, and how the others ended. Pure.

Runs wherever a snapshot of the board is read. Workers and the holder count, each in its slot; nobody counts what is on
the way between them, so that is what is left over of all that were opened.
"""

from collections.abc import Sequence
from typing import NamedTuple, Self

from .facts import CloseReason
from .scoreboard import CLOSED, COUNTS, MOVES, OPENED


class Whereabouts(NamedTuple):
    """The open connections that a process has said to have."""

    active: int = 0  # a request of theirs is in hand
    lingering: int = 0  # they wait in a worker
    held: int = 0  # they wait in the holder

    def with_more(self, in_hand: int, idle: int, *, holder: bool) -> Self:
        return self._replace(
            active=self.active + in_hand, lingering=self.lingering + idle * (not holder), held=self.held + idle * holder
        )


class ConnectionCounts(NamedTuple):
    """`opened == sum(closed) + active + lingering + held + queued`, where `queued` makes the sum right: while a
    connection changes hands, it is seen on the way, or for a moment with both."""

    opened: int
    closed: dict[str, int]  # by reason
    moves: int  # times that a worker got one from the holder
    active: int
    lingering: int
    held: int
    queued: int

    @classmethod
    def of(cls, counts: Sequence[int], where: Whereabouts) -> Self:
        """Return what these words say, which begin as COUNTS do."""
        opened, moves = (counts[word - COUNTS.start] for word in (OPENED, MOVES))
        closed = {reason.label: counts[CLOSED + reason - COUNTS.start] for reason in CloseReason}
        return cls(opened, closed, moves, *where, max(0, opened - sum(closed.values()) - sum(where)))

    @property
    def open(self) -> dict[str, int]:
        """The open ones by where they are."""
        return {"active": self.active, "lingering": self.lingering, "held": self.held, "queued": self.queued}
