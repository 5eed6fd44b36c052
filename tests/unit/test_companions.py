"""Companions: what may be declared, when a job is due, and the back-off of the simulated ones."""

import asyncio
import contextlib
import functools
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from prefork import ConfigError, PreForkingTCPServer, StreamRequestHandler, ThreadingTCPServer, every
from prefork.accompanied import checked
from prefork.commands import Command
from prefork.control import report
from prefork.control.render import companion_states, companion_table
from prefork.master.children import ChildState
from prefork.master.companions import Companions
from prefork.master.service import CompanionSpec
from prefork.metrics.board import FORK_FAILURES
from prefork.metrics.companions import (
    COMPANIONS_MAX,
    NEXT_RUN_NS,
    RUN_LATE_NS,
    RUN_STARTED_NS,
    RUN_TOOK_NS,
    CompanionCounts,
    CompanionTable,
)
from prefork.metrics.facts import ChildKind, ExitReason, ForkFailure
from prefork.pool import pool_of
from prefork.settings.companions import Declared, declared, refuse_without_pool
from prefork.workers.companion import first_run, next_run
from prefork.workers.signals import DRAIN_SIGNAL
from tests.support.programs.simulation import FakeProcess, Simulation


def run(server: Any) -> None:
    """A function as it should be."""


async def coroutine(server: Any) -> None:
    await asyncio.sleep(0)


async def asynchronous(server: Any) -> Any:
    yield 1


def generator(server: Any) -> Iterator[int]:
    yield 1


class Awaited:
    async def __call__(self, server: Any) -> None:
        """Awaited by nobody."""


class Called:
    def __call__(self, server: Any) -> None:
        """Fine."""

    def method(self, server: Any) -> None:
        """Fine too."""


def server_with(companions: Any) -> Any:
    return type("Server", (PreForkingTCPServer,), {"companions": companions})


@pytest.mark.parametrize("function", [run, Called(), Called().method, functools.partial(run), print, lambda server: 1])
def test_functions(function: Any) -> None:
    """Whatever can be called with the server, by itself or at an interval."""
    found = declared(server_with({"a": function, "b-1.c_2": every(60, function, timeout=30.5)}))
    assert found == (Declared("a", function), Declared("b-1.c_2", function, 60, 30.5))


@pytest.mark.parametrize(("seconds", "allowed"), [(0.01, True), (0.0099, False), (1e9, True), (1.01e9, False)])
def test_the_bounds_of_an_interval(seconds: float, allowed: bool) -> None:
    """A hundredth of a second to thirty years."""
    with contextlib.nullcontext() if allowed else pytest.raises(ConfigError):
        checked(server_with({"a": every(seconds, run)}))


@pytest.mark.parametrize("none", [{}, None, ()])
def test_none(none: Any) -> None:
    """No companions are none."""
    assert declared(server_with(none)) == ()
    assert declared(PreForkingTCPServer) == ()


NAMES = "1 to 63 letters, digits, _, . and -"
REFUSED: list[tuple[Any, str]] = [
    ([run], r"could not set companions to \[<function run"),
    ({"": run}, f"could not use '' as the name of a companion: it must be {NAMES}"),
    ({"a b": run}, "could not use 'a b' as the name"),
    ({"ü": run}, "could not use 'ü' as the name"),
    ({"a\n": run}, "could not use 'a.n' as the name"),
    ({'"': run}, "as the name of a companion"),
    ({"-a": run}, "could not use '-a' as the name"),
    ({"a" * 64: run}, "as the name of a companion"),
    ({1: run}, "could not use 1 as the name"),
    ({"a": "app:run"}, "could not set companion a to 'app:run': it must be a function that takes the server"),
    ({"a": None}, "could not set companion a to None"),
    ({"a": coroutine}, "companion a to <function coroutine at .*>: it is async, and nobody would await it"),
    ({"a": functools.partial(coroutine)}, "it is async"),
    ({"a": asynchronous}, "it is async"),
    ({"a": Awaited()}, "it is async"),
    ({"a": generator}, "it is a generator"),
    ({"a": every(60, coroutine)}, "it is async"),
    ({"a": lambda: None}, "it must take one argument, the server"),
    ({"a": lambda server, more: None}, "it must take one argument, the server"),
    ({"a": every(0, run)}, "could not set the interval of companion a to 0: it must be a number of seconds, at least"),
    ({"a": every(-1, run)}, "interval of companion a to -1"),
    ({"a": every(float("nan"), run)}, "interval of companion a to nan"),
    ({"a": every(float("inf"), run)}, "interval of companion a to inf"),
    ({"a": every(True, run)}, "interval of companion a to True"),
    ({"a": every("60", run)}, "interval of companion a to '60'"),  # type: ignore[arg-type]
    ({"a": every(60, run, timeout=0)}, "could not set the timeout of companion a to 0: it must be a number of seconds"),
    ({"a": every(60, run, timeout=float("nan"))}, "timeout of companion a to nan"),
    ({"a": every(60, run, timeout="30")}, "timeout of companion a to '30'"),  # type: ignore[arg-type]
    ({"a": every(60, every(60, run))}, "a periodic job within another"),  # type: ignore[arg-type]
    ({f"c{number}": run for number in range(65)}, "there are 65, it must be at most 64"),
]


