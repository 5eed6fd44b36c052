"""The supervisor where no simulation looks: what it refuses, what it says, and what an end of it leaves."""

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NoReturn

import pytest

from prefork.commands import Command
from prefork.errors import BootError
from prefork.master import guard
from prefork.master.children import Child, ChildState
from prefork.master.policy import Phase
from prefork.master.service import Service
from prefork.master.succession import OneGeneration
from prefork.master.supervisor import PHASE_MAY_FOLLOW, Supervisor
from prefork.metrics.board import FORK_FAILURES, Board, Word
from prefork.metrics.facts import ChildKind, ExitReason, ForkFailure
from prefork.metrics.log_events import LogEvent
from prefork.metrics.scoreboard import DUE, LEAVING, REPLACE_ASKED, YES, Slot
from prefork.workers.wakeup import Wakeup
from tests.support.programs.simulation import LIMITS, FakeProcesses, Simulation

TURN_AGAIN_S = 1.0  # as documented
HUNG_NS = 60 * 10**9
P = Phase
ORDER = [P.STARTING, P.RUNNING, P.DRAINING, P.STOPPING, P.STOPPED]


@pytest.fixture
def simulation(monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulation]:
    """A pool of two, that has not turned yet."""
    monkeypatch.setattr(guard, "_said", {})
    simulation = Simulation()
    yield simulation
    simulation.close()


class Plain:
    """A plain server's supervisor, with children that are none."""

    def __init__(
        self, began: int = 0, end: Callable[[], None] | None = None, generations: OneGeneration | None = None
    ) -> None:
        self.processes = FakeProcesses()
        self.board, self.wakeup = Board(), Wakeup()
        self.board.words[Word.STARTED_AT_NS] = began
        service = Service("plain", forget=lambda: None, end=end)
        limits = LIMITS._replace(pool=False)
        self.supervisor = Supervisor(
            service, limits, self.board, self.wakeup, generations, processes=self.processes
        )  # fmt: skip

    def start(self, kind: ChildKind = ChildKind.REQUEST) -> Child:
        return self.supervisor.fork(kind, Slot(1), lambda birth, master, number: 0)

    def close(self) -> None:
        for process in self.processes.all.values():
            process.die()
        self.supervisor.close()
        self.board.forget()


def events(caplog: pytest.LogCaptureFixture) -> list[LogEvent]:
    return [record.__dict__["event"] for record in caplog.records]


# The loop.


def test_the_programs_turn_is_called(simulation: Simulation) -> None:
    """The loop calls what it is given in place of its own turn, which that one calls, or the loop after it."""
    supervisor, called = simulation.supervisor, list[bool]()

    def turn() -> None:
        called.append(len(called) % 2 == 0)
        if called[-1]:
            supervisor.turn()

    supervisor.mailbox.post(Command.STOP)
    before = supervisor.turns
    supervisor.run([turn], 0.0)
    assert supervisor.phase is P.STOPPED
    assert called
    assert supervisor.turns - before == len(called)


# Phases and commands.


@pytest.mark.parametrize("after", ORDER)
@pytest.mark.parametrize("before", ORDER)
def test_phases_follow_one_another(before: Phase, after: Phase, simulation: Simulation) -> None:
    """STARTING → RUNNING → DRAINING → STOPPING → STOPPED, each may be left out, and none follows a later one."""
    supervisor = simulation.supervisor
    supervisor.phase = before
    if ORDER.index(after) >= ORDER.index(before):
        supervisor._set_phase(after, 7.0)
        assert supervisor.phase is after
    else:
        with pytest.raises(AssertionError, match=f"{after.name} cannot follow {before.name}"):
            supervisor._set_phase(after, 7.0)
        assert supervisor.phase is before
    supervisor.phase = before


def test_every_phase_is_in_the_table() -> None:
    """What may follow what is said for every phase."""
    assert list(PHASE_MAY_FOLLOW) == ORDER
    assert set(PHASE_MAY_FOLLOW) == set(Phase)


