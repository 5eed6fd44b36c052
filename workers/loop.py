"""The worker: wait, accept, hand the request to `process_request`; then drain. The hot path.

Runs in a worker process only. Owns the process's epoll and its copy of the listener; of the shared memory it must write
nothing but its slot. Signals and the master's death tell it what to do; it asks for things through its slot and the
nudge. Longer than most files: the worker's life, from boot to drain, reads here in its order.
"""

import contextlib
import os
import select
import signal
import socket
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic, monotonic_ns, sleep
from types import FrameType
from typing import Any

from prefork.metrics.application.values import begin
from prefork.metrics.facts import ExitReason
from prefork.metrics.scoreboard import DRAIN_ASKED, DUE, LEAVING, READY, REPLACE_ASKED, YES

from . import ending, handshake, left_listener, sinks, strays, user_forks
from .accepting import ACCEPT_PAUSE, NO_RESOURCES, NOT_BEGUN, REQUEST, Shortage
from .bootstrap import Birth, Master, leave, note_failure
from .contexts import Lane
from .definitions import hook
from .hangup import InHand
from .identity import Descriptors, DescriptorsLost
from .keeping import Keeping
from .lanes import Lanes
from .lanes_beside import LanesBeside
from .lazy_imports import import_lazy
from .limits import Usage
from .looped import LoopTerms
from .open_lanes import OpenLanes
from .signals import DRAIN_SIGNAL, STACKS_SIGNAL, Signals, ignore, set_mask
from .straight import way_of
from .terms import WorkerTerms
from .thread_pool import LOOK_EVERY_NS, ThreadPool, can_stay
from .waiters import AT_ANY_TIME, AT_EACH_CHANGE, go_to_the_back, wait_for
from .wakeup import Wakeup

HANDED_OVER_LOOK_MS = 20  # polled, because nothing reports that a request handed over was closed
FIRST_OF_THREADS_S = 0.5  # for the program's own thread to begin the first request that this worker gave it
DATAGRAMS_AT_ONCE = 16  # received without a wait in between
TRY_EVERY = 8  # waits; an ask in vain costs as much as a wait
MOST_EVENTS = 8  # of one wait: the default is 12 kB
FAILURE = select.POLLHUP | select.POLLERR | select.POLLNVAL

IGNORED = (
    signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU, STACKS_SIGNAL,
)  # fmt: skip


