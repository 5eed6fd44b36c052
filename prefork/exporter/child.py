"""The master's side of the exporter: its listener, forks and restarts, and the announcement of slots.

Runs in the turns of the serving process and must not serve a scrape itself. Owns the metrics listener for the life of
the service, so that an exporter that dies or hangs costs only the scrapes of that moment.
"""

import logging
import os
import signal
import socket
from collections.abc import Callable
from typing import Any, NamedTuple

from prefork.metrics.board import Board, unannounced
from prefork.metrics.companions import CompanionTable
from prefork.metrics.facts import ChildKind, ExitReason
from prefork.metrics.feed import Feed, Slots
from prefork.metrics.log_events import LogEvent, event
from prefork.metrics.scoreboard import CONNECTIONS_TAKEN, Slot, SlotReader
from prefork.workers import descriptor_limit, sinks
from prefork.workers.bootstrap import Birth, Master
from prefork.workers.privileges import Privileges

from ..errors import BindError, reason_of
from ..master.children import Child
from ..master.guard import say_failed
from ..master.policy import TICK_S
from ..master.restarts import FIRST_RESTART_S, RESTART_MAX_S, Restarts
from ..master.signalling import retire
from ..sockets.addresses import address_text
from ..sockets.listener import Listener, names_of, number_of
from ..sockets.shared import queued

log = logging.getLogger("prefork.supervisor")

BACKLOG = 512  # enough for a burst; if the accept queue of a Unix listener is full, scrapes are refused
WEDGED_S = 3.0  # an exporter that accepts no waiting connection for so long hangs


class Exported(NamedTuple):
    """The service whose metrics are exported."""

    name: str
    listeners: tuple[socket.socket, ...]  # none: its class has no socket
    pool: bool
    may_fork: Callable[[], bool]  # must be false while threads of the service run
    companions: CompanionTable | None = None
    privileges: Privileges | None = None  # of the service's processes
    others: tuple[socket.socket, ...] = ()  # of the workers, where each has a socket of its own


def bind_metrics(address: Any, asked: str) -> Listener:
    """Return a new metrics listener, bound to a (host, port) tuple or a Unix path. Raises BindError."""
    family = socket.AF_UNIX
    if isinstance(address, (tuple, list)):
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        address = tuple(address)
    try:
        listener = Listener(family, socket.SOCK_STREAM)
    except OSError as exc:  # there is no IPv6
        raise BindError(exc.errno, f"could not bind {address_text(address)}: {reason_of(exc)}") from exc
    listener.asked = asked
    try:
        if family != socket.AF_UNIX:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    log.info(
        "metrics on %s",
        address_text(listener.getsockname()),
        extra=event(LogEvent.METRICS_LISTENING, address=address_text(listener.getsockname())),
    )
    return listener


class ExporterChild:
    """Keep one exporter running."""

    def __init__(
        self,
        subject: Exported,
        listener: Listener,
        board: Board,
        fork: Callable[[ChildKind, Slot, Callable[[Birth, Master, int], int]], Child],
        forget_memory: Callable[[], None],
    ) -> None:
        self._subject = subject
        self._listener = listener
        self._board = board
        self._fork = fork
        self._forget_memory = forget_memory
        self._feed: Feed | None = None
        self._child: Child | None = None
        self._restarts = Restarts()
        self._well_at = 0.0  # when it last accepted a connection or had none waiting
        self._taken = 0
        self._unkilled = False  # it was given up, and the kernel refused the signal
        board.announce = self._announce
        self._before: list[Child] = []

    def turn(self, now: float) -> float:
        """Start the exporter if it is missing, kill it if it hangs. Return the time of the next turn."""
        if self._child is None:
            if now < self._restarts.next_start or not self._subject.may_fork():
                return min(max(self._restarts.next_start, now + FIRST_RESTART_S), now + TICK_S)
            self._start(now)
        elif self._unkilled:
            self._unkilled = not self._child.signal(signal.SIGKILL)
        elif self._takes_some(self._child) or not queued(self._listener):
            self._well_at = now
        elif now - self._well_at >= WEDGED_S:
            self._well_at = now
            self._give_up("it takes no connections")
        if self._child is not None:
            self._before = [child for child in self._before if not retire(child, now)]
        return min(now + TICK_S, self._well_at + WEDGED_S)  # its facts about the master are never older than a tick

    def _takes_some(self, child: Child) -> bool:
        """Return True if it has accepted since the last look. A non-empty queue alone is not a hang under load."""
        before, self._taken = self._taken, child.slot.words[CONNECTIONS_TAKEN]
        return self._taken != before

    def succeed(self, before: list[Child]) -> None:
        """Take over the previous image's exporters. Each serves until ours is running, then drains."""
        self._before = before

    def ended(self, child: Child | None, now: float) -> None:
        """Schedule a restart after the exporter was reaped or could not be forked."""
        if child is not self._child:
            return
        self._restarts.ended(now if self._child is None else self._child.started, now)
        self._child = None
        self._close_feed()

    def close(self) -> None:
        """Kill the exporter for good; the caller reaps it. The listener belongs to the service and stays open."""
        if self._child is not None:
            self._child.reason = ExitReason.STOPPED
            self._child.signal(signal.SIGKILL)
        self._board.announce = unannounced
        self._close_feed()

    def forget(self) -> None:
        """Close the copy of our end in a new child. The listener belongs to the service."""
        if self._feed is not None:
            self._feed.keep_theirs()

    def _start(self, now: float) -> None:
        self._well_at, self._taken, self._unkilled = now, 0, False
        try:
            feed = self._feed = Feed()
        except OSError as exc:
            self._not_started(exc, now)
            return

        def body(birth: Birth, master: Master, number: int) -> int:
            from .server import Scope, serve  # only here, because it imports the HTTP modules

            sinks.name_child(f"exporter pid={os.getpid()}")
            feed.keep_theirs()
            try:
                slots = Slots(self._board, feed.theirs)
            except OSError as exc:
                say_failed("look at the slots", exc, "the exporter starts again")
                return 1
            self._forget_memory()
            descriptor_limit.give_back()
            subject = self._subject
            socks = subject.listeners
            named = tuple(zip(names_of(socks), map(number_of, socks), socks, strict=True))
            scope = Scope(
                subject.name, self._listener, named, subject.pool, subject.companions, subject.privileges,
                subject.others,
            )  # fmt: skip
            return serve(scope, slots, birth, master)

        try:
            slot = Slot(0)
            try:
                self._child = self._fork(ChildKind.EXPORTER, slot, body)
            except BaseException:
                slot.close()
                raise
        except OSError as exc:
            self._not_started(exc, now)
            return
        feed.keep_ours()

    def _not_started(self, exc: OSError, now: float) -> None:
        say_failed("start the exporter", exc, f"trying again within {RESTART_MAX_S:g} s")
        self.ended(None, now)

    def _announce(self, serial: int, reader: SlotReader) -> None:
        if self._feed is not None and self._child is not None and not self._feed.send(serial, reader):
            self._give_up("it does not take new slots")

    def _give_up(self, why: str) -> None:
        if self._child is not None:
            log.warning(
                "%s: %s; killing it",
                self._child,
                why,
                extra=event(LogEvent.EXPORTER_GIVEN_UP, **self._child.fields, reason=why),
            )
            self._unkilled = not self._child.signal(signal.SIGKILL)
        self._close_feed()

    def _close_feed(self) -> None:
        if self._feed is not None:
            self._feed.close()
            self._feed = None
