"""Keeping: what a worker does with the connections that it keeps (KeepAliveMixIn), from their accept to their parking.

    accept ─▶ bytes? ─ yes ─▶ stay ─▶ more? ─ no ─▶ lingers (50 ms, one per worker) ─▶ park queue
                └─ no ─▶ lingers           ▲  ready queue, any worker ─┘

Runs in a worker. Before it begins anything, whatever else lingers is parked: nobody waits behind another's request,
and a worker that is killed takes one idle connection at most. Must not wait for a queue, nor shut down a side of
a connection that is kept. What lingers is in lingering.py; what is counted of a request, and what is called for it, in
stays.py.
"""

import logging
import select
import socket
import threading
from collections.abc import Callable, Iterable
from functools import partial
from time import monotonic_ns
from typing import Any

from prefork.metrics.facts import CloseReason
from prefork.metrics.log_events import LogEvent, event
from prefork.metrics.scoreboard import ACCEPTING, CLOSED, IDLE, IN_HAND, MOVES, OPENED, STARTED_NS, STATE

from .accepting import NOTHING, REQUEST, Accepted, GetRequest
from .contexts import Lane
from .identity import identity, lost
from .kept import CLOSING, MET, SHORT, SILENT, SLOW, TELL_END, Kept, Queues, end_connection
from .lanes import Lanes
from .lanes_beside import LanesBeside
from .lingering import LINGER_NS, Idle, Lingering, Way
from .proxy_protocol import ProxiedAddress, ProxiedPath
from .socket_files import AcceptedSocket
from .stay import KeptSocket, peek
from .stays import VERIFY, KeptServer, LaneStay, taken_out
from .unnamed_peer import UnnamedPeer

log = logging.getLogger("prefork.server")

KEEPABLE = (KeptSocket, socket.socket, AcceptedSocket)  # a connection of another class is the program's, or TLS
ADDRESSES = (tuple, str, bytes, UnnamedPeer, ProxiedAddress, ProxiedPath)  # others cannot go along
SOMETHING = b"?"  # for what is at hand, where nobody has looked at it
AT_ONCE_NS = 20_000  # who has lingered for less than that had said more by the end of its stay

_new = tuple.__new__  # of a NamedTuple, without a call


class GivenFirst:
    """The `get_request()` of a server: a request that this thread has accepted already, if it gave one; else the next.

    By threads' numbers: a `threading.local` would mark a thread that stays as one that has to end.
    """

    def __init__(self, get_request: GetRequest) -> None:
        self.accept = get_request
        self._given: dict[int, tuple[Any, Any]] = {}

    def give(self, request: Any, client_address: Any) -> None:
        self._given[threading.get_ident()] = request, client_address

    def __call__(self) -> tuple[Any, Any]:
        given = self._given.pop(threading.get_ident(), None)
        return self.accept() if given is None else given