class Worker:
    """One worker process, seen from inside. `others`: the servers that it serves beside the first, with their terms."""

    def __init__(
        self, server: Any, terms: WorkerTerms, birth: Birth, master: Master,
        others: Sequence[tuple[Any, WorkerTerms]] = (),
    ) -> None:  # fmt: skip
        self.server = server
        self.terms = terms
        self.birth = birth
        self.master = master
        self.draining = False
        hooks = [each.on_drain for each in (terms, *(its for _, its in others))]
        self._drain_hook = ending.DrainHook(*(self._calling(each) for each in hooks if each is not None))
        self._leaving = ExitReason.DRAINED
        self._usage = Usage(terms.limits, birth.slot.words, measures=terms.metrics)
        self._wakeup = Wakeup()
        self._signals = Signals(self._wakeup)
        self.lanes = self._lanes_of(server, terms, several=bool(others))
        self._served = [(server, self.lanes, terms)]
        self._served += ((each, self._lanes_of(each, its, several=True, first=self.lanes), its) for each, its in others)
        self._threads: ThreadPool | None = None  # where they stay
        self._shortage = Shortage()
        self._waits = True  # for the listener; False where the kernel had no memory for it
        self._lost = False  # a listener, which the program has closed
        self._shut: frozenset[int] = frozenset()  # listeners that were shut down, and told of as ready for ever
        self._in_hand = InHand()
        self._epoll = select.epoll()
        self._own = select.poll()
        self._keeping = self._keeps()
        self._descriptors = Descriptors(
            self._wakeup.fileno(), self._wakeup.write_fileno(), master.fileno(), self._epoll.fileno(), birth.slot.fd,
            *(() if self._keeping is None else self._keeping.filenos()),
        )  # fmt: skip

    @property
    def every(self) -> list[Lanes]:
        """The lanes of each server, in their order."""
        return [lanes for _, lanes, _ in self._served]

    def _lanes_of(self, server: Any, terms: WorkerTerms, *, several: bool, first: Lanes | None = None) -> Lanes:
        on_accept = partial(self._go_to_the_back, server) if several else self._go_to_the_back
        opened = OpenLanes(self.birth.slot, terms.listener)
        made = Lanes if first is None else partial(LanesBeside, first)
        return made(
            opened.first(), elsewhere=terms.elsewhere, on_free=self._wakeup.wake, more=opened.more,
            on_accept=on_accept, queue_waits=terms.queue_waits, guarded=True, access_log=terms.access_log,
            admission=terms.admission, on_lost=self._on_lost, on_shut=partial(self._on_shut, server),
        )  # fmt: skip

    def _keeps(self) -> Keeping | None:
        queues = next((terms.queues for _, _, terms in self._served if terms.queues is not None), None)
        if queues is None:
            return None
        lingers = not (self.terms.elsewhere or self.terms.one_request)
        return Keeping(
            queues, self._epoll, lingers=lingers, draining=lambda: self.draining, on_lost=self._on_lost,
            wake=self._wakeup.wake, ends=lambda: self.birth.slot.told_to_end,
        )  # fmt: skip

    # Set-up and end.

    def run(self) -> int:
        """Boot, serve until told to leave, drain; then end as Python does. Return the exit status."""
        try:
            self._boot()
        except BaseException as exc:
            if self.terms.rehearsal:  # a thread that never ends would keep its answer
                raise
            status = self._fail(exc)
            ending.finish()
            return status
        if not self.terms.rehearsal:
            return self._live()
        # It serves nothing, and a thread that never ends would fail the reload.
        self._call_each("worker_stopping")
        self.birth.slot.words[LEAVING] = self._leaving
        return 0

    def _boot(self) -> None:
        self._take_signals()
        self.master.tell_us_when_dying()
        if not self.terms.rehearsal:
            self._watch()
        self.terms.set_title("starting")
        ending.begin_anew()
        if self.birth.slot.application:
            begin(self.birth.slot.application)
        self._call_each("worker_started")
        if self._descriptors.lost():
            raise DescriptorsLost
        if self.terms.rehearsal:
            for _, error in import_lazy():
                raise error
        self.master.tell_us_when_dying()  # worker_started() may have changed credentials
        if self.terms.elsewhere and all(can_stay(server) for server, _, _ in self._served):
            served = [(server, lanes) for server, lanes, _ in self._served]
            self._threads = ThreadPool(served, self._epoll, self._wakeup.wake, self._keeping)
            if self._keeping is not None:
                self._keeping.lingers = True
        for server, lanes, terms in self._served:
            handshake.in_its_lane(server)
            strays.end_in_hooks(server, lambda: self.lanes.forked)
            count = self._count_one_more if self._threads is None else self._threads.count_one_more
            lanes.loops = LoopTerms(lambda: self.draining, count)
            kept = terms.queues is not None
            if kept and self._keeping is not None:
                self._keeping.keep(server, lanes, terms.listener, count)
            lanes.bind(server)
            lanes.get_request = terms.get_request()
            if self.terms.hang_up and not kept:
                self._in_hand.bind(server)
        if self.terms.metrics:
            self._usage.sample(monotonic_ns())
        self.terms.set_title("")
        if self._threads is not None and not self.terms.rehearsal:
            self._stop_watching()
            self._threads.open(self._usage.limits.max_requests or 0, self._wakeup.write_fileno())
        if self.terms.one_request:  # its handler may end this process, as that of a ForkingMixIn's child
            self.birth.slot.words[LEAVING] = ExitReason.MAX_REQUESTS
        self.birth.slot.words[READY] = YES
        self.terms.nudge()

    def _live(self) -> int:
        """Serve and drain, then end as Python does, even if something raised. Return the exit status."""
        try:
            if self._threads is not None:
                self._serve_in_threads(self._threads)
            elif self._keeping is not None or len(self._served) > 1:
                self._serve_several()
            else:
                self._serve()
            self._drain()
            status = 0
        except BaseException as exc:
            status = self._fail(exc)
            if not isinstance(exc, SystemExit):  # what is left cannot be trusted with the program's hook
                ending.finish()
                return status
        try:
            self._call_each("worker_stopping")
        except BaseException as exc:
            status = self._fail(exc)
        ending.finish()
        if self.birth.slot.words[LEAVING] in (0, ExitReason.MAX_REQUESTS):
            self.birth.slot.words[LEAVING] = self._leaving
        return status

    def _fail(self, exc: BaseException) -> int:
        """Take nothing new, and tell the master why: it has a replacement and a deadline for us. Return the status."""
        if self.lanes.forked:
            strays.end(exc)
        status = note_failure(self.birth, self._descriptors.told(exc))
        self.draining = True
        if self._threads is not None:
            self._threads.tell_to_leave()
        with contextlib.suppress(Exception):
            self._close_listeners()
        self.terms.nudge()
        return status

    def _call_each(self, name: str) -> None:
        for server, _, _ in self._served:
            self._calling(hook(server, name))()

    def _calling(self, hook: Callable[[], None]) -> Callable[[], None]:
        return strays.ending(hook, lambda: self.lanes.forked)

    def _take_signals(self) -> None:
        handlers: dict[int, Callable[[int, FrameType | None], Any]] = dict.fromkeys(IGNORED, ignore)
        handlers |= {DRAIN_SIGNAL: self._on_drain, signal.SIGTERM: self._on_term, signal.SIGQUIT: self._on_quit}
        self._signals.take(handlers)
        self._signals.write_stacks(self.birth.stacks.fd)
        user_forks.on_fork_by_user(self._forked_by_user)
        set_mask(self.birth.mask)

    def _on_drain(self, signum: int, frame: FrameType | None) -> None:
        if self.birth.slot.told_to_drain:  # else it is from somebody else than the master
            self._obey_drain()

    def _obey_drain(self) -> None:
        self._begin_to_drain()
        self._wakeup.wake()  # the program may have replaced the signals' wake-up descriptor, as asyncio.run() does
        self._in_hand.hang_up()

    def _on_term(self, signum: int, frame: FrameType | None) -> None:
        """Ask the master for a replacement, and serve on until it says DRAIN_SIGNAL: there may be a queue to serve."""
        if self.master.gone():  # this is PDEATHSIG: the request may take its time, but the port must be freed now
            self._obey_drain()
            self._orphaned()
        else:
            self.birth.slot.words[REPLACE_ASKED] = YES
            self.terms.nudge()

    def _on_quit(self, signum: int, frame: FrameType | None) -> None:
        self.birth.slot.words[LEAVING] = ExitReason.STOPPED
        os._exit(0)

    def _forked_by_user(self) -> None:
        """Let go of everything of ours, in a process that user code forked from this worker: it is not a worker."""
        slot = self.birth.slot  # the rest of it, the program's own metrics, is detached by metrics/application/values
        user_forks.make_private(slot.memory, slot.words.nbytes)
        self._signals.put_back()
        if self._keeping is not None:
            self._keeping.forget()
        for server, lanes, _ in self._served:
            lanes.forked = True
            # It must not hold the port. But a datagram's socket is its request's as well, and this may be to answer it.
            if server.socket.type != socket.SOCK_DGRAM or not lanes.may_have_requests():
                server.socket.close()

    def _watch(self) -> None:
        for fd in (self._wakeup.fileno(), self.master.fileno()):
            self._epoll.register(fd, select.EPOLLIN)
            self._own.register(fd, select.POLLIN)
        served = self._served
        if len(served) > 1:  # it takes from the first before the others: where each worker has one request, for good
            first = os.urandom(1)[0] % len(served)
            served = served[first:] + served[:first]
        for server, _, _ in served:
            wait_for(self._epoll, server.fileno())
        if self._keeping is not None:
            wait_for(self._epoll, self._keeping.ready_fileno())

    def _stop_watching(self) -> None:
        """Leave the epoll to the threads. What is the main thread's stays in its own poll."""
        ready = () if self._keeping is None else (self._keeping.ready_fileno(),)
        listeners = (server.fileno() for server, _, _ in self._served)
        for fd in (self._wakeup.fileno(), self.master.fileno(), *listeners, *ready):
            with contextlib.suppress(OSError, ValueError):  # the program may have closed the listener
                self._epoll.unregister(fd)

    # Serving.

    def _serve(self) -> None:
        """Wait, accept one request, and repeat; before leaving, accept once without waiting.

        Waiting first costs one cheap system call; an accept that finds nothing costs ten times as much. The first wait
        sees connections already queued, because registering checks the queue; a connection that arrives while this
        worker is busy and no other waits shows up in its next wait. Datagrams are received without a wait in between
        as long as there are several: that is half the system calls. The accept before leaving is for a connection for
        which only this worker was woken. If it was killed instead, the master wakes the idle workers, and any of them
        accepts.
        """
        server, lanes, wait, listener = self.server, self.lanes, self._epoll.poll, self.server.fileno()
        serve_one, contexts = way_of(lanes, server), lanes.contexts
        at_once = DATAGRAMS_AT_ONCE if server.socket.type == socket.SOCK_DGRAM and not lanes.elsewhere else 1
        left = asked = 0  # accepts before the next wait: of now, and of the last wait
        several = False  # since the last wait
        next_look_ns = 0
        usage, most = self._usage, self._usage.limits.max_requests or 0
        lane = None
        while True:
            leaving = self.draining
            if lane is None and (lane := lanes.take()) is None:
                if leaving:
                    return
                self._rest(contexts.patience_ms)
                continue
            if not (self._waits or leaving):
                self._pause()
                self._go_to_the_back()
                continue
            if not (left or leaving):
                left = asked = at_once if several or not usage.served % TRY_EVERY else 1
                several = False
                ready = wait(contexts.patience, MOST_EVENTS)
                if len(ready) != 1 or ready[0][0] != listener:
                    self._note(ready)
            left -= 1
            now_ns = monotonic_ns()
            outcome = serve_one(server, lane, now_ns)
            if lanes.forked:
                leave(0)
            if outcome is REQUEST or outcome is NOT_BEGUN:
                if lanes.elsewhere:
                    lane = None
                else:
                    self._signals.keep()
                usage.served += 1
                several = left < asked - 1
                if usage.served == most or now_ns >= next_look_ns:
                    next_look_ns = now_ns + LOOK_EVERY_NS
                    self._look(now_ns)
                if outcome is NOT_BEGUN and not leaving:
                    self._pause()
                if self.terms.one_request:
                    self._leaving = ExitReason.MAX_REQUESTS
                    leaving = True
                    self._begin_to_drain()
            else:
                left = 0
                if outcome is NO_RESOURCES and not leaving:
                    self._pause()
            if leaving:  # after a single accept: while the queue is never empty it would never leave
                if lane is not None:
                    lanes.give_back(lane)
                return

    def _serve_several(self) -> None:
        """Do as `_serve()` does, for several listeners, each in its server's own way.

        One event is taken from a wait, the oldest: only that one is sure to have woken nobody else. The next wait takes
        the next, so that no listener waits for another's queue to be empty. Before leaving, and where something else
        ends a wait, each listener is tried once: the master wakes a worker for a queue that it had not been woken for.
        """
        keeping, usage, most = self._keeping, self._usage, self._usage.limits.max_requests or 0
        idle = None if keeping is None else keeping.idle
        wait = self._epoll.poll if idle is None else idle.wait
        each = [(server, lanes, way_of(lanes, server)) for server, lanes, _ in self._served]
        ways = {way[0].fileno(): way for way in each} if keeping is None else keeping.ways_of(each)
        contexts = [lanes.contexts for _, lanes, _ in self._served]
        shared = list(ways)  # beside those of one connection each
        to_try: list[int] = []
        next_look_ns = 0
        leaving = False
        lane: Lane | None = None
        while True:
            if self.draining and not leaving:
                leaving, to_try = True, list(shared)
            if leaving and not to_try:
                break
            if lane is None and (lane := self.lanes.take()) is None:
                if leaving:
                    return
                self._rest(self._patience_ms)
                continue
            if not (self._waits or leaving):
                self._pause()
                again = [go_to_the_back(self._epoll, listener, self._when(listener)) for listener in shared]
                self._waits = all(again)
                continue
            if not to_try:
                patience = None
                for its in contexts:
                    if its.patience is not None:
                        patience = its.patience if patience is None else min(patience, its.patience)
                ready = wait(patience, 1)
                if ready and ready[0][0] in ways:
                    to_try.append(ready[0][0])
                    if idle is not None:
                        idle.says = ready[0][1]
                else:
                    self._note(ready)
                    to_try = list(shared)
            server, lanes, serve_one = ways[to_try.pop()]
            now_ns = monotonic_ns()
            outcome = serve_one(server, lanes.like(lane) if isinstance(lanes, LanesBeside) else lane, now_ns)
            if lanes.forked:
                leave(0)
            if outcome is REQUEST or outcome is NOT_BEGUN:
                if lanes.elsewhere:
                    lane = None
                else:
                    self._signals.keep()
                usage.served += 1
                if usage.served == most or now_ns >= next_look_ns:
                    next_look_ns = now_ns + LOOK_EVERY_NS
                    self._look(now_ns)
                if self.terms.one_request:
                    self._leaving = ExitReason.MAX_REQUESTS
                    self._begin_to_drain()
                    break
            if (outcome is NO_RESOURCES or outcome is NOT_BEGUN) and not leaving:
                self._pause(lanes)
        if lane is not None:
            self.lanes.give_back(lane)

    @property
    def _patience_ms(self) -> float | None:
        """The time after which `look()` is to be called, at the latest, for whichever server; None: nothing waits."""
        found = [ms for _, lanes, _ in self._served if (ms := lanes.contexts.patience_ms) is not None]
        return min(found, default=None)

    def _serve_in_threads(self, threads: ThreadPool) -> None:
        """Have the threads serve, and see to them. When told to leave, tell them."""
        threads.see_to()
        threads.begin()  # when as many wait as should: with fewer, others would get the first requests
        while not self.draining:
            if threads.failed is not None:
                raise threads.failed
            at_most_ms = threads.see_to()
            if self._keeping is not None and (due_ms := self._keeping.idle.see_to()) is not None:
                at_most_ms = due_ms if at_most_ms is None else min(at_most_ms, due_ms)
            if threads.short:
                threads.short = False
                self._pause()
                threads.woken()  # the pause has heard of it
                threads.go_to_the_back()
            else:
                self._rest(at_most_ms)
                self._usage.served = threads.served
                self._look(monotonic_ns())
                if not threads.woken():  # but by the master: somebody waits, and we have nothing to do
                    threads.go_to_the_back(in_front_too=True)
        threads.tell_to_leave()

    def _go_to_the_back(self, server: Any = None) -> None:
        """Let other workers have the next requests. Called between the accept and the start of the thread: a client
        that is quickly answered and comes again must not find us in front. `server`: one of several."""
        listener = (self.server if server is None else server).fileno()
        self._waits = go_to_the_back(self._epoll, listener, self._when(listener)) and (server is None or self._waits)
        if self._keeping is not None:
            self._waits = go_to_the_back(self._epoll, self._keeping.ready_fileno()) and self._waits

    def _when(self, listener: int) -> int:
        return AT_EACH_CHANGE if listener in self._shut else AT_ANY_TIME

    def _on_shut(self, server: Any, shut: bool) -> None:
        """Wait, in whichever thread, for changes alone of a listener that was shut down: else each wait would end at
        once. The master is told, who may mend it. Where something comes there again, wait as ever."""
        listener = server.fileno()
        self._shut = self._shut | {listener} if shut else self._shut - {listener}
        if self._threads is not None:
            self._threads.on_shut(shut)
        else:
            self._waits = go_to_the_back(self._epoll, listener, self._when(listener)) and self._waits
        if shut and server.socket.type != socket.SOCK_DGRAM:  # there, datagrams may still come
            self.terms.nudge()

    def _pause(self, lanes: Lanes | None = None) -> None:
        """Leave the listeners alone for ACCEPT_PAUSE seconds, because descriptors or memory are short.

        The master wakes us meanwhile, because it sees an idle lane beside a queue: no reason to try any earlier.
        """
        if self._keeping is not None:
            self._keeping.idle.park_all()
        self._shortage.say((lanes or self.lanes).why_short())
        until = monotonic() + ACCEPT_PAUSE
        while not self.draining and (left := until - monotonic()) > 0:
            self._rest(left * 1000)

    def _rest(self, at_most_ms: float | None = None) -> None:
        """Wait for anything but the listener."""
        try:
            self._note(self._own.poll(at_most_ms))
        except OSError:  # no memory for it (poll(2)): the requests in hand go on
            sleep(HANDED_OVER_LOOK_MS / 1000)

    def _on_lost(self) -> None:
        """Note that a listener is closed, and not by us. In any thread that accepts; the main one ends the worker."""
        self._lost = True
        self._wakeup.wake()

    def _note(self, ready: list[tuple[int, int]]) -> None:
        """Act on what ended a wait. Signal handlers have run by then."""
        if self._lost and not self.draining:
            raise DescriptorsLost
        for _, lanes, _ in self._served:
            lanes.look()
        for fd, events in ready:
            if events & FAILURE and self._descriptors.lost():  # what is closed looks like a master that is dead
                raise DescriptorsLost
            if fd == self._wakeup.fileno():
                self._wakeup.drain()
                sinks.follow()
                if self.birth.slot.told_to_drain:  # the program may have taken the signal for itself
                    self._begin_to_drain()
                    self._in_hand.hang_up()
            elif fd == self.master.fileno():
                self._orphaned()

    def _count_one_more(self) -> None:
        """Count a request for `max_requests`, the loop's as well: at the limit it is the loop's to look."""
        if self._usage.served + 1 != self._usage.limits.max_requests:
            self._usage.served += 1

    def _look(self, now_ns: int) -> None:
        """Check between two requests, now and then, whether a limit is reached."""
        sinks.follow()
        for _, lanes, _ in self._served:
            lanes.look()
        due = self._usage.due(now_ns)
        if due is not None and not self.birth.slot.words[DUE]:
            self.birth.slot.words[DUE] = due
            self.terms.nudge()

    # Leaving.

    def _begin_to_drain(self) -> None:
        """Take nothing new from now on. Also called from a signal handler."""
        self.draining = True
        self._drain_hook.begin()

    def ask_to_drain(self) -> None:
        """Ask the master to drain the whole pool: `server.shutdown()` called in a worker."""
        self.birth.slot.words[DRAIN_ASKED] = YES
        self.terms.nudge()

    def _orphaned(self) -> None:
        """Free the port at once and finish the current requests within the graceful timeout: the master is dead.

        Also called from a signal handler.
        """
        if self._leaving is not ExitReason.MASTER_DIED:
            self._leaving = ExitReason.MASTER_DIED
            if self._keeping is not None:
                self._keeping.idle.closes = True
            self._begin_to_drain()
            self._signals.kill_me_after(self.terms.graceful_timeout)
            self._own.unregister(self.master.fileno())
            self._close_listeners()
            self._in_hand.hang_up()

    def _close_listeners(self) -> None:
        for server, _, _ in self._served:
            listener: socket.socket = server.socket
            # Datagram handlers reply through the listener, so it stays open until the last of them has.
            if listener.fileno() != -1 and listener.type != socket.SOCK_DGRAM:
                with contextlib.suppress(OSError):  # closing it does not: other processes share the description
                    self._epoll.unregister(listener.fileno())
                if self._threads is not None:
                    self._threads.leave(listener.fileno())
                left_listener.leave(listener)

    def _drain(self) -> None:
        """Finish the current requests, whatever `daemon_threads` says. The master enforces the deadline."""
        self.terms.set_title("draining")
        self._close_listeners()
        if self._keeping is not None:
            self._keeping.idle.leave(self._rest)
        for _, lanes, _ in self._served:
            while not lanes.all_free():
                self._rest(lanes.contexts.patience_ms)
            until = monotonic() + FIRST_OF_THREADS_S
            while not lanes.handed_over.all_finished(first_may_come=monotonic() < until):
                self._rest(HANDED_OVER_LOOK_MS)
        if self._threads is not None:
            self._threads.join()
        if self._keeping is not None:  # what has come back meanwhile
            self._keeping.idle.leave(self._rest)
        self._drain_hook.wait()
        self.terms.nudge()
