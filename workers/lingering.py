"""Lingering: the connections that are idle in a worker, in its epoll, until they say something or are parked.

Runs in a worker: in the thread of its loop, or in all of its threads that stay. Owns the descriptors of what lingers.
A connection lingers for LINGER_NS, and at most one at a time; more are here only while the park queue has no room for
them. One that has lingered in vain after a request is SLOW, and parked at once, until it comes back to the holder
quickly. Must not wait for that queue.

The epoll tells of a connection once (EPOLLONESHOT), and then no more until it lingers again, even where another process
has its description: so one that has hung up is closed without being taken out, and one that goes on lingering is only
told to the epoll anew. One that is parked is taken out, since it lives on.
"""

import errno
import logging
import os
import select
from collections.abc import Callable
from functools import partial
from threading import RLock
from time import monotonic_ns
from typing import Any, NamedTuple

from prefork.metrics.facts import CloseReason
from prefork.metrics.log_events import LogEvent, event
from prefork.metrics.scoreboard import CLOSED, IDLE_HERE, IN_HAND

from .accepting import NOTHING, Accepted
from .contexts import Lane
from .identity import identity, lost
from .kept import SLOW, Kept, QueueEnd, end_connection
from .lanes import Lanes
from .stay import KeptSocket
from .stays import KeptServer, LaneStay, taken_out
from .straight import ServeOne

log = logging.getLogger("prefork.server")

LINGER_NS = 50_000_000
TRY_AGAIN_NS = 20_000_000  # where the queue is full, or too many descriptors are on their way
SAYS_SOMETHING = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLONESHOT  # to one thread, and nothing more then

Way = tuple[Any, Lanes, ServeOne]  # a server, its lanes, and what serves what comes for it


class Idle(NamedTuple):
    """A connection that lingers. As it goes along is in `kept`, or worked out where that is needed, of its `stay`."""

    at: KeptServer
    until_ns: int  # then it is parked
    kept: Kept | None
    stay: LaneStay | None = None
    sock: KeptSocket | None = None  # where there is one yet

    def left(self) -> Kept:
        if self.stay is not None:
            return self.at.left(self.stay)
        assert self.kept is not None
        return self.kept


