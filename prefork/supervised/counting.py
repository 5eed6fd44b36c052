"""Count requests in the serving process itself: its lanes, its board, its own slots.

Runs in the only process of a plain server, and in the master of a pool, where it holds the board and the requests that
`handle_request()` began before the pool served. Owns the board and the slots of this process, created lazily: a
constructor must not create anything that has to be closed. A child has a copy, which it releases by `leave()`.
"""

import os
import sys
import threading
import weakref
from collections.abc import Callable
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

from prefork.metrics.application.hook import VALUES
from prefork.metrics.application.values import adopt, release
from prefork.metrics.board import Board, Statistics
from prefork.metrics.facts import ChildKind
from prefork.metrics.late_imports import apart_from_forks
from prefork.metrics.scoreboard import Slot, SlotReader
from prefork.workers import handshake, user_forks
from prefork.workers.bootstrap import Birth
from prefork.workers.contexts import Lane
from prefork.workers.lanes import Lanes
from prefork.workers.looped import LoopTerms
from prefork.workers.straight import ServeOne

from ..sockets.of_server import is_closed

if TYPE_CHECKING:  # of a pool
    from prefork.workers.access_log import AccessLog
    from prefork.workers.admission import Admission

ENDING = threading.RLock()  # the last of server_close(), the loop and the daemonic threads ends the counting


class Counting:
    """The counts of one server in its own process."""

    def __init__(self) -> None:
        self.lanes: Lanes | None = None
        self.serve_one: ServeOne | None = None  # accepts a request and processes it, on these lanes
        self.lane: Lane | None = None  # for the next request
        self.own: tuple[tuple[int, Slot], ...] = ()  # this process's own slots, with their serials on the board
        self.final: Statistics | None = None  # set when the board is closed
        self._board: Board | None = None
        self._lock = threading.RLock()  # around the making and the closing of the board, and reads by other threads
        self._adopted: Slot | None = None  # holds the program's own metrics of this process

    @property
    def board(self) -> Board:
        if self._board is None:
            with self._lock:
                self._board = self._board or Board()
        return self._board

    def statistics(self) -> Statistics:
        """Return the counts so far. Call it from any thread, also while another one closes the board."""
        with self._lock:
            return self.final or self.board.snapshot().statistics()

    def go_on_with(self, board: Board) -> None:
        """Use the board of the previous image of this process."""
        self._board = board

    def enter(self, slot: Slot, kind: ChildKind) -> int:
        """Put a slot of this process on the board and return its serial there."""
        serial = self.board.enter(kind, SlotReader(slot))
        self.own = (*self.own, (serial, slot))
        return serial

    def give_away(self, slot: Slot) -> None:
        """Drop a slot that now belongs to a child."""
        self.own = tuple(own for own in self.own if own[1] is not slot)

    def begin(
        self,
        server: Any,
        slot: Slot,
        *,
        more: Callable[[], Slot | None],
        on_free: Callable[[], None],
        queue_waits: bool,
        way: Callable[[Lanes], ServeOne],
        admission: "Admission | None" = None,
        access_log: "AccessLog | None" = None,
    ) -> Lanes:
        """Count this server's requests on the lanes of `slot`, and of the slots that `more` creates.

        `way` returns what is to be `serve_one`.
        """
        elsewhere = hasattr(server, "process_request_thread") or hasattr(server, "collect_children")
        self.enter(slot, ChildKind.SERVER)
        self.lanes = Lanes(slot, elsewhere=elsewhere, on_free=on_free, more=more, queue_waits=queue_waits,
                           admission=admission, access_log=access_log)  # fmt: skip
        self.lanes.loops = LoopTerms(partial(_is_over, weakref.ref(server)))
        handshake.in_its_lane(server)
        self.lanes.bind(server)
        self.serve_one = way(self.lanes)
        return self.lanes

    def at_rest(self) -> bool:
        """Return True if this process has no request left. Otherwise `on_free` is called when a lane is returned."""
        return self.lanes is None or self.lanes.all_free(held=self.lane)

    def look(self) -> float:
        """Take back the lanes of requests that the program has closed, after dropping them. Return the seconds until
        the next look; inf if nothing is looked for."""
        if self.lanes is None or self.lanes.contexts.patience is None:
            return inf
        self.lanes.look()
        return self.lanes.contexts.patience or inf

    def end_lanes(self, server: Any) -> bool:
        """Stop counting and return True if no request is left. Otherwise return False: daemonic threads still count."""
        if self.lanes is not None:
            self.lanes.contexts.give_up_dropped()
        if not self.at_rest():
            return False
        if self.lanes is not None:
            self.lanes.unbind(server)
            self.lanes, self.serve_one, self.lane = None, None, None
        return True

    def adopt_application(self, size: int) -> None:
        """Keep the program's own metrics of this process in a slot too. Only one server of a process may do so."""
        slot = Slot(0, size)
        self.enter(slot, ChildKind.SERVER)
        self._adopted = slot if adopt(slot.application) else None
        if self._adopted is not None and VALUES in sys.modules:
            with apart_from_forks():
                from prefork.metrics.application import exposition  # imports prometheus_client, which is loaded already

            exposition.say_what_is_not_served()

    def fold_own(self, *, but_adopted: bool = False) -> None:
        """Add this process's slots to the totals and close them."""
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
        """Keep the last statistics and release the memory."""
        with self._lock:
            if self._board is not None:
                self.final = self._board.snapshot().statistics()
                self._board.forget()
                self._board = None

    def leave(self, birth: Birth) -> None:
        """Stop a child from writing the slots of the serving process.

        They become private memory instead of being unmapped, because the program's own metrics refer to one of them
        until they have moved to the child's slot.
        """
        for _, slot in self.own:
            if slot is not birth.slot:
                user_forks.write_privately(slot.memory, slot.fd)
                os.close(slot.fd)


def _is_over(server: "weakref.ref[Any]") -> bool:
    """Return True if this server is told to end, or closed: then connections that rest in a thread are over.

    In a child, whose copy of the listener is closed anyway, as soon as its parent's is.
    """
    found = server()
    if found is None:
        return True
    own = found._prefork_
    if own.birth is not None:
        return bool(own.birth.slot.told_to_drain)
    return bool(own.shutdown_requested or is_closed(found))