@pytest.mark.parametrize(("companions", "sentence"), REFUSED, ids=[sentence for _, sentence in REFUSED])
def test_refused(companions: Any, sentence: str) -> None:
    """What cannot work is refused by one sentence, which names the companion."""
    with pytest.raises(ConfigError, match=sentence) as refused:
        checked(server_with(companions))
    assert "\n" not in str(refused.value)


def test_without_a_pool() -> None:
    """A server without a pool that declares companions is refused; one that uses the name for something else is not."""
    server = type("Server", (ThreadingTCPServer,), {"companions": {"a": run}})
    with pytest.raises(
        ConfigError, match="could not start the companions a: they need a pool; put PreForkingMixIn first"
    ):
        refuse_without_pool(server)
    for theirs in ([], {}, {"Ada": 3}, {"Ada": 3, "run": run}, ["Ada"], None):
        refuse_without_pool(type("Server", (ThreadingTCPServer,), {"companions": theirs}))


def test_a_companion_has_no_listener() -> None:
    """To handle a request in one is refused by a sentence."""
    with PreForkingTCPServer(("127.0.0.1", 0), StreamRequestHandler) as server:
        pool_of(server).companion = object()  # type: ignore[assignment]
        pool_of(server).done = threading.Event()  # as it was in the master
        with pytest.raises(RuntimeError, match=r"handle_request\(\) needs a listener, and a companion has none"):
            server.handle_request()
        pool_of(server).companion = pool_of(server).done = None


def test_the_grid_of_a_job() -> None:
    """Runs begin a whole number of intervals from each other: one that is missed is left out, and the next is in its
    time."""
    assert next_run(100, 100, 10) == 110
    assert next_run(100, 109, 10) == 110
    assert next_run(100, 110, 10) == 120
    assert next_run(100, 137, 10) == 140


def test_the_first_run_of_a_process() -> None:
    """Of the first process now; of the next when it was due, late where that has passed, and never later than an
    interval from now, which may be a shorter one."""
    assert first_run(0, 500, 10) == 500
    assert first_run(505, 500, 10) == 505
    assert first_run(480, 500, 10) == 480
    assert first_run(9999, 500, 10) == 510


# In simulated time.


@pytest.fixture
def pool() -> Iterator[Simulation]:
    simulation = Simulation(companions=("one", "two"))
    yield simulation
    simulation.close()


def table_of(pool: Simulation) -> CompanionTable:
    assert pool.supervisor.companions.table is not None
    return pool.supervisor.companions.table


def started(pool: Simulation) -> list[FakeProcess]:
    pool.settle()
    pool.advance(0.05)
    return pool.companions()


def test_they_start_with_the_first_ready_worker(pool: Simulation) -> None:
    """Not before: code that cannot boot a worker starts no companion."""
    pool.turn()
    assert pool.companions() == []
    one, two = started(pool)
    kinds = [child.kind for child in pool.supervisor.table]
    assert kinds.count(ChildKind.COMPANION) == 2
    one.boot()
    assert pool.statistics().workers == {"starting": 0, "idle": 2, "busy": 0, "draining": 0}
    assert not two.ready


def test_back_off_of_one(pool: Simulation) -> None:
    """Each end that nobody asked for doubles the delay up to max_restart_delay (4 s here), one after a long life begins
    anew, and the other companions, the workers and their back-off have no part in it."""
    started(pool)[1].boot()
    other = pool.companions()[1]
    for delay in (0.5, 1.0, 2.0, 4.0, 4.0):
        pool.companions()[0 if pool.companions()[0] is not other else 1].exit(0, ExitReason.EXITED)
        pool.turn()
        assert pool.companions() == [other]
        pool.advance(delay - 0.01)
        assert pool.companions() == [other]
        pool.advance(0.02)
        assert len(pool.companions()) == 2
    assert pool.supervisor.pool.boot_deaths == 0
    pool.companions()[-1].boot()
    pool.advance(11.0)
    pool.companions()[-1].exit(1)
    pool.advance(0.55)
    assert len(pool.companions()) == 2
    assert {counts.name: counts.restarts for counts in table_of(pool).read()} == {"one": 6, "two": 0}


