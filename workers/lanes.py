"""Lanes: each carries one request at a time. The only place where requests are counted.

    take ─▶ serve_one: started_ns, ACCEPTING, get_request, accepted+1, BUSY ─▶ process_request ─▶ finish_request ─▶ IDLE
                  │ queue empty                          │ refused             │ returned          completed+1
                  ▼                                      ▼                     ▼ unfinished        or failed+1
                IDLE                                 rejected+1            handed_over+1

Runs in any process that serves: a worker, or the single process of a plain server. A lane is a view of words in a slot;
only its holder writes it, and gives it back once. `bind()` wraps the `finish_request` of the class on the instance, so
that an override is counted as well. A `finish_request` that no accept of ours caused has no lane and is not counted.
"""

import contextlib
import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from time import monotonic, monotonic_ns
from traceback import clear_frames
from typing import Any

from prefork.metrics.facts import AcceptError
from prefork.metrics.kernel import queue_wait_ns
from prefork.metrics.log_events import LogEvent, event
from prefork.metrics.scoreboard import (
    ACCEPT_ERRORS,
    ACCEPTED,
    ACCEPTING,
    BUSY,
    COMPLETED,
    DURATION,
    FAILED,
    HANDED_OVER,
    IDLE,
    QUEUE_WAIT,
    REJECTED,
    STARTED_NS,
    STATE,
    Slot,
)

from . import strays, user_forks
from .accepting import accept_error, is_resource_error, is_shortage
from .bootstrap import leave

Lane = memoryview
# How often at most a process asks the kernel how long a connection waited. The answer is in jiffies of up to 10 ms, and
# asking costs 4 µs: for one connection in eight, that was a sixteenth of the cost of a short connection.
QUEUE_WAIT_EVERY_NS = 5_000_000
NEVER_NS = 1 << 63
NEVER_S = float("-inf")
ACCEPT_SAID_EVERY_S = 10.0
FAILED_IN_A_ROW = 100  # no client causes so many: get_request() fails before it accepts, and would do so for ever

log = logging.getLogger("prefork.server")


class Accepted(Enum):
    """The result of one `serve_one()`."""

    REQUEST = auto()
    NOTHING = auto()  # the queue is empty, or its connection is gone
    NO_RESOURCES = auto()  # descriptors or memory are short: leave the listener alone for a while
    NOT_BEGUN = auto()  # a request that failed because no thread was left: leave the listener alone for a while


REQUEST, NOTHING, NO_RESOURCES, NOT_BEGUN = Accepted  # for the hot path: in 3.11 `Accepted.REQUEST` costs a call


class _Current(threading.local):
    lane: Lane | None = None  # carries this thread's request, which is not counted yet


