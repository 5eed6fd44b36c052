"""Reloads of the real supervisor in simulated time: in whatever order with whatever else, what they promise holds."""

import logging
import signal

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import Phase as HypothesisPhase
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test

from prefork.commands import Command
from prefork.master.children import ChildState
from prefork.metrics.board import Statistics
from prefork.metrics.facts import ChildKind
from tests.support.programs.simulated_reload import Program, Reloadable
from tests.support.programs.simulation import LIMITS, FakeProcess

from .test_simulation import ON_TIME, Pool

pytestmark = pytest.mark.once  # nothing of it is the interpreter's

# What is documented, in seconds where the name says so: written out, so that a number cannot change unseen.
TICK_S = 1.0
LAST_WORDS_S = 1.0


class ReloadedPool(Pool):
    """Pool's order of events, and reloads among them: rehearsals that succeed, fail or hang, and images that work or
    not."""

    simulation: Reloadable
    simulated = Reloadable

    def begun(self) -> None:
        self.totals: dict[str, int] = {}
        self.draining: set[int] = set()
        self.degraded = ""  # before this turn, which may end it
        self.simulation.on_image = self.image_is_new

    # What must hold.

    def forked(self, process: FakeProcess) -> None:
        if process.rehearsal:
            assert self.ending_since is None, "stop wins: nothing is rehearsed"
        else:
            super().forked(process)
            assert len(self.simulation.alive | {self.simulation.images}) <= 2, "two generations at most"

    def killed(self, process: FakeProcess) -> None:
        if not process.rehearsal:
            super().killed(process)
            return
        limits, age = self.simulation.supervisor.limits, self.simulation.since(process.started_ns)
        over = [self.ending_since is not None, age >= limits.boot_timeout - 1e-3]
        said = [at for signum, at in process.told if signum == SAID]
        over += [self.simulation.since(at) >= LAST_WORDS_S - 1e-3 for at in said]
        assert any(over), "no rehearsal is killed before its time"

    def died_at_boot(self, process: FakeProcess, *, killed: bool = False) -> None:
        if self.simulation.born_of.get(process.pid) == self.simulation.images:  # the old code's is no news of the new
            super().died_at_boot(process, killed=killed)

    def image_is_new(self) -> None:
        assert self.ending_since is None, "stop wins: no image comes"
        self.deaths = self.kills = 0
        self.ever_ready = True
        for command in self.simulation.meanwhile:
            if command in (Command.DRAIN, Command.STOP):
                self.begin_end(command)

    def turned(self) -> None:
        super().turned()
        simulation, supervisor = self.simulation, self.simulation.supervisor
        assert len(simulation.alive) <= 2, "two generations at most"
        self.totals_never_fall()
        if (rehearsal := simulation.rehearsal) is not None:
            late = simulation.since(rehearsal.started_ns) - supervisor.limits.boot_timeout
            assert late <= TICK_S + ON_TIME, "a rehearsal ends"
        workers = [child for child in supervisor.table if child.kind is ChildKind.WORKER]
        booted = [child for child in workers if child.booted and child.cut_at is None]
        draining = {child.pid for child in booted if child.state is ChildState.DRAINING}
        ready = sum(child.state is ChildState.READY for child in workers)
        room = self.degraded or supervisor.generations.degraded  # made for the reload that is to mend it
        self.degraded = supervisor.generations.degraded
        if draining - self.draining and self.ending_since is None and not room:
            fewest = min(supervisor.limits.min_children, supervisor.limits.max_children)
            assert ready >= fewest, "the old ones stay until others are ready"
        self.draining = draining

    def totals_never_fall(self) -> None:
        totals = totals_of(self.simulation.statistics())
        fallen = {name: (before, totals.get(name, 0)) for name, before in self.totals.items()
                  if totals.get(name, 0) < before}  # fmt: skip
        assert not fallen, "totals never fall"
        self.totals = totals

    # What may happen.

    @precondition(lambda self: self.serves)
    @rule()
    def reload(self) -> None:
        self.simulation.command(Command.RELOAD)

    @precondition(lambda self: self.serves and self.simulation.rehearsal)
    @rule(ready=st.booleans(), hangs=st.booleans())
    def rehearsal_says(self, ready: bool, hangs: bool) -> None:
        rehearsal = self.simulation.rehearsal
        assert rehearsal is not None
        if rehearsal.told:
            return  # it has said it
        rehearsal.told.append((SAID, self.simulation.now_ns()))
        rehearsal.say(**({"ready": True} if ready else {"failed": "it must not be"}))
        if not hangs:
            rehearsal.exit(int(not ready))
        self.simulation.turn()

    @precondition(lambda self: self.serves and self.simulation.rehearsal)
    @rule(signum=st.sampled_from([None, signal.SIGSEGV, signal.SIGKILL]))
    def rehearsal_dies(self, signum: int | None) -> None:
        rehearsal = self.simulation.rehearsal
        assert rehearsal is not None
        if signum is None:
            rehearsal.exit(0)
        else:
            rehearsal.die(signum)
        self.simulation.turn()

    @precondition(lambda self: self.serves)
    @rule(
        program=st.sampled_from(Program), takes_s=st.sampled_from([0.0, 0.3, 8.0]),
        meanwhile=st.lists(st.sampled_from([Command.RELOAD, Command.MORE, Command.FEWER, Command.RESTART, Command.DRAIN,
                                            Command.STOP]), max_size=2),
    )  # fmt: skip
    def the_next_image(self, program: Program, takes_s: float, meanwhile: list[Command]) -> None:
        self.simulation.program, self.simulation.takes_s = program, takes_s
        self.simulation.meanwhile = meanwhile

    @precondition(lambda self: self.serves)
    @rule()
    def a_new_image(self) -> None:
        """All of a reload up to the exec, unless another is in front of it."""
        self.simulation.command(Command.RELOAD)
        rehearsal = self.simulation.rehearsal
        if rehearsal is not None and not rehearsal.told:
            rehearsal.say(ready=True)
            rehearsal.exit()
            self.simulation.turn()

    @precondition(lambda self: self.serves)
    @rule(times=st.integers(1, 4), one_is_ready=st.booleans())
    def those_that_boot_die(self, times: int, one_is_ready: bool) -> None:
        """Again and again, as code that cannot start does; or that can start once."""
        if one_is_ready:
            self.one_gets_ready(0)
        for _ in range(times):
            while self.serves and self.booting(0) is not None:
                self.one_dies_at_boot(0, "exits")
            if self.serves:
                self.simulation.advance(LIMITS.max_restart_delay)

    @precondition(lambda self: self.serves)
    @rule(first=st.sampled_from([Command.DRAIN, Command.STOP]))
    def end_and_reload(self, first: Command) -> None:
        """Both asked for before a turn."""
        self.begin_end(first)
        for command in (Command.RELOAD, first, Command.RELOAD):
            self.simulation.supervisor.mailbox.post(command)
        self.simulation.turn()

    # The end.

    def all_is_well_again(self) -> None:
        """No state is stuck: when nothing hangs any more a reload comes to its end, and the next one mends what is
        degraded."""
        simulation = self.simulation
        simulation.program, simulation.takes_s, simulation.meanwhile = Program.WORKS, 0.0, []
        simulation.processes.refuse = False
        for _ in range(60):
            generations = simulation.generations
            if not generations.reloading and not generations.degraded:
                break
            if not generations.reloading:
                simulation.command(Command.RELOAD)
            self.nobody_hangs()
            if (rehearsal := simulation.rehearsal) is not None:
                rehearsal.say(ready=True)
                rehearsal.exit()
            simulation.advance(1.0)
        else:
            raise AssertionError(f"it is stuck: {generations.stage}, {generations.degraded!r}")
        super().all_is_well_again()


SAID = 0  # among the signals that a rehearsal was sent: that it has said its word


def totals_of(statistics: Statistics) -> dict[str, int]:
    names = ("accepted", "completed", "failed", "timed_out", "lost", "spawned")
    return {name: getattr(statistics, name) for name in names} | dict(statistics.exits) | dict(statistics.reloads)


def test_any_order(caplog: pytest.LogCaptureFixture) -> None:
    """Reloads that succeed and fail in every way, in any order with commands, deaths, boot failures and hangs: two
    generations at most, stop wins, totals never fall, the old ones stay until others are ready, nothing is stuck."""
    caplog.set_level(logging.CRITICAL, "prefork")  # tens of thousands of lines
    run_state_machine_as_test(
        ReloadedPool,
        settings=settings(
            max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False, phases=set(HypothesisPhase) - {HypothesisPhase.explain},
        ),
    )  # fmt: skip