def test_drained_last(pool: Simulation) -> None:
    """At the end the workers go first; a companion that hangs is killed at graceful_timeout (5 s here)."""
    for companion in started(pool):
        companion.boot()
    one, two = pool.companions()
    two.hang()
    for worker in pool.living():
        worker.begin()
    pool.command(Command.DRAIN)
    pool.advance(1.0)
    assert not one.draining
    for worker in pool.living():
        worker.finish()
    pool.advance(0.1)
    assert (one.alive, two.alive) == (False, True)
    pool.advance(5.0)
    assert not two.alive
    assert pool.phase.name == "STOPPED"


def test_a_new_generation(pool: Simulation) -> None:
    """USR2: each is told when only new workers serve, and the next one starts when it has gone."""
    for companion in started(pool):
        companion.boot()
    before = pool.companions()
    before[1].hang()
    pool.command(Command.RESTART)
    assert not any(companion.draining for companion in before)
    pool.settle()
    pool.advance(0.1)
    states = {child.name: child.state for child in pool.supervisor.table if child.kind is ChildKind.COMPANION}
    assert states == {"one": ChildState.STARTING, "two": ChildState.DRAINING}
    pool.advance(5.1)
    assert not set(before) & set(pool.companions())
    assert len(pool.companions()) == 2


def test_no_fork(pool: Simulation) -> None:
    """Where the kernel refuses one it is counted, and tried again soon."""
    pool.turn()
    for worker in pool.living():
        worker.boot()
    pool.processes.refuse = True
    pool.advance(1.0)
    assert pool.companions() == []
    assert sum(pool.supervisor.board.words[FORK_FAILURES : FORK_FAILURES + len(ForkFailure)].tolist()) == 4, (
        "two, twice"
    )
    pool.processes.refuse = False
    pool.advance(0.6)
    assert len(pool.companions()) == 2


# As they are shown.


def shown(name: str, state: str = "running", **known: Any) -> dict[str, Any]:
    """What a master tells of a companion."""
    job = {"runs_ok": None, "runs_failed": None, "runs_timed_out": None, "runs_lost": None, "run_age_s": None,
           "last_run_ago_s": None, "last_run_took_s": None, "next_run_in_s": None, "starts_in_s": None}  # fmt: skip
    process = {"pid": 1, "generation": 1, "age_s": 9.0, "cpu_s": 0.5, "rss_bytes": 3 << 20, "restarts": 0}
    return {"name": name, "state": state, **job, **process, **known}


def test_the_summary() -> None:
    """How many run, which do not, whose runs did not end well and how many, and which job runs next."""
    tidy = shown("tidy", runs_ok=9, runs_failed=1, runs_timed_out=2, runs_lost=3, next_run_in_s=61.0)
    soon = shown("soon", runs_ok=9, runs_failed=0, runs_timed_out=0, runs_lost=0, next_run_in_s=4.0)
    away = shown("away", "waiting", next_run_in_s=0.0)
    assert companion_states([shown("one")]) == "1 of 1 run"
    assert companion_states([tidy, shown("one"), soon, away]) == (
        "3 of 4 run, waiting: away, failed runs: tidy 6, next run: soon in 4.0s"
    )
    earlier = {key: value for key, value in tidy.items() if key not in ("runs_timed_out", "runs_lost", "run_age_s")}
    assert "failed runs: tidy 1" in companion_states([earlier])


def test_the_row_of_a_job() -> None:
    """The runs of whatever outcome, those that did not end well, and for how long the one that is on has run."""
    job = shown("tidy", runs_ok=9, runs_failed=1, runs_timed_out=2, runs_lost=3, run_age_s=2.0, next_run_in_s=61.0)
    heading, row, other = (line.split() for line in companion_table([job, shown("one")]))
    found = dict(zip(heading, row, strict=True))
    assert [found[name] for name in ("runs", "failed", "run", "next")] == ["15", "6", "2.0s", "1m01s"]
    found = dict(zip(heading, other, strict=True))
    assert [found[name] for name in ("runs", "failed", "run", "next")] == ["-"] * 4


@pytest.mark.parametrize(("due_s", "on", "shown"), [
    (0, False, None), (4, False, 4.0), (-1, False, 0.0), (4, True, 4.0), (-1, True, None),
])  # fmt: skip
def test_when_the_next_run_is(due_s: int, on: bool, shown: float | None) -> None:
    """Late, it is due now; but not beside one that takes longer than its interval: who can know when that will end?"""
    now_ns = 100 * 10**9
    due_ns = now_ns + due_s * 10**9 if due_s else 0
    counts = CompanionCounts("tidy", 60.0, True, 0, 0, 0, 0, 0, due_ns, now_ns * on, 0, 0, 0)
    assert report._next_run(counts, now_ns) == shown


