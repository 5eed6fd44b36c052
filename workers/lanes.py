"""Lanes: each carries one request at a time. The only place where requests are counted.

    take ─▶ serve_one: started_ns, ACCEPTING, get_request, accepted+1, BUSY ─▶ process_request ─▶ finish_request ─▶ IDLE
                  │ queue empty                          │ refused             │ returned          completed+1
                  ▼                                      ▼                     ▼ unfinished        or failed+1
                IDLE                                 rejected+1            handed_over+1

Runs in any process that serves: a worker, or the single process of a plain server. A lane is a view of words in a slot;
only its holder writes it, and gives it back once. Where requests run in threads, contexts.py has the lane go along.
`bind()` wraps the `finish_request` of the class on the instance, so that an override is counted as well. A
`finish_request` that no accept of ours caused has no lane and is not counted. Longer than most files: here a request's
counts can be read in their order.
"""

import weakref
from collections import deque
from collections.abc import Callable
from threading import RLock, get_ident
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from prefork.metrics.kernel import queue_wait_ns
from prefork.metrics.scoreboard import (
    ACCEPTED,
    ACCEPTING,
    BUSY,
    COMPLETED,
    DURATION,
    ENDS,
    FAILED,
    HANDED_OVER,
    IDLE,
    IN_HAND,
    LOST,
    QUEUE_WAIT,
    REJECTED,
    STARTED_NS,
    STATE,
    Slot,
)

from . import looped, strays, user_forks
from .accepting import (
    NOT_BEGUN,
    PASSED_ON,
    REQUEST,
    RESOURCES_SHORT,
    Accepted,
    GetRequest,
    NotAccepted,
    NotAdmitted,
    is_shortage,
    is_shut,
)
from .bootstrap import leave
from .contexts import Carrier, Context, Contexts, HandedOver, Lane, Place, place_of
from .definitions import evaluated, is_the_programs, of_class, put
from .identity import Identity, identity, lost
from .keeps import keeps
from .thread_body import THREAD_BODY, ThreadBody

if TYPE_CHECKING:  # of a pool
    from .access_log import AccessLog
    from .admission import Admission

# A process asks at most so often how long a connection waited: asking costs 4 µs, the answer is in jiffies of 10 ms.
QUEUE_WAIT_EVERY_NS = 5_000_000
NEVER_NS = 1 << 63
FINISH, PROCESS = "finish_request", "process_request"

Finish = Callable[..., Any]


