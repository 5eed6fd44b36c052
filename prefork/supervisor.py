"""The supervisor: wait, note commands and exits, plan, apply. Sole owner of the phase, the child table and the timers.

Runs in the process that serves: as the master's whole loop in a pool, and one `turn()` at a time, which never waits,
inside the loop of a plain server with children. Must not handle a request, start a thread, or write a live child's
slot. Decides nothing itself: `policy.plan()` does.
"""

import logging
import os
import random
import select
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic, monotonic_ns

from prefork.metrics.facts import ExitReason
from prefork.metrics.kernel import oom_kills
from prefork.metrics.scoreboard import Report, Slot, Statistics, Totals
from prefork.workers.bootstrap import Birth, Master
from prefork.workers.limits import jittered
from prefork.workers.wakeup import Wakeup

from . import policy
from .children import Child, ChildKind, ChildState, ChildTable, Exit, StrayReaper
from .commands import Command
from .errors import BootError
from .listeners import narrow, queued
from .policy import Phase, Plan, Pool

log = logging.getLogger("prefork.supervisor")

NUDGE_EVERY_S = 0.01  # a worker that nudges without cause is heard this often
RELISTEN_S = 0.02  # saturation is asked for again after this
PAUSE_S = 0.5  # this late, the master itself must have been stopped
STACKS_S = 0.1  # a stack is logged when nothing was added to it for this long
FORK_LOG_EVERY_S = 10.0
POKE = signal.SIGHUP  # a worker's handler for it does nothing, so all it does is end a wait

MAY_FOLLOW = {
    Phase.RUNNING: {Phase.STARTING},
    Phase.DRAINING: {Phase.STARTING, Phase.RUNNING},
    Phase.KILLING: {Phase.STARTING, Phase.RUNNING, Phase.DRAINING},
    Phase.STOPPED: set(Phase) - {Phase.STOPPED},
}


class Clock:
    """Monotonic seconds less the time that this process was stopped: then no deadline moves while nobody looks."""

    def __init__(self) -> None:
        self._paused = 0.0
        self._pause: tuple[float, float] = (0.0, 0.0)

    def now(self) -> float:
        return monotonic() - self._paused

    def note_pause(self, seconds: float) -> None:
        self._paused += seconds
        self._pause = (monotonic() - seconds, monotonic())

    def at(self, stamp_ns: int) -> float:
        """When a worker's `monotonic_ns()` stamp was, on this clock."""
        stamp, (begin, end) = stamp_ns / 1e9, self._pause
        if stamp >= end:
            return stamp - self._paused
        return min(stamp, begin) - (self._paused - (end - begin))


@dataclass(frozen=True, slots=True)
class Service:
    """What is supervised: the pool's side of the server, as the supervisor needs it."""

    name: str
    forget: Callable[[], None]  # in a new child: close the copies of what is this process's alone
    drain_asked: Callable[[], None]  # a child asks to end the service
    # Of a pool only:
    work: Callable[[Birth, Master, int], int] | None = None  # the body of a worker
    lanes: int = 1  # of one worker
    listener: socket.socket | None = None
    max_lifetime: float | None = None


