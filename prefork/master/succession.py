"""The protocol by which the supervisor asks for the wanted generation of workers.

A plain server always has the same one; a pool has the one that the last reload began. Runs in the process that serves,
as a part of the supervisor's turn. Owns nothing. The implementation with more than one generation is in reload/, which
knows the master; the master must not know it, only this protocol.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from prefork.metrics.board import Board, Word
from prefork.metrics.facts import ChildKind
from prefork.metrics.scoreboard import Slot
from prefork.workers.bootstrap import Birth, Master

from .children import Child, ChildTable
from .waiting import Waiting


class Workings(NamedTuple):
    """The supervisor's own parts, lent to the implementation of Succession."""

    board: Board
    table: ChildTable
    waiting: Waiting
    boot_timeout: float
    fork: Callable[[ChildKind, Slot, Callable[[Birth, Master, int], int]], Child]
    asked: Callable[[], bool]  # True if a command waits for its turn: it must be obeyed before an exec
    values: Callable[[], dict[str, Any]]  # what the next image must know of the supervisor
    companions: Callable[[], tuple[Any, list[int]]]  # their table, for the next image
    connections: Callable[[], tuple[Any, list[int]]]  # the same of connections
    queues: Callable[[], tuple[Any, list[int]]]  # those of kept connections


class Succession(Protocol):
    """The generations of one service. `resumed`: the values that the previous image of this process handed over."""

    resumed: Mapping[str, Any] | None
    current: int  # the generation in service
    degraded: str  # why an older one still serves, in one sentence; empty while all is well

    def begin(self, workings: Workings) -> None:
        """Attach to the supervisor whose parts these are; called once, from its constructor."""

    @property
    def reloading(self) -> bool:
        """True while a reload is in progress."""

    @property
    def holding(self) -> bool:
        """True while no worker may be started."""

    @property
    def arriving(self) -> bool:
        """True while children and descriptors are only lent to this image: if it fails, the service goes on without
        it."""

    def arrive(self) -> None:
        """Take over for good: the loop is about to begin. Called once."""

    def ask(self) -> None:
        """Ask for a reload."""

    def turn(self, now: float, boot_deaths: int, last_error: str) -> float:
        """Advance the reload in progress; return when to be called again at the latest."""

    def wanted(self, now: float) -> int:
        """Return the generation that the pool should consist of."""

    def withdrawn(self) -> list[Child]:
        """Return the children that are to leave, so that the next generation has room."""

    def is_of_this_image(self, child: Child) -> bool:
        """Return whether a child runs the code that this image has loaded."""

    def rehearsal_ended(self, how: str) -> None:
        """Note that the rehearsal was reaped; `how` it ended, in words."""

    def cancel(self) -> None:
        """Cancel any reload: the service is about to end."""

    def close(self) -> None:
        """Called once no child of the service is left."""

    def forget(self) -> None:
        """Called in a new child: close its copies of the descriptors."""


class OneGeneration:
    """The one generation of a server that is never reloaded."""

    resumed: Mapping[str, Any] | None = None
    current = 1
    degraded = ""
    reloading = False
    holding = False
    arriving = False

    def begin(self, workings: Workings) -> None:
        workings.board.words[Word.GENERATION] = self.current

    def arrive(self) -> None:
        pass

    def ask(self) -> None:
        pass

    def turn(self, now: float, boot_deaths: int, last_error: str) -> float:
        return float("inf")

    def wanted(self, now: float) -> int:
        return self.current

    def withdrawn(self) -> list[Child]:
        return []

    def is_of_this_image(self, child: Child) -> bool:
        return True

    def rehearsal_ended(self, how: str) -> None:
        pass

    def cancel(self) -> None:
        pass

    def close(self) -> None:
        pass

    def forget(self) -> None:
        pass
