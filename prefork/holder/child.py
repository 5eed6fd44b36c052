"""The master's side of the holder: its fork and its restarts, the watch on it, and its end.

Runs in the turns of the master, and must not take a connection itself. Owns nothing that a connection is lost with: the
queues are the service's, and what a holder has is its own. Each image has a holder of its own, so that no old memory
stays: the one before parks all that it has once its successor runs, and leaves.

    TERM            park everything and leave: there is a successor, or will be
    drain signal    the service ends: close what is idle, and what becomes idle
    QUIT            close everything and leave
    KILL            it hangs: what it has is lost, and counted
"""

import logging
import signal
from collections.abc import Callable
from typing import NamedTuple

import setproctitle

from prefork.metrics.board import Board
from prefork.metrics.facts import ChildKind, ExitReason
from prefork.metrics.log_events import LogEvent, event
from prefork.metrics.scoreboard import HEADER_WORDS, IDLE_HERE, LANE_WORDS, READY, STARTED_NS, YES, Slot
from prefork.workers.bootstrap import Birth, Master
from prefork.workers.connection_table import ConnectionTable

from ..master.children import Child
from ..master.guard import say_failed
from ..master.kept_queues import KeptQueues
from ..master.policy import TICK_S
from ..master.restarts import RESTART_MAX_S, Restarts

log = logging.getLogger("prefork.supervisor")

HUNG_S = 5.0  # a holder whose heartbeat stands still for so long hangs
SUCCESSION_S = 0.05  # until the next look whether the new holder runs, while there is an old one


class HeldTerms(NamedTuple):
    """The settings of a holder, in seconds, connections and numbers of listeners; None: no such limit."""

    keepalive_timeout: float | None
    max_idle_connections: int | None
    incomplete_timeout: float
    graceful_timeout: float


class Watched:
    """A holder that runs, and what was last seen of it."""

    def __init__(self, child: Child, now: float) -> None:
        self.child = child
        self.beat = 0
        self.well_at = now
        self.told: set[int] = set()  # the signals that it has been sent

    @property
    def ready(self) -> bool:
        return bool(self.child.slot.words[READY] == YES)

    @property
    def idle(self) -> int:
        """The number of connections that it says it has."""
        words = self.child.slot.words
        return sum(words[HEADER_WORDS + IDLE_HERE :: LANE_WORDS].tolist())

    def hangs(self, now: float) -> bool:
        """Return whether its heart has not been seen to beat for HUNG_S; False where it cannot be seen, in a slot of
        another layout."""
        if not self.child.slot.lanes:
            return False
        words = self.child.slot.words
        beat = sum(words[HEADER_WORDS + STARTED_NS :: LANE_WORDS].tolist())
        if beat != self.beat:
            self.beat, self.well_at = beat, now
        return now - self.well_at >= HUNG_S

    def tell(self, signum: int) -> None:
        """Send the signal, once; CONT with it, for it may have been stopped."""
        if signum not in self.told and self.child.signal(signum):
            self.told.add(signum)
            self.child.signal(signal.SIGCONT)


