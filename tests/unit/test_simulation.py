"""The real supervisor in simulated time: whatever happens in whatever order, what it promises holds."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import Phase as HypothesisPhase
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from prefork.commands import Command
from prefork.errors import BootError
from prefork.master.children import ChildState
from prefork.master.policy import Phase
from prefork.metrics.companions import RUN_LATE_NS, RUN_STARTED_NS
from prefork.metrics.facts import ChildKind, ExitReason
from prefork.metrics.scoreboard import LEAVING
from prefork.workers.signals import DRAIN_SIGNAL
from tests.support.programs.simulation import LIMITS, FakeProcess, Simulation

pytestmark = pytest.mark.once  # nothing of it is the interpreter's

# What is documented, in seconds where the name says so: written out, so that a number cannot change unseen.
BOOT_DEATHS_MAX = 3
CUT_KILL_S = 0.3
FIRST_RESTART_DELAY_S = 0.5
STOP_GRACE_S = 1.0
QUIET_S = 0.03
TICK_S = 1.0

SERVING = (ChildState.STARTING, ChildState.READY)
ON_TIME = 0.2  # seconds: the turns that an end takes


class Pool(RuleBasedStateMachine):
    """Any order of commands, deaths, failures and hangs."""

    simulation: Simulation
    simulated: type[Simulation] = Simulation
    options: dict[str, Any] = {}

    @initialize(
        most=st.integers(1, 4), fewer=st.integers(0, 3), lanes=st.sampled_from([1, 3]),
        spare=st.sampled_from([None, 1]), request_timeout=st.sampled_from([None, 2.0]),
        max_lifetime=st.sampled_from([None, 20.0]), drain_delay=st.sampled_from([0.0, 2.0]),
        companions=st.sampled_from([(), ("one", "two")]),
    )  # fmt: skip
    def begin(
        self, most: int, fewer: int, lanes: int, spare: int | None, request_timeout: float | None,
        max_lifetime: float | None, drain_delay: float, companions: tuple[str, ...],
    ) -> None:  # fmt: skip
        limits = LIMITS._replace(
            max_children=most, min_children=max(1, most - fewer), min_spare_children=spare,
            max_spare_children=spare and spare + 1, request_timeout=request_timeout, drain_delay=drain_delay,
        )  # fmt: skip
        self.ending_since: float | None = None
        self.draining_since: float | None = None  # where a STOP came later
        self.wrong: list[AssertionError] = []  # at a signal: what is raised there is logged, and the turn goes on
        self.stopping = False
        self.paused = 0.0  # since the end began
        self.last_turned: Any = None  # the supervisor whose turn was the last
        self.late_known_at: dict[int, float] = {}  # by pid, a run over its time: since when an image could know
        self.deaths = self.kills = 0  # at boot, in a row
        self.died_at = 0.0
        self.ever_ready = False
        self.delay = 0.0  # of the drain, for which all goes on
        self.companions = sorted(companions)
        self.runs_begun = self.runs_ended = 0  # of periodic jobs; the others end with their process
        self.simulation = self.simulated(
            limits, lanes=lanes, max_lifetime=max_lifetime, companions=companions, **self.options
        )
        started = self.simulation.processes.on_start

        def on_start(process: FakeProcess) -> None:
            started(process)
            process.on_kill = self.noted(self.killed)
            process.on_leave = self.noted(self.told_to_leave)
            self.forked(process)

        self.simulation.processes.on_start = on_start
        self.simulation.checks.append(self.turned)
        self.begun()
        self.simulation.turn()

    def begun(self) -> None:
        """Extend it: before the first turn."""

    # What must hold at every fork, every SIGKILL, and after every turn.

    def noted(self, check: Callable[[FakeProcess], None]) -> Callable[[FakeProcess], None]:
        """The check, whose failure fails the turn in which the signal was sent."""

        def run(process: FakeProcess) -> None:
            try:
                check(process)
            except AssertionError as exc:
                self.wrong.append(exc)

        return run

    def forked(self, process: FakeProcess) -> None:
        supervisor = self.simulation.supervisor
        serving = [c for c in supervisor.table if c.kind is ChildKind.WORKER and c.state in SERVING]
        goes_on = self.still_open or (self.forsaken and not serving and not process.companion)
        assert self.ending_since is None or goes_on, "stop wins: nothing is started"
        if process.companion:
            workers = [c for c in supervisor.table if c.kind is ChildKind.WORKER and c.state is ChildState.READY]
            wanted = supervisor.generations.wanted(self.simulation.now)
            assert any(c.generation >= wanted for c in workers), "a companion starts beside a worker of its code"
            return
        assert len(serving) <= supervisor.limits.max_children, "never over max, but for a replacement"
        if len(serving) == supervisor.limits.max_children:
            assert any(self.leaves(child) for child in serving), "nobody is to be replaced"
            assert all(child.state is ChildState.READY for child in serving), "one replacement at a time"
        if self.deaths:
            assert all(child.state is ChildState.READY for child in serving), "back-off: one start at a time"
            delay = min(supervisor.limits.max_restart_delay, FIRST_RESTART_DELAY_S * 2 ** (self.deaths - 1))
            assert self.simulation.now - self.died_at >= delay * 0.999, "back-off: not before its time"

    @property
    def still_open(self) -> bool:
        """Whether a drain has begun that goes on as if it had not."""
        since = self.ending_since
        return since is not None and not self.stopping and self.simulation.now - self.paused < since + self.delay

    @property
    def forsaken(self) -> bool:
        """Whether it drains beside a queue that only a new worker could serve."""
        return not self.stopping and self.simulation.queued

    def told_to_leave(self, process: FakeProcess) -> None:
        """Extend it: by TERM."""

    def leaves(self, child: Any) -> bool:
        supervisor, now = self.simulation.supervisor, self.simulation.supervisor.clock.now()
        due = child.report is not None and child.report.due is not None
        old = child.lifetime is not None and now >= child.started + child.lifetime
        return due or old or child.generation < supervisor.generations.current

    def killed(self, process: FakeProcess) -> None:
        if not process.ready and not self.asked(process) and not process.companion:
            self.died_at_boot(process)
        limits, since = self.simulation.supervisor.limits, self.simulation.since
        bounds: dict[int, float] = {signal.SIGQUIT: STOP_GRACE_S, DRAIN_SIGNAL: limits.graceful_timeout}
        if limits.request_timeout is not None or limits.stall_timeout is not None:
            bounds[signal.SIGUSR1] = CUT_KILL_S
        over = [since(at) >= bounds[signum] - 1e-3 for signum, at in process.told if signum in bounds]
        if not process.ready:
            over.append(since(process.started_ns) >= limits.boot_timeout - 1e-3)
        for began in (self.draining_since, self.ending_since):
            if began is not None:
                over.append(since(round(began * 1e9)) >= self.delay + limits.graceful_timeout - 1e-3)
        assert any(over), "nobody is killed before the deadline"

    def turned(self) -> None:
        if self.wrong:
            raise self.wrong[0]
        supervisor = self.simulation.supervisor
        states = [child.state for child in supervisor.table if child.kind is ChildKind.WORKER]
        if ChildState.READY in states:
            self.ever_ready = True
        if self.ending_since is not None:
            within = STOP_GRACE_S if self.stopping else self.delay + supervisor.limits.graceful_timeout
            late = self.simulation.now - self.paused - self.ending_since - within
            assert supervisor.phase is Phase.STOPPED or late <= ON_TIME, "it ends in time"
        companions = [child for child in supervisor.table if child.kind is ChildKind.COMPANION]
        assert len({child.name for child in companions}) == len(companions), "one process of a companion"
        if supervisor.phase is Phase.STOPPED:
            assert states + companions == [], "nobody is left"
        for child in companions if self.simulation.processes.reach else ():
            late_at, now = supervisor.companions.run_late_at(child, supervisor.clock), supervisor.clock.now()
            if late_at is not None and late_at <= now:
                known_at = self.late_known_at.setdefault(child.pid, late_at if self.last_turned is supervisor else now)
                assert now - known_at <= CUT_KILL_S + ON_TIME, "a run over its time is ended"
        self.last_turned = supervisor

    @invariant()
    def accounts_balance(self) -> None:
        """What was accepted has come to an end, or is in hand."""
        statistics = self.simulation.statistics()
        # Of the dead too, until they are reaped.
        in_hand = sum(len(process.busy) for process in self.simulation.processes.all.values())
        ended = statistics.completed + statistics.failed + statistics.timed_out + statistics.lost
        assert statistics.accepted == ended + in_hand

    @invariant()
    def runs_balance(self) -> None:
        """A run that has begun has come to an end, is on, or has ended with its process."""
        table = self.simulation.supervisor.companions.table
        if table is not None:
            counts = table.read()
            on = sum(each.run_started_ns != 0 for each in counts)
            died = sum(each.runs_lost + each.runs_timed_out for each in counts)
            assert self.runs_begun == self.runs_ended + on + died

    # What may happen.

    @precondition(lambda self: not self.serves)
    @rule()
    def nothing(self) -> None:
        """So that there is something to do when it has stopped."""

    @property
    def serves(self) -> bool:
        return self.simulation.phase is not Phase.STOPPED

    def one(self, number: int, processes: list[FakeProcess]) -> FakeProcess | None:
        return processes[number % len(processes)] if processes else None

    def booting(self, number: int) -> FakeProcess | None:
        return self.one(number, self.simulation.living(lambda process: not process.ready and not process.stopped))

    def ready(self, number: int) -> FakeProcess | None:
        return self.one(number, self.simulation.living(lambda process: process.ready and not process.stopped))

    @precondition(lambda self: self.serves)
    @rule(seconds=st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0, 3.0, 12.0]))
    def time_passes(self, seconds: float) -> None:
        self.simulation.advance(seconds)

    @precondition(lambda self: self.serves)
    @rule(seconds=st.sampled_from([2.0, 60.0]))
    def master_is_stopped(self, seconds: float) -> None:
        self.simulation.turn()
        if self.ending_since is not None:
            self.paused += seconds
        self.simulation.pause(seconds)

    @precondition(lambda self: self.serves)
    @rule(number=st.integers(0, 5))
    def one_gets_ready(self, number: int) -> None:
        if process := self.booting(number):
            process.boot()
            self.deaths = self.kills = 0
            self.simulation.turn()

    @precondition(lambda self: self.serves)
    @rule(number=st.integers(0, 5), how=st.sampled_from(["exits", "crashes", "killed"]))
    def one_dies_at_boot(self, number: int, how: str) -> None:
        if process := self.booting(number):
            if how == "exits":
                process.fail_to_boot()
            else:
                process.die(signal.SIGSEGV if how == "crashes" else signal.SIGKILL)
            if not self.asked(process):
                self.died_at_boot(process, killed=how == "killed")
            self.simulation.turn()

    def asked(self, process: FakeProcess) -> bool:
        return any(signum in (DRAIN_SIGNAL, signal.SIGQUIT) for signum, _ in process.told)

    def died_at_boot(self, process: FakeProcess, *, killed: bool = False) -> None:
        self.kills += killed
        if killed and self.kills < BOOT_DEATHS_MAX:
            return
        self.deaths += 1
        self.died_at = self.simulation.now
        if self.hopeless and self.ending_since is None:
            self.ending_since, self.stopping = self.simulation.now, True

    @property
    def hopeless(self) -> bool:
        return not self.ever_ready and self.deaths >= BOOT_DEATHS_MAX

    @precondition(lambda self: self.serves)
    @rule(number=st.integers(0, 5))
    def one_is_killed(self, number: int) -> None:
        if process := self.ready(number):
            process.die()
            self.simulation.turn()

    @precondition(lambda self: self.serves and self.simulation.companions())
    @rule(number=st.integers(0, 5), how=st.sampled_from(["boots", "hangs", "returns", "crashes", "is killed"]))
    def a_companion(self, number: int, how: str) -> None:
        process = self.one(number, self.simulation.companions())
        assert process is not None
        if how in ("boots", "hangs"):
            process.deaf = how == "hangs"
            process.boot()
        elif how == "is killed":
            process.die()
        else:
            process.exit(int(how == "crashes"), ExitReason.EXITED if how == "returns" else None)
        self.simulation.turn()

    def row(self, process: FakeProcess) -> memoryview:
        supervisor = self.simulation.supervisor
        (name,) = (child.name for child in supervisor.table if child.pid == process.pid)
        assert supervisor.companions.table is not None
        return supervisor.companions.table.words(name)

    @precondition(lambda self: self.serves and self.simulation.companions())
    @rule(number=st.integers(0, 5), timeout=st.sampled_from([None, 1.0, 5.0]))
    def a_run_begins(self, number: int, timeout: float | None) -> None:
        process = self.one(number, self.simulation.companions())
        assert process is not None
        process.boot()
        words = self.row(process)
        if process.alive and not words[RUN_STARTED_NS]:
            words[RUN_LATE_NS] = 0 if timeout is None else self.simulation.ns + round(timeout * 1e9)
            words[RUN_STARTED_NS] = self.simulation.ns
            self.runs_begun += 1
            process.nudge()

    @precondition(lambda self: self.serves)
    @rule(number=st.integers(0, 5))
    def a_run_ends(self, number: int) -> None:
        process = self.one(number, self.simulation.companions())
        if process is not None and (words := self.row(process))[RUN_STARTED_NS]:
            words[RUN_STARTED_NS] = 0
            self.runs_ended += 1

    @precondition(lambda self: self.serves)
    @rule(number=st.integers(0, 5))
    def one_hangs(self, number: int) -> None:
        if process := self.ready(number):
            process.hang()

    @precondition(lambda self: self.serves)
    @rule(number=st.integers(0, 5))
    def one_is_stopped(self, number: int) -> None:
        if process := self.ready(number):
            process.receive(signal.SIGSTOP)

    @precondition(lambda self: self.serves)
    @rule(number=st.integers(0, 5))
    def a_request_begins(self, number: int) -> None:
        process = self.ready(number)
        if process and not process.draining and len(process.busy) < process.slot.lanes:
            process.begin()

    @precondition(lambda self: self.serves)
    @rule(number=st.integers(0, 5))
    def a_request_ends(self, number: int) -> None:
        process = self.ready(number)
        if process and process.busy:
            process.finish()
            self.simulation.turn()

    @precondition(lambda self: self.serves)
    @rule(number=st.integers(0, 5), reason=st.sampled_from([ExitReason.MAX_REQUESTS, ExitReason.MAX_MEMORY]))
    def one_becomes_due(self, number: int, reason: ExitReason) -> None:
        if process := self.ready(number):
            process.become_due(reason)
            self.simulation.turn()

    @precondition(lambda self: self.serves)
    @rule(refuse=st.booleans())
    def the_kernel_refuses_to_fork(self, refuse: bool) -> None:
        self.simulation.processes.refuse = refuse

    @precondition(lambda self: self.serves)
    @rule(command=st.sampled_from([Command.RESTART, Command.MORE, Command.FEWER]))
    def command(self, command: Command) -> None:
        self.simulation.command(command)

    @precondition(lambda self: self.serves)
    @rule(command=st.sampled_from([Command.DRAIN, Command.STOP]), by_worker=st.booleans())
    def end(self, command: Command, by_worker: bool) -> None:
        process = self.ready(0)
        if by_worker and command is Command.DRAIN and process:
            process.ask_to_drain()
            self.simulation.turn()  # hears it; the next one acts
            self.begin_end(command)
            self.simulation.turn()
        else:
            self.begin_end(command)
            self.simulation.command(command)

    def begin_end(self, command: Command) -> None:
        if self.ending_since is None or (command is Command.STOP and not self.stopping):
            self.draining_since, self.ending_since, self.paused = self.ending_since, self.simulation.now, 0.0
            self.stopping = command is Command.STOP
            self.delay = self.simulation.supervisor.limits.drain_delay if self.ever_ready and not self.stopping else 0.0

    # The end: all troubles over, one generation remains; then it ends.

    def teardown(self) -> None:
        if not hasattr(self, "simulation"):
            return
        try:
            if self.ending_since is None:
                self.all_is_well_again()
                self.begin_end(Command.DRAIN)
                self.simulation.command(Command.DRAIN)
            self.simulation.advance(self.delay + LIMITS.graceful_timeout + 10 * STOP_GRACE_S)
            assert self.simulation.phase is Phase.STOPPED
            if self.hopeless:
                with pytest.raises(BootError, match=r"no database|SIGSEGV|SIGKILL"):
                    self.simulation.supervisor.raise_if_hopeless()
            assert all(process.rehearsal for process in self.simulation.processes.all.values())  # close() reaps it
            self.accounts_balance()
        finally:
            self.simulation.close()
        assert self.simulation.processes.all == {}

    def nobody_hangs(self) -> None:
        """Whoever is stopped, deaf, busy or booting gets on with it."""
        for process in self.simulation.companions():
            process.deaf = False
            process.boot()
        for process in self.simulation.living():
            if process.stopped:
                process.receive(signal.SIGCONT)
            process.deaf = False
            while process.alive and process.busy:
                process.finish()
            if process.alive and not process.ready:
                self.deaths = self.kills = 0
                process.boot()

    def all_is_well_again(self) -> None:
        simulation, supervisor = self.simulation, self.simulation.supervisor
        simulation.processes.refuse = False
        for _ in range(60):
            self.nobody_hangs()
            simulation.advance(1.0)
            children, limits = list(supervisor.table), supervisor.limits
            companions = [child.name for child in children if child.kind is ChildKind.COMPANION]
            fewest = min(limits.min_children, limits.max_children)  # some may be still in back-off
            settled = all(not self.leaves(child) and child.state is ChildState.READY for child in children)
            if settled and len(children) - len(companions) >= fewest and sorted(companions) == self.companions:
                break
        assert {child.state for child in children} == {ChildState.READY}
        assert {child.generation for child in children} == {supervisor.generations.current}, "one generation remains"
        assert sorted(companions) == self.companions, "each companion runs"
        assert fewest <= len(children) - len(companions) <= limits.max_children


class Queued(Pool):
    """With clients that come whenever they like, and wait in the kernel's queue until a worker takes them."""

    options = {"queue": True}
    let_in = taken = 0

    def begun(self) -> None:
        self.let_in = self.taken = 0
        self.last_queued = self.simulation.now
        self.simulation.checks.append(self.look)

    def look(self) -> None:
        if self.simulation.queued:
            self.last_queued = self.simulation.now

    def told_to_leave(self, process: FakeProcess) -> None:
        """At the end of the service only once the queue is served, or half of graceful_timeout has passed."""
        (child,) = (child for child in self.simulation.supervisor.table if child.pid == process.pid)
        if child.reason is not ExitReason.DRAINED or not process.ready:
            return
        limits, since = self.simulation.supervisor.limits, round((self.ending_since or 0.0) * 1e9)
        passed = self.simulation.since(since)
        assert passed >= self.delay, "nobody leaves within drain_delay"
        if passed < self.delay + limits.graceful_timeout / 2 - 1e-3:
            assert not self.simulation.queued, "who was let in is served"
            # A companion need not wait for that where no worker is left.
            assert process.companion or self.simulation.now - self.last_queued >= QUIET_S / 2, (
                "the queue has been quiet"
            )

    @precondition(lambda self: self.serves)
    @rule()
    def a_client_comes(self) -> None:
        let_in = self.simulation.connect()
        self.let_in += let_in
        if self.ending_since is None or self.still_open:
            assert let_in, "the door is open as long as it serves"
        elif self.simulation.now - self.paused > self.ending_since + self.delay + TICK_S and not self.stopping:
            assert not let_in, "nobody new is let in"

    @precondition(lambda self: self.serves)
    @rule(number=st.integers(0, 5))
    def a_request_begins(self, number: int) -> None:
        process = self.ready(number)
        if process and not process.draining and len(process.busy) < process.slot.lanes:
            self.taken += self.simulation.accept(process)
            self.look()

    def nobody_hangs(self) -> None:
        """Nor does anybody wait."""
        super().nobody_hangs()
        for process in self.simulation.living(lambda process: process.ready and not process.draining):
            while self.simulation.accept(process):
                self.taken += 1
                process.finish()


