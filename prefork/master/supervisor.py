"""The supervisor: wait, note commands and exits, plan, apply. Sole owner of the phase, the child table and the timers.

Runs in the process that serves: in a pool it is the master's whole loop; in a plain server with children the server's
loop calls `turn()`, which never waits. Must not handle a request, start a thread, or write a live child's slot (but for
the word that tells it to drain), nor decide what to do: `policy.plan()` does. Longer than most files: the one loop
reads here, from top to bottom.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import inf
from time import monotonic, monotonic_ns, time_ns
from typing import Any

from prefork.metrics.board import BOOT, LOOP_DELAY, Board, Word
from prefork.metrics.facts import ChildKind, ExitReason
from prefork.metrics.log_events import LogEvent, event
from prefork.metrics.scoreboard import DRAIN_ASKED, Slot
from prefork.workers import sinks, strays
from prefork.workers.bootstrap import Birth, Master
from prefork.workers.connection_table import pack_connections, table_of_connections
from prefork.workers.holding import Holding, LetThrough, held, holds_some
from prefork.workers.identity import CLOSED_BY_PROGRAM, Descriptors
from prefork.workers.wakeup import Wakeup

from .. import logs
from ..commands import Command
from ..errors import BootError, PreforkError
from ..sockets.listener import leave_descriptor, listener_names
from ..sockets.peers import peers_at
from . import log_drops, policy, signalling
from .accept_queue import AcceptQueues, Mending
from .children import BriefChild, Child, ChildState, ChildTable, Exit
from .clock import BetweenTurns, Clock
from .companions import Companions
from .exits import Exits
from .gauges import Gauges, is_saturated
from .guard import attempt, say_failed
from .kept_queues import KeptQueues
from .mailbox import Mailbox
from .notify import Notifier, NotifyFacts
from .overload import Overload
from .parting import Parting
from .policy import Phase, Plan, Pool
from .processes import KERNEL, Processes
from .reaping import Reaper
from .service import Service
from .spawner import Spawner
from .succession import OneGeneration, Succession, Workings
from .tasks import Tasks
from .views import facts_of, view_of, wants_more
from .waiting import Waiting

log = logging.getLogger("prefork.supervisor")

PAUSE_S = 0.5  # a turn that comes this late means that the master itself was stopped
PEERS_WITHIN_S = 0.01  # longest look for the peers of a worker that is cut
HOLDER_ENDS_WITHIN_S = 1.0  # it has only to close what it has
HAVE_SUCCESSORS = (ChildKind.WORKER, ChildKind.EXPORTER, ChildKind.HOLDER, ChildKind.COMPANION)
TURN_AGAIN_S = 1.0  # until the next turn, after one that the kernel did not let us finish

PHASE_MAY_FOLLOW: dict[Phase, set[Phase]] = {
    Phase.STARTING: set(),
    Phase.RUNNING: {Phase.STARTING},
    Phase.DRAINING: {Phase.STARTING, Phase.RUNNING},
    Phase.STOPPING: {Phase.STARTING, Phase.RUNNING, Phase.DRAINING},
    Phase.STOPPED: set(Phase) - {Phase.STOPPED},
}


class Supervisor:
    """Supervises the children of one server. Raises OSError from the constructor when descriptors are short."""

    def __init__(
        self, service: Service, limits: policy.Limits, board: Board, wakeup: Wakeup,
        generations: Succession | None = None, mailbox: Mailbox | None = None, *,
        processes: Processes = KERNEL, stamp_ns: Callable[[], int] = monotonic_ns,
    ) -> None:  # fmt: skip
        """`generations`: given for a pool that can be reloaded; None: there is only one. `processes` and `stamp_ns` are
        replaced in a simulation."""
        self.service = service
        self.limits = limits
        self._plain = not limits.pool
        self.phase = Phase.STARTING
        self.table = ChildTable(board, processes)
        self.generations: Succession = generations or OneGeneration()
        self.mailbox = Mailbox(wakeup.wake) if mailbox is None else mailbox
        resumed = self.generations.resumed
        known: Mapping[str, Any] = resumed or {}
        self.clock = Clock(known.get("paused", 0.0), known.get("pauses", ()), stamp_ns=stamp_ns)
        self.turns = 0
        self._phase_since = self.clock.now()
        with board.change() as words:
            words[Word.STARTED_AT_NS] = words[Word.STARTED_AT_NS] or time_ns()
        self.pool = Pool()  # the state of policy, from plan to plan
        self.board = board
        self.kept = KeptQueues(False, None) if service.kept is None else service.kept
        ready = () if self.kept.ready is None else (self.kept.ready,)
        self.waiting = Waiting(wakeup, self.clock.now, (*service.listeners, *ready), known.get("nudge"))
        self.wake, self.nudge, self.fileno = wakeup.wake, self.waiting.nudge, self.waiting.fileno
        self._accept_queues = AcceptQueues(
            service.listeners, service.others, self.kept.ready,
            Mending(service.work is not None, self.waiting.step_back),
        )  # fmt: skip
        self.companions = Companions(None if service.work is None else service.companions, known.get("companions"))
        self.connections = table_of_connections(service.counts_connections, known.get("connections"))
        self.table.places = limits.max_children if limits.one_size else 0
        self.spawner = Spawner(service, self.table, board, self.waiting, self.companions, self.connections)
        self._gauges = Gauges(board, self.clock.now())
        self._overload = Overload.resumed(known.get("overload"))
        self._between = BetweenTurns(self.clock.now())
        self.wake_at = self._between.last  # when the next turn is due; for others to read
        self._exits = Exits(board)
        self._reaper = Reaper(self.table, self.waiting, self._note_exit)
        self.last_error = ""  # the last words of the last worker that died at boot
        self._drain_asked = False
        self._fault: Exception | None = None  # a mistake of ours that a turn has raised
        self.closed = False
        self.forgotten = False  # this is not the process that serves, but one that was forked from it
        workings = Workings(
            board, self.table, self.waiting, limits.boot_timeout, self.fork, self._asked, self._values,
            self.companions.pack, partial(pack_connections, self.connections), self.kept.pack,
        )  # fmt: skip
        self.generations.begin(workings)
        self.companions.enter(self.table)
        if resumed is not None:
            self.pool = self.pool._replace(ever_ready=True, target=known.get("target", 0))
            self.spawner.any_served = True
        drops = log_drops.Drops(board, self.table, self.nudge)
        notifier = self._notifier(resumed) if limits.pool else None
        self.tasks = Tasks(self.table, self.waiting, drops, notifier, self._accept_queues.origins)

    def _notifier(self, resumed: Mapping[str, Any] | None) -> Notifier:
        """Return what tells the service manager, which may keep sockets that the image before had."""
        known = () if resumed is None else [resumed[name] for name in listener_names(resumed)]
        before = [(each["fd"], each["asked"]) for each in known]
        listeners = self._accept_queues.kept()
        return Notifier(self._facts, resumed=resumed is not None, listeners=listeners, before=before)

    # The loop, and one turn of it.

    def run(self, hooks: Sequence[Callable[[], None]] = (), at_most: float | None = None) -> None:
        """Turn and wait until the service has stopped.

        `hooks` are called in place of `self.turn()`, which one of them is expected to call; `at_most`: the longest
        wait, in seconds. Raises what the program has raised here (SystemExit in a signal handler) once the pool has
        drained. Its handlers run in the wait and in `hooks`: nowhere else could be told whether they have raised.
        """
        with held() as holding:
            self.generations.arrive()
            self.tasks.retire_exporters(self.clock.now())
            raised = self._loop(holding, hooks, at_most)
        if self.phase is not Phase.STOPPED:
            self._abandon()
            raise PreforkError(f"could not go on: {CLOSED_BY_PROGRAM}")
        if raised is not None:
            raise raised

    def _loop(
        self, holding: Holding, hooks: Sequence[Callable[[], None]], at_most: float | None
    ) -> BaseException | None:  # fmt: skip
        """Turn and wait. Return what was raised meanwhile."""
        parting = Parting(self.mailbox.post)
        ours = Descriptors(*self.waiting.descriptors(), self.board.fd, *self.kept.pack()[1])
        while self.phase is not Phase.STOPPED:
            try:
                turns = self.turns
                for service_actions in hooks:
                    self._act(service_actions)
                if self.forgotten:
                    strays.end()
                if self.turns == turns:
                    self.turn()
                if ours.lost():
                    break
                self.wait(at_most)
            except BaseException as exc:  # SystemExit by a signal handler of the program's; an error of ours
                holding.on = True  # first of all, or another handler could raise in here
                if self.forgotten:
                    strays.end(exc)
                self.waiting.hear_again()
                parting.note(exc, self.limits.drain_delay + self.limits.graceful_timeout)
        return parting.raised

    def _abandon(self) -> None:
        """Leave everything as it is: the children finish what they have, and no descriptor may be closed, for its
        number may be the program's by now."""
        self.closed = True
        for child in self.table:
            attempt(f"tell {child} to end", partial(signalling.abandon, child))
        for listener in self.service.listeners:
            leave_descriptor(listener)

    def _act(self, service_actions: Callable[[], None]) -> None:
        """Run the program's `service_actions()`, which calls `turn()`. An error that it raises is logged."""
        self._between.acting()
        try:
            with LetThrough():
                service_actions()
        except Exception as exc:
            if exc is self._fault or self.forgotten:
                raise
            say_failed("run service_actions()", exc, theirs=True)
        finally:
            self._between.acted()

    def wait(self, at_most: float | None = None) -> None:
        """Wait until something happens or the next turn is due, at most `at_most` seconds; in a pool only."""
        if self.phase is Phase.STOPPED:
            return
        seconds = 0.0 if self.mailbox else self.until_next_turn()  # the turn may have drained a command's wake-up
        seconds = seconds if at_most is None else min(seconds, at_most)
        until = monotonic() + seconds
        with LetThrough():
            heard = self.waiting.wait(seconds)
        with held():
            if not heard:
                self.board.observe(LOOP_DELAY, monotonic() - until)
            self._note_ended(heard)

    def until_next_turn(self) -> float:
        return inf if self.wake_at == inf else max(0.0, self.wake_at - self.clock.now())

    def is_due(self) -> bool:
        """Return True if a turn has something to do in a plain server, even where `fileno()` is not readable."""
        return self.wake_at <= self.clock.now()

    def turn(self) -> None:
        """Note what has happened, plan, apply. Never waits.

        Each effect is guarded where it is made. If the kernel refuses something else, this turn ends, and the next one
        finds everything that is still to be done.
        """
        self.turns += 1
        if self.closed or self.forgotten:
            return
        if not self._plain:
            with held():
                self._try_turn()
            return
        # A plain server takes no signals: no handler of the program's could be held back. Each step costs it, after
        # each fork, the pages that it writes.
        try:
            if heard := self.waiting.wait(0):
                self._note_ended(heard)
            if self.waiting.nudged or self.tasks.watched or (self.wake_at != inf and self.is_due()):
                self._turn_on()
        except Exception as exc:
            if not self._tried(exc):
                raise

    def _try_turn(self) -> None:
        try:
            self._note_ended(self.waiting.wait(0))
            self._turn_on()
        except Exception as exc:
            if not self._tried(exc):
                raise

    def _tried(self, exc: Exception) -> bool:
        """Return True if the kernel has refused something that the next turn tries again."""
        if isinstance(exc, OSError | MemoryError):
            say_failed("finish a turn of the master", exc, f"trying again after {TURN_AGAIN_S:g} s")
            self.wake_at = self.clock.now() + TURN_AGAIN_S
            return True
        self._fault = exc
        return False

    def _turn_on(self) -> None:
        self._note_pause()
        now = self._between.last = self.clock.now()
        if self.limits.pool:
            self._note_commands(now)
            self._note_reports(now)
            self._narrow_in_time(now)
            signalling.make_room(self.generations.withdrawn(), self.table, now, self._leave_by(now))
            snapshot = self._snapshot(now)
            self._apply(policy.plan(snapshot, self.limits, now), now)
            self._note_overload(snapshot.queued, now)
        else:
            if self.waiting.nudged:
                self.waiting.nudged = False
                self._note_reports(now)
            self.waiting.hear_nudges()
        self._finish_turn(now)

    def _finish_turn(self, now: float) -> None:
        """Do what does not depend on the plan, and set when the next turn is due for it."""
        if self.limits.pool:
            when = self.generations.turn(now, self.pool.boot_deaths, self.last_error)
            self.wake_at = min(self.wake_at, when)
        else:
            self.wake_at = self.waiting.next_at(False)
        if self.tasks.watched:
            self._publish(now)
        when = self.tasks.turn(now)  # control may have obeyed a command in it, which makes the next turn due at once
        self.wake_at = min(self.wake_at, when)

    def _note_pause(self) -> None:
        """Move all deadlines by the whole time since the last turn, if this process was stopped in it.

        When in that time it was stopped cannot be known. If the part that it would have slept were left out, a deadline
        in that part would kill at once.
        """
        late, unseen = self._between.passed(self.clock.now(), self.wake_at)
        if late > PAUSE_S and self.limits.pool:  # a plain server's loop sleeps for as long as it has nothing to do
            self.clock.note_pause(unseen)
            log.warning(
                "this process was stopped or kept busy for %.1f s; deadlines move by %.1f s",
                late,
                unseen,
                extra=event(LogEvent.MASTER_PAUSED, late_s=round(late, 1), moved_s=round(unseen, 1)),
            )

    # What has happened.

    def _note_commands(self, now: float) -> None:
        while (command := self.mailbox.take()) is not None:
            self._obey(command, now)

    def obey(self, command: Command) -> None:
        """Obey a command that takes no argument, now. To be called in a turn."""
        now = self.clock.now()
        self._obey(command, now)
        self.wake_at = now

    def _obey(self, command: Command, now: float) -> None:
        log.info("command: %s", command.name.lower(), extra=event(LogEvent.COMMAND, command=command.name.lower()))
        match command:
            case Command.DRAIN if self.phase in PHASE_MAY_FOLLOW[Phase.DRAINING]:
                self._begin_drain(now)
            case Command.STOP if self.phase in PHASE_MAY_FOLLOW[Phase.STOPPING]:
                self._set_phase(Phase.STOPPING, now)
            case Command.RELOAD if self.phase in (Phase.STARTING, Phase.RUNNING):
                self.generations.ask()
            case Command.RESTART:
                self.generations.current += 1
            case Command.REOPEN:
                self.reopen()
            case Command.MORE:
                self._set_limits(self.limits.resized(1))
            case Command.FEWER:
                self._set_limits(self.limits.resized(-1))

    def _asked(self) -> bool:
        return bool(self.mailbox) or holds_some()

    def reopen(self) -> str:
        """Reopen the log file, and wake every child that may be idle, so that none keeps the old one. Return an empty
        string, or why it failed."""
        why_not = logs.reopen()
        if sinks.handed_anew():
            log.error(
                "what hands on a new log file was shut down by a process of the service; its children are replaced",
                extra=event(LogEvent.LOG_HANDING_SHUT),
            )
            self._replace(HAVE_SUCCESSORS, self.clock.now())
        if not why_not:
            for child in self.table:
                if child.kind in signalling.POKED:
                    child.signal(signalling.POKE)
        return why_not

    def _begin_drain(self, now: float) -> None:
        """Enter DRAINING, and publish that first: a load balancer that asks /-/ready then sends no new client while
        `drain_delay` keeps the listener open."""
        self._set_phase(Phase.DRAINING, now)
        self.waiting.step_back()
        if self.tasks.exported:
            self._publish(now)

    @property
    def _narrow_at(self) -> float:
        return policy.narrow_at(self._phase_since, self.pool, self.limits)

    def _narrow_in_time(self, now: float) -> None:
        if self.phase is Phase.DRAINING and now >= self._narrow_at:
            self._accept_queues.narrow(now)
            if self.tasks.drain_holder():
                self._accept_queues.note_coming(now)

    def scale(self, workers: int) -> policy.Limits:
        """Set `max_children` to `workers`; return the limits that are now in force."""
        self._set_limits(self.limits.scaled(workers))
        self.wake_at = self.clock.now()
        return self.limits

    def _set_limits(self, limits: policy.Limits) -> None:
        self.limits = limits
        log.info(
            "pool: min_children=%d max_children=%d",
            self.limits.min_children,
            self.limits.max_children,
            extra=event(LogEvent.POOL_RESIZED, min_children=limits.min_children, max_children=limits.max_children),
        )

    def _set_phase(self, phase: Phase, now: float) -> None:
        """Set the phase, and log it. Nothing else may assign `phase`."""
        if phase is self.phase:
            return
        if self.phase not in PHASE_MAY_FOLLOW[phase]:
            raise AssertionError(f"{phase.name} cannot follow {self.phase.name}")
        if self.limits.pool:  # a plain server logs nothing, like the servers of the standard library
            log.info("%s", phase.name.lower(), extra=event(LogEvent[phase.name]))
        self.phase = phase
        self._phase_since = now
        if phase is not Phase.RUNNING:
            self.generations.cancel()

    def _note_reports(self, now: float) -> None:
        """Read every slot: for workers that became READY, requests to the master, and stacks that were asked for."""
        for child in self.table:
            self._note_report(child, now)
            if isinstance(child, BriefChild):
                continue
            signalling.note_stacks(child, now)
            if child.ends_by_itself and child.state is ChildState.READY:
                signalling.let_go(self.table, child, now, self._leave_by(now))
            elif child.ends_by_itself and child.state is ChildState.STARTING and child.deadline is None:
                child.deadline = self._leave_by(now)  # it stays what it is, so that the next one waits for its end

    def _note_report(self, child: Child, now: float) -> None:
        report = child.report = child.reader.look(self.clock.stamp_ns())
        booted = child.state is ChildState.STARTING and report.ready
        if booted and child.kind in (ChildKind.COMPANION, ChildKind.HOLDER):
            self.table.set_state(child, ChildState.READY, now)
        elif booted and child.kind is ChildKind.WORKER:
            self.table.set_state(child, ChildState.READY, now)
            self.board.observe(BOOT, now - child.started)
            self.pool = policy.after_ready(self.pool)
            self.waiting.step_back()  # to come back behind the new worker
        if child.due is None and report.due in (ExitReason.MAX_REQUESTS, ExitReason.MAX_MEMORY):
            child.due = report.due
        if report.replace_asked and not child.replace and self.phase in PHASE_MAY_FOLLOW[Phase.DRAINING]:
            child.replace = True
            log.info("%s: was sent TERM; to be replaced", child, extra=event(LogEvent.TERM_PASSED_ON, **child.fields))
        if child.state is ChildState.DRAINING and child.reason is not None and not child.slot.told_to_drain:
            child.signal(child.drain_signal)  # it has written over the word by which it was told
        if report.drain_asked and not self._drain_asked:
            self._drain_asked = True
            log.info("%s: asked to end the service", child, extra=event(LogEvent.DRAIN_ASKED, **child.fields))
            if self.service.end is not None:
                self.service.end()
            else:
                self.mailbox.post(Command.DRAIN)

    def _note_ended(self, heard: set[int]) -> None:
        for child in list(self.table.children.values()):
            if child.pidfd in heard:
                if not isinstance(child, BriefChild) or child.slot.words[DRAIN_ASKED]:
                    self._note_report(child, self.clock.now())  # what it has done since the last look
                self._reaper.reap(child)

    def _note_exit(self, exit: Exit) -> None:
        """Note that a child was reaped."""
        child, now = exit.child, self.clock.now()
        death = self._exits.settle(exit, self.limits.request_timeout, self.clock.stamp_ns())
        # A death of the old code says nothing about the new.
        if child.kind is ChildKind.COMPANION:
            self.companions.note_exit(child, self.limits, self.clock)
        elif child.kind is ChildKind.WORKER and death.at_boot and self.generations.is_of_this_image(child):
            self.last_error = death.text.splitlines()[-1] if death.text else str(exit)
            killed = death.reason is not ExitReason.BOOT_FAILED
            self.pool = policy.after_boot_death(self.pool, self.limits, now, killed=killed)
        if child.kind is ChildKind.WORKER and self.connections is not None:
            self.connections.clear(child.number)
        if child.kind in (ChildKind.WORKER, ChildKind.HOLDER) and self.connections is not None:
            self.connections.clear_process(child.pid)
        self.tasks.note_exit(child, now)
        if child.kind is ChildKind.REHEARSAL:
            attempt("judge the rehearsal", lambda: self.generations.rehearsal_ended(str(exit)))
        self.table.set_state(child, ChildState.REAPED, now)
        self.wake_at = min(self.wake_at, now)

    # Planning.

    def _snapshot(self, now: float) -> policy.PoolSnapshot:
        waiting = self._accept_queues.look(now)
        if self._accept_queues.bound_anew():
            self._replace((ChildKind.WORKER, ChildKind.EXPORTER), now)
        saturated, self.waiting.saturated = self.waiting.saturated, False
        late_at, clock = self.companions.run_late_at, self.clock
        place_of = self.table.place_of
        children = tuple(view_of(child, clock, late_at(child, clock), place_of(child)) for child in self.table)
        return policy.PoolSnapshot(
            self.phase, self._phase_since, self.generations.wanted(now), children, self.pool,
            queued=waiting, queued_at=self._accept_queues.queued_at, saturated=saturated,
            companions=self.companions.views(), can_start=self.service.work is not None,
        )  # fmt: skip

    def _replace(self, kinds: Sequence[ChildKind], now: float) -> None:
        """Have all children of these kinds replaced: they have a copy of a socket that is another one now."""
        for child in self.table:
            if child.kind not in kinds:
                continue
            if child.kind is ChildKind.EXPORTER:
                signalling.retire(child, now)
            else:
                child.replace = True

    def _note_overload(self, queued: bool, now: float) -> None:
        if self.phase is not Phase.RUNNING:
            if self.phase is not Phase.STARTING:  # the first turns of a new image
                self._overload.end()
            return
        waiting = self._accept_queues.queue_length() if queued else 0
        self._overload.look(
            queued, waiting, self._accept_queues.datagrams_dropped(), now,
            saturated=queued and is_saturated(self.table, self.limits),
        )  # fmt: skip

    def _apply(self, plan: Plan, now: float) -> None:
        self.pool = plan.pool
        self._set_phase(plan.phase, now)
        slow_ns = self.clock.stamp_ns() - int((self.limits.slow_request_timeout or 0.0) * 1e9)
        signalling.carry_out(plan, self.table, now, self._leave_by(now), slow_ns, self._peers)
        starts = self.service.work is not None and not self.generations.holding
        for _ in range(plan.spawn if starts else 0):
            if not self._spawn(now, plan.instead_of):
                break
        for name in plan.companions if starts else ():
            self._start_companion(name, now)
        self._plan_next_turn(plan, now)

    def _peers(self, child: Child) -> tuple[str, ...]:
        return peers_at(self.service.listeners, child.pid, child.pidfd, monotonic() + PEERS_WITHIN_S)

    def _plan_next_turn(self, plan: Plan, now: float) -> None:
        self.wake_at = plan.wake_at
        if policy.hopeless(self.pool) and self.phase is Phase.STARTING:
            self._set_phase(Phase.STOPPING, now)
            self.wake_at = now
        elif self.pool.next_start > now:
            self.wake_at = min(self.wake_at, self.pool.next_start)
        scarce = wants_more(self.table, self.phase, self.limits)
        self.waiting.listen(scarce)
        self.waiting.hear_nudges()
        self.wake_at = min(self.wake_at, self.waiting.next_at(scarce))
        if any(child.stacks_seen for child in self.table):
            self.wake_at = min(self.wake_at, now + signalling.STACKS_S)

    def _publish(self, now: float) -> None:
        self.companions.publish(self.table)
        self._gauges.publish(
            list(self.table), self.phase, self.limits, self.pool,
            queue_lengths=zip(self.service.numbers, self._accept_queues.queue_lengths(), strict=False),
            reachable=self.tasks.paths.reachable and self._accept_queues.reachable, now=now,
            now_ns=self.clock.stamp_ns(),
        )  # fmt: skip

    def _facts(self) -> NotifyFacts:
        reloading, degraded = self.generations.reloading, self.generations.degraded
        return facts_of(self.table, self.phase, self.limits, reloading=reloading, degraded=degraded)

    def _values(self) -> dict[str, Any]:
        """Return what the next image must know of the supervisor."""
        return {
            "paused": self.clock.paused, "pauses": self.clock.pauses, "name": self.service.name,
            "target": self.pool.target, **self.limits.packed(), "overload": self._overload.pack(),
            "seen": None if self.tasks.changes is None else self.tasks.changes.pack(),
        }  # fmt: skip

    # Effects.

    def _spawn(self, now: float, instead_of: int | None) -> bool:
        try:
            self.spawner.worker(self.generations.current, now, instead_of)
        except OSError as exc:
            self.spawner.note_failure(exc, now)
            self.pool = policy.after_fork_failure(self.pool, now)
            return False
        return True

    def _start_companion(self, name: str, now: float) -> None:
        try:
            self.spawner.companion(name, self.generations.current, now)
        except OSError as exc:
            self.spawner.note_failure(exc, now, "companion")
            self.companions.not_started(name, now)

    def _leave_by(self, now: float) -> float:
        """Return the deadline of a worker that is told to leave now."""
        begun = min(now, self._narrow_at) if self.phase is Phase.DRAINING else now
        return begun + self.limits.graceful_timeout

    def fork(
        self, kind: ChildKind, slot: Slot, body: Callable[[Birth, Master, int], int], serial: int | None = None
    ) -> Child:
        """Start a child of this kind; its slot is folded into the totals when it is reaped. Raises OSError."""
        return self.spawner.start(kind, slot, body, self.generations.current, self.clock.now(), serial)

    # For others.

    def watch(self, fd: int) -> None:
        """End the wait when `fd` is readable, too. The caller has to see in its turn what there is to do."""
        self.waiting.add(fd)

    def unwatch(self, fd: int) -> None:
        self.waiting.remove(fd)

    @property
    def forked(self) -> bool:
        """True once a child that serves has been started."""
        return self.spawner.any_served

    def others_serve(self) -> bool:
        """Return True while a worker of an earlier image is there."""
        workers = (child for child in self.table if child.kind is ChildKind.WORKER)
        return any(not self.generations.is_of_this_image(child) for child in workers)

    def raise_if_hopeless(self) -> None:
        """Raise BootError, with the last words of the last worker, if no worker of the pool ever became READY."""
        if policy.hopeless(self.pool):
            raise BootError(f"could not start a worker: {policy.BOOT_DEATHS_MAX} died before they were ready, the last"
                            f" of: {self.last_error}")  # fmt: skip

    def wait_for_children(self, *kinds: ChildKind) -> None:
        """Wait until every child of these kinds has ended and is reaped."""
        self._reaper.wait_for(*kinds)

    def end_export(self) -> None:
        """Kill the exporter, and have none from now on."""
        if self.tasks.exported:
            self.tasks.end_export()
            self._reaper.kill(ChildKind.EXPORTER)

    def close(self) -> None:
        """Kill and reap the children that are left, and close the descriptors. Statistics can still be read."""
        with held():
            self._close()

    def _close(self) -> None:
        if self.closed:
            return
        self.closed = True
        if self.generations.arriving:  # it never began: the degraded master goes on with children and descriptors
            self.waiting.forget()
            return
        self.generations.cancel()
        self.tasks.end_control()
        self.tasks.end_export()
        if self.tasks.end_holder():
            self._reaper.wait_for(ChildKind.HOLDER, within=HOLDER_ENDS_WITHIN_S)
        self._reaper.kill(*ChildKind)
        self.generations.close()
        self.tasks.close()
        self.companions.close()
        self.kept.close_left(self.board)
        self.kept.close()
        if self.connections is not None:
            self.connections.close()
        self.waiting.close()

    def forget(self) -> None:
        """Called in a new child: close its copies of what is the master's alone.

        Kept are the nudge, which children write, and the memory, which the exporter reads.
        """
        self.forgotten = True
        self.table.close_copies()
        self.waiting.forget()
        self.generations.forget()
        self.tasks.forget()

    def forget_memory(self) -> None:
        self.table.close_memory()
