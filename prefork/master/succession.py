"""Which generation of workers is wanted, as the supervisor asks: of a plain server always the same, of a pool the
generation that the last reload began.

Runs in the process that serves, as a part of the supervisor's turn. Who knows more than one generation stands in
reload/, which knows the master; the master knows this protocol only.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from prefork.metrics.board import Board, Word
from prefork.metrics.facts import ChildKind
from prefork.metrics.scoreboard import Slot
from prefork.workers.bootstrap import Birth, Master

from .children import Child, ChildTable
from .waiting import Waiting


@dataclass(frozen=True, slots=True)
class Workings:
    """The supervisor's own parts, for whoever brings in another generation."""

    board: Board
    table: ChildTable
    waiting: Waiting
    boot_timeout: float
    fork: Callable[[ChildKind, Slot, Callable[[Birth, Master, int], int]], Child]
    asked: Callable[[], bool]  # whether a command waits for its turn, which comes before an exec
    values: Callable[[], dict[str, Any]]  # what the next image must know of the supervisor


class Succession(Protocol):
    """The generations of one service. `resumed`: what an earlier image of this process has handed over."""

    resumed: Mapping[str, Any] | None
    current: int  # the generation in service
    degraded: str  # why an older one serves on, in one sentence; empty while all is well

    def begin(self, workings: Workings) -> None:
        """Take the place in the supervisor; called once, at the end of its constructor."""

    @property
    def reloading(self) -> bool:
        """Whether a reload is on its way."""

    @property
    def holding(self) -> bool:
        """Whether nobody is to be started now."""

    @property
    def arriving(self) -> bool:
        """Whether what there is was only lent as yet: where this image fails, it goes on without it."""

    def arrive(self) -> None:
        """The loop is about to begin; called once."""

    def ask(self) -> None:
        """A reload is wanted."""

    def turn(self, now: float, boot_deaths: int, last_error: str) -> float:
        """Go on with what is on its way; return when to be called again."""

    def wanted(self, now: float) -> int:
        """The generation of which the pool should be."""

    def withdrawn(self) -> list[Child]:
        """Who is to leave, so that there is room for the next generation."""

    def is_of_this_image(self, child: Child) -> bool:
        """Whether a child runs the code that this image has loaded."""

    def rehearsal_ended(self, how: str) -> None:
        """The rehearsal was reaped."""

    def cancel(self) -> None:
        """The service is about to end."""

    def forget(self) -> None:
        """In a new child: close the copies."""


class OneGeneration:
    """Of a server that is never reloaded."""

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

    def forget(self) -> None:
        pass
