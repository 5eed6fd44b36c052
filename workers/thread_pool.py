"""The threads of a worker, which stay: each waits for a request, accepts it, serves it, and waits for the next.

    started, with a lane ─▶ waits ─▶ accepts ─▶ process_request_thread() ─▶ as it was before? ─▶ waits …
                              │                                                  │ if it is not
                              └─ told to leave, or idle for IDLE_S ─▶ ends ◀─────┘

No thread is started for a request, and none is woken by another. Where no request is in hand one of them waits *in
front*, in an epoll of its own, which keeps its place among those of the other workers (waiters.py). All others wait in
a second epoll *at the back*, of which the kernel wakes the last that has begun to wait; behind that of each other
worker after each request that comes there. So a request goes to a worker that has none, and to the same one again while
that is enough: as between workers without threads. Only when each has one do they share out the rest.

Runs in a worker, where no hook of the program's comes before the thread: those run in the main thread, which then
starts a thread for each request. Owns the threads and the front, and has the worker's epoll for its own. The main
thread starts them, ahead of need, and hears what the master says. With several listeners, or kept connections, all wait
at the back. Longer than most files: one life of a thread, read in its order.
"""

import contextlib
import logging
import select
import signal
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from time import monotonic, monotonic_ns
from typing import Any

from prefork.metrics.log_events import LogEvent, event

from .accepting import (
    ACCEPT_PAUSE,
    ACCEPT_SAID_EVERY_S,
    NEVER_S,
    NO_RESOURCES,
    NOT_BEGUN,
    PASSED_ON,
    REQUEST,
    SHUT,
    Accepted,
)
from .bootstrap import leave
from .contexts import Lane
from .definitions import is_the_programs
from .identity import identity, lost
from .keeping import Keeping
from .lanes import Lanes
from .lanes_beside import LanesBeside
from .signals import DRAIN_SIGNAL
from .straight import ServeOne, way_in_threads
from .thread_body import THREAD_BODY
from .thread_state import context_of_threads, state_of_thread
from .waiters import AT_ANY_TIME, AT_EACH_CHANGE, go_to_the_back

log = logging.getLogger("prefork.server")

IN_THE_MAIN_THREAD = ("get_request", "verify_request", "process_request")
AHEAD = 4  # threads that wait: with fewer, a busy machine has no time to start more, and others get its requests
IDLE_S = 10.0  # after which a thread leaves, where so many others wait
NO_THREAD = -1  # waits in front, until a connection has been accepted again
LOOK_EVERY_NS = 100_000_000  # the main thread checks its limits at most this often


def can_stay(server: Any) -> bool:
    """Return True if requests of this server may be accepted by any thread: no hook of the program's sees it."""
    return hasattr(server, THREAD_BODY) and not any(is_the_programs(server, name) for name in IN_THE_MAIN_THREAD)


