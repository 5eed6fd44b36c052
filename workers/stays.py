"""Stays: how the requests of a kept connection are counted, and which of a server's hooks see them.

    admitted, verified: once ─▶ begun: accepted+1, BUSY ─▶ process_request ─▶ finish_request ─▶ goes on, or closed
                                   ▲     next_request: completed+1, accepted+1 ─┘ (of the handler, within a stay)

Runs in a worker, in the thread that serves. A stay that goes on is taken out of the request's object as soon as
`finish_request()` has returned: whatever the program does with that object cannot touch the connection any more. So
`shutdown_request()` is called at the end of a connection alone; below a `process_request()` of the program's, which
calls it, it is given a socket that is closed. Must not park a connection: keeping.py does.
Longer than most files: here the counts of a stay can be read in their order.
"""

from collections.abc import Callable
from functools import partial
from socket import IPPROTO_TCP, MSG_DONTWAIT, TCP_NODELAY, SocketType, socket
from threading import get_ident
from time import monotonic_ns
from typing import Any
from weakref import ref

from prefork.metrics.facts import CloseReason
from prefork.metrics.scoreboard import (
    ACCEPTED,
    AWAY,
    BUSY,
    CLOSED,
    COMPLETED,
    DURATION,
    FAILED,
    HANDED_OVER,
    IDLE,
    IDLE_HERE,
    IN_HAND,
    REJECTED,
    STARTED_NS,
    STATE,
)

from . import looped, strays
from .accepting import NOT_BEGUN, REQUEST, Accepted, NotAdmitted, is_shortage
from .bootstrap import leave
from .contexts import Lane, Place, place_of
from .definitions import definer, evaluated, is_base_servers, is_threading_mixins, of_class
from .keeps import KeepsConnections, class_of
from .kept import CLOSING, MESSAGE_MAX, MET, SHORT, TELL_END, Kept
from .lanes import FINISH, PROCESS, Finish, Lanes
from .stay import WHOLE_MAX, KeptSocket, Stay, bytes_wanted, peek
from .thread_body import THREAD_BODY

MOST_AWAY = (1 << 64) // AWAY - 1
ROOM_FOR_ADDRESS = 4096  # bytes of a message
VERIFY = "verify_request"

_observe, _detach = DURATION.observe, SocketType.detach
CLIENT, HANDLER = CloseReason.CLIENT, CloseReason.HANDLER


class LaneStay(Stay):
    """A stay, with the lane on which it is counted; None where it is not, in a thread of the program's own."""

    __slots__ = ("away", "kept_on", "lane", "over", "request", "watched")

    lane: Lane | None
    request: ref[KeptSocket] | None  # for the access log; it has the stay, and one that is dropped is closed at once
    kept_on: bool  # its descriptor is no more the request's
    over: bool  # and counted
    away: bool  # told to be with a thread of the program's
    watched: bool  # it has lingered here, and is in the epoll still, which tells nothing more of it