@pytest.mark.parametrize("machine", [Pool, Queued])
def test_any_order(machine: type[Pool]) -> None:
    """Commands, deaths, boot failures and hangs in any order: never over max, stop wins, it ends in time, no one is
    killed before the deadline, starts back off, the accounts balance, and one generation remains; and with a queue
    nobody new is let in once it drains, and who was is served."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False, phases=set(HypothesisPhase) - {HypothesisPhase.explain},
        ),
    )  # fmt: skip


@pytest.fixture
def simulated() -> Iterator[Callable[..., Simulation]]:
    """Makes a simulation with these limits, and closes it."""
    with contextlib.ExitStack() as stack:

        def simulate(lanes: int = 1, **limits: Any) -> Simulation:
            simulation = Simulation(LIMITS._replace(**limits), lanes=lanes, queue=True)
            stack.callback(simulation.close)
            return simulation

        yield simulate


def test_drained_while_booting(simulated: Callable[..., Simulation]) -> None:
    """Workers that are killed because they boot for longer than the drain may take are no boot failures."""
    simulation = simulated(max_children=6, min_children=6, boot_timeout=60)
    simulation.turn()
    simulation.command(Command.DRAIN)
    simulation.advance(LIMITS.graceful_timeout + 1)
    assert simulation.phase is Phase.STOPPED
    assert simulation.statistics().exits == {"killed": 6}
    simulation.supervisor.raise_if_hopeless()


def test_fails_to_boot_while_drained(simulated: Callable[..., Simulation]) -> None:
    """Nor are those that fail to boot after they were told to leave."""
    simulation = simulated(max_children=4, min_children=4)
    simulation.turn()
    simulation.command(Command.DRAIN)
    for process in simulation.living():
        process.fail_to_boot()
    simulation.advance(1)
    assert simulation.phase is Phase.STOPPED
    assert simulation.statistics().exits == {"boot_failed": 4}
    simulation.supervisor.raise_if_hopeless()


def test_idle_pool_wakes_once_a_second(simulated: Callable[..., Simulation]) -> None:
    """With nothing to do the supervisor turns once a second, also where the pool may grow."""
    simulation = simulated(max_children=4, min_children=2, min_spare_children=1, request_timeout=30)
    simulation.settle()
    simulation.advance(10)
    before = simulation.supervisor.turns
    simulation.advance(60)
    assert simulation.supervisor.turns - before <= 61


def test_replacement_is_ready_first(simulated: Callable[..., Simulation]) -> None:
    """On RESTART never fewer READY than there were, at most one more, and each goes once another is READY."""
    simulation = simulated(max_children=3, min_children=3)
    simulation.settle()
    seen = []
    simulation.checks.append(lambda: seen.append([c.state.name for c in simulation.supervisor.table].count("READY")))
    before = simulation.living()
    simulation.command(Command.RESTART)
    simulation.settle()
    assert (min(seen), max(seen)) == (3, 3), "READY and DRAINING are set in the same turn"
    assert not set(before) & set(simulation.living())
    assert simulation.statistics().exits == {"replaced": 3}


def told(simulation: Simulation, signum: int) -> int:
    """How many of the living were sent this signal."""
    return sum(any(each == signum for each, _ in process.told) for process in simulation.living())


def stopped(simulation: Simulation) -> bool:
    return simulation.phase is Phase.STOPPED


def test_the_queue_is_served_before_anybody_leaves(simulated: Callable[..., Simulation]) -> None:
    """DRAIN lets nobody new in at once, tells nobody to leave while somebody waits, and all 30 ms after the last."""
    simulation = simulated()
    simulation.settle()
    one, two = simulation.living()
    assert [simulation.connect() for _ in range(4)] == [True] * 4
    assert simulation.accept(one)
    assert simulation.accept(two)
    simulation.command(Command.DRAIN)
    assert not simulation.connect()
    simulation.advance(2)
    assert told(simulation, DRAIN_SIGNAL) == 0
    one.finish()
    assert simulation.accept(one)
    two.finish()
    assert simulation.accept(two)
    simulation.advance(0.02)
    assert told(simulation, DRAIN_SIGNAL) == 0
    simulation.advance(0.03)
    assert told(simulation, DRAIN_SIGNAL) == 2
    one.finish()
    two.finish()
    simulation.advance(0.01)
    assert simulation.phase is Phase.STOPPED
    assert simulation.statistics().exits == {"drained": 2}


def test_a_queue_that_nobody_serves(simulated: Callable[..., Simulation]) -> None:
    """It is waited for through half of graceful_timeout, and the whole ends within that."""
    simulation = simulated(graceful_timeout=6.0)
    simulation.settle()
    for process in simulation.living():
        simulation.connect()
        assert simulation.accept(process)
    simulation.connect()
    simulation.command(Command.DRAIN)
    simulation.advance(2.9)
    assert told(simulation, DRAIN_SIGNAL) == 0
    simulation.advance(0.2)
    assert told(simulation, DRAIN_SIGNAL) == 2
    simulation.advance(2.8)
    assert not stopped(simulation)
    simulation.advance(0.2)
    assert stopped(simulation)
    assert simulation.statistics().exits == {"killed": 2}


@pytest.mark.parametrize("back", [True, False])
def test_a_worker_out_of_reach(simulated: Callable[..., Simulation], back: bool) -> None:
    """The SIGKILL at its deadline is sent again until it arrives; the end does not wait for it for ever."""
    simulation = simulated(graceful_timeout=6.0)
    simulation.settle()
    for process in simulation.living():
        process.begin()
    simulation.command(Command.DRAIN)
    simulation.processes.reach = False
    simulation.advance(7.5)
    assert (len(simulation.living()), stopped(simulation)) == (2, False)
    simulation.processes.reach = back
    simulation.advance(1.5)
    assert stopped(simulation)
    assert len(simulation.living()) == (0 if back else 2)
    for process in simulation.living():
        process.die()


def test_drain_delay(simulated: Callable[..., Simulation]) -> None:
    """For so long after DRAIN the door is open and the pool whole; then the time of the drain begins."""
    simulation = simulated(drain_delay=3.0)
    simulation.settle()
    simulation.command(Command.DRAIN)
    simulation.living()[0].die()
    simulation.advance(2.9)
    assert not stopped(simulation)
    assert len(simulation.living()) == 2
    assert simulation.connect()
    simulation.settle()
    assert simulation.accept(simulation.living()[0])
    assert told(simulation, DRAIN_SIGNAL) == 0
    simulation.advance(0.2)
    assert not simulation.connect()
    assert told(simulation, DRAIN_SIGNAL) == 1  # the idle one has left
    simulation.advance(4.8)
    assert len(simulation.living()) == 1, "the one with a request has the whole of graceful_timeout"
    simulation.advance(0.2)
    assert stopped(simulation)


def test_nobody_was_ever_ready_and_drain_delay(simulated: Callable[..., Simulation]) -> None:
    """A service that nobody was ever served by keeps no door open for its drain_delay."""
    simulation = simulated(drain_delay=60.0)
    simulation.turn()
    simulation.command(Command.DRAIN)
    assert not simulation.connect()


def test_one_that_comes_while_all_are_busy(simulated: Callable[..., Simulation]) -> None:
    """Where the pool may grow, it does so in the same moment; where nobody waits, it does not."""
    simulation = simulated(min_children=1, max_children=4)
    simulation.settle()
    simulation.advance(5)
    (first,) = simulation.living()
    simulation.connect()
    simulation.accept(first)
    simulation.advance(5)
    assert len(simulation.living()) == 1
    simulation.connect()
    simulation.advance(0.001)
    assert len(simulation.living()) == 2


def test_idle_beside_a_queue(simulated: Callable[..., Simulation]) -> None:
    """A worker that sits idle while somebody waits is woken within a fifth of a second; a busy one is left alone."""
    simulation = simulated(max_children=2, min_children=2)
    simulation.settle()
    busy, idle = simulation.living()
    simulation.connect()
    simulation.accept(busy)
    simulation.advance(2)
    assert told(simulation, signal.SIGHUP) == 0
    simulation.connect()
    simulation.turn()
    simulation.advance(0.2)
    assert [signum for signum, _ in idle.told] != []
    assert {signum for signum, _ in idle.told} == {signal.SIGHUP}
    assert busy.told == []


@pytest.mark.parametrize("how", ["stopped", "hangs"])
def test_stuck_beside_a_queue(how: str, simulated: Callable[..., Simulation]) -> None:
    """One that is stopped, or hangs in C, is replaced after stall_timeout, while the one that is well stays; it ends by
    itself where SIGCONT helps, else by SIGKILL."""
    simulation = simulated(max_children=2, min_children=2)
    simulation.settle()
    stuck, well = simulation.living()
    if how == "stopped":
        stuck.receive(signal.SIGSTOP)
    else:
        stuck.hang()
    simulation.connect()
    simulation.advance(4.9)
    assert simulation.living() == [stuck, well]
    simulation.advance(1.6)
    assert stuck not in simulation.living()
    assert simulation.statistics().exits == {"stalled": 1}
    simulation.settle()
    assert len(simulation.living()) == 2
    assert (signal.SIGKILL in [signum for signum, _ in stuck.told]) == (how == "hangs")
    simulation.advance(20)
    assert simulation.statistics().exits == {"stalled": 1}, "nobody is stuck that tries"


def test_a_master_that_slept_calls_nobody_stuck(simulated: Callable[..., Simulation]) -> None:
    """What a worker did not do while the master was away is not held against it."""
    simulation = simulated(max_children=1, min_children=1)
    simulation.settle()
    (worker,) = simulation.living()
    worker.receive(signal.SIGSTOP)
    simulation.connect()
    simulation.advance(3)
    simulation.pause(60)
    simulation.advance(1.5)
    worker.receive(signal.SIGCONT)
    simulation.advance(20)
    assert simulation.living() == [worker]


@pytest.mark.parametrize("why", [ExitReason.CRASHED, ExitReason.EXITED])
def test_one_that_an_exception_ends(why: ExitReason, simulated: Callable[..., Simulation]) -> None:
    """It is replaced from the moment that it says so, and has the graceful timeout to end, not longer."""
    simulation = simulated(max_children=1, min_children=1)
    simulation.settle()
    (failed,) = simulation.living()
    failed.slot.words[LEAVING] = why
    failed.nudge()
    simulation.advance(0.1)
    simulation.settle()
    assert len(simulation.living()) == 2
    assert failed.told == []
    simulation.advance(4.7)
    assert failed.alive
    simulation.advance(0.3)
    assert [signum for signum, _ in failed.told] == [signal.SIGKILL]
    assert simulation.statistics().exits == {why.label: 1}
