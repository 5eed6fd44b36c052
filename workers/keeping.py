"""Keeping: what a worker does with the connections that it keeps (KeepAliveMixIn), from their accept to their parking.

    accept ─▶ bytes? ─ yes ─▶ stay ─▶ more? ─ no ─▶ lingers (50 ms, one per worker) ─▶ park queue
                └─ no ─▶ lingers           ▲  ready queue, any worker ─┘

Runs in a worker. Owns the connections that linger in its epoll, until their stay begins or they are parked. Before a
worker begins anything, whatever else lingers is parked: nobody waits behind another's request. Must not wait for
a queue, nor shut down a side of a connection that is kept. A connection is taken out of the epoll before it is closed
or parked, for another process may have its description. What is counted of a request, stays.py does.
Longer than most files: the way of a connection through a worker reads here in its order.
"""

import contextlib
import errno
import logging
import os
import select
import socket
import threading
from collections.abc import Callable, Iterable
from functools import partial
from time import monotonic_ns
from typing import Any, NamedTuple

from prefork.metrics.facts import CloseReason
from prefork.metrics.log_events import LogEvent, event
from prefork.metrics.scoreboard import ACCEPTING, CLOSED, IDLE, IDLE_HERE, IN_HAND, MOVES, OPENED, STARTED_NS, STATE

from .accepting import NOTHING, REQUEST, Accepted, GetRequest
from .contexts import Lane
from .identity import identity, lost
from .kept import CLOSING, MET, SHORT, TELL_END, Kept, Queues
from .lanes import Lanes
from .lanes_beside import LanesBeside
from .proxy_protocol import ProxiedAddress, ProxiedPath
from .socket_files import AcceptedSocket
from .stay import KeptSocket, peek
from .stays import KeptServer, LaneStay
from .straight import ServeOne
from .unnamed_peer import UnnamedPeer

log = logging.getLogger("prefork.server")

LINGER_NS = 50_000_000
TRY_AGAIN_NS = 20_000_000  # where a queue is full, or too many descriptors are on their way
SAYS_SOMETHING = select.EPOLLIN | select.EPOLLONESHOT  # to one thread
KEEPABLE = (socket.socket, AcceptedSocket)  # a connection of another class is the program's, or TLS
ADDRESSES = (tuple, str, bytes, UnnamedPeer, ProxiedAddress, ProxiedPath)  # others cannot go along

Way = tuple[Any, Lanes, ServeOne]  # a server, its lanes, and what serves what comes for it


class Lingering(NamedTuple):
    """A connection that is idle in this worker."""

    at: KeptServer
    kept: Kept
    until_ns: int  # then it is parked
    stuck: bool = False  # it could not be parked


class GivenFirst:
    """The `get_request()` of a server: a request that this thread has accepted already, if it gave one; else the next.

    By threads' numbers: a `threading.local` would mark a thread that stays as one that has to end.
    """

    def __init__(self, get_request: GetRequest) -> None:
        self._given: dict[int, tuple[Any, Any]] = {}
        self._get_request = get_request

    def give(self, *request: Any) -> None:
        self._given[threading.get_ident()] = request

    def __call__(self) -> tuple[Any, Any]:
        given = self._given.pop(threading.get_ident(), None) if self._given else None
        return self._get_request() if given is None else given


