"""A companion from inside, in the test's own process: what it does in which order, its jobs, signals and end."""

import _thread
import faulthandler
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, cast

import pytest

from prefork.metrics.companions import (
    NEXT_RUN_NS,
    RUN_ENDED_AT_NS,
    RUN_LATE_NS,
    RUN_STARTED_NS,
    RUN_TOOK_NS,
    RUNS_FAILED,
    RUNS_OK,
    WORDS,
)
from prefork.metrics.facts import ExitReason
from prefork.metrics.scoreboard import DUE, LEAVING, READY, REPLACE_ASKED, YES, Slot, Stacks
from prefork.workers import companion as module
from prefork.workers import sinks, user_forks
from prefork.workers.bootstrap import Birth, Master
from prefork.workers.companion import Companion, CompanionTerms
from prefork.workers.loop import IGNORED
from prefork.workers.signals import DRAIN_SIGNAL, STACKS_SIGNAL, set_mask
from tests.support.programs.inside import NoMaster, Stray, as_a_child

HUNG_S = 20.0
NS = 1_000_000_000


class Run:
    """A companion that runs `does`, and what was seen of it."""

    def __init__(self, does: Callable[["Run"], object], interval: float | None = None, **values: Any) -> None:
        self.seen: list[str] = []
        self.nudged: list[tuple[bool, bool, int, int]] = []  # READY, a replacement asked for, runs, the next: by then
        self.slot, self.master = Slot(0, values.pop("application_bytes", 0)), NoMaster()
        self.row = memoryview(bytearray(8 * WORDS)).cast("Q")
        self.birth = Birth(self.slot, Stacks(self.slot), 0, values.pop("in_main_thread", True), lambda: None, set())
        self.terms = CompanionTerms(
            "tidy", lambda: does(self), interval, values.pop("timeout", None), graceful_timeout=20.0,
            measured=values.pop("measured", False), set_title=lambda title: self.seen.append(f"title {title}"),
            nudge=self._nudge,
        )  # fmt: skip
        self.made = Companion(self.terms, self.birth, cast(Master, self.master), self.row)

    def _nudge(self) -> None:
        words = self.slot.words
        self.seen.append("nudge")
        self.nudged.append((words[READY] == YES, words[REPLACE_ASKED] == YES, self.row[RUNS_OK], self.row[NEXT_RUN_NS]))

    def run(self) -> int:
        with pytest.MonkeyPatch.context() as patch, as_a_child():
            patch.setattr("prefork.workers.ending.finish", lambda: self.seen.append("finish"))
            patch.setattr("prefork.workers.ending.begin_anew", lambda: self.seen.append("anew"))
            return self.made.run()

    @property
    def leaving(self) -> int:
        return int(self.slot.words[LEAVING])

    def close(self) -> None:
        self.made._wakeup.close()
        os.close(self.made._told._fd)
        os.close(self.master.pidfd)
        self.slot.close()


@pytest.fixture
def runs() -> Iterator[Callable[..., Run]]:
    """Makes them, and closes them."""
    made: list[Run] = []

    def make(does: Callable[[Run], object], interval: float | None = None, **values: Any) -> Run:
        made.append(Run(does, interval, **values))
        return made[-1]

    yield make
    for each in made:
        each.close()


def told(run: Run) -> bool:
    """Whether it is to end by now."""
    return run.made.wait_draining(0)


def test_from_boot_to_end(runs: Callable[..., Run]) -> None:
    """READY before the program's function is called, with no signal blocked; when that returns it ends as any Python
    process does, for no reason that anybody had."""

    def does(run: Run) -> None:
        assert set_mask(()) == set()
        run.seen.append("run")
        assert (told(run), run.made.draining) == (False, False)

    run = runs(does)
    assert run.run() == 0
    assert run.seen == ["title ", "anew", "nudge", "run", "finish"]
    assert run.nudged == [(True, False, 0, 0)]
    assert (run.master.asked, run.master.by) == (2, {DRAIN_SIGNAL}), "once more where it waits"
    assert run.leaving == ExitReason.EXITED