class Lanes:
    """The lanes of one process.

    `elsewhere`: requests are finished by a thread or a child of this process, not by the thread that accepts.
    `on_free` is called when a lane comes back after `take()` found none. `more` makes another slot when every lane is
    taken, or returns None at the cap. `on_accept` is called between the accept of a request and its way elsewhere.
    `guarded`: an exception of `get_request()` costs one client; else what is no OSError ends the loop, as in
    the standard library. `admission`: what a connection must show before the program sees it. `on_lost` is called when
    the program has closed the listener; `on_shut` as NotAccepted has it.
    """

    def __init__(
        self, slot: Slot, *, elsewhere: bool, on_free: Callable[[], None],
        more: Callable[[], Slot | None] | None = None, on_accept: Callable[[], None] | None = None,
        queue_waits: bool = False, guarded: bool = False, access_log: "AccessLog | None" = None,
        admission: "Admission | None" = None, on_lost: Callable[[], None] | None = None,
        on_shut: Callable[[bool], object] | None = None,
    ) -> None:  # fmt: skip
        self.elsewhere = elsewhere
        self.next_queue_wait_ns = 0 if queue_waits else NEVER_NS
        self._not_accepted = NotAccepted(slot.words, self._is_shut, on_shut)
        self._on_free = on_free
        self._more = more
        self._on_accept = on_accept
        self.access_log = access_log
        self.admission = admission
        self.limits = None if admission is None else admission.limits
        self._admits_at_once = True  # in the thread that accepts, whose hooks are given the client's address
        self.get_request: GetRequest | None = None  # for less than the server's own, where that leads to the same
        self._guarded = guarded
        self._on_lost = on_lost
        self._listener: Identity = None
        self.forked = False  # user code in a handler forked this process: it ends with the handler, and is no worker
        self._starved = False
        self._total = 0
        self.all_lanes: list[Lane] = []
        self._accepts = get_ident()  # the thread of the loop
        self.free: deque[Lane] = deque()  # in a child that shares them with its siblings, none
        self.contexts = Contexts(self._hand_over, on_free)
        self.current: dict[int, Lane] = {}  # by thread: carries its request, which is not counted yet
        self.accepted: Callable[[], None] | None = None  # see `serve_in_threads()`
        self._passed_by: object = None  # there, which is left out
        self.of_threads: dict[int, Lane] = {}  # of those that do so
        self._passing_on = RLock()  # there; a `process_request` may serve its request before it returns
        self.placed = False  # the program processes requests in its own way: they are known by their places, too
        self.handed_over = HandedOver()
        self.found: Finish | None = None  # what the instance had of its own before `bind()`
        self.bound: Finish | None = None
        self.keeping: Callable[[Any], Finish] | None = None  # counts instead, where connections are kept
        self.loops = looped.LoopTerms()  # for those of such a handler class that are not
        self._body: ThreadBody | None = None
        self._add(slot)
        _every.add(self)

    def _add(self, slot: Slot) -> None:
        self._total += slot.lanes
        added = [slot.lane(index) for index in range(slot.lanes)]
        self.free.extend(added)
        self.all_lanes += added

    def take(self) -> Lane | None:
        """Return a free lane, or None at the cap; then `on_free` is called as soon as one is free."""
        if self.free:
            return self.free.popleft()
        self.look()
        if self.free:
            return self.free.popleft()
        if self._more is not None and (slot := self._more()):
            self._add(slot)
            return self.free.popleft()
        self._starved = True
        # A lane that came back between the check and the line above called nobody.
        return self.free.popleft() if self.free else None

    def look(self) -> None:
        """Take back the lanes of requests that the program has closed, after dropping them."""
        if self.contexts.patience is not None:
            self.contexts.look()

    def give_back(self, lane: Lane) -> None:
        lane[STATE] = IDLE
        self.free.append(lane)
        if self._starved:
            self._starved = False
            self._on_free()

    @property
    def thread_body(self) -> Callable[..., Any] | None:
        """The `process_request_thread` that stands on the server object between two requests."""
        return None if self._body is None else self._body.process

    def pass_on(self) -> None:
        """Give up the request that this thread has accepted, and its lane: a child took both."""
        self.current.pop(get_ident(), None)
        self.contexts.claim_own()
        self._total -= 1

    def hand_on(self) -> Lane | None:
        """Give up the request that this thread has accepted, and return its lane: a child has both, until its end."""
        self.current.pop(get_ident(), None)
        context = self.contexts.claim_own()
        return None if context is None else context.lane

    def take_back(self, lane: Lane, *, ended_well: bool) -> bool:
        """Give back the lane of a child that has ended; return True if its request was lost with it.

        With status 0, by os._exit() in its handler, the end of the child was its request's.
        """
        left: bool = lane[ACCEPTED] > sum(lane[ENDS])
        lane[COMPLETED if ended_well else LOST] += left
        lane[STATE] = IDLE  # as give_back(), whose call would cost the parent of such children its pages at each fork
        self.free.append(lane)
        if self._starved:
            self._starved = False
            self._on_free()
        return left and not ended_well

    def take_over(self) -> None:
        """Make that request this thread's, in the child that took it."""
        if (context := self.contexts.claim_own()) is not None:
            self.current[get_ident()] = context.lane

    def leave_requests(self) -> None:
        """Forget every request, in a process that user code forked, as the standard library's ForkingMixIn does.

        The parent counts them as handed over.
        """
        self.current.clear()
        self.contexts.forget()
        if self.limits is not None:
            self.limits.forget()

    def all_free(self, held: Lane | None = None) -> bool:
        """Return whether no request is left, not counting `held`, a lane that the caller has taken.

        If one is left, `on_free` is called when a lane comes back.
        """
        self._starved = True
        self.look()
        return len(self.free) + (held is not None) == self._total

    def in_get_request(self) -> bool:
        """Return True if this thread is in a call of `get_request()`, and not in a handler."""
        return self.accepting_lane() is not None

    def accepting_lane(self) -> Lane | None:
        """Return the lane on which this thread is in a call of `get_request()`; None if it is in a handler."""
        thread = get_ident()
        if (lane := self.of_threads.get(thread)) is not None:
            return lane if lane[STATE] == ACCEPTING else None
        accepting = (lane for lane in self.all_lanes if lane[STATE] == ACCEPTING)
        return next(accepting, None) if self._accepts == thread else None

    def may_have_requests(self) -> bool:
        """Return True if a request is in hand, or where the program may have some in its own hands."""
        return self.placed or any(lane[STATE] == BUSY for lane in self.all_lanes)

    def _hand_over(self, lane: Lane) -> None:
        """Give back the lane of a request that nobody begins."""
        self.end(lane, HANDED_OVER)
        lane[IN_HAND] = 0
        self.give_back(lane)

    def end(self, lane: Lane, outcome: int, request: Any = None) -> None:
        """Count a request."""
        lane[outcome] += 1
        if self.limits is not None:
            self.limits.leave(lane)
        if self.access_log is not None:
            self.access_log.end(lane, outcome, request)

    def bind(self, server: Any) -> None:
        """Count the requests that this server instance finishes, until `unbind()`."""
        self._server = weakref.ref(server)
        if self._on_lost is not None:
            self._listener = identity(server.socket.fileno())
        self.placed = any(is_the_programs(server, name) for name in (PROCESS, THREAD_BODY))
        self.found = vars(server).get(FINISH)
        self.bound = put(server, FINISH, self._counts(server))
        if self.elsewhere and hasattr(server, THREAD_BODY):
            self._body = ThreadBody(server)
            self._admits_at_once = (
                self.keeping is not None or self.admission is None or self.admission.at_once
                or any(is_the_programs(server, name) for name in ("verify_request", "process_request"))
            )  # fmt: skip

    def _counts(self, server: Any) -> Finish:
        if self.keeping is not None:
            return self.keeping(server)
        return looped.counting(self, server) if keeps(server) else self.counting(server)

    def unbind(self, server: Any) -> None:
        """Put back what the instance had of its own; what the program has put there meanwhile stays."""
        attributes = vars(server)
        if attributes.get(FINISH) is self.bound:
            del attributes[FINISH]
            if self.found is not None:
                attributes[FINISH] = self.found
        if self._body is not None:
            self._body.leave(server)

    def put_back(self, server: Any) -> None:
        """Count on, after the program has deleted from the object what it had put there: it means its class's."""
        if self.found is not None:
            self.found, self.bound = None, self._counts(server)
        if self.bound is not None:
            self.bound = put(server, FINISH, self.bound)

    def serve_one(self, server: Any, lane: Lane, now_ns: int) -> Accepted:
        """Accept one request and process it on `lane`, which is the caller's again unless that went elsewhere."""
        lane[STARTED_NS] = now_ns
        lane[STATE] = ACCEPTING
        try:
            request, client_address = server.get_request() if self.get_request is None else self.get_request()
        except BaseException as exc:
            return self.got_none(lane, exc)
        place = place_of(request) if self.placed else None
        if FINISH not in vars(server):
            self.put_back(server)
        lane[ACCEPTED] += 1
        lane[STATE] = BUSY
        self.begin(lane, request, client_address, now_ns)
        if self.accepted is not None:
            self.accepted()
            return self._process_here(server, lane, place, request, client_address)
        current, thread = self.current, get_ident()
        if self.elsewhere:
            self.begin_to_pass_on(server, lane, place)
        else:
            current[thread] = lane
        try:
            if self.admission is not None and self._admits_at_once:
                request, client_address = self._admit(lane, request, client_address)
            if server.verify_request(request, client_address):
                server.process_request(request, client_address)
            else:
                self.count(REJECTED)
                server.shutdown_request(request)
        except NotAdmitted as exc:
            self.turn_away(request, exc)
        except Exception as exc:
            self.count(FAILED)
            server.handle_error(request, client_address)
            server.shutdown_request(request)
            if self.elsewhere and is_shortage(exc):
                return NOT_BEGUN
        except BaseException:
            self.count(FAILED)
            server.shutdown_request(request)
            raise
        finally:
            if self.elsewhere:
                self.end_passing_on(server)
            else:
                if current.pop(thread, None) is not None:
                    self.end(lane, HANDED_OVER)
                    self.handed_over.note(place)
                lane[STATE] = IDLE
        return REQUEST

    def serve_in_threads(self, server: Any, accepted: Callable[[], None]) -> None:
        """Have each request processed in the thread that calls `serve_one()`, as ThreadingMixIn's do, after a call of
        `accepted`. Before `bind()`."""
        self.accepted, self.elsewhere, self._passed_by = accepted, False, type(server).process_request

    def _process_here(
        self, server: Any, lane: Lane, place: Place | None, request: Any, client_address: Any
    ) -> Accepted:  # fmt: skip
        self.current[get_ident()] = lane
        passes_on = False
        try:
            if (verified := self._verified(server, lane, request, client_address)) is None:
                return REQUEST
            if (body := self.body_here(server)) is not None:
                body(*verified)
            passes_on = body is None
        finally:
            if not passes_on:
                self.leave_it(lane, place)
                lane[STATE] = IDLE
        return self.pass_on_after_all(server, lane, *verified) if passes_on else REQUEST

    def _verified(self, server: Any, lane: Lane, request: Any, client_address: Any) -> tuple[Any, Any] | None:
        """Return the request as it was admitted and its client's address; None if it has come to its end."""
        try:
            if self.admission is not None:
                request, client_address = self._admit(lane, request, client_address)
            if server.verify_request(request, client_address):
                return request, client_address
            self.count(REJECTED)
            server.shutdown_request(request)
        except NotAdmitted as exc:
            self.turn_away(request, exc)
        except Exception:
            self.count(FAILED)
            server.handle_error(request, client_address)
            server.shutdown_request(request)
        except BaseException:
            self.count(FAILED)
            server.shutdown_request(request)
            raise
        return None

    def body_here(self, server: Any) -> Callable[..., Any] | None:
        """Return what processes a request in this thread; None if the program has put a `process_request` there since.

        Never a Carrier: that is another request's, which its thread passes on at this moment.
        """
        with self._passing_on:
            if type(server).process_request is self._passed_by and PROCESS not in vars(server):
                body: Callable[..., Any] = server.process_request_thread
                return body
        return None

    def pass_on_after_all(self, server: Any, lane: Lane, request: Any, client_address: Any) -> Accepted:
        """Call the program's `process_request`; the lane goes along with the request, and this thread has none.

        One at a time, as in the thread of a loop: there is one place on the object for what carries a request.
        """
        self.current.pop(get_ident(), None)
        self.of_threads.pop(get_ident(), None)
        self.placed = True
        with self._passing_on:
            if self._body is None:
                self._body = ThreadBody(server)
            number = self.contexts.begin(lane, place_of(request))
            self._body.carry(server, Carrier(self.contexts, number, self._carry))
            try:
                server.process_request(request, client_address)
            except Exception as exc:
                self.count(FAILED)
                server.handle_error(request, client_address)
                server.shutdown_request(request)
                return NOT_BEGUN if is_shortage(exc) else PASSED_ON
            except BaseException:
                self.count(FAILED)
                server.shutdown_request(request)
                raise
            finally:
                self.end_passing_on(server)
        return PASSED_ON

    def leave_it(self, lane: Lane, place: Place | None) -> None:
        if self.current.pop(get_ident(), None) is not None:
            self.end(lane, HANDED_OVER)
            self.handed_over.note(place)

    def got_none(self, lane: Lane, exc: BaseException) -> Accepted:
        """Return what it means that `get_request()` raised this, or raise it."""
        lane[STATE] = IDLE
        if isinstance(exc, OSError):
            if self._on_lost is not None and not isinstance(exc, BlockingIOError) and self._is_lost():
                self._on_lost()
            return self._not_accepted.count(exc)
        if self._guarded and isinstance(exc, Exception):
            return self._not_accepted.count_unexpected(exc)
        if self.elsewhere:
            self.give_back(lane)
        raise exc

    def _is_lost(self) -> bool:
        server = self._server()
        return server is not None and ((fd := server.socket.fileno()) == -1 or lost(fd, self._listener))

    def _is_shut(self) -> bool:
        server = self._server()
        return server is not None and is_shut(server.fileno())

    def why_short(self) -> str:
        """Return why the listener has to be left alone for a while."""
        why, self._not_accepted.why = self._not_accepted.why, None
        return why or RESOURCES_SHORT

    def begin(self, lane: Lane, request: Any, client_address: Any, now_ns: int) -> None:
        """Note what is to be known of a request that was just accepted."""
        if (failed := self._not_accepted).in_vain:
            failed.end()
        if now_ns >= self.next_queue_wait_ns:
            self._observe_wait(lane, request, now_ns)
        if self.access_log is not None:
            self.access_log.begin(lane, request, client_address)

    def note_accepted(self, lane: Lane, request: Any, now_ns: int) -> None:
        """Do as `begin()` does with a connection of which no request may have come yet."""
        if (failed := self._not_accepted).in_vain:
            failed.end()
        if now_ns >= self.next_queue_wait_ns:
            self._observe_wait(lane, request, now_ns)

    def _observe_wait(self, lane: Lane, request: Any, now_ns: int) -> None:
        self.next_queue_wait_ns = now_ns + QUEUE_WAIT_EVERY_NS
        if (wait := queue_wait_ns(request)) is not None:
            QUEUE_WAIT.observe(lane, wait)

    def fail(self, lane: Lane, request: Any, exc: BaseException) -> None:
        """Count a request whose handler raised this; a process that the handler has forked ends here."""
        if self.forked:
            strays.end(exc)
        self.end(lane, FAILED, request)
        DURATION.observe(lane, monotonic_ns() - lane[STARTED_NS])

    def fail_unless_ended(self, lane: Lane) -> None:
        """Count a request whose child could not be watched, unless that has counted it before it was killed."""
        if lane[ACCEPTED] > sum(lane[ENDS]):
            self.end(lane, FAILED)

    def begin_to_pass_on(self, server: Any, lane: Lane, place: Place | None) -> None:
        number = self.contexts.begin(lane, place)
        if self._on_accept is not None:
            self._on_accept()
        if self._body is not None:
            self._body.carry(server, Carrier(self.contexts, number, self._carry))

    def end_passing_on(self, server: Any) -> None:
        if self._body is not None:
            self._body.carried(server)
        else:
            self.contexts.drop_own()
        self.contexts.passed_on()

    def _admit(self, lane: Lane | None, request: Any, client_address: Any) -> tuple[Any, Any]:
        assert self.admission is not None
        log = None if lane is None else self.access_log
        try:
            admitted = self.admission.admit(request, client_address, lane)
        except NotAdmitted as exc:
            if lane is not None and log is not None:
                log.admit(lane, request, exc.client_address)
            raise
        if lane is not None and log is not None:
            log.admit(lane, *admitted)
        return admitted

    def turn_away(self, request: Any, refused: NotAdmitted) -> None:
        """Count a connection that is not admitted, and close it: by the program's hooks if its `get_request()` has seen
        it."""
        self.count(REJECTED + refused.refusal)
        server = self._server()
        if server is not None and is_the_programs(server, "get_request"):
            server.shutdown_request(request)
        elif hasattr(request, "close"):
            request.close()

    def count(self, outcome: int) -> None:
        """Count this thread's request, unless it is counted already."""
        lane = self.current.pop(get_ident(), None)
        if lane is not None:
            self.end(lane, outcome)
        elif (context := self.contexts.claim_own()) is not None:
            if outcome == FAILED:
                self.fail_unless_ended(context.lane)
            else:
                self.end(context.lane, outcome)
            self.give_back(context.lane)

    def counting(self, server: Any) -> Finish:
        current, finish, cls = self.current, evaluated(server, FINISH), type(server)
        observe, access_log, limits = DURATION.observe, self.access_log, self.limits
        noted = cls.finish_request
        own = FINISH in vars(server)

        def finish_request(request: Any, client_address: Any, *more: Any, **named: Any) -> Any:
            nonlocal finish, noted
            if cls.finish_request is not noted and not own:  # the program has put another one into its class since
                finish, noted = of_class(server, FINISH), cls.finish_request
            lane = current.pop(get_ident(), None)
            if lane is None:
                return self.finish_in_its_own_way(finish_request, finish, request, client_address, *more, **named)
            try:
                result = finish(request, client_address, *more, **named)
            except BaseException as exc:
                self.fail(lane, request, exc)
                raise
            if self.forked:
                leave(0)
            lane[COMPLETED] += 1
            observe(lane, monotonic_ns() - lane[STARTED_NS])
            if limits is not None:
                limits.leave(lane)
            if access_log is not None:
                access_log.end(lane, COMPLETED, request)
            return result

        return finish_request

    def finish_in_its_own_way(self, counted: Finish, finish: Finish, request: Any, *more: Any, **named: Any) -> Any:
        """Finish a request in a thread that has no lane: the request's own where it has one, else uncounted."""
        if (context := self.contexts.claim(request)) is not None:
            self.current[get_ident()] = context.lane
            try:
                return counted(request, *more, **named)
            finally:
                self.give_back(context.lane)
        with self.handed_over.finishing():
            return finish(request, *more, **named)

    def _carry(self, context: Context | None, *args: Any, **kwargs: Any) -> Any:
        """Process a request in this thread, on the lane that has come along with it; then give that back."""
        assert self._body is not None
        forked = self.forked
        if context is not None:
            self.current[get_ident()] = context.lane
        try:
            if self.admission is not None and not self._admits_at_once:
                request, client_address, *more = args
                args = (*self._admit(self.current.get(get_ident()), request, client_address), *more)
            result = self._body.process(*args, **kwargs)
            if self.forked and not forked:
                leave(0)
            return result
        except NotAdmitted as exc:
            self.turn_away(args[0], exc)
        finally:
            if context is not None:
                self.leave_it(*context)
                self.give_back(context.lane)


_every: weakref.WeakSet[Lanes] = weakref.WeakSet()


def _leave_requests() -> None:
    for lanes in _every:
        lanes.leave_requests()


user_forks.always_on_fork_by_user(_leave_requests)