class HolderChild:
    """Keep one holder running."""

    def __init__(
        self, terms: HeldTerms, kept: KeptQueues, listeners: int, board: Board,
        fork: Callable[[ChildKind, Slot, Callable[[Birth, Master, int], int]], Child], nudge: Callable[[], None],
        table: ConnectionTable | None = None, *, leave: Callable[[], None] = lambda: None, wanted: bool = True,
        adopts: bool = False, in_use: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        """`listeners`: those of the service, a bit for each number. `leave` is called in the process, which may outlive
        the master, to close its copies of the sockets that listen. `wanted`: this image keeps connections; else the
        holder of the one before stays as long as its workers are there (`in_use`). `adopts`: it stays in any case."""
        # Now, not in the process: by then the program may have changed its root, or given up what it was read with. And
        # not with this module, for it needs Linux.
        from .server import Held, serve

        def body(birth: Birth, master: Master, number: int) -> int:
            setproctitle.setproctitle("prefork: holder")
            leave()
            assert kept.queues is not None, "there is no holder without them"
            return serve(Held(*terms, table=table, nudge=nudge), kept.queues, birth, master)

        self._body = body
        self._kept, self._listeners, self._board, self._fork = kept, listeners, board, fork
        self._wanted, self._adopts, self._in_use = wanted, adopts or not wanted, in_use
        self._own: Watched | None = None
        self._before: list[Watched] = []
        self._restarts = Restarts()
        self._draining = False  # the service ends
        self._over = False  # and nothing is held any more

    def turn(self, now: float) -> float:
        """Start the holder if it is missing, kill it if it hangs, retire the one before. Return the time of the next
        turn."""
        if not self._wanted and not self._in_use():
            return self._wind_up(now)
        when = now + TICK_S
        if self._own is None:
            if self._over:
                return when
            if now < self._restarts.next_start:
                return min(self._restarts.next_start, when)
            self._start(now)
        if self._own is not None and self._own.child.replace:  # it was sent TERM by somebody else: it parks and leaves
            self._before.append(self._own)
            self._own = None
            self._start(now)
        for each in self._all():
            if each.hangs(now):
                self._give_up(each, now)
            elif self._draining and each.ready:
                each.tell(each.child.drain_signal)
        if self._before and self._own is not None and not self._draining:
            if not self._own.ready:
                return min(when, now + SUCCESSION_S)
            for each in self._before:
                _retire(each)
        return when

    def succeed(self, before: list[Child]) -> None:
        """Take over the holders of the previous image. Each has its connections until ours is ready for them."""
        living = sorted(before, key=lambda child: child.serial)
        self._before = [Watched(child, child.changed) for child in living]
        if self._adopts and self._before:
            self._own = self._before.pop()

    def ended(self, child: Child | None, now: float) -> None:
        """Schedule a restart after the holder was reaped or could not be forked."""
        self._before = [each for each in self._before if each.child is not child]
        if child is not None and (self._own is None or child is not self._own.child):
            return
        self._over = child is not None and child.reason is ExitReason.STOPPED
        self._restarts.ended(now if self._own is None else self._own.child.started, now)
        self._own = None

    def drain(self) -> None:
        """Have everything that is idle closed: the service ends."""
        self._draining = True
        for each in self._all():
            if each.ready:
                each.tell(each.child.drain_signal)

    def holds_some(self) -> bool:
        return any(each.idle for each in self._all())

    def stop(self) -> None:
        """Have everything closed, at once, and the holders leave; the caller reaps them."""
        for each in self._all():
            each.child.reason = ExitReason.STOPPED
            each.tell(signal.SIGQUIT)

    def _all(self) -> list[Watched]:
        return [*self._before, *([] if self._own is None else [self._own])]

    def _wind_up(self, now: float) -> float:
        """End what an image has left that kept connections, for nobody serves them any more."""
        self.stop()
        if not self._all():
            self._kept.close_left(self._board)
        return now + TICK_S

    def _start(self, now: float) -> None:
        try:
            slot = Slot(1, 0, 0, self._listeners)
            try:
                child = self._fork(ChildKind.HOLDER, slot, self._body)
            except BaseException:
                slot.close()
                raise
        except OSError as exc:
            say_failed("start the holder", exc, f"trying again within {RESTART_MAX_S:g} s")
            self.ended(None, now)
            return
        self._own = Watched(child, now)

    def _give_up(self, each: Watched, now: float) -> None:
        """Kill a holder that hangs; again in HUNG_S if the kernel refuses that."""
        each.well_at, each.child.reason = now, ExitReason.STALLED
        log.error(
            "%s: its heart has not beaten for %g s, killing it; connections that are lost with it: %d",
            each.child,
            HUNG_S,
            each.idle,
            extra=event(LogEvent.HOLDER_GIVEN_UP, **each.child.fields, connections=each.idle),
        )
        each.child.signal(signal.SIGKILL)


def _retire(each: Watched) -> None:
    """Have a holder park all that it has, for its successor, and leave."""
    if each.child.reason is None:
        each.child.reason, each.child.replace = ExitReason.REPLACED, True
        log.info("%s: parks what it has, and leaves", each.child,
                 extra=event(LogEvent.CHILD_DRAINING, **each.child.fields, state="draining"))  # fmt: skip
    each.tell(signal.SIGTERM)


def all_of(numbers: tuple[int, ...]) -> int:
    """Return the set of these numbers, a bit for each."""
    return sum(1 << number for number in numbers)