class Keeping:
    """The kept connections of one worker.

    `lingers`: they may wait in its epoll. `draining` says whether it takes nothing new, and `ends` whether that is the
    end of the service; `on_lost` is called when the program has closed a queue; `wake` ends the wait of the main
    thread.
    """

    def __init__(
        self, queues: Queues, epoll: select.epoll, *, lingers: bool, draining: Callable[[], bool],
        on_lost: Callable[[], None], wake: Callable[[], None], ends: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        self.lingers = lingers
        self.on_begin: Callable[[int | None], None] | None = None  # of threads that stay: what a stay has come by
        self.ways: dict[int, Way] = {}  # by the descriptor at which something comes
        self.idle = Lingering(queues.park_in, epoll, self.ways, self._resume, on_lost, ends)
        self._queues = queues
        self._receive = queues.ready_out.receive
        self._ready, self._identity = queues.ready_out.fileno(), identity(queues.ready_out.fileno())
        self._draining = draining
        self._on_lost = on_lost
        self._ends = ends
        self._wake = wake
        self._served: dict[int, KeptServer] = {}  # by the number of the listener

    def ready_fileno(self) -> int:
        return self._ready

    def filenos(self) -> tuple[int, int]:
        return self._queues.park_in.fileno(), self._ready

    def keep(self, server: Any, lanes: Lanes, listener: int, count: Callable[[], None]) -> None:
        """Keep the connections of this server, whose lanes are to be bound next. `count` is called for each request
        but the first of a stay."""
        self._served[listener] = KeptServer(
            server, lanes, listener, self._keep_on, count, self._is_last, self.idle.lock
        )

    def ways_of(self, ways: Iterable[Way]) -> dict[int, Way]:
        """Return the way of each source, by its descriptor: each listener's, of which those stay as they are that
        keep nothing, the ready queue's, and later those of what lingers. The lanes are bound."""
        kept = {id(at.server): at for at in self._served.values()}
        ready: Way | None = None
        for server, lanes, way in ways:
            if (at := kept.get(id(server))) is not None:
                lanes.get_request = given = GivenFirst(lanes.get_request or server.get_request)
                way = partial(self._accept, at, given)
                at.bound()
            self.ways[server.fileno()] = server, lanes, way
            ready = ready or (server, lanes, partial(self._take, lanes))
        assert ready is not None
        self.ways[self._ready] = ready
        return self.ways

    def _is_last(self) -> bool:
        """Return whether nobody would take a connection from here: the service ends, or the master is dead."""
        return self.idle.closes or self._ends()

    def forget(self) -> None:
        """Let go of everything, in a process that the program forked: the connections are the parent's."""
        self._queues.close()
        self.idle.forget()

    # What comes.

    def _accept(self, at: KeptServer, given: GivenFirst, server: Any, lane: Lane, now_ns: int) -> Accepted:
        """Accept a connection, and begin its first stay if it has said something."""
        lanes = at.lanes
        lane[STARTED_NS] = now_ns
        lane[STATE] = ACCEPTING
        try:
            request, client_address = given.accept()
        except BaseException as exc:
            at.failed = True
            return lanes.got_none(lane, exc)
        if type(request) not in KEEPABLE or type(client_address) not in ADDRESSES:
            given.give(request, client_address)
            return lanes.serve_one(server, lane, now_ns)
        if at.failed or now_ns >= lanes.next_queue_wait_ns:
            at.failed = False
            lanes.note_accepted(lane, request, now_ns)
        if type(server).verify_request is not at.verify or lanes.admission is not None or VERIFY in vars(server):
            admitted = at.admitted(lane, request, client_address)
            if admitted is None:
                return NOTHING if lanes.elsewhere else REQUEST
            client_address = admitted[0]
        lane[OPENED] += 1
        lane[IN_HAND] = 1
        cell = 0 if lanes.limits is None else lanes.limits.keep(lane)
        kept = _new(Kept, (at.listener, 0, now_ns, client_address, b"", b"", 0, 1, 0, 0, cell))
        sock = request if type(request) is KeptSocket else at.socket(request.detach())
        if not at.undelayed:
            at.send_at_once(sock)
        found = peek(sock)
        if not found or at.complete is not None:
            if at.first_byte_ns:
                kept = kept._replace(flags=SILENT, since_ns=now_ns + at.first_byte_ns)
            return self._go_on(at, lane, sock, kept, now_ns, at.source, found)
        if self.idle.here:
            self.idle.park_all()
        if self.on_begin is not None:
            self.on_begin(at.source)
        return at.begin(lane, sock, kept, 1, at.looks, False)

    def _take(self, lanes: Lanes, server: Any, lane: Lane, now_ns: int) -> Accepted:
        """Take a connection from the ready queue, and begin a stay of it."""
        lane[STARTED_NS] = now_ns
        lane[STATE] = ACCEPTING
        try:
            came = self._receive()
        except OSError as exc:
            if lost(self._ready, self._identity):
                self._on_lost()
            return lanes.got_none(lane, exc)
        if came is None:
            lane[STATE] = IDLE
            return NOTHING
        lane[IN_HAND] = 1
        lane[MOVES] += 1
        kept, fd = _decoded(came[0]), came[1]
        at = None if kept is None else self._served.get(kept.listener)
        if at is None or kept is None or fd == -1:
            return self._cannot_take(lane, at, kept, fd)
        if at.lanes is not lanes:
            assert isinstance(at.lanes, LanesBeside)
            lane[STATE], lane[IN_HAND] = IDLE, 0
            lane = at.lanes.like(lane)
            lane[STARTED_NS], lane[IN_HAND] = now_ns, 1
            lane[STATE] = ACCEPTING
        if kept.cell:
            at.cells.take(kept.cell)
        sock = at.socket(fd)
        if kept.flags & CLOSING:
            return self._begin(at, lane, sock, kept, 0, self._ready)
        if at.complete is not None or kept.wanted > 1:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        return self._go_on(at, lane, sock, kept, now_ns, self._ready, SOMETHING)

    def _cannot_take(self, lane: Lane, at: KeptServer | None, kept: Kept | None, fd: int) -> Accepted:
        """Close a connection that nobody here can serve, or that has arrived without its descriptor."""
        lane[CLOSED + (CloseReason.LOST if fd == -1 else CloseReason.DRAINED)] += 1
        lane[IN_HAND] = 0
        lane[STATE] = IDLE
        if kept is not None:
            (at or next(iter(self._served.values()))).cells.drop(kept.cell)
        if fd != -1:
            end_connection(fd)
        return NOTHING

    def _resume(self, idle: Idle, fd: int, lane: Lane, now_ns: int) -> Accepted:
        """Begin a stay of a connection that has lingered and says something, or has hung up."""
        at, stay = idle.at, idle.stay
        lane[STARTED_NS] = now_ns
        lane[STATE] = ACCEPTING
        sock = idle.sock or at.socket(fd)
        found = SOMETHING if self.idle.says == select.EPOLLIN else peek(sock)
        if stay is None:
            return self._go_on(at, lane, sock, idle.left(), now_ns, None, found)
        at_once = at.tells_end or now_ns - idle.until_ns < AT_ONCE_NS - LINGER_NS
        if not stay.kept.requests:
            at.looks = at_once
        if found == b"" and not (at.tells_end or stay.kept.flags & TELL_END):
            at.close(lane, sock, stay.kept, CloseReason.CLIENT)
            return NOTHING
        return self._go_on(at, lane, sock, idle.left(), now_ns, None, found, looks=at_once or stay.begun > 1)

    def _go_on(
        self, at: KeptServer, lane: Lane, sock: KeptSocket, kept: Kept, now_ns: int, source: int | None,
        found: bytes | None, *, looks: bool = True,
    ) -> Accepted:  # fmt: skip
        """Begin a stay of a connection that is ours; or keep it, where it has said nothing. `source`: the listener or
        the queue by which it has come; None: it was here. `found`: as `peek()` returns it."""
        if not (found or kept.unread):
            if found is not None:
                return self._hung_up(at, lane, sock, kept, source)
            if at.speaks_first and not kept.flags & MET:
                return self._begin(at, lane, sock, kept, 0, source)
            return self._stay_idle(at, lane, sock, kept, now_ns, source, lingers=self.lingers)
        if kept.flags & SILENT:
            kept = kept._replace(flags=kept.flags & ~SILENT, since_ns=0)
        if at.complete is not None and not kept.flags & SHORT:
            try:
                short = at.short(sock, kept)
            except Exception:
                at.fail(lane, sock, kept)
                return NOTHING if at.lanes.elsewhere else REQUEST
            if short is not None:
                return self._stay_idle(at, lane, sock, short, now_ns, source, lingers=False)
        if kept.since_ns:
            kept = kept._replace(since_ns=0)
        return self._begin(at, lane, sock, kept, 1, source, looks=looks and not kept.flags & SLOW)

    def _begin(
        self, at: KeptServer, lane: Lane, sock: KeptSocket, kept: Kept, begun: int, source: int | None, *,
        looks: bool = True,
    ) -> Accepted:  # fmt: skip
        if self.idle.here:
            self.idle.park_all()
        if self.on_begin is not None:
            self.on_begin(source)
        return at.begin(lane, sock, kept, begun, looks, source is None)

    def _hung_up(self, at: KeptServer, lane: Lane, sock: KeptSocket, kept: Kept, source: int | None) -> Accepted:
        if kept.flags & MET and kept.flags & TELL_END:
            closing = kept._replace(flags=kept.flags | CLOSING, reason=CloseReason.CLIENT + 1)
            return self._begin(at, lane, sock, closing, 0, source)
        at.close(lane, sock, kept, CloseReason.CLIENT)
        return NOTHING

    # What is idle.

    def _keep_on(self, at: KeptServer, stay: LaneStay, fd: int) -> None:
        """Keep a connection whose stay has ended, here or on its way. In the thread of the stay."""
        lane = stay.lane
        passes = stay.kept.flags & SLOW or stay.unread or stay.more or stay.wanted or self._draining()
        if self.lingers and lane is not None and not passes:
            if self.idle.here:
                self.idle.park_all()
            self.idle.add(fd, Idle(at, monotonic_ns() + LINGER_NS, None, stay), lane, watched=stay.watched)
            return
        if stay.watched:
            self.idle.unwatch(fd)
        self._park(at, at.left(stay), fd, lane)

    def _stay_idle(
        self, at: KeptServer, lane: Lane, sock: KeptSocket, kept: Kept, now_ns: int, source: int | None, *,
        lingers: bool,
    ) -> Accepted:  # fmt: skip
        """Keep a connection on which no request has begun. Return that there is none."""
        fd, watched = sock.fileno(), source is None
        if lingers and not self._draining():
            if self.idle.here:
                self.idle.park_all()
            self.idle.add(fd, Idle(at, now_ns + LINGER_NS, kept, None, sock), lane, watched=watched)
        else:
            if watched:
                self.idle.unwatch(fd)
            self._park(at, kept, taken_out(sock), lane)
        lane[STATE] = IDLE
        return NOTHING

    def _park(self, at: KeptServer, kept: Kept, fd: int, lane: Lane | None) -> None:
        if not self.idle.park(at, kept, fd, lane):
            self.idle.add(fd, Idle(at, monotonic_ns(), kept), lane)
            self._wake()


def _decoded(message: bytes) -> Kept | None:
    try:
        return Kept.decoded(message)
    except ValueError as exc:
        log.error("could not take a kept connection, which is closed: %s", exc,
                  extra=event(LogEvent.KEPT_REFUSED, reason=str(exc)))  # fmt: skip
        return None
