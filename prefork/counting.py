"""Requests counted in the serving process itself: its lanes, its board, its own slots.

Runs in the one process of a plain server, and in the master of a pool, where it has the board and what
`handle_request()` began before the pool served. Owns the board and the slots of this process; made lazily, so that a
constructor makes nothing that has to be closed. In a child it is a copy, and `leave()` lets go of it.
"""

import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from prefork.metrics.application.values import VALUES, adopt, release
from prefork.metrics.board import Board, Statistics
from prefork.metrics.facts import ChildKind
from prefork.metrics.scoreboard import Slot, SlotReader
from prefork.workers import user_forks
from prefork.workers.bootstrap import Birth
from prefork.workers.lanes import Lane, Lanes

ENDING = threading.RLock()  # whoever comes last ends the counting: server_close(), the loop, or a daemonic thread


class Counting:
    """What one server has counted in its own process."""

    def __init__(self) -> None:
        self.lanes: Lanes | None = None
        self.lane: Lane | None = None  # the one the next request goes on
        self.own: tuple[tuple[int, Slot], ...] = ()  # the slots of this process itself, by serial on the board
        self.final: Statistics | None = None  # once the board is closed
        self._board: Board | None = None
        self._adopted: Slot | None = None  # where the program's own metrics of this process are

    @property
    def board(self) -> Board:
        if self._board is None:
            self._board = Board()
        return self._board

    def go_on_with(self, board: Board) -> None:
        """The board of an earlier image of this process."""
        self._board = board

    def enter(self, slot: Slot, kind: ChildKind) -> int:
        """Put a slot of this process on the board; its serial there."""
        serial = self.board.enter(kind, SlotReader(slot))
        self.own = (*self.own, (serial, slot))
        return serial

    def give_away(self, slot: Slot) -> None:
        """A child has it now."""
        self.own = tuple(own for own in self.own if own[1] is not slot)

    def begin(
        self,
        server: Any,
        slot: Slot,
        *,
        more: Callable[[], Slot | None],
        on_free: Callable[[], None],
        queue_waits: bool,
    ) -> Lanes:
        """Count the requests of this server on the lanes of `slot`, and of what `more` makes."""
        elsewhere = hasattr(server, "process_request_thread") or hasattr(server, "collect_children")
        self.enter(slot, ChildKind.SERVER)
        self.lanes = Lanes(slot, elsewhere=elsewhere, on_free=on_free, more=more, queue_waits=queue_waits)
        self.lanes.bind(server)
        return self.lanes

    def at_rest(self) -> bool:
        """Whether no request is left in this process; if one is, `on_free` is called when a lane comes back."""
        return self.lanes is None or self.lanes.all_free(held=self.lane)

    def end_lanes(self, server: Any) -> bool:
        """End the counting of requests, and return True, where none is left; daemonic threads go on counting."""
        if not self.at_rest():
            return False
        if self.lanes is not None:
            self.lanes.unbind(server)
            self.lanes, self.lane = None, None
        return True

    def adopt_application(self, size: int) -> None:
        """Keep what the program counts in this process in a slot too. One server of a process may have it."""
        slot = Slot(0, size)
        self.enter(slot, ChildKind.SERVER)
        self._adopted = slot if adopt(slot.application) else None
        if self._adopted is not None and VALUES in sys.modules:
            from prefork.metrics.application import exposition  # with prometheus_client, which is there

            exposition.say_what_is_not_served()

    def fold_own(self, *, but_adopted: bool = False) -> None:
        """Add the slots of this process to the totals, and close them."""
        kept = self._adopted if but_adopted else None
        for serial, slot in self.own:
            if slot is not kept:
                self.board.fold(serial)
                slot.close()
        self.own = tuple(own for own in self.own if own[1] is kept)

    def fold_everything(self) -> None:
        if self._adopted is not None:
            self._adopted = None
            release()
        self.fold_own()

    def close_board(self) -> None:
        """Keep the last statistics, and give the memory back."""
        if self._board is not None:
            self.final = self._board.snapshot().statistics()
            self._board.forget()
            self._board = None

    def leave(self, birth: Birth) -> None:
        """In a child: the slots of the serving process are not its to write. The program's own metrics look into one
        until they have moved to the child's."""
        for _, slot in self.own:
            if slot is not birth.slot:
                user_forks.write_privately(slot.memory, slot.fd)
                os.close(slot.fd)