class Supervisor:
    """Supervises the children of one server. Raises OSError from the constructor when descriptors are short."""

    def __init__(self, service: Service, limits: policy.Limits, totals: Totals, wakeup: Wakeup) -> None:
        self.service = service
        self.limits = limits
        self.phase = Phase.STARTING
        self.table = ChildTable()
        self.clock = Clock()
        self.commands: deque[Command] = deque()
        self.turns = 0
        self._phase_since = self.clock.now()
        self._generation = 1
        self._pool = Pool()
        self._totals = totals
        self._wakeup = wakeup
        self._nudge = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll = select.epoll()
        self._epoll.register(wakeup.fileno(), select.EPOLLIN)
        self._epoll.register(self._nudge, select.EPOLLIN | select.EPOLLONESHOT)
        self._nudge_deaf_until: float | None = None
        self._listening = False  # the listener is in the epoll, to learn of saturation
        self._relisten_at = 0.0
        self._saturated = False
        self._queued_at = 0.0
        self._wake_at = self.clock.now()
        self._fork_logged_at = float("-inf")
        self._oom_kills = oom_kills()
        self._last_error = ""
        self._drain_asked = False
        self.closed = False
        self._strays = StrayReaper() if os.getpid() == 1 else None
        self._rng = random.Random()
        # statistics() may be asked in any thread while a reap folds a slot.
        self._lock = threading.Lock()

    def fileno(self) -> int:
        return self._epoll.fileno()

    def nudge(self) -> None:
        """"Look at the slots." Called by the children; the master hears it."""
        try:
            os.eventfd_write(self._nudge, 1)
        except BlockingIOError:
            pass

    # One turn.

    def wait(self, at_most: float | None = None) -> None:
        """Until something happens or the plan's next moment comes; in a pool only."""
        seconds = self.until_next_turn()
        self._read(self._epoll.poll(seconds if at_most is None else min(seconds, at_most)))

    def until_next_turn(self) -> float:
        return max(0.0, self._wake_at - self.clock.now())

    def turn(self) -> None:
        """Note what has happened, plan, apply. Never waits."""
        self.turns += 1
        if self.closed:
            return
        self._read(self._epoll.poll(0))
        self._note_pause()
        now = self.clock.now()
        self._note_commands(now)
        self._note_reports(now)
        plan = policy.plan(self._snapshot(now), self.limits, now)
        self._apply(plan, now)
        if self._strays is not None:
            self._strays.turn({child.pid for child in self.table}, now)

    def _read(self, events: list[tuple[int, int]]) -> None:
        exited = {fd for fd, _ in events}
        if self._wakeup.fileno() in exited:
            self._wakeup.drain()
        if self._nudge in exited:
            os.eventfd_read(self._nudge)
            self._nudge_deaf_until = self.clock.now() + NUDGE_EVERY_S
        if self._listening and self.service.listener is not None and self.service.listener.fileno() in exited:
            self._saturated = True
            self._stop_listening()
        for child in self.table:
            if child.pidfd in exited:
                self._note_exit(child)

    def _note_pause(self) -> None:
        late = self.clock.now() - self._wake_at
        if late > PAUSE_S:
            self.clock.note_pause(late)
            log.warning("this process was stopped or kept busy for %.1f s; deadlines move by that", late)

    # What has happened.

    def _note_commands(self, now: float) -> None:
        while self.commands:
            command = self.commands.popleft()
            log.info("asked to %s", command.name.lower())
            match command:
                case Command.DRAIN if self.phase in MAY_FOLLOW[Phase.DRAINING]:
                    self._begin_drain(now)
                case Command.STOP if self.phase in MAY_FOLLOW[Phase.KILLING]:
                    self._set_phase(Phase.KILLING, now)
                case Command.RESTART:
                    self._generation += 1
                case Command.MORE:
                    self._resize(1)
                case Command.FEWER:
                    self._resize(-1)

    def _begin_drain(self, now: float) -> None:
        self._set_phase(Phase.DRAINING, now)
        self._queued_at = now
        self._stop_listening()
        if self.service.listener is not None:
            narrow(self.service.listener)

    def _resize(self, step: int) -> None:
        self.limits = self.limits.resized(step)
        log.info("pool: min_children=%d max_children=%d", self.limits.min_children, self.limits.max_children)

    def _set_phase(self, phase: Phase, now: float) -> None:
        """The one setter."""
        if phase is self.phase:
            return
        if self.phase not in MAY_FOLLOW[phase]:
            raise AssertionError(f"{phase.name} cannot follow {self.phase.name}")
        log.info("%s", phase.name.lower())
        self.phase = phase
        self._phase_since = now

    def _note_reports(self, now: float) -> None:
        """Read every slot: who got ready, who asks for something, whose stacks have come."""
        now_ns = monotonic_ns()
        for child in self.table:
            report = child.report = child.reader.look(now_ns)
            if child.state is ChildState.STARTING and report.ready and child.kind is ChildKind.WORKER:
                child.set_state(ChildState.READY, now)
                self._pool = policy.after_ready(self._pool)
                self._stop_listening()  # and again, behind the new one: see _listen
            if report.drain_asked and not self._drain_asked:
                self._drain_asked = True
                log.info("%s: asked to end the service", child)
                self.service.drain_asked()
            self._note_stacks(child)

    def _note_stacks(self, child: Child) -> None:
        size = child.stacks.size()
        if size and size == child.stacks_seen:
            log.warning("%s: stacks of its threads\n%s", child, child.stacks.take().rstrip())
            size = 0
        child.stacks_seen = size

    # How children end.

    def _note_exit(self, child: Child) -> None:
        exit = self.table.reap(child)
        if exit is None:
            return
        now = self.clock.now()
        worker = child.kind is ChildKind.WORKER
        reason = self._reason(exit) if worker else None
        text = child.stacks.take().rstrip()
        overdue_ns = monotonic_ns() - int((self.limits.request_timeout or 0) * 1e9)
        with self._lock:
            self._totals.fold(child.reader, reason, overdue_ns)
        child.slot.close()
        child.stacks.close()
        if worker and (child.state is ChildState.STARTING or reason is ExitReason.BOOT_FAILED):
            self._note_boot_death(exit, reason, text, now)
        self._log_exit(exit, reason, text)
        child.set_state(ChildState.REAPED, now)
        self._wake_at = min(self._wake_at, now)

    def _note_boot_death(self, exit: Exit, reason: ExitReason | None, text: str, now: float) -> None:
        if reason in (ExitReason.BOOT_FAILED, ExitReason.KILLED, ExitReason.OOM_SUSPECTED):
            self._last_error = text.splitlines()[-1] if text else str(exit)
            killed = reason is not ExitReason.BOOT_FAILED
            self._pool = policy.after_boot_death(self._pool, self.limits, now, killed=killed)

    def _log_exit(self, exit: Exit, reason: ExitReason | None, text: str) -> None:
        child = exit.child
        if reason is None:
            level = logging.WARNING if exit.signum is not None or text else logging.DEBUG
        else:
            expected = child.reason is not None or reason in (ExitReason.DRAINED, ExitReason.MAX_REQUESTS)
            level = logging.INFO if expected else logging.ERROR
        what = exit if reason is None else f"{reason.label} ({exit})"
        log.log(level, "%s: %s%s", child, what, "\n" + text if text else "")

    def _reason(self, exit: Exit) -> ExitReason:
        """Why it ended: what it was told, else what its status says; its own word only where it can be true."""
        child, signum = exit.child, exit.signum
        hint = child.reader.look(monotonic_ns()).leaving
        if signum == signal.SIGKILL:
            # Past the deadline of a drain it was we who killed it, whatever the drain was for.
            if child.reason in (ExitReason.TIMEOUT, ExitReason.BOOT_FAILED, ExitReason.STOPPED):
                return child.reason
            return ExitReason.OOM_SUSPECTED if child.reason is None and self._oom_killed() else ExitReason.KILLED
        if child.reason is not None and signum is None and exit.status == 0:
            return child.reason
        if hint is ExitReason.EXITED and child.state is not ChildState.STARTING:
            return hint
        if signum is None and exit.status == 0 and hint in (
            ExitReason.DRAINED, ExitReason.STOPPED, ExitReason.MAX_REQUESTS,
        ):  # fmt: skip
            return hint
        if child.state is ChildState.STARTING and child.reason is None:
            return ExitReason.BOOT_FAILED
        return ExitReason.CRASHED if signum is not None or exit.status else ExitReason.EXITED

    def _oom_killed(self) -> bool:
        before, self._oom_kills = self._oom_kills, oom_kills()
        return before is not None and self._oom_kills is not None and self._oom_kills > before

    # Planning.

    def _snapshot(self, now: float) -> policy.Snapshot:
        listener = self.service.listener
        waiting = listener is not None and queued(listener)
        if waiting:
            self._queued_at = now
        saturated, self._saturated = self._saturated, False
        return policy.Snapshot(
            self.phase, self._phase_since, self._generation, tuple(map(self._view, self.table)), self._pool,
            queued=waiting, queued_at=self._queued_at, saturated=saturated,
        )  # fmt: skip

    def _view(self, child: Child) -> policy.ChildView:
        report = child.report or child.reader.look(monotonic_ns())
        due: ExitReason | None = ExitReason.MAX_LIFETIME
        if child.lifetime is None or self.clock.now() < child.started + child.lifetime:
            due = report.due if report.due in (ExitReason.MAX_REQUESTS, ExitReason.MAX_MEMORY) else None
        return policy.ChildView(
            child.serial, child.kind, child.state, child.generation, child.started, child.changed, child.deadline, due,
            report.lanes, tuple(self.clock.at(since) for since in report.busy_since_ns), report.accepted,
            child.cut_at, child.reason,
        )  # fmt: skip

    def _apply(self, plan: Plan, now: float) -> None:
        self._pool = plan.pool
        self._set_phase(plan.phase, now)
        for serial in plan.kill:
            self._kill(self.table[serial], now)
        for serial in plan.dump:
            self._dump(self.table[serial], now)
        for serial in plan.slow:
            self._dump_slow(self.table[serial])
        for serial in plan.stop:
            self._tell_to_leave(self.table[serial], ExitReason.STOPPED, signal.SIGQUIT, policy.STOP_GRACE_S, now)
        for serial, reason in plan.drain:
            self._drain(self.table[serial], reason, now)
        for serial in plan.poke:
            self.table[serial].signal(POKE)
        for _ in range(plan.spawn):
            if not self._spawn(now):
                break
        self._finish_turn(plan, now)

    def _finish_turn(self, plan: Plan, now: float) -> None:
        if policy.hopeless(self._pool) and self.phase is Phase.STARTING:
            self._set_phase(Phase.KILLING, now)
            plan = policy.plan(self._snapshot(now), self.limits, now)
        self._wake_at = min(plan.wake_at, self._pool.next_start if self._pool.next_start > now else plan.wake_at)
        self._listen(now)
        self._hear_nudges(now)
        if any(child.stacks_seen for child in self.table):
            self._wake_at = min(self._wake_at, now + STACKS_S)

    # Effects.

    def _spawn(self, now: float) -> bool:
        assert self.service.work is not None, "only a pool is told to spawn"
        try:
            slot = Slot(self.service.lanes)
            try:
                child = self.fork(ChildKind.WORKER, slot, self.service.work)
            except BaseException:
                slot.close()
                raise
        except OSError as exc:
            self._note_fork_failure(exc, now)
            return False
        if self.service.max_lifetime is not None:
            child.lifetime = jittered(self.service.max_lifetime, self._rng)
        return True

    def fork(self, kind: ChildKind, slot: Slot, body: Callable[[Birth, Master, int], int]) -> Child:
        """Start a child of this kind; its slot is folded into the totals when it is reaped."""
        now = self.clock.now()
        child = self.table.fork(
            kind, slot, generation=self._generation, now=now, forget=self.service.forget, body=body
        )
        self._epoll.register(child.pidfd, select.EPOLLIN)
        self._totals.counts["spawned"] += 1
        return child

    def _note_fork_failure(self, exc: OSError, now: float) -> None:
        self._totals.counts["fork_failures"] += 1
        self._pool = policy.after_fork_failure(self._pool, now)
        if now - self._fork_logged_at >= FORK_LOG_EVERY_S:
            self._fork_logged_at = now
            log.error("could not fork a worker: %s; trying again every %.1f s", exc.strerror, policy.FORK_RETRY_S)

    def _drain(self, child: Child, reason: ExitReason, now: float) -> None:
        self._tell_to_leave(child, reason, signal.SIGTERM, self.limits.graceful_timeout, now)

    def _tell_to_leave(self, child: Child, reason: ExitReason, signum: int, within: float, now: float) -> None:
        child.reason = reason
        deadline = now + within
        if self.phase is Phase.DRAINING:
            deadline = min(deadline, self._phase_since + self.limits.graceful_timeout)
        child.deadline = deadline if child.deadline is None else min(child.deadline, deadline)
        if child.state in (ChildState.STARTING, ChildState.READY):
            child.set_state(ChildState.DRAINING, now)
        child.signal(signum)

    def _kill(self, child: Child, now: float) -> None:
        if child.cut_at is not None:
            child.reason = ExitReason.TIMEOUT
        elif child.reason is None:
            child.reason = ExitReason.BOOT_FAILED
        log.warning("%s: killed after %.1f s in state %s", child, now - child.changed, child.state.name.lower())
        child.set_state(ChildState.KILLING, now)
        child.signal(signal.SIGKILL)

    def _dump(self, child: Child, now: float) -> None:
        child.cut_at = now
        log.error("%s: a request has run for longer than request_timeout", child)
        child.signal(signal.SIGUSR1)
        child.signal(signal.SIGCONT)
        self._wake_at = min(self._wake_at, now + policy.CUT_TERM_S)

    def _dump_slow(self, child: Child) -> None:
        slow = self.limits.slow_request_timeout
        if slow is None or child.report is None:
            return
        before = monotonic_ns() - int(slow * 1e9)
        fresh = {since for since in child.report.busy_since_ns if since <= before} - child.slow_seen
        child.slow_seen &= set(child.report.busy_since_ns)
        if fresh:
            child.slow_seen |= fresh
            log.warning("%s: a request has run for longer than slow_request_timeout", child)
            child.signal(signal.SIGUSR1)
            child.stacks_seen = -1  # look for them soon

    # The listener and the nudge in the master's own wait.

    def _listen(self, now: float) -> None:
        """Be the last exclusive waiter on the listener, so that a connection nobody waits for wakes the master.

        Last, because exclusive waiters are woken in the order of their registration: in front of a worker the master
        would take that worker's wake-ups. Only where another worker could be started.
        """
        listener = self.service.listener
        serving = sum(c.state in (ChildState.STARTING, ChildState.READY) for c in self.table)
        wanted = self.phase in (Phase.STARTING, Phase.RUNNING) and serving < self.limits.max_children
        if not wanted or listener is None or not self.limits.pool or self.limits.min_children >= self.limits.max_children:
            self._stop_listening()
        elif not self._listening:
            if now >= self._relisten_at:
                self._epoll.register(listener.fileno(), select.EPOLLIN | select.EPOLLEXCLUSIVE)
                self._listening = True
            else:
                self._wake_at = min(self._wake_at, self._relisten_at)

    def _stop_listening(self) -> None:
        if self._listening and self.service.listener is not None:
            self._epoll.unregister(self.service.listener.fileno())
            self._listening = False
            self._relisten_at = self.clock.now() + (RELISTEN_S if self._saturated else 0.0)

    def _hear_nudges(self, now: float) -> None:
        if self._nudge_deaf_until is None:
            return
        if now >= self._nudge_deaf_until:
            self._epoll.modify(self._nudge, select.EPOLLIN | select.EPOLLONESHOT)
            self._nudge_deaf_until = None
        else:
            self._wake_at = min(self._wake_at, self._nudge_deaf_until)

    # For others.

    def statistics(self, own: list[Report]) -> Statistics:
        """The totals and what the living say now; `own` are the lanes of this process itself. From any thread."""
        with self._lock:
            children = list(self.table)
            now_ns = monotonic_ns()
            reports = [(child, child.reader.look(now_ns)) for child in children]
            workers = {"starting": 0, "idle": 0, "busy": 0, "draining": 0}
            for child, report in reports:
                workers[_activity(child, report)] += child.kind is ChildKind.WORKER
            serving = [r for c, r in reports if c.state in (ChildState.STARTING, ChildState.READY)]
            every = [report for _, report in reports] + own
            return self._totals.with_living(every, workers, sum(r.lanes for r in serving + own))

    def raise_if_hopeless(self) -> None:
        """BootError, with what the last worker said, when the pool never got one READY."""
        if policy.hopeless(self._pool):
            raise BootError(f"could not start a worker: {policy.BOOT_DEATHS_MAX} died before they were ready, the last"
                            f" of: {self._last_error}")  # fmt: skip

    def wake(self) -> None:
        """End the wait of whoever waits on our descriptor. From any thread."""
        self._wakeup.wake()

    @property
    def forked(self) -> bool:
        """Whether there has ever been a child."""
        return self._totals.counts["spawned"] > 0

    def wait_for_children(self) -> None:
        """Until every child has ended and is reaped."""
        for child in self.table:
            _wait_readable(child.pidfd)
            self._note_exit(child)

    def close(self) -> None:
        """Kill and reap what is left, give the descriptors back. Statistics can still be asked."""
        if self.closed:
            return
        self.closed = True
        for child in self.table:
            child.signal(signal.SIGKILL)
        self.wait_for_children()
        self._epoll.close()
        self._wakeup.close()
        os.close(self._nudge)

    def forget(self) -> None:
        """In a new child: close the copies of what is the master's alone, but the nudge, which children write."""
        self.table.close_copies()
        self._epoll.close()
        self._wakeup.close()

def _activity(child: Child, report: Report) -> str:
    if child.state is ChildState.READY:
        return "busy" if report.busy else "idle"
    return "starting" if child.state is ChildState.STARTING else "draining"


def _wait_readable(fd: int) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    poll.poll()