# Runs of a periodic job.


def run_begins(pool: Simulation, name: str, timeout: float) -> None:
    """As its process writes it."""
    words = table_of(pool).words(name)
    words[RUN_LATE_NS] = pool.ns + round(timeout * 1e9)
    words[RUN_STARTED_NS] = pool.ns
    pool.turn()


def counts_of(pool: Simulation, name: str) -> CompanionCounts:
    return table_of(pool).counts(name)


def test_a_run_over_its_time(pool: Simulation) -> None:
    """Its stacks are asked for, 0.2 s later its process is told, 0.3 s later killed; the run counts as timeout and as
    no restart, and the next process comes at once."""
    for companion in started(pool):
        companion.boot()
    one, two = pool.companions()
    one.hang()
    pool.turn()
    began = pool.ns
    run_begins(pool, "one", 3.0)
    pool.advance(2.99)
    assert one.told == []
    pool.advance(1.0)
    moments = [(signum, round((at - began) / 1e9, 1)) for signum, at in one.told]
    assert moments == [
        (signal.SIGUSR1, 3.0), (signal.SIGCONT, 3.0), (DRAIN_SIGNAL, 3.2), (signal.SIGCONT, 3.2), (signal.SIGKILL, 3.3),
    ]  # fmt: skip
    found = counts_of(pool, "one")
    assert (found.runs_timed_out, found.runs_lost, found.restarts, found.run_started_ns) == (1, 0, 0, 0)
    assert round(found.run_took_ns / 1e9, 1) == 3.3
    assert len(pool.companions()) == 2
    assert two.told == []


def test_a_run_that_ends_when_it_is_told(pool: Simulation) -> None:
    """It is not killed, and its process has written how it ended."""
    for companion in started(pool):
        companion.boot()
    one, _ = pool.companions()
    one.on_leave = lambda process: table_of(pool).words("one").__setitem__(RUN_STARTED_NS, 0)
    run_begins(pool, "one", 1.0)
    pool.advance(2.0)
    assert not one.alive
    assert signal.SIGKILL not in dict(one.told)
    assert counts_of(pool, "one").runs_timed_out == 0


def test_a_run_that_ends_with_its_process(pool: Simulation) -> None:
    """It counts as lost, whoever ended that; one that is over does not."""
    for companion in started(pool):
        companion.boot()
    one, two = pool.companions()
    run_begins(pool, "one", 60.0)
    pool.advance(0.5)
    one.die()
    two.die()
    pool.advance(0.1)
    assert (counts_of(pool, "one").runs_lost, counts_of(pool, "two").runs_lost) == (1, 0)
    assert counts_of(pool, "one").run_took_ns >= 500_000_000
    assert table_of(pool).words("one")[RUN_TOOK_NS] < 700_000_000


def test_time_that_the_master_was_stopped_is_not_the_runs(pool: Simulation) -> None:
    """A run is not over its time because nobody was there to see its end, as a request is not."""
    for companion in started(pool):
        companion.boot()
    one, _ = pool.companions()
    run_begins(pool, "one", 3.0)
    pool.pause(10.0)
    pool.advance(1.0)
    assert one.told == []
    pool.advance(4.0)
    assert one.told != []


# Their rows, over a reload.


def test_a_row_is_its_own_while_its_process_lives(pool: Simulation) -> None:
    """One that the new program does not declare keeps its row until it has ended: what it still writes there is no
    other companion's."""
    for companion in started(pool):
        companion.boot()
    values, _ = pool.supervisor.companions.pack()
    assert values is not None
    spec = CompanionSpec("new", 60.0, lambda birth, master, row: 0)
    after = Companions([spec], {**values, "fd": os.dup(values["fd"])})
    living = [child for child in pool.supervisor.table if child.name == "one"]
    after.enter(living)
    assert after.table is not None
    assert sorted(after.table.rows) == ["new", "one"]
    table_of(pool).words("one")[NEXT_RUN_NS] = 4711
    after.publish(living)
    assert [counts.name for counts in after.table.read()] == ["new"]
    assert after.table.counts("new").next_run_ns == 0
    after.close()


def test_rows_of_everybody() -> None:
    """There is a row for every companion of three images in a row."""
    table = CompanionTable()
    for image in range(3):
        for number in range(COMPANIONS_MAX):
            table.enter(f"{image}.{number}", None)
    assert len(set(table.rows.values())) == 3 * COMPANIONS_MAX
    table.close()