class Lingering:
    """The connections that linger in one worker, and their parking.

    `resume` serves one that has said something. `ways` is what the loop looks up what comes in: here are those of the
    connections, by their descriptors. `on_lost` is called when the program has closed the queue. Where `ends` says that
    the service does, what is silent is closed instead of parked: no worker might be left to tell its handler.
    """

    def __init__(
        self, park_in: QueueEnd, epoll: select.epoll, ways: dict[int, Way],
        resume: Callable[[Idle, int, Lane, int], Accepted], on_lost: Callable[[], None], ends: Callable[[], bool],
    ) -> None:  # fmt: skip
        self._send = park_in.send
        self._fd, self._identity = park_in.fileno(), identity(park_in.fileno())
        self._poll, self._register, self._modify, self._unregister = (
            epoll.poll, epoll.register, epoll.modify, epoll.unregister
        )  # fmt: skip
        self._ways = ways
        self._resume = resume
        self._on_lost = on_lost
        self._ends = ends
        self.lock = RLock()
        self.here: dict[int, Idle] = {}  # by the descriptor
        self.says = 0  # what the last wait has told of one; 0: that is not known, as several threads wait
        self._due_ns = 0  # not before that anything is
        self._full_until_ns = 0  # the queue: nothing is tried; 0: it has room
        self.closes = False  # nobody is left to park for: the master is dead, and the holder with it

    def add(self, fd: int, idle: Idle, lane: Lane | None = None, *, watched: bool = False) -> None:
        """Have a connection linger. `lane`: on which it was in hand; `watched`: it is in the epoll still."""
        at = idle.at
        with self.lock:
            at.idle += 1
            at.gauge[IDLE_HERE] = at.idle + at.away
            if lane is not None:
                lane[IN_HAND] = 0
            self._due_ns = min(self._due_ns, idle.until_ns) if self.here else idle.until_ns
            self.here[fd] = idle
            self._ways[fd] = at.server, at.lanes, partial(self._come, fd)
            try:
                (self._modify if watched else self._register)(fd, SAYS_SOMETHING)
            except (OSError, ValueError):  # no memory: then it is parked when it is time
                pass

    def _come(self, fd: int, server: Any, lane: Lane, now_ns: int) -> Accepted:
        lane[IN_HAND] = 1  # before it is no more idle here: if this process dies, it is lost in any case
        if (idle := self._take(fd)) is not None:
            return self._resume(idle, fd, lane, now_ns)
        lane[IN_HAND] = 0
        return NOTHING

    def _take(self, fd: int) -> Idle | None:
        """Take a connection out; None if another thread was faster. It stays in the epoll."""
        with self.lock:
            idle = self.here.pop(fd, None)
            if idle is None:
                return None
            del self._ways[fd]
            at = idle.at
            at.idle -= 1
            at.gauge[IDLE_HERE] = at.idle + at.away
        return idle

    def unwatch(self, fd: int) -> None:
        """Take a connection out of the epoll, before it is parked."""
        try:
            self._unregister(fd)
        except (OSError, ValueError):
            pass

    # Parking.

    def park(self, at: KeptServer, kept: Kept, fd: int, lane: Lane | None = None) -> bool:
        """Park a connection, in hand on this lane. Return False if that has to be tried again."""
        if (self.closes or self._ends()) and at.end_in_place(kept, fd, lane, silent_only=not self.closes):
            return True
        if self._full_until_ns and monotonic_ns() < self._full_until_ns:
            return False
        try:
            message = kept.encoded()
            if kept.cell:
                at.cells.park(kept.cell)
            if lane is not None:
                lane[IN_HAND] = 0
            if not self._send(message, fd):
                if lane is not None:
                    lane[IN_HAND] = 1
                self._full_until_ns = monotonic_ns() + TRY_AGAIN_NS
                if kept.cell:
                    at.cells.take(kept.cell)
                return False
            self._full_until_ns = 0
        except (OSError, ValueError) as exc:
            at.cells.take(kept.cell)
            if isinstance(exc, OSError) and exc.errno != errno.EMSGSIZE:
                self._full_until_ns = monotonic_ns() + TRY_AGAIN_NS
                self.look_for_loss()
                return False
            if lane is not None:
                lane[IN_HAND] = 0
            log.error("could not park a connection, which is closed: %s", exc,
                      extra=event(LogEvent.KEPT_REFUSED, reason=str(exc)))  # fmt: skip
            at.cells.drop(kept.cell)
            at.gauge[CLOSED + CloseReason.HANDLER] += 1
            end_connection(fd)
            return True
        os.close(fd)
        return True

    def park_all(self, *, due: bool = False) -> None:
        """Park what lingers; with `due` what has for long enough. If the queue is full, all wait for its time: trying
        each by itself cost a whole CPU."""
        now_ns = monotonic_ns()
        if now_ns < self._full_until_ns and not self.closes:
            self._due_ns = self._full_until_ns
            return
        with self.lock:
            here = [fd for fd, idle in self.here.items() if not due or idle.until_ns <= now_ns]
        for fd in here:
            if (idle := self._take(fd)) is None:
                continue
            self.unwatch(fd)
            if idle.sock is not None:
                taken_out(idle.sock)
            if (kept := idle.left()).requests and not kept.flags & SLOW:
                kept = kept._replace(flags=kept.flags | SLOW)
            if not self.park(idle.at, kept, fd):
                self.add(fd, Idle(idle.at, now_ns, kept))
                self._due_ns = self._full_until_ns
                return
        if due:
            with self.lock:
                self._due_ns = min((idle.until_ns for idle in self.here.values()), default=0)

    def wait(self, at_most_s: float | None, most: int) -> list[tuple[int, int]]:
        """Wait as the epoll does; park what has lingered long enough."""
        while self.here:
            left_ns = self._due_ns - monotonic_ns()
            if left_ns <= 0:
                self.park_all(due=True)
                continue
            left_s = left_ns / 1e9
            if at_most_s is not None and at_most_s <= left_s:
                break
            if ready := self._poll(left_s, most):
                return ready
        return self._poll(at_most_s, most)

    def see_to(self) -> float | None:
        """Park what is due. Return the milliseconds after which to call this again; None: nothing lingers.

        For a main thread whose threads wait themselves: a connection may have come back from one that does not.
        """
        if not self.here:
            return None
        self.park_all(due=True)
        return TRY_AGAIN_NS / 1e6

    # Leaving.

    def leave(self, rest: Callable[[float], None]) -> None:
        """Park all, at a drain. `rest` waits for so many milliseconds."""
        while self.here:
            self.park_all()
            if self.here:
                rest(TRY_AGAIN_NS / 1e6)

    def forget(self) -> None:
        """Let go of everything, in a process that the program forked: the connections are the parent's."""
        idle, self.here = self.here, {}
        for fd, each in idle.items():
            if each.sock is not None:
                each.sock.detach()
            os.close(fd)

    def look_for_loss(self) -> None:
        if lost(self._fd, self._identity):
            self._on_lost()
