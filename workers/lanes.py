"""Lanes: one request at a time on each, and the one place where requests are counted.

    take ─▶ serve_one: started_ns, ACCEPTING, get_request, accepted+1, BUSY ─▶ process_request ─▶ finish_request ─▶ IDLE
                  │ nothing there                        │ refused             │ returned          completed+1
                  ▼                                      ▼                     ▼ unfinished        or failed+1
                IDLE                                 rejected+1            handed_over+1

Runs in whatever process serves: a worker, or the one process of a plain server. A lane is a window of words in a slot;
whoever holds it writes it, and gives it back once. `bind()` puts the counting over whatever `finish_request` the class
defines, on the instance, so that an override is counted as well. A `finish_request` that no accept of ours caused
finds no lane and is not counted.
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

from . import user_forks
from .accepting import accept_error, is_resource_error, is_shortage
from .bootstrap import exit_status, leave

Lane = memoryview
# How often a process asks the kernel how long a connection waited. The answer is in jiffies of up to 10 ms and the
# question costs 4 µs: asked of one connection in eight it was a sixteenth of what a short one costs.
QUEUE_WAIT_EVERY_NS = 5_000_000
NEVER_NS = 1 << 63
NEVER_S = float("-inf")
ACCEPT_SAID_EVERY_S = 10.0
FAILED_IN_A_ROW = 100  # these are no clients' doing: get_request() fails before it accepts, and would do so for ever

log = logging.getLogger("prefork.server")


class Accepted(Enum):
    """What came of one `serve_one()`."""

    REQUEST = auto()
    NOTHING = auto()  # the queue is empty, or what was there is gone
    NO_RESOURCES = auto()  # descriptors or memory are short: leave the listener alone for a while
    NOT_BEGUN = auto()  # a request, which failed for want of a thread: leave the listener alone for a while


REQUEST, NOTHING, NO_RESOURCES, NOT_BEGUN = Accepted  # for the hot path: 3.11 makes a call of `Accepted.REQUEST`


class _Current(threading.local):
    lane: Lane | None = None  # carries the request of this thread, not counted yet


class Lanes:
    """The lanes of one process.

    `elsewhere`: requests are finished by a thread or a child of this process, not by the thread that accepts. `more`
    makes another slot when every lane is taken, or None at the cap; `on_free` is called when a lane comes back to a
    process that found none. `guarded`: whatever `get_request()` raises costs one client; else what is no OSError ends
    the loop, as in the standard library.
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
        self._failed = 0  # of get_request(), in a row
        self._said_at = NEVER_S
        self.forked = False  # by user code, in a handler: this process ends with it, and is no second worker
        self._starved = False
        self._total = 0
        self._free: deque[Lane] = deque()
        self._waiting: dict[int, Lane] = {}  # by id of the request: handed on, not begun elsewhere
        self._current = _Current()
        self._handed_over: weakref.WeakSet[Any] = weakref.WeakSet()
        self._running_elsewhere = 0  # in finish_request(), in a thread that has no lane
        self._elsewhere_lock = threading.Lock()
        self._finished_elsewhere = False
        self._add(slot)
        _every.add(self)

    def _add(self, slot: Slot) -> None:
        self._total += slot.lanes
        self._free.extend(slot.lane(index) for index in range(slot.lanes))

    def take(self) -> Lane | None:
        """A free lane; None at the cap, and then `on_free` is called as soon as there is one."""
        if self._free:
            return self._free.popleft()
        if self._more is not None and (slot := self._more()):
            self._add(slot)
            return self._free.popleft()
        self._starved = True
        # One that came back between the look and this line told nobody.
        return self._free.popleft() if self._free else None

    def give_back(self, lane: Lane) -> None:
        lane[STATE] = IDLE
        self._free.append(lane)
        if self._starved:
            self._starved = False
            self._on_free()

    def pass_on(self, request: Any) -> None:
        """A child took this request, and its lane with it: neither is ours any more."""
        self._current.lane = None
        self._waiting.pop(id(request), None)
        self._total -= 1

    def leave_requests(self) -> None:
        """In a process that user code forked, as the standard library's ForkingMixIn does: what it has of a request
        is counted in the parent, as handed over."""
        self._current.lane = None
        self._waiting.clear()

    def all_free(self, held: Lane | None = None) -> bool:
        """Whether no request is left (`held`: a lane the caller has taken); if one is, `on_free` is called when a lane
        comes back."""
        self._starved = True
        return len(self._free) + (held is not None) == self._total

    def _hand_over(self, request: Any) -> None:
        """The program's own thread or executor has it now. A datagram is known again only once it is being finished."""
        with contextlib.suppress(TypeError):
            self._handed_over.add(request)

    def all_finished(self) -> bool:
        """Whether no request that was handed over is in `finish_request()`, or comes there still: those of a program
        that finishes them elsewhere, until they are closed."""
        waits = self._finished_elsewhere and any(request.fileno() != -1 for request in list(self._handed_over))
        return not waits and not self._running_elsewhere

    def bind(self, server: Any) -> None:
        """Count what this server instance finishes from now on; `unbind()` ends it."""
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
        """Accept one request and process it on `lane`, which is the caller's again unless a request went elsewhere."""
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
            self._waiting[id(request)] = lane  # first, because a thread may be faster than we are
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
        """The program's `get_request()` raised: its connection, which nobody else knows, is closed with its frame."""
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
        """Count the request of this thread, unless that is done."""
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
                    if not isinstance(exc, SystemExit):
                        server.handle_error(request, client_address)
                    leave(exit_status(exc))
                lane[FAILED] += 1
                DURATION.observe(lane, monotonic_ns() - lane[STARTED_NS])
                raise
            if self.forked:
                leave(0)
            lane[COMPLETED] += 1
            observe(lane, monotonic_ns() - lane[STARTED_NS])

        return finish_request

    def _carrying(self, process: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
        """The lane goes over to the thread that serves the request, and back at its end."""

        def process_request_thread(request: Any, client_address: Any) -> None:
            lane = self._waiting.pop(id(request), None)
            self._current.lane = lane
            try:
                process(request, client_address)
            finally:
                self._count(HANDED_OVER)
                if lane is not None:
                    self.give_back(lane)

        return process_request_thread

    def _returning(self, close: Callable[[Any], None]) -> Callable[[Any], None]:
        """A request that is closed before any thread began it (refused, shed, out of threads) leaves its lane."""

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