def test_a_phase_is_said_once(simulation: Simulation, caplog: pytest.LogCaptureFixture) -> None:
    """Each has one line, when it begins; to be in it already is no news."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "prefork"):
        for phase in ORDER[1:]:
            simulation.supervisor._set_phase(phase, 7.0)
            simulation.supervisor._set_phase(phase, 8.0)
    assert events(caplog) == [LogEvent.RUNNING, LogEvent.DRAINING, LogEvent.STOPPING, LogEvent.STOPPED]
    simulation.supervisor.phase = P.RUNNING


def test_a_plain_server_says_no_phase(caplog: pytest.LogCaptureFixture) -> None:
    """As those of the standard library do not."""
    plain = Plain()
    caplog.clear()
    with caplog.at_level(logging.INFO, "prefork"):
        plain.supervisor._set_phase(P.RUNNING, 7.0)
    assert caplog.messages == []
    plain.close()


ASKED: list[tuple[Command, Phase, Phase, bool, int]] = [
    # command         in          then        reload  generations more
    (Command.DRAIN,   P.STARTING, P.DRAINING, False, 0),
    (Command.DRAIN,   P.RUNNING,  P.DRAINING, False, 0),
    (Command.DRAIN,   P.DRAINING, P.DRAINING, False, 0),
    (Command.DRAIN,   P.STOPPING, P.STOPPING, False, 0),  # stop wins
    (Command.STOP,    P.STARTING, P.STOPPING,  False, 0),
    (Command.STOP,    P.RUNNING,  P.STOPPING,  False, 0),
    (Command.STOP,    P.DRAINING, P.STOPPING,  False, 0),
    (Command.STOP,    P.STOPPING, P.STOPPING, False, 0),
    (Command.RELOAD,  P.STARTING, P.STARTING, True,  0),
    (Command.RELOAD,  P.RUNNING,  P.RUNNING,  True,  0),
    (Command.RELOAD,  P.DRAINING, P.DRAINING, False, 0),  # the service ends
    (Command.RELOAD,  P.STOPPING, P.STOPPING, False, 0),
    (Command.RESTART, P.RUNNING,  P.RUNNING,  False, 1),
]  # fmt: skip


@pytest.mark.parametrize(("command", "before", "after", "reload", "more"), ASKED)
def test_a_command_in_each_phase(
    command: Command, before: Phase, after: Phase, reload: bool, more: int, simulation: Simulation,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """What a command means where the service stands; one that comes too late is written in the log and does nothing.
    The next turn is at once."""
    simulation.settle()
    assert simulation.supervisor.until_next_turn() > 0
    supervisor, asked = simulation.supervisor, list[bool]()
    monkeypatch.setattr(simulation.generations, "ask", lambda: asked.append(True))
    supervisor.phase, generation = before, supervisor.generations.current
    caplog.clear()
    with caplog.at_level(logging.INFO, "prefork"):
        supervisor.obey(command)
    assert supervisor.phase is after
    assert asked == [True] * reload
    assert supervisor.generations.current == generation + more
    assert events(caplog)[0] is LogEvent.COMMAND
    assert supervisor.until_next_turn() == 0.0
    supervisor.phase = before


def test_the_most_and_the_fewest(simulation: Simulation, caplog: pytest.LogCaptureFixture) -> None:
    """They follow MORE, FEWER and `scale()`, which acts at once; each change is one line with both numbers."""
    supervisor = simulation.supervisor
    caplog.clear()
    with caplog.at_level(logging.INFO, "prefork"):
        supervisor.obey(Command.MORE)
        supervisor.obey(Command.FEWER)
        simulation.settle()
        found = supervisor.scale(5)
    assert (found.min_children, found.max_children) == (5, 5)
    assert supervisor.limits is found
    assert supervisor.until_next_turn() == 0.0
    resized = [r.__dict__["fields"] for r in caplog.records if r.__dict__["event"] is LogEvent.POOL_RESIZED]
    assert [each["max_children"] for each in resized] == [3, 2, 5]
    assert [each["min_children"] for each in resized] == [3, 2, 5]


# What children say.


def test_a_worker_asks_for_the_end_once(simulation: Simulation, caplog: pytest.LogCaptureFixture) -> None:
    """However often its word is read, and whichever other says the same: the service drains, and the log has one
    line of it."""
    simulation.settle()
    caplog.clear()
    with caplog.at_level(logging.INFO, "prefork"):
        for process in simulation.living():
            process.ask_to_drain()
        simulation.turn()
        assert simulation.supervisor.mailbox
        simulation.turn()
    assert simulation.phase is Phase.DRAINING
    assert events(caplog).count(LogEvent.DRAIN_ASKED) == 1
    assert events(caplog).count(LogEvent.COMMAND) == 1


def test_a_child_of_a_plain_server_ends_its_loop() -> None:
    """By what the server gave for it: there is nobody who would obey a command."""
    ended: list[bool] = []
    plain = Plain(end=lambda: ended.append(True))
    child = plain.start()
    process = plain.processes.all[child.pid]
    process.nudge = plain.supervisor.nudge
    process.ask_to_drain()
    plain.supervisor.turn()
    plain.supervisor.turn()
    assert ended == [True]
    assert not plain.supervisor.mailbox
    plain.close()


@pytest.mark.parametrize(
    ("text", "signum", "said"),
    [
        ("Traceback\nRuntimeError: no database", None, "RuntimeError: no database"),
        ("", None, "exit status 1"),
        ("", signal.SIGSEGV, "killed by SIGSEGV"),
    ],
)
def test_why_no_worker_could_start(text: str, signum: int | None, said: str, simulation: Simulation) -> None:
    """The last line of what the last one left, else how it ended; nothing is raised before it is hopeless."""
    simulation.turn()
    for _ in range(20):
        simulation.supervisor.raise_if_hopeless()
        for process in simulation.living():
            if signum is not None:
                process.die(signum)
            elif text:
                process.stacks.write("Traceback\n")
                process.stacks.write("RuntimeError: no database")
                process.exit(1)
            else:
                process.exit(1)
        simulation.advance(1.0)
        if simulation.phase is Phase.STOPPED:
            break
    assert simulation.phase is Phase.STOPPED
    with pytest.raises(BootError, match=f"died before they were ready, the last of: {said}$"):
        simulation.supervisor.raise_if_hopeless()


# What fails.


@pytest.mark.parametrize("exc", [OSError(24, "Too many open files"), MemoryError()])
def test_a_turn_that_is_cut_short_is_made_again(
    exc: Exception, simulation: Simulation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A second later, and everything is done then that was to be done."""

    def refuse(now: float) -> NoReturn:
        raise exc

    with monkeypatch.context() as patched:
        patched.setattr(simulation.supervisor._accept_queues, "look", refuse)
        simulation.command(Command.RESTART)
    assert simulation.living() == []
    assert [each for each in events(caplog) if each is not LogEvent.COMMAND] == [LogEvent.STEP_FAILED]
    assert simulation.supervisor.until_next_turn() == pytest.approx(TURN_AGAIN_S)
    simulation.advance(TURN_AGAIN_S)
    assert len(simulation.living()) == LIMITS.max_children