@pytest.mark.parametrize("room", [64, 0])
def test_the_programs_metrics(room: int, runs: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """They are stored in its slot, where that has room for them."""
    regions: list[int] = []
    monkeypatch.setattr(module, "begin", lambda region: regions.append(len(region)))
    runs(lambda run: None, application_bytes=room).run()
    assert regions == ([64] if room else [])


@pytest.mark.parametrize(
    ("error", "status", "reason", "words"),
    [
        (ValueError("of the program"), 1, ExitReason.CRASHED, "ValueError: of the program\n"),
        (SystemExit(3), 3, ExitReason.EXITED, ""), (SystemExit(), 0, ExitReason.EXITED, ""),
    ],
)  # fmt: skip
def test_a_function_that_raises(
    error: BaseException, status: int, reason: ExitReason, words: str, runs: Callable[..., Run]
) -> None:
    """Its last words are kept; the master is told, who holds the deadline for the rest of the end."""

    def does(run: Run) -> None:
        raise error

    run = runs(does)
    assert run.run() == status
    assert run.seen[-2:] == ["nudge", "finish"]
    assert len(run.nudged) == 2
    assert run.leaving == reason
    assert run.birth.stacks.take().endswith(words)


# Signals.


def test_told_to_drain(runs: Callable[..., Run]) -> None:
    """Whoever waits for it sees it, in any thread."""
    seen: list[bool] = []

    def does(run: Run) -> None:
        thread = threading.Thread(target=lambda: seen.append(run.made.wait_draining(HUNG_S)))
        thread.start()
        run.slot.tell_to_drain()
        os.kill(os.getpid(), DRAIN_SIGNAL)
        seen.append(run.made.wait_draining(HUNG_S))
        thread.join()

    run = runs(does)
    assert run.run() == 0
    assert seen == [True, True]
    assert run.leaving == ExitReason.DRAINED


def test_who_waits_by_the_wake_up(runs: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the main thread has one; a process that the program forks leaves it alone."""
    run = runs(lambda run: None)
    woken: list[object] = []

    class Told:
        _fd = run.made._told._fd

        def wait(self, seconds: float, wakeup: object) -> bool:
            woken.append(wakeup)
            return False

    monkeypatch.setattr(run.made, "_told", Told())
    monkeypatch.setattr(run.made, "_keep_up", lambda: None)
    told(run)
    thread = threading.Thread(target=told, args=(run,))
    thread.start()
    thread.join()
    run.made._forked = True
    told(run)
    assert woken == [run.made._wakeup, None, None]


def test_signals_that_do_nothing(runs: Callable[..., Run]) -> None:
    """They are the master's to hear; the signal to drain is the master's to send."""

    def does(run: Run) -> None:
        for signum in (*IGNORED, DRAIN_SIGNAL):
            os.kill(os.getpid(), signum)
        assert not told(run)

    assert runs(does).run() == 0


def test_a_term_from_elsewhere(runs: Callable[..., Run]) -> None:
    """Is passed on to the master, which says when."""

    def does(run: Run) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        assert not told(run)

    run = runs(does)
    assert run.run() == 0
    assert [asked for _, asked, *_ in run.nudged] == [False, True]
    assert run.leaving == ExitReason.EXITED


def test_told_to_stop(runs: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """QUIT ends it at once, with its reason and status 0."""
    ends: list[tuple[int, int]] = []
    run = runs(lambda run: os.kill(os.getpid(), signal.SIGQUIT))
    monkeypatch.setattr(os, "_exit", lambda status: ends.append((status, run.leaving)))
    run.run()
    assert ends == [(0, ExitReason.STOPPED)]


def test_where_its_threads_are(runs: Callable[..., Run]) -> None:
    """USR1 has the stacks of all of them written for the master."""
    run = runs(lambda run: os.kill(os.getpid(), signal.SIGUSR1))
    run.run()
    assert "Current thread" in run.birth.stacks.take()


# The master's death.


def test_a_master_that_died_before_it_could_tell(runs: Callable[..., Run]) -> None:
    """Nothing is begun, and the end has its bound and its reason."""
    run = runs(lambda run: run.seen.append("run"))
    run.master.dead = True
    left: list[float] = []
    run.made._end_stray = lambda: left.append(signal.getitimer(signal.ITIMER_REAL)[0])  # type: ignore[method-assign]
    assert run.run() == 0
    assert "run" not in run.seen
    assert 15 < left[0] <= 20
    assert run.leaving == ExitReason.MASTER_DIED


def test_the_masters_death_by_signal(runs: Callable[..., Run]) -> None:
    """PDEATHSIG is the signal to drain; a second one moves no deadline."""
    left: list[float] = []

    def does(run: Run) -> None:
        run.master.dead = True
        os.kill(os.getpid(), DRAIN_SIGNAL)
        assert told(run)
        signal.setitimer(signal.ITIMER_REAL, 7)
        os.kill(os.getpid(), DRAIN_SIGNAL)
        left.append(signal.getitimer(signal.ITIMER_REAL)[0])

    run = runs(does)
    run.run()
    assert 0 < left[0] <= 7
    assert run.leaving == ExitReason.MASTER_DIED
    assert len(run.nudged) == 1


def test_where_the_kernel_cannot_tell(runs: Callable[..., Run]) -> None:
    """Because the fork was no main thread's: a thread watches the master, and says it by the signal."""

    def does(run: Run) -> None:
        assert not told(run)
        run.master.die()
        assert run.made._told.wait(HUNG_S, run.made._wakeup)

    run = runs(does, in_main_thread=False)
    run.run()
    assert run.leaving == ExitReason.MASTER_DIED
    assert run.slot.words[REPLACE_ASKED] == 0


def test_where_the_kernel_tells(runs: Callable[..., Run]) -> None:
    """There is no thread."""
    before = _thread._count()
    assert runs(lambda run: run.seen.append(str(_thread._count() - before))).run() == 0


# A periodic job.


class Time:
    """Passes while the job is waited for, and when it says so."""

    def __init__(self, run: Run, monkeypatch: pytest.MonkeyPatch, ends_after: int) -> None:
        self.now_ns = 1000 * NS
        self.waits: list[float] = []
        self.kept: list[bool] = []  # whether TERM was ours, at each wait
        self._run = run
        self._ends_after = ends_after
        monkeypatch.setattr(module, "monotonic_ns", lambda: self.now_ns)
        monkeypatch.setattr(module, "time_ns", lambda: self.now_ns + 7)
        monkeypatch.setattr(run.made, "wait_draining", self._wait)

    def _wait(self, seconds: float) -> bool:
        self.waits.append(seconds)
        self.kept.append(callable(signal.getsignal(signal.SIGTERM)))
        self.now_ns += round(seconds * NS)
        return len(self.waits) > self._ends_after


def test_a_job(runs: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs at once, and then at every interval; of each run it is noted when the next one begins, before it begins, and
    how long it took, when it ended, and that, afterwards; then the master is told."""
    noted: list[int] = []

    def does(run: Run) -> None:
        noted.append(run.row[NEXT_RUN_NS] // NS)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as an event loop leaves it
        time.now_ns += 2_500_000_000

    run = runs(does, 10.0)
    time = Time(run, monkeypatch, ends_after=3)
    assert run.run() == 0
    assert time.waits == [0, 7.5, 7.5, 7.5]
    assert time.kept == [True] * 4
    assert noted == [1010, 1020, 1030]
    assert run.row.tolist() == [0, 0, 3, 0, 1022 * NS + 500_000_007, 2_500_000_000, 1030 * NS, 0, 0, 0, 0]
    assert run.nudged == [(True, False, 0, 0), *((True, False, runs, (1000 + runs * 10) * NS) for runs in (1, 2, 3))]
    assert run.seen == ["title ", "anew", "nudge", *["title running", "title ", "nudge"] * 3, "finish"]


@pytest.mark.parametrize("timeout", [None, 4.0])
def test_a_run_that_is_on(timeout: float | None, runs: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """The master sees since when, and until when it may, and is told where there is such a moment."""
    seen: list[tuple[int, ...]] = []

    def does(run: Run) -> None:
        seen.append((run.row[RUN_STARTED_NS] // NS, run.row[RUN_LATE_NS] // NS, len(run.nudged)))

    run = runs(does, 10.0, timeout=timeout)
    Time(run, monkeypatch, ends_after=2)
    run.run()
    assert seen == ([(1000, 0, 1), (1010, 0, 2)] if timeout is None else [(1000, 1004, 2), (1010, 1014, 4)])
    assert run.row[RUN_STARTED_NS] == 0


@pytest.mark.parametrize("measured", [True, False])
def test_where_it_is_at_rest(measured: bool, runs: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """It follows the log file, has itself told of the master's death anew, and every ten seconds is measured; one that
    the program forks does none of it."""
    run = runs(lambda run: None, measured=measured)
    monkeypatch.setattr(sinks, "follow", lambda: run.seen.append("followed"))
    monkeypatch.setattr(module, "record", lambda words: run.seen.append(f"measured {len(words)}"))
    with as_a_child():
        run.made._take_signals()
        for now_ns in (1000 * NS, 1010 * NS - 1, 1010 * NS):
            monkeypatch.setattr(module, "monotonic_ns", lambda now_ns=now_ns: now_ns)
            assert not told(run)
        run.made._forked = True
        told(run)
    assert run.seen.count("followed") == run.master.asked == 3
    assert run.seen.count(f"measured {run.slot.words.nbytes // 8}") == (2 if measured else 0)


def test_a_function_that_changed_its_user(runs: Callable[..., Run]) -> None:
    """And has undone that the kernel tells: it is seen where it waits that the master is gone, once."""

    def does(run: Run) -> None:
        run.master.dead = True
        assert told(run)
        signal.setitimer(signal.ITIMER_REAL, 7)
        assert told(run)
        assert signal.getitimer(signal.ITIMER_REAL)[0] <= 7

    run = runs(does)
    assert run.run() == 0
    assert run.leaving == ExitReason.MASTER_DIED


def test_a_job_that_takes_longer_than_its_interval(runs: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missed is left out."""

    def does(run: Run) -> None:
        time.now_ns += 25 * NS

    run = runs(does, 10.0)
    time = Time(run, monkeypatch, ends_after=2)
    run.run()
    assert time.waits == [0, 5.0, 5.0]


@pytest.mark.parametrize(("kept_s", "waits"), [(1004, [4.0, 10.0]), (990, [0.0, 10.0]), (0, [0.0, 10.0])])
def test_a_job_of_a_process_that_ended(
    kept_s: int, waits: list[float], runs: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goes on when the next run is due."""
    run = runs(lambda run: None, 10.0)
    run.row[NEXT_RUN_NS] = kept_s * NS
    time = Time(run, monkeypatch, ends_after=1)
    run.run()
    assert time.waits == waits


def test_a_run_that_raises(
    runs: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Has failed, and is told of; the next one comes. One that exits has failed too, and ends the companion."""
    errors: list[BaseException] = [ValueError("of the program"), SystemExit(3)]

    def does(run: Run) -> NoReturn:
        raise errors.pop(0)

    run = runs(does, 10.0)
    Time(run, monkeypatch, ends_after=5)
    assert run.run() == 3
    assert (run.row[RUNS_OK], run.row[RUNS_FAILED]) == (0, 2)
    assert [record.getMessage() for record in caplog.records] == [
        "companion tidy: a run raised; the next one begins when it is due"
    ]
    assert run.row[RUN_ENDED_AT_NS] > run.row[RUN_TOOK_NS] == 0


# Processes that it forks.


@pytest.mark.parametrize("interval", [None, 10.0])
@pytest.mark.parametrize(("error", "status"), [(None, 0), (SystemExit(3), 3), (ValueError("of the program"), 1)])
def test_a_process_that_the_function_forks(
    error: BaseException | None, status: int, interval: float | None, runs: Callable[..., Run], stray_ends: list[int],
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Ends where that does; it has no signal of ours, writes to a slot of its own, and has counted no run."""
    seen: list[object] = []

    def does(run: Run) -> None:
        user_forks._after_fork()
        seen.extend((signal.getsignal(DRAIN_SIGNAL), cast(Any, faulthandler).unregister(STACKS_SIGNAL)))
        run.slot.words[DUE] = 5
        if error is not None:
            raise error

    run = runs(does, interval)
    if interval is not None:
        Time(run, monkeypatch, ends_after=1)
    with pytest.raises(Stray):
        run.run()
    assert stray_ends[0] == status
    assert seen == [signal.SIG_DFL, False]
    assert "finish" not in run.seen
    assert (run.row[RUNS_OK], run.row[RUNS_FAILED], len(run.nudged)) == (0, 0, 1)
    assert "a run raised" not in caplog.text
    masters = Slot.resume(os.dup(run.slot.fd))
    assert (run.slot.words[DUE], masters.words[DUE]) == (5, 0)
    assert (masters.words[LEAVING], run.birth.stacks.size()) == (0, 0)
    masters.close()
