"""ForkedRequests: the state behind ForkingMixIn, which serves each request in a child of its own.

Runs in the serving process, and in each child as a copy. Must not accept, which is the loop's task.
"""

import _signal  # type: ignore[import-not-found]  # the C module that `signal` wraps, without its enums
import contextlib
import os
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from prefork.metrics.application.values import begin
from prefork.metrics.board import Word
from prefork.metrics.facts import ChildKind
from prefork.metrics.scoreboard import Slot, SlotReader, Stacks
from prefork.workers import sinks
from prefork.workers.bootstrap import Birth, Master, enter_briefly
from prefork.workers.contexts import Lane
from prefork.workers.definitions import is_the_programs
from prefork.workers.flushing import leave_nothing
from prefork.workers.lanes import Lanes
from prefork.workers.last_words import LastWords
from prefork.workers.left_listener import leave_as, left
from prefork.workers.signals import set_mask
from prefork.workers.straight import ServeOne, finish_in_child, way_to_children

from ..master.children import BriefChild, SharedSlot
from ..settings.in_force import value_of
from ..sockets.of_server import is_closed, is_stream, socket_of
from .state import LANES_AT_ONCE, Supervised

_SPAWNED = int(Word.SPAWNED)


class ForkedRequests(Supervised):
    """State of a server that forks a child per request."""

    def __init__(self, server: Any) -> None:
        super().__init__(server)
        self._spare: tuple[int, Slot] | None = (
            None  # the next child's slot, entered before the fork so that its request counts from the accept on
        )
        # A descriptor for the pidfd of the next child, held before its request is taken. A connection is one itself,
        # and is given back where no other is left; but with metrics, all that a child needs is made ahead.
        self._reserves = False
        self._reserve: list[int] = []
        # Where nobody measures, children have no slots of their own, but lanes of this one.
        self._shared: SharedSlot | None = None
        self._shared_birth: Birth | None = None
        self._last_words: LastWords | None = None
        self._listener: Any = None  # and how such a child leaves it
        self._leave: Callable[[], object] = int

    def serve(self, poll_interval: float | None) -> None:
        self.collects = is_the_programs(self.server, "collect_children")
        super().serve(poll_interval)

    def wants_polling(self) -> bool:
        return self.collects or super().wants_polling()

    def wait_for_requests(self) -> None:
        if not self.is_copy():
            for child in () if self.supervisor is None else self.supervisor.table:
                with contextlib.suppress(ValueError):  # another thread has reaped it
                    child.slot.tell_to_drain(ends=True)  # connections that rest in it are over
        self.server.collect_children(blocking=self.server.block_on_close)

    def collect(self, *, blocking: bool) -> None:
        """Implement `collect_children()`."""
        if self.done is not None and self.serving_thread != threading.get_ident():
            return  # the loop reaps; if the server is closed by then, it waits for the rest when it ends
        if self.is_copy():
            return  # they are a child's siblings
        if self.supervisor is None or not len(self.supervisor.table) or not self.collecting.acquire(blocking=blocking):
            return
        try:
            self.supervisor.turn()
            if blocking:
                self.supervisor.wait_for_children(ChildKind.REQUEST)
        finally:
            self.collecting.release()
        if is_closed(self.server):  # server_close() has not waited for them
            self.end_counting()

    def children(self) -> set[int] | None:
        """Return the pids of the children that serve a request; None before the first fork."""
        if self.supervisor is None or not self.supervisor.forked:
            return None
        if self.is_copy():  # which has none
            return set()
        return {child.pid for child in self.supervisor.table if child.kind is ChildKind.REQUEST}

    def first_slot(self) -> Slot:
        self._shared, self._reserves = None, True
        if self.application_bytes() or sinks.installed() is not None:
            return Slot(0)  # each request is counted in the slot of the child that serves it
        slot = Slot(min(max(value_of(self.server, "max_children"), 1), LANES_AT_ONCE))
        self._shared = SharedSlot(slot, Stacks(slot), SlotReader(slot))
        self._shared_birth = Birth(slot, self._shared.stacks, os.getpid(), False, self.forget_supervisor, set())
        self._last_words = LastWords(self._shared.stacks)
        listener = socket_of(self.server)
        self._reserves = listener is None or not is_stream(listener)
        return slot

    def next_lane(self) -> Lane | None:
        lanes = self.counting.lanes or self.lanes()
        if self._shared is not None and self.supervisor is not None:
            server: Any = self._server()
            most = server.max_children
            if type(most) is not int:
                most = value_of(self.server, "max_children")
            if len(self.supervisor.table.children) >= most:
                return None
        if self._reserves and not self._reserve:
            self._reserve.append(os.eventfd(0, os.EFD_CLOEXEC))
        free = lanes.free
        return free.popleft() if free else lanes.take()

    def end_counting(self) -> None:
        if not self.is_copy() and self.done is None:
            self._give_reserve()
        super().end_counting()

    def _give_reserve(self) -> None:
        if self._reserve:
            os.close(self._reserve.pop())

    def more_lanes(self) -> Slot | None:
        if self.birth is not None:
            return None  # a child that serves one request
        if self.supervise().table.count(ChildKind.REQUEST) >= value_of(self.server, "max_children"):
            return None
        if self._shared is not None:
            slot = Slot(LANES_AT_ONCE)
            self.counting.enter(slot, ChildKind.SERVER)
            return slot
        slot = Slot(1, self.application_bytes())
        self._spare = self.counting.enter(slot, ChildKind.REQUEST), slot
        return slot

    def fork_for(self, request: Any, client_address: Any) -> None:
        """Fork the child for this request. Raises OSError if the kernel refuses."""
        if self._shared is not None:
            self._fork_briefly(request, client_address, None)
            return
        supervisor = self.supervise()
        serial, slot = self._spare or (None, Slot(1, self.application_bytes()))
        mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, ())

        def body(birth: Birth, master: Master, number: int) -> int:
            return self._serve_in_child(request, client_address, birth._replace(mask=mask))

        self._give_reserve()
        supervisor.fork(ChildKind.REQUEST, slot, body, serial)
        self.counting.give_away(slot)
        self._spare = None
        if self.counting.lanes is not None:
            self.counting.lanes.pass_on()

    def way(self, lanes: Lanes) -> ServeOne:
        if self.in_place or self._shared is None:
            return lanes.serve_one
        return way_to_children(lanes, self.server, self._fork_briefly)

    def _fork_briefly(self, request: Any, client_address: Any, passed: list[Lane] | None) -> None:
        """Fork a child that has the lane of this request, until it is reaped: by the straight way the one in `passed`,
        which is taken out then."""
        server, lanes, supervisor = self._server(), self.counting.lanes or self.lanes(), self.supervisor
        shared, words = self._shared, self._last_words
        if supervisor is None or supervisor.closed:
            supervisor = self.supervise()
        assert shared is not None
        assert words is not None
        if self._listener is None or self._listener is not getattr(server, "socket", None):
            self._listener, self._leave = socket_of(server), leaving(socket_of(server))
        if self._reserves:
            self._give_reserve()
        # No closures: their cells would lie in pages of their own.
        enter = partial(enter_briefly, self._in_child, words, leave_nothing(), (request, client_address, passed))
        child = supervisor.table.fork_briefly(shared, enter, request, self._settle, supervisor.waiting.add_pidfd)
        child.lane = passed.pop() if passed else lanes.hand_on()
        supervisor.spawner.any_served = True
        supervisor.board.words[_SPAWNED] += 1  # nobody else reads this board

    def _in_child(self, mask: set[int], request: Any, client_address: Any, passed: list[Lane] | None) -> int:
        lanes, supervisor = self.counting.lanes, self.supervisor
        assert lanes is not None
        assert supervisor is not None
        self.birth = self._shared_birth
        supervisor.forgotten = True
        for child in supervisor.table.children.values():
            os.close(child.pidfd)
        supervisor.waiting.leave()
        lanes.free.clear()
        self._leave()
        _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)  # all that the program blocks: nothing of ours is sent to it
        if passed is not None:
            return finish_in_child(lanes, self._server(), passed[0], request, client_address)
        lanes.take_over()
        return self._finish_in_child(request, client_address)

    def _settle(self, child: BriefChild, status: int) -> tuple[bool, str]:
        lanes, words = self.counting.lanes, self._last_words
        assert lanes is not None
        assert words is not None
        # First: the last lane that comes back may end the counting, and the slot. fstat(2) would make twenty numbers.
        some = words.untold or os.lseek(words.stacks.fd, 0, os.SEEK_END) > words.stacks.taken
        text = words.of(child.pid) if some else ""
        return child.lane is not None and lanes.take_back(child.lane, ended_well=status == 0), text

    def _serve_in_child(self, request: Any, client_address: Any, birth: Birth) -> int:
        self.birth = birth
        self.counting.leave(birth)
        if self.counting.lanes is not None:
            self.counting.lanes.take_over()
        self.leave_metrics_listener()
        if birth.slot.application:
            begin(birth.slot.application)
        leaving(socket_of(self.server))()
        set_mask(birth.mask)
        return self._finish_in_child(request, client_address)

    def _finish_in_child(self, request: Any, client_address: Any) -> int:
        server = self.server
        try:
            server.finish_request(request, client_address)
            return 0
        except Exception:
            server.handle_error(request, client_address)
            return 1
        finally:
            server.shutdown_request(request)


def leaving(listener: Any) -> Callable[[], object]:
    """Return how a child leaves the listener: a long request must not hold the port after the server has ended.

    On a datagram socket the handler needs it to reply.
    """
    return partial(leave_as, listener, left(listener)) if listener is not None and is_stream(listener) else int
