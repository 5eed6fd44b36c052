"""The holder: a supervised child that has the idle connections.

Imported and run only in its own process, which the master forks and watches. Runs no code of the program's, has no
listener and reads no request. It waits for the park queue and for all connections in one epoll; what becomes of them is
said in connections.py. It never blocks: one that did would be taken for hung, and all that it has would be lost.
"""

import gc
import os
import resource
import select
import signal
import socket
from collections.abc import Callable
from select import EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT
from time import monotonic_ns, sleep
from typing import NamedTuple

from prefork.metrics.facts import ExitReason
from prefork.metrics.histogram import NS
from prefork.metrics.scoreboard import HELD_MOST, LEAVING, READY, REPLACE_ASKED, STARTED_NS, YES
from prefork.workers import sinks
from prefork.workers.bootstrap import Birth, Master
from prefork.workers.connection_table import ConnectionTable
from prefork.workers.kept import Queues
from prefork.workers.loop import IGNORED
from prefork.workers.signals import DRAIN_SIGNAL, SignalHandler, Signals, ignore, set_mask
from prefork.workers.wakeup import Wakeup

from .connections import Bounds, Connections

ONE_MORE_AFTER = 8  # turns: to receive what is not there costs as much as all the rest
BEAT_S = 1.0  # the longest time without a sign of life
MOST_AT_ONCE = 64  # events of one wait, and messages of one turn
KEPT_FREE = 16  # descriptors that are free when it has as many connections as it can
OTHERS = 200  # descriptors that are not for connections, where there is no /proc
HAND_OVER_AGAIN_S = 0.02  # where a queue has no room, for whatever reason


class Held(NamedTuple):
    """The terms that the master passes on to a holder. Times are in seconds."""

    keepalive_timeout: float | None  # None: no limit
    max_idle_connections: int | None  # None: what its limit of descriptors allows
    incomplete_timeout: float
    graceful_timeout: float
    table: ConnectionTable | None  # where the number of connections is limited
    nudge: Callable[[], None]