class ThreadPool:
    """The threads of one worker. For its main thread; `wake` ends that one's wait, and then it calls `see_to()`."""

    def __init__(
        self, served: Sequence[tuple[Any, Lanes]], epoll: select.epoll, wake: Callable[[], None],
        keeping: Keeping | None = None,
    ) -> None:  # fmt: skip
        """`served`: each server, with its lanes; the first one's are those that the threads have."""
        (server, lanes), *others = served
        self.served = 0
        self.short = False  # of descriptors or memory: the listener has to be left alone for a while
        self.failed: Exception | None = None  # a wait, as it does where the program has closed our descriptors
        self._server = server
        self._listener: int = server.fileno()
        self._front = select.epoll()
        self._identities = {each: identity(each.fileno()) for each in (self._front, epoll)}
        self._stands_in_front = self._stands_at_back = False
        self._in_front = AT_ANY_TIME
        self._moving = threading.Lock()  # in front
        self._first = 0  # the thread that waits there, or has the request that came there; of two at once, one
        self._others = others
        self._listeners: tuple[int, ...] = tuple(each.fileno() for each, _ in served)
        self._keeping = keeping
        if keeping is not None:
            keeping.on_begin = self._begun
            self._listeners += (keeping.ready_fileno(),)
        self._lanes = lanes
        self._epoll = epoll
        self._register, self._unregister = epoll.register, epoll.unregister
        self._wake_main = wake
        self._woken = False
        self._context = context_of_threads()
        lanes.serve_in_threads(server, self._accepted)
        for other, its in others:
            its.serve_in_threads(other, partial(self._accepted, other.fileno()))
        self._serve_one: ServeOne = lanes.serve_one
        self._ways: dict[int, tuple[Any, Lanes, ServeOne]] = {}  # where it is not all for the first
        self._numbers = count(1)
        self._most = 0  # requests, after which the main thread is woken
        self._next_look_ns = 0
        self._full = False  # no lane is free for one more thread
        self._leaving = False
        self._always_ready = -1
        self._threads: set[threading.Thread] = set()
        self._waiting: set[threading.Thread] = set()
        self._ended: deque[threading.Thread] = deque()
        self._said_at = NEVER_S

    def open(self, most: int, always_ready: int) -> None:
        """Prepare to serve, from `begin()` on. `see_to()` starts the threads, once it is READY:
        on a busy machine each takes as long to start as half a boot.

        `always_ready` is a descriptor that can always be written. The main thread is woken after `most` requests.
        """
        self._most = most
        self._serve_one = way_in_threads(self._lanes, self._server)
        if self._others or self._keeping is not None:
            each = [(self._server, self._lanes, self._serve_one)]
            each += ((other, its, way_in_threads(its, other)) for other, its in self._others)
            self._ways = {way[0].fileno(): way for way in each}
            if self._keeping is not None:
                self._ways = self._keeping.ways_of(each)
        self._always_ready = always_ready
        for epoll in self._identities:
            epoll.register(always_ready, 0)

    def begin(self) -> None:
        """Wait for requests: in front, and at the back from the first one on, so that every front comes before."""
        if self._ways:
            self.go_to_the_back()
        else:
            self._stand_in_front()
            if not self._stands_in_front:
                self._is_short()

    def go_to_the_back(self, *, in_front_too: bool = False) -> None:
        """Let other workers have the next requests. What is queued already wakes one of ours that waits, and
        `in_front_too` the one that waits there."""
        if in_front_too or not (self._stands_in_front or self._ways):
            self._stand_in_front()
        self._stands_at_back = True
        stand = [go_to_the_back(self._epoll, listener, AT_EACH_CHANGE) for listener in self._listeners]
        if not (all(stand) and (self._stands_in_front or self._ways)):
            self._is_short()

    def on_shut(self, shut: bool) -> None:
        """Wait in front for changes alone, as at the back: else each wait for a listener that was shut down would end
        at once. Called in any thread of ours."""
        self._in_front = AT_EACH_CHANGE if shut else AT_ANY_TIME
        self._stand_in_front(again=True)

    def _stand_in_front(self, *, again: bool = False) -> None:
        """Be the last of those in front. `again`: only who stands there already."""
        with self._moving:  # of two at once, the place of the one that has not heard of a change might be what stays
            if self._stands_in_front or not again:
                self._stands_in_front = not self._ways and go_to_the_back(self._front, self._listener, self._in_front)

    def leave(self, listener: int) -> None:
        """Wait for it no more; closing it does not: other processes share the description."""
        for epoll in self._identities:
            with contextlib.suppress(OSError, ValueError):
                epoll.unregister(listener)

    def _is_short(self) -> None:
        self.short = True
        self._wake()

    def _wake(self) -> None:
        self._woken = True
        self._wake_main()

    def woken(self) -> bool:
        """Return True if one of us has woken the main thread since the last call."""
        woken, self._woken = self._woken, False
        return woken

    def see_to(self) -> float | None:
        """Start threads until enough wait. Return the milliseconds after which to call this again at the latest."""
        while self._ended:
            self._threads.discard(self._ended[0])
            self._ended.popleft()
        self._full = False
        while len(self._waiting) < AHEAD and self.failed is None:  # else each would fail, for ever
            lane = self._lanes.take()
            if lane is None:
                self._full = True
                break
            if not self._start(lane):
                return ACCEPT_PAUSE * 1000
        return self._lanes.contexts.patience_ms

    def _start(self, lane: Lane) -> bool:
        daemon = self._server.daemon_threads
        thread = threading.Thread(target=self.process_request_thread, args=(lane,), daemon=daemon)
        self._waiting.add(thread)  # first: else there seems to be a request in hand
        self._threads.add(thread)
        try:
            thread.start()
        except (RuntimeError, MemoryError) as exc:
            self._threads.discard(thread)
            self._waiting.discard(thread)
            self._lanes.give_back(lane)
            if monotonic() - self._said_at >= ACCEPT_SAID_EVERY_S:
                self._said_at = monotonic()
                log.error("could not start a thread for requests: %s", exc, extra=event(LogEvent.THREAD_REFUSED))
            return False
        return True

    def tell_to_leave(self) -> None:
        """Have each thread end when it has no request in hand. The last that waits tries to accept once more."""
        self._leaving = True
        for epoll in self._identities:
            try:
                epoll.modify(self._always_ready, select.EPOLLOUT)
            except (OSError, ValueError):  # the program has closed our descriptors
                self._interrupt(epoll)

    def _interrupt(self, epoll: select.epoll) -> None:
        """End the waits for an epoll that can be told nothing: each is begun again after a signal, and fails then."""
        if not self._is_lost(epoll):
            epoll.close()
        signal.set_wakeup_fd(-1)  # which is closed by now, or somebody else's
        for thread in tuple(self._waiting):
            if thread.ident is not None:
                with contextlib.suppress(ProcessLookupError):
                    signal.pthread_kill(thread.ident, DRAIN_SIGNAL)

    def join(self) -> None:
        """Wait until all have ended. Call it when every lane is free."""
        for thread in list(self._threads):
            thread.join()

    # In the threads.

    def process_request_thread(self, lane: Lane) -> None:
        """Serve one request after another. Threads are named after this."""
        thread = threading.current_thread()
        self._lanes.of_threads[threading.get_ident()] = lane
        try:
            if self._ways:
                self._serve_several(thread, lane)
            else:
                self._serve(thread, lane)
        except OSError as exc:  # of a request that has closed all, its own connection as well
            if not any(map(self._is_lost, self._identities)):
                raise
            self.failed = exc
        finally:
            every = (self._lanes, *(its for _, its in self._others))
            lanes_left = [its.of_threads.pop(threading.get_ident(), None) for its in every]
            passed_on = None in lanes_left
            self._waiting.discard(thread)
            if self._first == threading.get_ident():
                self._first = 0
            if self._keeping is not None:  # nobody else may be awake when it is time
                self._keeping.idle.park_all()
            self._ended.append(thread)
            if not passed_on:
                self._lanes.give_back(lane)
            if len(self._waiting) < AHEAD or self.failed is not None:
                self._wake()

    def _is_lost(self, epoll: select.epoll) -> bool:
        return epoll.closed or lost(epoll.fileno(), self._identities[epoll])

    def _serve(self, thread: threading.Thread, lane: Lane) -> None:
        wait, wait_in_front, me = self._epoll.poll, self._front.poll, threading.get_ident()
        threads, waiting, ended, listener = self._threads, self._waiting, self._ended, self._listener
        server, lanes, serve_one, new_context = self._server, self._lanes, self._serve_one, self._context.copy
        is_unchanged = state_of_thread()
        leaving = False
        while not leaving:
            waiting.add(thread)
            try:
                at_most = IDLE_S if len(waiting) > AHEAD else None
                if (self._first == me or not self._first) and len(threads) <= len(waiting) + len(ended):
                    self._first = me
                    ready = wait_in_front(at_most, 1)
                else:
                    if self._first == me:
                        self._first = 0
                    ready = wait(at_most, 1)
            except (OSError, ValueError) as exc:  # the program has closed the descriptor
                self.failed = exc
                return
            waiting.discard(thread)
            leaving = self._leaving
            if not ready or ready[0][0] != listener:
                # Each that leaves is missing in `waiting` by now: of several at once, the last does not.
                if len(waiting) >= (1 if leaving else AHEAD):
                    return
                if not leaving:
                    continue
            now_ns = monotonic_ns()
            outcome = new_context().run(serve_one, server, lane, now_ns)
            if lanes.forked:
                leave(0)
            if outcome is REQUEST:
                leaving = leaving or self._leaving or not is_unchanged()
            elif not self._goes_on(outcome):
                return
            if now_ns >= self._next_look_ns:
                self._next_look_ns = now_ns + LOOK_EVERY_NS
                self._wake()

    def _serve_several(self, thread: threading.Thread, lane: Lane) -> None:
        """Do as `_serve()` does, for whichever server something comes, in that one's own way."""
        waiting, new_context, is_unchanged = self._waiting, self._context.copy, state_of_thread()
        ways, wait = self._ways, self._epoll.poll if self._keeping is None else self._keeping.idle.wait
        words_of = {self._lanes: lane}
        for _, its in self._others:
            assert isinstance(its, LanesBeside)
            words_of[its] = its.of_threads[threading.get_ident()] = its.like(lane)
        leaving = False
        while not leaving:
            waiting.add(thread)
            try:
                ready = wait(IDLE_S if len(waiting) > AHEAD else None, 1)
            except (OSError, ValueError) as exc:  # the program has closed the descriptor
                self.failed = exc
                return
            waiting.discard(thread)
            leaving = self._leaving
            to_try = [way] if ready and (way := ways.get(ready[0][0])) is not None else []
            if not to_try:
                if len(waiting) >= (1 if leaving else AHEAD):
                    return
                if not leaving:
                    continue
                to_try = [way for fd in self._listeners if (way := ways.get(fd)) is not None]
            for server, lanes, serve_one in to_try:
                now_ns = monotonic_ns()
                outcome = new_context().run(serve_one, server, words_of[lanes], now_ns)
                if lanes.forked:
                    leave(0)
                if outcome is REQUEST:
                    leaving = leaving or self._leaving or not is_unchanged()
                elif not self._goes_on(outcome):
                    return
            if now_ns >= self._next_look_ns:
                self._next_look_ns = now_ns + LOOK_EVERY_NS
                self._wake()

    def _begun(self, source: int | None) -> None:
        """Called before a stay of a kept connection. `source`: the listener or queue by which it came; None: it was
        here."""
        if source is not None:
            self._accepted(source)
        else:
            self.count_one_more(may_need_another=True)

    def count_one_more(self, *, may_need_another: bool = False) -> None:
        """Count a request that came without an accept."""
        self.served = served = next(self._numbers)
        if served == self._most or (may_need_another and len(self._waiting) < AHEAD and not self._full):
            self._wake()

    def _goes_on(self, outcome: Accepted) -> bool:
        """Return whether this thread has a lane still, after an accept without a request that it could serve."""
        if outcome is NOT_BEGUN or outcome is NO_RESOURCES:
            self._leave_alone()
        elif outcome is not PASSED_ON and outcome is not SHUT and self._first != threading.get_ident():
            self.go_to_the_back()
        return outcome is not PASSED_ON and outcome is not NOT_BEGUN

    def _accepted(self, listener: int | None = None) -> None:
        """Called between an accept and its handler. `listener`: by which it came, if not by the first one's."""
        if listener is None:
            listener = self._listener
        if self._first != threading.get_ident() or not self._stands_at_back:
            try:  # go_to_the_back() without a call more: this was a quarter of what it costs
                self._unregister(listener)
                self._register(listener, AT_EACH_CHANGE)
            except (OSError, ValueError):  # another thread is about it as well, or there is no memory for it
                self.go_to_the_back()
            if self._first == NO_THREAD and self._stands_in_front:
                self._first = 0
        self.served = served = next(self._numbers)
        if (len(self._waiting) < AHEAD and not self._full) or served == self._most:
            self._wake()

    def _leave_alone(self) -> None:
        self._first = NO_THREAD  # where one would be told of the same again at once; so all wait at the back
        for listener in self._listeners:
            with contextlib.suppress(OSError):
                self._epoll.unregister(listener)
        self._is_short()