class Lanes:
    """The lanes of one process.

    `elsewhere`: requests are finished by a thread or a child of this process, not by the thread that accepts.
    `on_free` is called when a lane comes back after `take()` found none. `more` makes another slot when every lane is
    taken, or returns None at the cap. `guarded`: an exception of `get_request()` costs one client only; otherwise one
    that is not an OSError ends the loop, as in the standard library.
    """

    def __init__(
        self,
        slot: Slot,
        *,
        elsewhere: bool,
        on_free: Callable[[], None],
        more: Callable[[], Slot | None] | None = None,
        queue_waits: bool = False,
        guarded: bool = False,
    ) -> None:
        self.elsewhere = elsewhere
        self._next_queue_wait_ns = 0 if queue_waits else NEVER_NS
        self._errors = slot.words
        self._on_free = on_free
        self._more = more
        self._guarded = guarded
        self._failed = 0  # failures of get_request() in a row
        self._said_at = NEVER_S
        self.forked = False  # user code in a handler forked this process: it ends with the handler, and is no worker
        self._starved = False
        self._total = 0
        self._free: deque[Lane] = deque()
        self._waiting: dict[int, Lane] = {}  # by id of the request: passed on, but not begun elsewhere yet
        self._current = _Current()
        self._handed_over: weakref.WeakSet[Any] = weakref.WeakSet()
        self._running_elsewhere = 0  # calls of finish_request() in threads that have no lane
        self._elsewhere_lock = threading.Lock()
        self._finished_elsewhere = False
        self._add(slot)
        _every.add(self)

    def _add(self, slot: Slot) -> None:
        self._total += slot.lanes
        self._free.extend(slot.lane(index) for index in range(slot.lanes))

    def take(self) -> Lane | None:
        """Return a free lane, or None at the cap; then `on_free` is called as soon as one is free."""
        if self._free:
            return self._free.popleft()
        if self._more is not None and (slot := self._more()):
            self._add(slot)
            return self._free.popleft()
        self._starved = True
        # A lane that came back between the check and the line above called nobody.
        return self._free.popleft() if self._free else None

    def give_back(self, lane: Lane) -> None:
        lane[STATE] = IDLE
        self._free.append(lane)
        if self._starved:
            self._starved = False
            self._on_free()

    def pass_on(self, request: Any) -> None:
        """Give up a request and its lane: a child took both."""
        self._current.lane = None
        self._waiting.pop(id(request), None)
        self._total -= 1

    def leave_requests(self) -> None:
        """Forget every request, in a process that user code forked, as the standard library's ForkingMixIn does.

        The parent counts them as handed over.
        """
        self._current.lane = None
        self._waiting.clear()

    def all_free(self, held: Lane | None = None) -> bool:
        """Return whether no request is left, not counting `held`, a lane that the caller has taken.

        If one is left, `on_free` is called when a lane comes back.
        """
        self._starved = True
        return len(self._free) + (held is not None) == self._total

    def _hand_over(self, request: Any) -> None:
        """Remember a request that the program's own thread or executor has now.

        A datagram cannot be remembered: it is noticed only while `finish_request()` runs.
        """
        with contextlib.suppress(TypeError):
            self._handed_over.add(request)

    def all_finished(self) -> bool:
        """Return whether no request that was handed over is in `finish_request()` or may still get there.

        In a program that has ever called it from a thread of its own, such a request may until it is closed.
        """
        waits = self._finished_elsewhere and any(request.fileno() != -1 for request in list(self._handed_over))
        return not waits and not self._running_elsewhere

    def bind(self, server: Any) -> None:
        """Count the requests that this server instance finishes, until `unbind()`."""
        server.finish_request = self._counting(server)
        if self.elsewhere:
            server.close_request = self._returning(server.close_request)
            if hasattr(server, "process_request_thread"):
                server.process_request_thread = self._carrying(server.process_request_thread)

    @staticmethod
    def unbind(server: Any) -> None:
        for name in ("finish_request", "close_request", "process_request_thread"):
            vars(server).pop(name, None)

    def serve_one(self, server: Any, lane: Lane, now_ns: int) -> Accepted:
        """Accept one request and process it on `lane`, which is the caller's again unless that went elsewhere."""
        lane[STARTED_NS] = now_ns
        lane[STATE] = ACCEPTING
        try:
            request, client_address = server.get_request()
        except OSError as exc:
            lane[STATE] = IDLE
            return self._not_accepted(exc)
        except Exception as exc:
            lane[STATE] = IDLE
            if not self._guarded:
                raise
            return self._not_understood(exc)
        self._failed = 0
        lane[ACCEPTED] += 1
        lane[STATE] = BUSY
        if now_ns >= self._next_queue_wait_ns:
            self._next_queue_wait_ns = now_ns + QUEUE_WAIT_EVERY_NS
            if (wait := queue_wait_ns(request)) is not None:
                QUEUE_WAIT.observe(lane, wait)
        current = self._current
        current.lane = lane
        if self.elsewhere:
            self._waiting[id(request)] = lane  # before the request is passed on: a thread may be faster than we are
        try:
            if server.verify_request(request, client_address):
                server.process_request(request, client_address)
            else:
                self._count(REJECTED)
                server.shutdown_request(request)
        except Exception as exc:
            self._count(FAILED)
            server.handle_error(request, client_address)
            server.shutdown_request(request)
            if self.elsewhere and is_shortage(exc):
                return NOT_BEGUN
        except BaseException:
            self._count(FAILED)
            server.shutdown_request(request)
            raise
        finally:
            if not self.elsewhere:
                if current.lane is not None:
                    lane[HANDED_OVER] += 1
                    self._hand_over(request)
                lane[STATE] = IDLE
            current.lane = None
        return REQUEST

    def _not_accepted(self, exc: OSError) -> Accepted:
        if isinstance(exc, BlockingIOError):
            return NOTHING
        self._errors[ACCEPT_ERRORS + accept_error(exc)] += 1
        return NO_RESOURCES if is_resource_error(exc) else NOTHING

    def _not_understood(self, exc: Exception) -> Accepted:
        """Log an exception of the program's `get_request()`, and close its connection.

        Only the frame of the call holds that connection, so clearing the frame closes it.
        """
        self._errors[ACCEPT_ERRORS + AcceptError.OTHER] += 1
        self._failed += 1
        now = monotonic()
        if now - self._said_at >= ACCEPT_SAID_EVERY_S:
            self._said_at = now
            log.error(
                "could not get a request, its connection is closed: %r",
                exc,
                exc_info=exc,
                extra=event(LogEvent.GET_REQUEST_FAILED),
            )
        clear_frames(exc.__traceback__)
        return NO_RESOURCES if self._failed >= FAILED_IN_A_ROW else NOTHING

    def _count(self, outcome: int) -> None:
        """Count this thread's request, unless it is counted already."""
        lane = self._current.lane
        if lane is not None:
            self._current.lane = None
            lane[outcome] += 1

    def _counting(self, server: Any) -> Callable[[Any, Any], None]:
        current, finish = self._current, server.finish_request
        observe = DURATION.observe

        def finish_request(request: Any, client_address: Any) -> None:
            lane = current.lane
            if lane is None:
                with self._elsewhere_lock:
                    self._running_elsewhere += 1
                self._finished_elsewhere = True
                try:
                    finish(request, client_address)
                finally:
                    with self._elsewhere_lock:
                        self._running_elsewhere -= 1
                return
            current.lane = None
            try:
                finish(request, client_address)
            except BaseException as exc:
                if self.forked:
                    strays.end(exc)
                lane[FAILED] += 1
                DURATION.observe(lane, monotonic_ns() - lane[STARTED_NS])
                raise
            if self.forked:
                leave(0)
            lane[COMPLETED] += 1
            observe(lane, monotonic_ns() - lane[STARTED_NS])

        return finish_request

    def _carrying(self, process: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
        """Pass the lane to the thread that serves the request, and take it back when that ends."""

        def process_request_thread(request: Any, client_address: Any) -> None:
            lane, forked = self._waiting.pop(id(request), None), self.forked
            self._current.lane = lane
            try:
                process(request, client_address)
                if self.forked and not forked:
                    leave(0)
            finally:
                self._count(HANDED_OVER)
                if lane is not None:
                    self.give_back(lane)

        return process_request_thread

    def _returning(self, close: Callable[[Any], None]) -> Callable[[Any], None]:
        """Take back the lane of a request that is closed before a thread began it (refused, shed, out of threads)."""

        def close_request(request: Any) -> None:
            lane = self._waiting.pop(id(request), None)
            try:
                close(request)
            finally:
                if lane is not None:
                    if lane[ACCEPTED] > lane[COMPLETED] + lane[FAILED] + lane[REJECTED] + lane[HANDED_OVER]:
                        lane[HANDED_OVER] += 1
                    self.give_back(lane)

        return close_request


_every: weakref.WeakSet[Lanes] = weakref.WeakSet()


def _leave_requests() -> None:
    for lanes in _every:
        lanes.leave_requests()


user_forks.always_on_fork_by_user(_leave_requests)