class Holder:
    """One holder process."""

    def __init__(self, held: Held, queues: Queues, birth: Birth, master: Master) -> None:
        self._held = held
        self._queues = queues
        self._slot = birth.slot
        self._beats = birth.slot.lane(0)
        self._master = master
        self._hands_over = False  # and leaves
        self._ends = False  # the service does
        self._quits = False  # and closes everything
        self._quit_at = float("inf")  # its master is dead
        self._reads = True  # the park queue
        self._in_a_row = 0  # turns in which there was as much in the park queue as was taken
        self._waits_for_room = False  # in the ready queue
        self._wakeup = Wakeup()
        self._signals = Signals(self._wakeup)
        self._watch = select.epoll()
        bounds = _bounds(held)
        birth.slot.words[HELD_MOST] = bounds.most_idle
        cells = None if held.table is None else held.table.kept
        self._connections = Connections(bounds, birth.slot, self._watch, queues.ready_in, cells)
        self._own: dict[int, Callable[[int, float], None]] = {
            queues.park_out.fileno(): self._on_park,
            self._wakeup.fileno(): self._on_wakeup,
            master.fileno(): self._on_death,
        }
        self._ready = queues.ready_in.fileno()

    def run(self, mask: set[int]) -> int:
        """Serve until told to leave. Return the exit status."""
        handlers: dict[int, SignalHandler] = dict.fromkeys((*IGNORED, signal.SIGPIPE), ignore)
        handlers |= {signal.SIGTERM: self._on_leave, DRAIN_SIGNAL: self._on_drain, signal.SIGQUIT: self._on_quit}
        self._signals.take(handlers)
        set_mask(mask)
        for fd in self._own:
            self._watch.register(fd, EPOLLIN)
        self._beat()
        self._slot.words[READY] = YES
        self._held.nudge()
        self._serve()
        if self._quits:
            self._close_all()
        else:
            self._hand_over()
        orphan = self._quit_at != float("inf")
        self._slot.words[LEAVING] = ExitReason.MASTER_DIED if orphan else ExitReason.DRAINED
        return 0

    # Signals: notes only.

    def _on_leave(self, signum: int, frame: object) -> None:
        self._hands_over = True

    def _on_quit(self, signum: int, frame: object) -> None:
        self._quits = True

    def _on_drain(self, signum: int, frame: object) -> None:
        self._ends = self._ends or self._slot.told_to_drain

    # The loop.

    def _serve(self) -> None:
        connections, watch, own = self._connections, self._watch, self._own
        follow_at = 0.0
        now = self._beat()
        while True:
            ours = []
            ready = watch.poll(max(0.0, min(BEAT_S, connections.look_at - now)), MOST_AT_ONCE)
            now = self._beat()
            for fd, event in ready:
                if fd in own:
                    ours.append((fd, event))
                else:
                    connections.on_event(fd, event, now)
            # After all others: a new connection may get the descriptor of one that was closed just now.
            for fd, event in ours:
                own[fd](event, now)
            if now >= follow_at:
                follow_at = now + BEAT_S
                sinks.follow()
            if self._quits or self._hands_over or now >= self._quit_at:
                self._quits = self._quits or now >= self._quit_at
                return
            if self._ends and not connections.ending:
                connections.end_all()
            if now >= connections.look_at or connections.backlog:
                connections.look(now)
            if connections.backlog or self._waits_for_room:
                self._wait_for_room()
            if not self._reads and connections.has_room():
                self._reads = True
                watch.register(self._queues.park_out.fileno(), EPOLLIN)

    def _beat(self) -> float:
        """Give a sign of life. Return the time."""
        self._beats[STARTED_NS] = now_ns = monotonic_ns()
        return now_ns / NS

    def _on_wakeup(self, event: int, now: float) -> None:
        self._wakeup.drain()

    def _on_park(self, event: int, now: float) -> None:
        connections, receive = self._connections, self._queues.park_out.receive
        self._in_a_row += 1
        for _ in range(min(MOST_AT_ONCE, 1 + self._in_a_row // ONE_MORE_AFTER)):
            if not connections.has_room():
                self._reads = False
                self._watch.unregister(self._queues.park_out.fileno())
                return
            found = receive(has_room=True)
            if found is None:
                self._in_a_row = 0
                break
            connections.take(*found, now)
        if event & EPOLLHUP:  # no worker is left that could park
            self._quits = True

    def _on_death(self, event: int, now: float) -> None:
        """The master is dead: its workers finish what they have, and so does this."""
        self._watch.unregister(self._master.fileno())
        self._quit_at = now + self._held.graceful_timeout
        self._ends = True
        self._queues.park_in.close()

    def _wait_for_room(self) -> None:
        """Wait for a worker to take something from the ready queue, as long as that is full. Where it has room, and
        too many descriptors are on their way, only the clock helps: hence the edge."""
        if self._connections.backlog and not self._waits_for_room:
            self._watch.register(self._ready, EPOLLOUT | EPOLLET)
        elif self._waits_for_room and not self._connections.backlog:
            self._watch.unregister(self._ready)
        self._waits_for_room = bool(self._connections.backlog)

    # The end.

    def _hand_over(self) -> None:
        """Park all connections for the next holder, for as long as the master lets us."""
        self._slot.words[REPLACE_ASKED] = YES  # it may have been somebody else who sent TERM
        self._held.nudge()
        park = self._queues.park_in
        while not self._connections.hand_over(park):
            self._beat()
            if self._quits or self._master.gone():
                self._quits = True
                self._close_all()
                return
            # By the clock: it may have room, and too many descriptors be on their way.
            sleep(HAND_OVER_AGAIN_S)

    def _close_all(self) -> None:
        """Close all connections, and what is in the park queue."""
        connections, receive = self._connections, self._queues.park_out.receive
        connections.close_all()
        while (found := receive(has_room=True)) is not None:
            connections.close(*found)


def serve(held: Held, queues: Queues, birth: Birth, master: Master) -> int:
    """Run the holder; see `bootstrap.enter`. Return the exit status.

    Of `queues` it uses all ends but `ready_out`, which is closed. TERM, from anybody: it parks all that it has, for the
    next holder, and leaves. The signal to drain: the service ends, and it closes what is idle and what becomes so; it
    leaves on QUIT, which has it close all at once.
    """
    socket.setdefaulttimeout(None)  # a program's: it would make connections non-blocking
    gc.disable()  # nothing here refers to itself
    return Holder(held, queues, birth, master).run(birth.mask)


def _bounds(held: Held) -> Bounds:
    """Return the bounds of a process with this limit of descriptors, and those that the program has opened."""
    try:
        others = len(os.listdir("/proc/self/fd"))
    except OSError:
        others = OTHERS
    most = max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - others - KEPT_FREE)
    idle = most if held.max_idle_connections is None else held.max_idle_connections
    return Bounds(held.keepalive_timeout, held.incomplete_timeout, min(most, idle), most)