class KeptServer:
    """A server whose connections are kept, in a worker.

    `keep_on` is given a connection that a stay has left to be kept: itself, the stay, its lane, and the descriptor.
    `count` is called for each request but the first of a stay; `ends` says whether nobody would take a connection from
    here; `lock` is that of what lingers.
    """

    def __init__(
        self, server: Any, lanes: Lanes, listener: int, keep_on: Callable[["KeptServer", LaneStay, int], None],
        count: Callable[[], None], ends: Callable[[], bool], lock: Any,
    ) -> None:  # fmt: skip
        """Has to be made before the lanes are bound to the server."""
        self.server = server
        self.lanes = lanes
        self.listener = listener
        self.source = server.fileno()
        self.looks = True  # first stays do: the last client that was not found so had said more, or gone, at once
        self.failed = False  # the last accept
        self.undelayed = False  # what is accepted has TCP_NODELAY from its listener, or is nothing for it
        self.idle = 0  # connections that are idle here,
        self._with_threads = 0  # those that threads of the program's have,
        self.away = 0  # and the same as it is told,
        self._lock = lock  # with which all are changed and told
        self.gauge = lanes.all_lanes[0]  # where that is told, whichever lane each was served on
        self.cells: Any = NoCells if lanes.limits is None else lanes.limits.kept
        self.first_byte_ns = 0 if lanes.admission is None else int((lanes.admission.first_byte_timeout or 0) * 1e9)
        self._keep_on = keep_on
        self._count = count
        self._ends = ends
        cls = class_of(server.RequestHandlerClass)
        self.speaks_first = bool(getattr(cls, "speaks_first", False))
        self.complete: Callable[[bytes], Any] | None = getattr(cls, "complete", None)
        self.tells_end = definer(cls, "connection_closed") is not _mixin_of(cls)
        self._kind = int(server.socket.family), int(server.socket.type), server.socket.proto
        self._in_place = is_base_servers(server, PROCESS)
        self._in_thread = is_threading_mixins(server, THREAD_BODY)
        self._process, self._finish = type(server).process_request, type(server).finish_request
        self.verify = type(server).verify_request if is_base_servers(server, VERIFY) else None
        self._body = getattr(type(server), THREAD_BODY, None)
        self._is_straight: Callable[[], bool] = lambda: False
        self._away: set[ref[KeptSocket]] = set()  # of stays that the program has in its own hands
        lanes.keeping = self.counting

    def bound(self) -> None:
        """Choose the way of a stay, once the lanes are bound: straight where the program has no hook in between."""
        lanes, server = self.lanes, self.server
        if not lanes.elsewhere and lanes.found is None and is_base_servers(server, FINISH):
            if lanes.accepted is None and self._in_place:
                self._is_straight = self._is_straight_here
            elif lanes.accepted is not None and self._in_thread and is_threading_mixins(server, PROCESS):
                self._is_straight = self._is_straight_in_thread

    def _is_straight_here(self) -> bool:
        """Asked each time, as a program may put a hook there while it serves."""
        server, cls = self.server, type(self.server)
        return (
            server.finish_request is self.lanes.bound and PROCESS not in vars(server)
            and cls.process_request is self._process and cls.finish_request is self._finish
        )  # fmt: skip

    def _is_straight_in_thread(self) -> bool:
        server, cls = self.server, type(self.server)
        return (
            server.finish_request is self.lanes.bound and THREAD_BODY not in vars(server)
            and PROCESS not in vars(server) and cls.process_request is self._process
            and cls.finish_request is self._finish and getattr(cls, THREAD_BODY) is self._body
        )  # fmt: skip

    def socket(self, fd: int) -> KeptSocket:
        return KeptSocket(*self._kind, fd)

    def send_at_once(self, sock: KeptSocket) -> None:
        """Set TCP_NODELAY on an accepted connection. The master sets it on the listener: of one that came bound, those
        have it not that were in its queue by then, and come first."""
        try:
            self.undelayed = bool(sock.getsockopt(IPPROTO_TCP, TCP_NODELAY))
            if not self.undelayed:
                sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, True)
        except OSError:  # a Unix socket
            self.undelayed = True

    def short(self, sock: KeptSocket, kept: Kept) -> Kept | None:
        """Return a connection that has to wait for the rest of a request, None if there is a whole one. Raises what
        `complete()` does.

        Where no more has come than was waited for, the kernel may have no room for the rest: what is there is read.
        """
        assert self.complete is not None
        wanted, unread = bytes_wanted(sock, kept.unread, self.complete), kept.unread
        if not wanted:
            return None
        if 1 < wanted <= kept.wanted:
            unread, wanted = unread + sock.recv(WHOLE_MAX, MSG_DONTWAIT), 1
        return kept._replace(flags=kept.flags | SHORT, wanted=wanted, unread=unread)

    # The beginning of a connection.

    def admitted(self, lane: Lane, request: Any, client_address: Any) -> tuple[Any] | None:
        """Return the address of the client of a connection that may be served; else None, and it is closed."""
        lanes, server = self.lanes, self.server
        try:
            if lanes.admission is not None:
                request, client_address = lanes.admission.admit(request, client_address, lane, waits=False)
            if server.verify_request(request, client_address):
                return (client_address,)
            self._not_kept(lane, request, client_address, REJECTED)
            server.shutdown_request(request)
        except NotAdmitted as exc:
            self._begin(lane, request, exc.client_address)
            lanes.current[get_ident()] = lane
            lanes.turn_away(request, exc)
        except Exception:
            self._not_kept(lane, request, client_address, FAILED)
            server.handle_error(request, client_address)
            server.shutdown_request(request)
        except BaseException:
            self._not_kept(lane, request, client_address, FAILED)
            server.shutdown_request(request)
            raise
        lane[STATE] = IDLE
        return None

    def fail(self, lane: Lane, sock: KeptSocket, kept: Kept) -> None:
        """Count a connection that failed before a request of it began, and close it. In an `except` block."""
        self._not_kept(lane, sock, kept.client_address, FAILED)
        self.server.handle_error(sock, kept.client_address)
        if self.tells_end:
            self._tell_end(sock, kept, HANDLER)
        self.close(lane, sock, kept, CloseReason.HANDLER)

    def _not_kept(self, lane: Lane, request: Any, client_address: Any, outcome: int) -> None:
        self._begin(lane, request, client_address)
        self.lanes.end(lane, outcome, request)

    def _begin(self, lane: Lane, request: Any, client_address: Any) -> None:
        lane[ACCEPTED] += 1
        if self.lanes.access_log is not None:
            self.lanes.access_log.begin(lane, request, client_address)

    def close(self, lane: Lane, sock: KeptSocket, kept: Kept, reason: int) -> None:
        """Close a connection of which no request is in hand, on the lane that has it."""
        lane[IN_HAND] = 0
        try:
            self.end(lane, sock, kept, reason)
        finally:
            lane[STATE] = IDLE

    def end(self, lane: Lane, sock: KeptSocket, kept: Kept, reason: int) -> None:
        """Count and close it."""
        lane[CLOSED + reason] += 1
        if kept.cell:
            self.cells.drop(kept.cell)
        try:
            self.server.shutdown_request(sock)
        except Exception:
            self.server.handle_error(sock, kept.client_address)
            sock.close()

    def end_in_place(self, kept: Kept, fd: int, lane: Lane | None, *, silent_only: bool) -> bool:
        """Close a connection as the service ends, and tell its handler here: no worker might be left for that. Return
        False, with `silent_only`, where there is something at hand. `lane`: on which it was in hand."""
        sock = self.socket(fd)
        found = kept.unread or peek(sock)
        if silent_only and found:
            sock.detach()
            return False
        reason = CloseReason.DRAINED if found is None or found else CloseReason.CLIENT
        if kept.flags & TELL_END:
            self._tell_end(sock, kept, reason)
        self.end(self.gauge if lane is None else lane, sock, kept, reason)
        if lane is not None:
            lane[IN_HAND] = 0
        return True

    def _tell_end(self, sock: KeptSocket, kept: Kept, reason: int) -> None:
        """Have `connection_closed()` called for a connection that ends here, and was opened for its handler."""
        if not kept.flags & MET:
            return
        server = self.server
        sock.stay = LaneStay(kept._replace(flags=kept.flags | CLOSING, reason=reason + 1), lambda stay: None, 0)
        try:
            server.RequestHandlerClass(sock, kept.client_address, server)
        except Exception:
            server.handle_error(sock, kept.client_address)
        sock.stay = None

    # A stay.

    def begin(self, lane: Lane, sock: KeptSocket, kept: Kept, begun: int, looks: bool, watched: bool) -> Accepted:
        """Process a stay of a connection that is admitted, on this lane. `begun`: requests that are at hand, 0 or 1;
        `looks`, `watched`: as in LaneStay."""
        stay = LaneStay(kept, self._next, begun, looks, self._ends)
        stay.lane, stay.kept_on, stay.over, stay.away, stay.watched = lane, False, False, False, watched
        stay.request = None if self.lanes.access_log is None else ref(sock)
        sock.stay = stay
        if begun:
            lane[ACCEPTED] += 1
            if (access_log := self.lanes.access_log) is not None:
                if kept.opened_ns == lane[STARTED_NS]:  # it was accepted now: how long it had waited is known
                    access_log.begin(lane, super(KeptSocket, sock), kept.client_address)
                    access_log.admit(lane, sock, kept.client_address)
                else:
                    access_log.begin(lane, sock, kept.client_address)
        lane[STATE] = BUSY
        if self._is_straight():
            return self._process_straight(stay, lane, sock, kept.client_address)
        lanes, server = self.lanes, self.server
        place = place_of(sock) if lanes.placed else None
        if FINISH not in vars(server):
            lanes.put_back(server)
        if lanes.accepted is not None:
            return self._process_in_thread(stay, lane, place, sock, kept.client_address)
        return self._process_by_hooks(stay, lane, place, sock, kept.client_address)

    def _process_straight(self, stay: LaneStay, lane: Lane, sock: KeptSocket, client_address: Any) -> Accepted:
        """Do as the others, without calls of what leads to the handler."""
        server = self.server
        try:
            try:
                server.RequestHandlerClass(sock, client_address, server)
                if stay.state or stay.unread:
                    _check_size(stay)
            except BaseException as exc:
                self._failed(stay, lane, sock, exc)
                raise
            if self.lanes.forked:
                strays.end()
            self._end(stay, lane, COMPLETED, sock)
            if not stay.kept_on:
                server.shutdown_request(sock)
        except Exception:
            server.handle_error(sock, client_address)
            server.shutdown_request(sock)
        except BaseException:
            server.shutdown_request(sock)
            raise
        finally:
            lane[STATE] = IDLE
        return REQUEST

    def _process_by_hooks(
        self, stay: LaneStay, lane: Lane, place: Place | None, sock: KeptSocket, client_address: Any
    ) -> Accepted:  # fmt: skip
        lanes, server = self.lanes, self.server
        if lanes.elsewhere:
            lanes.begin_to_pass_on(server, lane, place)
        else:
            lanes.current[get_ident()] = lane
        try:
            if self._in_place and type(server).process_request is self._process and PROCESS not in vars(server):
                server.finish_request(sock, client_address)
                if not stay.kept_on:
                    server.shutdown_request(sock)
            else:
                server.process_request(sock, client_address)
        except Exception as exc:
            self._fail_here(stay, sock)
            server.handle_error(sock, client_address)
            server.shutdown_request(sock)
            if lanes.elsewhere and is_shortage(exc):
                return NOT_BEGUN
        except BaseException:
            self._fail_here(stay, sock)
            server.shutdown_request(sock)
            raise
        finally:
            if lanes.elsewhere:
                lanes.end_passing_on(server)
            else:
                self._leave_it(stay, lane, place)
            self._watch(stay, sock)
        return REQUEST

    def _process_in_thread(
        self, stay: LaneStay, lane: Lane, place: Place | None, sock: KeptSocket, client_address: Any
    ) -> Accepted:  # fmt: skip
        """Do as `Lanes._process_here()` does, in a thread that accepts by itself."""
        lanes, server = self.lanes, self.server
        lanes.current[get_ident()] = lane
        passes_on = False
        try:
            body = lanes.body_here(server)
            passes_on = body is None
            if body is not None:
                if (
                    self._in_thread
                    and getattr(type(server), THREAD_BODY) is self._body
                    and THREAD_BODY not in vars(server)
                ):
                    self._thread_body(stay, sock, client_address)
                else:
                    body(sock, client_address)
        finally:
            if not passes_on:
                self._leave_it(stay, lane, place)
                self._watch(stay, sock)
        if not passes_on:
            return REQUEST
        try:
            return lanes.pass_on_after_all(server, lane, sock, client_address)
        finally:
            self._watch(stay, sock)

    def _thread_body(self, stay: LaneStay, sock: KeptSocket, client_address: Any) -> None:
        """Stand for ThreadingMixIn's `process_request_thread()`."""
        server = self.server
        try:
            server.finish_request(sock, client_address)
        except Exception:
            server.handle_error(sock, client_address)
        finally:
            if not stay.kept_on:
                server.shutdown_request(sock)

    def _leave_it(self, stay: LaneStay, lane: Lane, place: Place | None) -> None:
        """Hand over a stay that nobody has finished."""
        if self.lanes.current.pop(get_ident(), None) is not None:
            stay.lane = None
            if stay.begun:
                self.lanes.end(lane, HANDED_OVER)
            with self._lock:
                if not stay.over:  # by now
                    stay.away = True
                    self._tell_away(1)
            lane[IN_HAND] = 0
            self.lanes.handed_over.note(place)
        lane[STATE] = IDLE

    def _tell_away(self, change: int) -> None:
        self._with_threads += change
        self.away = min(self._with_threads, MOST_AWAY) * AWAY
        self.gauge[IDLE_HERE] = self.idle + self.away

    def _come_back(self, stay: LaneStay) -> None:
        """Note that no thread of the program's has this connection any more."""
        with self._lock:
            stay.over = True
            if stay.away:
                stay.away = False
                self._tell_away(-1)

    def _watch(self, stay: LaneStay, sock: KeptSocket) -> None:
        """Have it counted if the program never finishes this stay, once nobody has the connection any more."""
        if not stay.over:
            self._away.add(ref(sock, partial(self._gone, stay)))

    def _gone(self, stay: LaneStay, away: ref[KeptSocket]) -> None:
        self._away.discard(away)
        self._end_uncounted(stay)

    def _fail_here(self, stay: LaneStay, sock: KeptSocket) -> None:
        """Count a stay that failed in this thread, unless it is counted already."""
        lanes = self.lanes
        lane = lanes.current.pop(get_ident(), None)
        if lane is not None:
            self._fail(stay, lane, sock)
        elif (context := lanes.contexts.claim_own()) is not None:
            self._fail(stay, context.lane, sock)
            lanes.give_back(context.lane)

    # Counting.

    def counting(self, server: Any) -> Finish:
        """Return the `finish_request()` that counts stays, and all else as that of Lanes does."""
        lanes, cls = self.lanes, type(server)
        current, other = lanes.current, looped.counting(lanes, server)
        finish, noted, own = evaluated(server, FINISH), cls.finish_request, FINISH in vars(server)

        def finish_request(request: Any, client_address: Any, *more: Any, **named: Any) -> Any:
            nonlocal finish, noted
            if cls.finish_request is not noted and not own:  # the program has put another one into its class since
                finish, noted = of_class(server, FINISH), cls.finish_request
            stay: Any = request.stay if type(request) is KeptSocket else None
            if stay is None:
                return other(request, client_address, *more, **named)
            lane = current.pop(get_ident(), None)
            if lane is None:
                uncounted = partial(self._finish_uncounted, finish)
                return lanes.finish_in_its_own_way(finish_request, uncounted, request, client_address, *more, **named)
            try:
                result = finish(request, client_address, *more, **named)
                if stay.state or stay.unread:
                    _check_size(stay)
            except BaseException as exc:
                self._failed(stay, lane, request, exc)
                raise
            if lanes.forked:
                leave(0)
            self._end(stay, lane, COMPLETED, request)
            return result

        return finish_request

    def _next(self, stay: Any) -> None:
        """Count the request before, and begin to count the next one."""
        lanes = self.lanes
        if lanes.forked:
            strays.end()
        lane = stay.lane
        if lane is None:
            self._count_uncounted()
            return
        request = None if stay.request is None else stay.request()
        if stay.begun > 1:
            self._end_request(lane, COMPLETED, request)
        lane[STARTED_NS] = monotonic_ns()
        self._begin(lane, request, stay.kept.client_address)
        self._count()

    def _end_request(self, lane: Lane, outcome: int, request: Any) -> None:
        lane[outcome] += 1
        _observe(lane, monotonic_ns() - lane[STARTED_NS])
        if self.lanes.access_log is not None:
            self.lanes.access_log.end(lane, outcome, request)

    def _failed(self, stay: LaneStay, lane: Lane, request: Any, exc: BaseException) -> None:
        """Count a stay that raised this; a process that it has forked ends here."""
        if self.lanes.forked:
            strays.end(exc)
        self._fail(stay, lane, request)

    def _fail(self, stay: LaneStay, lane: Lane, request: Any) -> None:
        """Count a stay that failed, and have its handler told, which may have been done, or may not have begun."""
        stay.goes_on = False
        self._tell_if_open(stay, request)
        self._end(stay, lane, FAILED, request)

    def _tell_if_open(self, stay: LaneStay, request: Any) -> None:
        if stay.met and self.tells_end:
            self._tell_end(request, stay.left(), HANDLER)
            stay.met, request.stay = False, stay

    def _end(self, stay: LaneStay, lane: Lane, outcome: int, request: Any) -> None:
        """Count the last request of a stay, and leave the connection to whoever has it next."""
        if stay.begun:  # as `_end_request()` does
            lane[outcome] += 1
            _observe(lane, monotonic_ns() - lane[STARTED_NS])
            if (access_log := self.lanes.access_log) is not None:
                access_log.end(lane, outcome, request)
        stay.over = True
        if stay.goes_on and (fd := taken_out(request)) != -1:
            stay.kept_on = True
            self._keep_on(self, stay, fd)
        else:
            lane[CLOSED + _why_closed(stay)] += 1
            lane[IN_HAND] = 0
            if stay.kept.cell:
                self.cells.drop(stay.kept.cell)
        request.stay = None

    def _count_uncounted(self) -> None:
        """Count a further request of a stay that a thread of the program's has: how it ends, nobody knows."""
        self.gauge[ACCEPTED] += 1
        self.gauge[HANDED_OVER] += 1
        self._count()

    def _finish_uncounted(self, finish: Finish, request: Any, *more: Any, **named: Any) -> Any:
        """Finish a stay in a thread of the program's that has no lane."""
        stay = request.stay
        stay.lane = None
        try:
            result = finish(request, *more, **named)
        except BaseException:
            stay.goes_on = False
            self._tell_if_open(stay, request)
            self._end_uncounted(stay)
            raise
        if stay.goes_on and request.fileno() != -1:
            stay.kept_on = True  # from here on it looks closed
            self._come_back(stay)
            self._keep_on(self, stay, taken_out(request))
        else:
            self._end_uncounted(stay)
        request.stay = None
        return result

    def _end_uncounted(self, stay: Any) -> None:
        if stay.over:
            return
        self._come_back(stay)
        self.gauge[CLOSED + _why_closed(stay)] += 1
        self.cells.drop(stay.kept.cell)

    def left(self, stay: LaneStay) -> Kept:
        """Return the connection as it goes along from this stay."""
        kept = stay.left()
        if self.tells_end and kept.flags & MET and not kept.flags & TELL_END:
            kept = kept._replace(flags=kept.flags | TELL_END)
        return kept


class NoCells:
    """The cells of connections that nobody counts."""

    take = park = drop = staticmethod(lambda cell: None)


def _why_closed(stay: LaneStay) -> int:
    if reason := stay.kept.reason:
        return reason - 1
    return CLIENT if stay.hung_up else HANDLER


def taken_out(sock: socket) -> int:
    """Take the descriptor out of a connection's object, as others have to find it; -1 if it is closed."""
    if sock.gettimeout() is not None and sock.fileno() != -1:
        sock.settimeout(None)  # the flag travels with the connection
    sock._closed = True  # type: ignore[attr-defined]
    return _detach(sock)


def _mixin_of(cls: type) -> type | None:
    """Return the class KeepAliveMixIn among the bases."""
    return next((base for base in cls.__mro__ if KeepsConnections in base.__bases__), None)


def _check_size(stay: Any) -> None:
    """Raise ValueError if a connection has more to take along than a message can."""
    if stay.goes_on and (size := len(stay.state) + len(stay.unread)) > MESSAGE_MAX - ROOM_FOR_ADDRESS:
        raise ValueError(f"a kept connection has {size} bytes to take along, more than {MESSAGE_MAX}")