def test_a_mistake_of_ours_is_not_hidden(simulation: Simulation, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is neither the kernel's nor the memory's goes through."""
    with monkeypatch.context() as patched:
        patched.setattr(simulation.supervisor._accept_queues, "look", lambda now: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            simulation.turn()


def test_a_fork_that_is_refused_ends_the_starts_of_this_turn(simulation: Simulation) -> None:
    """One try a turn, counted by its errno; the pool waits before the next, and is whole when the kernel gives in."""
    simulation.processes.refuse = True
    simulation.turn()
    failures = simulation.board.words[FORK_FAILURES : FORK_FAILURES + len(ForkFailure)].tolist()
    assert failures == [int(each is ForkFailure.EAGAIN) for each in ForkFailure]
    assert 0.0 < simulation.supervisor.until_next_turn() <= 1.0
    simulation.processes.refuse = False
    simulation.advance(2.0)
    assert len(simulation.living()) == LIMITS.max_children


# The end.


def test_close_kills_and_reaps_whoever_is_left() -> None:
    """Of every kind, once; the totals have them, and no turn does anything afterwards."""
    plain = Plain()
    children = [plain.start(kind) for kind in (ChildKind.REQUEST, ChildKind.EXPORTER)]
    assert plain.supervisor.forked
    plain.supervisor.close()
    assert plain.processes.all == {}
    assert [child.pidfd for child in children] == [-1, -1]
    assert len(plain.supervisor.table) == 0
    assert plain.board.readers() == {}
    turns = plain.supervisor.turns
    plain.supervisor.turn()
    plain.supervisor.close()
    assert plain.supervisor.turns == turns + 1
    plain.board.forget()


class Arriving(OneGeneration):
    """Of a new image whose loop has not begun."""

    arriving = True


def test_a_supervisor_that_never_began_leaves_the_children() -> None:
    """They are those of whoever goes on: none is told anything, and its own descriptors are given back."""
    plain = Plain(generations=Arriving())
    child = plain.start()
    plain.supervisor.close()
    assert plain.supervisor.closed
    assert plain.processes.all[child.pid].told == []
    os.fstat(child.pidfd)
    os.close(child.pidfd)
    os.close(plain.supervisor.waiting._nudge)  # handed over with the children
    child.slot.close()
    plain.board.forget()


def test_only_some_kinds_are_waited_for() -> None:
    """Whoever is of another kind goes on."""
    plain = Plain()
    request, exporter = plain.start(), plain.start(ChildKind.EXPORTER)
    plain.processes.all[request.pid].exit()
    plain.supervisor.wait_for_children(ChildKind.REQUEST)
    assert [*plain.supervisor.table] == [exporter]
    plain.close()


def test_an_exporter_alone_is_no_child_that_serves() -> None:
    """`forked` asks whether somebody may have what this process had before a fork."""
    plain = Plain()
    found = []
    for kind in (ChildKind.EXPORTER, ChildKind.REQUEST):
        plain.start(kind)
        found.append(plain.supervisor.forked)
    assert found == [False, True]
    plain.close()


def test_the_service_has_begun_once() -> None:
    """Where the board says when, as after a reload, that stays; else it is now."""
    before = time.time_ns()
    for began, earliest, latest in ((0, before, before + HUNG_NS), (11, 11, 11)):
        plain = Plain(began)
        assert earliest <= plain.board.words[Word.STARTED_AT_NS] <= latest
        plain.close()


def test_a_request_is_slow_after_its_time() -> None:
    """Its stacks are asked for then, and not before; they are in the log once they are there."""
    simulation = Simulation(LIMITS._replace(slow_request_timeout=2.0))
    simulation.settle()
    busy = simulation.living()[0]
    busy.begin()
    simulation.advance(1.9)
    assert busy.told == []
    simulation.advance(0.5)
    assert [signum for signum, _ in busy.told] == [signal.SIGUSR1]
    simulation.close()


def test_stacks_that_come_unasked_are_logged(simulation: Simulation, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever has signalled the worker."""
    simulation.settle()
    caplog.clear()
    simulation.living()[0].stacks.write("Thread 0x1\n")
    simulation.advance(3.0)
    assert events(caplog) == [LogEvent.STACKS]


class Held:
    """What a holder has when the service ends."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self.some = True
        self.asked: list[float] = []

    def drain(self) -> bool:
        self.asked.append(self._simulation.now)
        return self.some


def test_a_drain_waits_for_what_is_held(simulation: Simulation, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder is told in the first turn of it; while there is something that it closes or passes on, the workers are
    there."""
    held = Held(simulation)
    monkeypatch.setattr(simulation.supervisor.tasks, "drain_holder", held.drain)
    simulation.settle()
    simulation.advance(1.0)
    assert held.asked == []
    began = simulation.now
    simulation.command(Command.DRAIN)
    simulation.advance(2.0)
    assert held.asked[0] == began
    serving = [child.state for child in simulation.supervisor.table]
    assert serving == [ChildState.READY] * LIMITS.max_children
    held.some = False
    simulation.advance(1.0)
    assert len(simulation.supervisor.table) == 0


class Leaving:
    """A holder that is told to leave."""

    def __init__(self, done: list[str]) -> None:
        self._done = done

    def stop(self) -> None:
        self._done.append("stop")


def test_the_order_of_the_end(simulation: Simulation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody asks or scrapes what ends; then the children; then what is beside them; and only once."""
    done: list[str] = []
    supervisor = simulation.supervisor
    supervisor.tasks.close()
    monkeypatch.setattr(supervisor.generations, "cancel", lambda: done.append("reload"))
    for name in ("end_control", "end_export", "close"):
        monkeypatch.setattr(supervisor.tasks, name, partial(done.append, name))
    monkeypatch.setattr(supervisor.tasks, "_holder", Leaving(done))
    reaper = supervisor._reaper
    monkeypatch.setattr(reaper, "wait_for", lambda *kinds, within: done.append(f"{kinds[0].label} {within:g}"))
    monkeypatch.setattr(supervisor._reaper, "kill", lambda *kinds: done.append(f"{len(kinds)} kinds"))
    monkeypatch.setattr(supervisor.kept, "close_left", lambda board: done.append("queues"))
    supervisor.close()
    supervisor.close()
    ends = ["end_control", "end_export", "stop", "holder 1"]
    assert done == ["reload", *ends, f"{len(ChildKind)} kinds", "close", "queues"]


def test_a_slow_request_beside_a_young_one() -> None:
    """The young one is shown when it is slow itself."""
    simulation = Simulation(LIMITS._replace(slow_request_timeout=2.0), lanes=2)
    simulation.settle()
    busy = simulation.living()[0]
    busy.begin()
    simulation.advance(1.5)
    busy.begin()
    for shown in (1, 2):
        simulation.advance(1.5)
        assert [signum for signum, _ in busy.told] == [signal.SIGUSR1] * shown
    simulation.close()


def test_stacks_are_looked_for_in_a_tenth_of_a_second(simulation: Simulation) -> None:
    """As long as some may still come."""
    simulation.settle()
    simulation.living()[0].stacks.write("Thread 0x1\n")
    simulation.turn()
    assert simulation.supervisor.until_next_turn() <= 0.101


def test_a_boot_that_failed_is_waited_for(simulation: Simulation) -> None:
    """A worker whose boot has failed ends as Python does. Where its threads do not, nobody is started beside it until
    it is killed at graceful_timeout (5 s here), and that is a death at boot."""
    simulation.turn()
    first, second = simulation.living()
    second.boot()
    first.slot.words[LEAVING] = ExitReason.CRASHED
    first.nudge()
    simulation.advance(4.9)
    assert simulation.living() == [first, second]
    simulation.advance(0.2)
    assert (first.alive, simulation.supervisor.pool.boot_deaths) == (False, 1)
    assert simulation.statistics().exits == {"boot_failed": 1}


# The program's hook.


def test_an_error_of_service_actions(simulation: Simulation, caplog: pytest.LogCaptureFixture) -> None:
    """Is logged, and costs nothing else."""
    called: list[None] = []

    def hook() -> None:
        called.append(None)
        raise ValueError("of the program")

    simulation.supervisor._act(hook)
    assert len(called) == 1
    assert "could not run service_actions()" in caplog.text


def test_what_service_actions_takes_is_no_pause(
    simulation: Simulation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Before it calls the turn and after it, where that takes as long each time: what is more than the last time may
    have been a stop in the midst of it."""
    supervisor = simulation.supervisor
    monkeypatch.setattr("prefork.master.clock.monotonic", lambda: simulation.ns / 1e9)
    simulation.settle()

    def hook() -> None:
        simulation.ns += 3 * 10**9
        supervisor.turn()
        simulation.ns += 2 * 10**9

    caplog.clear()
    paused = []
    for _ in range(4):
        supervisor._act(hook)
        paused.append(supervisor.clock.paused)
    assert paused == [pytest.approx(each) for each in (3.0, 5.0, 5.0, 5.0)]
    assert events(caplog) == [LogEvent.MASTER_PAUSED] * 2


@pytest.mark.parametrize("phase", ORDER[:3])
def test_a_worker_that_was_sent_term(phase: Phase, simulation: Simulation) -> None:
    """Is replaced, as long as there are replacements."""
    simulation.settle()
    supervisor = simulation.supervisor
    (child, *_) = supervisor.table
    simulation.living()[0].slot.words[REPLACE_ASKED] = YES
    supervisor.phase = phase
    supervisor._note_report(child, 7.0)
    assert child.replace == (phase is not P.DRAINING)
    supervisor.phase = P.RUNNING


def test_a_worker_that_takes_back_that_it_is_due(simulation: Simulation) -> None:
    """It is replaced all the same, as it has a replacement already; nobody else is told to leave for that one."""
    simulation.settle()
    scribbler, *others = simulation.living()
    scribbler.become_due()
    simulation.turn()
    scribbler.slot.words[DUE] = 0
    simulation.settle()
    assert not scribbler.alive
    assert all(other.alive and not other.told for other in others)
    assert simulation.statistics().exits == {"max_requests": 1}


def test_a_process_that_service_actions_forks(simulation: Simulation) -> None:
    """Has its own error: it is no master that could log it and go on."""
    supervisor = simulation.supervisor

    def hook() -> None:
        supervisor.forgotten = True
        raise ValueError("of the program")

    with pytest.raises(ValueError, match="of the program"):
        supervisor._act(hook)
    supervisor.forgotten = False
