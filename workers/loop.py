"""The worker: wait, accept, hand to `process_request`; then drain. The hot path.

Runs in a worker process only. Owns the process's epoll and its listener copy; writes nothing but its slot. It is told
what to do by signals and by the master's death, and asks for things by its slot and the nudge.
"""

import faulthandler
import os
import random
import select
import signal
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic, monotonic_ns
from types import FrameType
from typing import Any

from prefork.metrics.application.values import begin
from prefork.metrics.facts import ExitReason
from prefork.metrics.scoreboard import (
    CPU_SYSTEM_NS,
    CPU_USER_NS,
    DRAIN_ASKED,
    DUE,
    FDS_LIMIT,
    LEAVING,
    OPEN_FDS,
    PRIVATE_MEMORY,
    READY,
    YES,
)

from . import ending, sinks, user_forks
from .accepting import ACCEPT_PAUSE
from .bootstrap import Birth, Master, leave
from .hangup import InHand
from .lanes import NO_RESOURCES, NOT_BEGUN, REQUEST, Lanes
from .lazy_imports import import_lazy
from .limits import SAMPLES, WorkerLimits, jittered, sample
from .signals import Signals, ignore, set_mask
from .wakeup import Wakeup

HANDED_OVER_LOOK_MS = 20  # nobody tells when one of those is closed
LOOK_EVERY_NS = 100_000_000  # memory is looked at this often at most

IGNORED = (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU)


@dataclass(frozen=True, slots=True)
class WorkerTerms:
    """What the master lets a worker know of the pool's settings."""

    limits: WorkerLimits
    graceful_timeout: float
    elsewhere: bool  # ThreadingMixIn: requests run in threads
    rehearsal: bool  # boot, say READY, leave
    one_request: bool  # ForkingMixIn: forked ahead of its one request
    hang_up: bool  # a drain ends the loop of a handler that reads on
    queue_waits: bool  # ask the kernel how long a connection waited, now and then
    metrics: bool  # somebody may look: measure what costs something
    on_drain: Callable[[], None] | None  # of the program; None where it has none
    set_title: Callable[[str], None]
    nudge: Callable[[], None]