class Keeping:
    """The kept connections of one worker.

    `lingers`: they may wait in its epoll. `draining` says whether it takes nothing new; `on_lost` is called when
    the program has closed a queue; `wake` ends the wait of the main thread.
    """

    def __init__(
        self, queues: Queues, epoll: select.epoll, *, lingers: bool, draining: Callable[[], bool],
        on_lost: Callable[[], None], wake: Callable[[], None],
    ) -> None:  # fmt: skip
        self.ways: dict[int, Way] = {}  # by the descriptor at which something comes
        self.lingers = lingers
        self.on_begin: Callable[[int | None], None] | None = None  # of threads that stay: what a stay has come by
        self._queues = queues
        self._park = queues.park_in.send
        self._receive = queues.ready_out.receive
        self._identities = [(end.fileno(), identity(end.fileno())) for end in (queues.park_in, queues.ready_out)]
        self._epoll = epoll
        self._draining = draining
        self._on_lost = on_lost
        self._wake = wake
        self._lock = threading.RLock()
        self._lingering: dict[int, Lingering] = {}
        self._served: dict[int, KeptServer] = {}  # by the number of the listener

    def ready_fileno(self) -> int:
        return self._queues.ready_out.fileno()

    def filenos(self) -> tuple[int, int]:
        return self._queues.park_in.fileno(), self._queues.ready_out.fileno()

    def keep(self, server: Any, lanes: Lanes, listener: int, count: Callable[[], None]) -> None:
        """Keep the connections of this server, whose lanes are to be bound next. `count` is called for each request
        but the first of a stay."""
        self._served[listener] = KeptServer(server, lanes, listener, self._keep_on, count)

    def ways_of(self, ways: Iterable[Way]) -> dict[int, Way]:
        """Return the way of each source, by its descriptor: each listener's, of which those stay as they are that
        keep nothing, the ready queue's, and later those of what lingers. The lanes are bound."""
        kept = {id(at.server): at for at in self._served.values()}
        ready: Way | None = None
        for server, lanes, way in ways:
            if (at := kept.get(id(server))) is not None:
                lanes.get_request = given = GivenFirst(lanes.get_request or server.get_request)
                way = partial(self._accept, at, given)
            self.ways[server.fileno()] = server, lanes, way
            ready = ready or (server, lanes, partial(self._take, lanes))
        assert ready is not None
        self.ways[self._queues.ready_out.fileno()] = ready
        return self.ways

    # What comes.

    def _accept(self, at: KeptServer, given: GivenFirst, server: Any, lane: Lane, now_ns: int) -> Accepted:
        """Accept a connection, and begin its first stay if it has said something."""
        lanes = at.lanes
        lane[STARTED_NS] = now_ns
        lane[STATE] = ACCEPTING
        try:
            request, client_address = given()
        except BaseException as exc:
            return lanes.got_none(lane, exc)
        if type(request) not in KEEPABLE or type(client_address) not in ADDRESSES:
            given.give(request, client_address)
            return lanes.serve_one(server, lane, now_ns)
        lanes.note_accepted(lane, request, now_ns)
        admitted = at.admitted(lane, request, client_address, now_ns)
        if admitted is None:
            return NOTHING if lanes.elsewhere else REQUEST
        lane[OPENED] += 1
        kept = Kept(at.listener, 0, now_ns, *admitted)
        return self._go_on(at, lane, at.socket(request.detach()), kept, now_ns, server.fileno())

    def _take(self, lanes: Lanes, server: Any, lane: Lane, now_ns: int) -> Accepted:
        """Take a connection from the ready queue, and begin a stay of it."""
        lane[STARTED_NS] = now_ns
        lane[STATE] = ACCEPTING
        try:
            came = self._receive()
        except OSError as exc:
            self._look_for_loss()
            return lanes.got_none(lane, exc)
        if came is None:
            lane[STATE] = IDLE
            return NOTHING
        lane[MOVES] += 1
        kept, fd = _decoded(came[0]), came[1]
        at = None if kept is None else self._served.get(kept.listener)
        if at is None or kept is None or fd == -1:
            lane[CLOSED + (CloseReason.LOST if fd == -1 else CloseReason.DRAINED)] += 1
            lane[STATE] = IDLE
            if fd != -1:
                os.close(fd)
            return NOTHING
        if at.lanes is not lanes:
            assert isinstance(at.lanes, LanesBeside)
            lane[STATE] = IDLE
            lane = at.lanes.like(lane)
            lane[STARTED_NS] = now_ns
            lane[STATE] = ACCEPTING
        sock = at.socket(fd)
        if kept.flags & CLOSING:
            return self._begin(at, lane, sock, kept, 0, self.ready_fileno())
        if at.complete is not None or kept.wanted > 1:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        return self._go_on(at, lane, sock, kept, now_ns, self.ready_fileno())

    def _resume(self, fd: int, server: Any, lane: Lane, now_ns: int) -> Accepted:
        """Begin a stay of a connection that lingers and has said something."""
        found = self._lingering.get(fd)
        if found is None or not self._remove(fd):
            return NOTHING
        lane[STARTED_NS] = now_ns
        lane[STATE] = ACCEPTING
        return self._go_on(found.at, lane, found.at.socket(fd), found.kept, now_ns, None)

    def _go_on(
        self, at: KeptServer, lane: Lane, sock: KeptSocket, kept: Kept, now_ns: int, source: int | None
    ) -> Accepted:  # fmt: skip
        """Begin a stay of a connection that is ours; or keep it, where it has said nothing. `source`: the listener or
        the queue by which it has come; None: it was here."""
        found = kept.unread or peek(sock)
        if found == b"":
            return self._hung_up(at, lane, sock, kept, source)
        if found is None:
            if at.speaks_first and not kept.flags & MET:
                return self._begin(at, lane, sock, kept, 0, source)
            at.leave_limits(lane)
            self._idle(at, kept, sock.detach(), now_ns, waits=self.lingers and not self._draining())
            lane[STATE] = IDLE
            return NOTHING
        if at.complete is not None and not kept.flags & SHORT:
            try:
                wanted = at.is_short(sock, kept)
            except Exception:
                at.fail(lane, sock, kept.client_address)
                return NOTHING if at.lanes.elsewhere else REQUEST
            if wanted:
                at.leave_limits(lane)
                self._idle(at, kept._replace(flags=kept.flags | SHORT, wanted=wanted), sock.detach(), now_ns)
                lane[STATE] = IDLE
                return NOTHING
        if kept.since_ns:  # by the holder's clock of what was incomplete
            kept = kept._replace(since_ns=0)
        return self._begin(at, lane, sock, kept, 1, source)

    def _begin(
        self, at: KeptServer, lane: Lane, sock: KeptSocket, kept: Kept, begun: int, source: int | None
    ) -> Accepted:  # fmt: skip
        if self._lingering:
            self.park_all()
        if self.on_begin is not None:
            self.on_begin(source)
        return at.begin(lane, sock, kept, begun)

    def _hung_up(self, at: KeptServer, lane: Lane, sock: KeptSocket, kept: Kept, source: int | None) -> Accepted:
        if kept.flags & MET and kept.flags & TELL_END:
            closing = kept._replace(flags=kept.flags | CLOSING, reason=CloseReason.CLIENT + 1)
            return self._begin(at, lane, sock, closing, 0, source)
        at.close(lane, sock, kept.client_address, CloseReason.CLIENT)
        return NOTHING

    # What is idle.

    def _keep_on(self, at: KeptServer, stay: LaneStay, fd: int) -> None:
        """Keep a connection whose stay has ended. In the thread of the stay."""
        kept, lane = at.left(stay), stay.lane
        waits = self.lingers and lane is not None and not (kept.unread or stay.more or stay.wanted or self._draining())
        self._idle(at, kept, fd, monotonic_ns(), waits=waits, lane=lane)

    def _idle(
        self, at: KeptServer, kept: Kept, fd: int, now_ns: int, *, waits: bool = False, lane: Lane | None = None
    ) -> None:  # fmt: skip
        """Have a connection linger here, or park it. `lane`: on which it was in hand."""
        if waits:
            with self._lock:
                if self._lingering:
                    self.park_all()
                self._add(fd, Lingering(at, kept, now_ns + LINGER_NS), lane)
        else:
            if lane is not None:
                lane[IN_HAND] = 0
            if not self._sent(kept, fd):
                with self._lock:
                    self._add(fd, Lingering(at, kept, now_ns + TRY_AGAIN_NS, True), None)
                self._wake()

    def _add(self, fd: int, found: Lingering, lane: Lane | None) -> None:
        at = found.at
        at.idle += 1
        at.lanes.all_lanes[0][IDLE_HERE] = at.idle
        if lane is not None:
            lane[IN_HAND] = 0
        self._lingering[fd] = found
        self.ways[fd] = at.server, at.lanes, partial(self._resume, fd)
        with contextlib.suppress(OSError):  # no memory: then it is parked when it is time
            self._epoll.register(fd, SAYS_SOMETHING)

    def _remove(self, fd: int) -> bool:
        """Take a connection out of the epoll. Return False if another thread has it by now."""
        with self._lock:
            found = self._lingering.pop(fd, None)
            if found is None:
                return False
            del self.ways[fd]
            with contextlib.suppress(OSError, ValueError):
                self._epoll.unregister(fd)
            at = found.at
            at.idle -= 1
            at.lanes.all_lanes[0][IDLE_HERE] = at.idle
        return True

    def _sent(self, kept: Kept, fd: int) -> bool:
        """Park a connection. Return False if that has to be tried again."""
        try:
            if not self._park(kept.encoded(), fd):
                return False
        except (OSError, ValueError) as exc:
            self._look_for_loss()
            if isinstance(exc, OSError) and exc.errno != errno.EMSGSIZE:
                return False
            log.error("could not park a connection, which is closed: %s", exc,
                      extra=event(LogEvent.KEPT_REFUSED, reason=str(exc)))  # fmt: skip
        os.close(fd)
        return True

    def park_all(self, *, due: bool = False) -> None:
        """Park what lingers; with `due` what has for long enough. What was tried a moment ago waits for its time."""
        now_ns = monotonic_ns()
        with self._lock:
            for fd, found in list(self._lingering.items()):
                if found.until_ns > now_ns and (due or found.stuck):
                    continue
                self._remove(fd)
                if not self._sent(found.kept, fd):
                    self._add(fd, found._replace(until_ns=now_ns + TRY_AGAIN_NS, stuck=True), None)
                    break

    def wait(self, at_most_s: float | None, most: int) -> list[tuple[int, int]]:
        """Wait as the epoll does; park what has lingered long enough."""
        poll, lingering = self._epoll.poll, self._lingering
        while lingering:
            now_ns = monotonic_ns()
            left_ns = min(found.until_ns for found in lingering.values()) - now_ns
            if left_ns <= 0:
                self.park_all(due=True)
                continue
            left_s = left_ns / 1e9
            if at_most_s is not None and at_most_s <= left_s:
                return poll(at_most_s, most)
            if ready := poll(left_s, most):
                return ready
        return poll(at_most_s, most)

    def see_to(self) -> float | None:
        """Park what is due. Return the milliseconds after which to call this again; None: nothing lingers.

        For a main thread whose threads wait themselves: a connection may have come back from one that does not.
        """
        if not self._lingering:
            return None
        self.park_all(due=True)
        return TRY_AGAIN_NS / 1e6

    # Leaving.

    def leave(self, rest: Callable[[float], None], gone: Callable[[], bool]) -> None:
        """Park all that lingers, at a drain. `rest` waits for so many milliseconds; `gone` says whether there is nobody
        left to park for."""
        while self._lingering:
            if gone():
                self.close_all()
                return
            self.park_all()
            if self._lingering:
                rest(TRY_AGAIN_NS / 1e6)

    def close_all(self) -> None:
        """Close what lingers: the service has ended."""
        for fd, found in list(self._lingering.items()):
            if self._remove(fd):
                found.at.lanes.all_lanes[0][CLOSED + CloseReason.DRAINED] += 1
                found.at.server.shutdown_request(found.at.socket(fd))

    def forget(self) -> None:
        """Let go of everything, in a process that the program forked: the connections are the parent's."""
        self._queues.close()
        lingering, self._lingering = self._lingering, {}
        for fd in lingering:
            with contextlib.suppress(OSError):
                os.close(fd)

    def _look_for_loss(self) -> None:
        if any(lost(fd, known) for fd, known in self._identities):
            self._on_lost()


def _decoded(message: bytes) -> Kept | None:
    try:
        return Kept.decoded(message)
    except ValueError as exc:
        log.error("could not take a kept connection, which is closed: %s", exc,
                  extra=event(LogEvent.KEPT_REFUSED, reason=str(exc)))  # fmt: skip
        return None