class Worker:
    """One worker process, from inside."""

    def __init__(self, server: Any, terms: WorkerTerms, birth: Birth, master: Master) -> None:
        self.server = server
        self.terms = terms
        self.birth = birth
        self.master = master
        self.draining = False
        self._drain_hook = ending.DrainHook(terms.on_drain)
        self._leaving = ExitReason.DRAINED
        self._served = 0
        self._memory: deque[int] = deque(maxlen=SAMPLES)
        self._next_sample_ns = 0
        limits = terms.limits
        if limits.max_requests is not None:
            limits = WorkerLimits(max(1, round(jittered(limits.max_requests, random.Random()))), limits.max_memory)
        self._limits = limits
        self._wakeup = Wakeup()
        self._signals = Signals(self._wakeup)
        self.lanes = Lanes(
            birth.slot,
            elsewhere=terms.elsewhere,
            on_free=self._wakeup.wake,
            queue_waits=terms.queue_waits,
            guarded=True,
        )
        self._in_hand = InHand()
        self._epoll = select.epoll()
        self._own = select.poll()

    # Set-up and end.

    def run(self) -> int:
        """Boot, serve until told to leave, drain; the exit status."""
        self._take_signals()
        self.master.tell_us_when_dying()
        if not self.terms.rehearsal:
            self._watch()
        self.terms.set_title("starting")
        ending.begin_anew()
        if self.birth.slot.application:
            begin(self.birth.slot.application)
        self.server.worker_started()
        if self.terms.rehearsal:
            for _, error in import_lazy():
                raise error
        self.master.tell_us_when_dying()  # worker_started() may have changed credentials
        self.lanes.bind(self.server)
        if self.terms.hang_up:
            self._in_hand.bind(self.server)
        if self.terms.metrics:
            self._sample(monotonic_ns())
        self.terms.set_title("")
        self.birth.slot.words[READY] = YES
        self.terms.nudge()
        if not self.terms.rehearsal:
            self._serve()
            self._drain()
        self.server.worker_stopping()
        if not self.terms.rehearsal:  # it has served nothing, and a thread that never ends would fail the reload
            ending.finish()
        self.birth.slot.words[LEAVING] = self._leaving
        return 0

    def _take_signals(self) -> None:
        handlers: dict[int, Callable[[int, FrameType | None], Any]] = dict.fromkeys(IGNORED, ignore)
        handlers |= {signal.SIGTERM: self._on_term, signal.SIGQUIT: self._on_quit}
        self._signals.take(handlers)
        faulthandler.register(signal.SIGUSR1, file=self.birth.stacks.fd, all_threads=True, chain=False)
        user_forks.on_fork_by_user(self._forked_by_user)
        set_mask(self.birth.mask)

    def _on_term(self, signum: int, frame: FrameType | None) -> None:
        self._begin_to_drain()
        self._wakeup.wake()  # the program may have taken the signals' wake-up away, as asyncio.run() does
        self._in_hand.hang_up()
        if self.master.gone():  # this is PDEATHSIG: the handler that runs now may take its time, the port may not
            self._orphaned()

    def _on_quit(self, signum: int, frame: FrameType | None) -> None:
        self.birth.slot.words[LEAVING] = ExitReason.STOPPED
        os._exit(0)

    def _forked_by_user(self) -> None:
        """In a process that user code forked from this worker: it is none, and holds nothing of ours."""
        self.lanes.forked = True
        slot = self.birth.slot  # its other part, the program's own metrics, is left by itself: prometheus._leave
        user_forks.make_private(slot.memory, slot.words.nbytes)
        self._signals.put_back()
        faulthandler.unregister(signal.SIGUSR1)
        self.server.socket.close()

    def _watch(self) -> None:
        for fd in (self._wakeup.fileno(), self.master.fileno()):
            self._epoll.register(fd, select.EPOLLIN)
            self._own.register(fd, select.POLLIN)
        # Registered for good. While this process does not wait here it is passed over, so another worker is woken.
        self._epoll.register(self.server.fileno(), select.EPOLLIN | select.EPOLLEXCLUSIVE)

    # Serving.

    def _serve(self) -> None:
        """Wait, accept one, and again; at the end accept once without waiting.

        Waiting first costs one cheap system call where an accept that finds nothing costs ten times as much. The first
        wait looks at the queue, because registering does; a connection that comes while this worker is busy, and
        nobody else waits, is in its next wait. The accept before leaving is for a connection that this worker alone was
        woken for; where it was killed instead, the master wakes the idle ones, and whoever is woken accepts.
        """
        server, lanes, wait, listener = self.server, self.lanes, self._epoll.poll, self.server.fileno()
        next_look_ns = 0
        most = self._limits.max_requests or 0
        lane = None
        while True:
            leaving = self.draining
            if lane is None and (lane := lanes.take()) is None:
                if leaving:
                    return
                self._note(self._own.poll())
                continue
            if not leaving:
                ready = wait()
                if len(ready) > 1 or ready[0][0] != listener:
                    self._note(ready)
            now_ns = monotonic_ns()
            outcome = lanes.serve_one(server, lane, now_ns)
            if lanes.forked:
                leave(0)
            if outcome is REQUEST or outcome is NOT_BEGUN:
                if lanes.elsewhere:
                    lane = None
                else:
                    self._signals.keep()
                self._served += 1
                if self._served == most or now_ns >= next_look_ns:
                    next_look_ns = now_ns + LOOK_EVERY_NS
                    self._look(now_ns)
                if outcome is NOT_BEGUN and not leaving:
                    self._pause()
                if self.terms.one_request:
                    self._leaving = ExitReason.MAX_REQUESTS
                    leaving = True
                    self._begin_to_drain()
            elif outcome is NO_RESOURCES and not leaving:
                self._pause()
            if leaving:  # one is enough: with a queue that is never empty it would never leave
                if lane is not None:
                    lanes.give_back(lane)
                return

    def _pause(self) -> None:
        """Leave the listener alone: descriptors or memory are short. The master, which sees an idle lane beside a
        queue, wakes us meanwhile; that is no reason to try before the time."""
        until = monotonic() + ACCEPT_PAUSE
        while not self.draining and (left := until - monotonic()) > 0:
            self._note(self._own.poll(left * 1000))

    def _note(self, ready: list[tuple[int, int]]) -> None:
        """Act on what a wait was ended by. Signals have been noted by their handlers already."""
        for fd, _ in ready:
            if fd == self._wakeup.fileno():
                self._wakeup.drain()
            elif fd == self.master.fileno():
                self._orphaned()

    def _look(self, now_ns: int) -> None:
        """Between two requests, now and then: is a limit reached?"""
        sinks.follow()
        if now_ns >= self._next_sample_ns and (self.terms.metrics or self._limits.max_memory is not None):
            self._sample(now_ns)
        due = self._limits.due(self._served, self._memory)
        if due is not None and not self.birth.slot.words[DUE]:
            self.birth.slot.words[DUE] = due
            self.terms.nudge()

    def _sample(self, now_ns: int) -> None:
        seen, words = sample(), self.birth.slot.words
        if seen is not None:
            self._memory.append(seen.private_memory)
            words[PRIVATE_MEMORY], words[OPEN_FDS] = seen.private_memory, seen.open_fds
            words[FDS_LIMIT] = seen.fds_limit
            words[CPU_USER_NS], words[CPU_SYSTEM_NS] = int(seen.cpu_user_s * 1e9), int(seen.cpu_system_s * 1e9)
        self._next_sample_ns = now_ns + int(self._limits.next_sample_s(self._memory) * 1e9)

    # Leaving.

    def _begin_to_drain(self) -> None:
        """From here on nothing new is taken. A signal handler calls it too."""
        self.draining = True
        self._drain_hook.begin()

    def ask_to_drain(self) -> None:
        """`server.shutdown()` in a worker: the master is asked, and drains the whole pool."""
        self.birth.slot.words[DRAIN_ASKED] = YES
        self.terms.nudge()

    def _orphaned(self) -> None:
        """The master is dead: free the port now, finish what we have, within bounds. A signal handler calls it too."""
        if self._leaving is not ExitReason.MASTER_DIED:
            self._leaving = ExitReason.MASTER_DIED
            self._begin_to_drain()
            self._signals.kill_me_after(self.terms.graceful_timeout)
            self._own.unregister(self.master.fileno())
            self._close_listener()
            self._in_hand.hang_up()

    def _close_listener(self) -> None:
        listener: socket.socket = self.server.socket
        # A datagram handler replies through the listener: it stays until the last one has.
        if listener.fileno() != -1 and listener.type != socket.SOCK_DGRAM:
            self._epoll.unregister(listener.fileno())  # closing a shared description does not
            listener.close()

    def _drain(self) -> None:
        """Finish what is in hand, whatever daemon_threads says. The master bounds it by a deadline."""
        self.terms.set_title("draining")
        self._close_listener()
        while not self.lanes.all_free():
            self._note(self._own.poll())
        while not self.lanes.all_finished():
            self._note(self._own.poll(HANDED_OVER_LOOK_MS))
        self._drain_hook.wait()
        self.terms.nudge()
