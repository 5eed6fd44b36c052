"""Steps that may fail: the caller goes on, and each kind of failure is said once in its time."""

import errno
import logging
from collections.abc import Callable
from typing import NoReturn

import pytest

from prefork.master import guard
from prefork.master.guard import attempt, guarded, insist, named_reason, say_failed
from prefork.metrics.log_events import LogEvent

# What is documented: written out, so that a number cannot change unseen.
SAID_EVERY_S = 10.0
INSIST_S = 10.0
EMFILE = OSError(errno.EMFILE, "Too many open files")


class Time:
    """It passes when somebody sleeps, or a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept = set[float]()

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0, "it spins"
        self.now += seconds
        self.slept.add(seconds)


@pytest.fixture(autouse=True)
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    """The guard's own, in which nothing has been said yet."""
    time = Time()
    monkeypatch.setattr(guard, "time", time)
    monkeypatch.setattr(guard, "monotonic", time.monotonic)
    monkeypatch.setattr(guard, "_said", {})
    return time


def raising(exc: BaseException) -> Callable[[], NoReturn]:
    def step() -> NoReturn:
        raise exc

    return step


def test_a_step_that_is_taken_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The result of a step is handed on, also one that is false."""
    assert guarded("count", lambda: 0, 7) == 0
    assert attempt("count", lambda: False)
    assert insist("count", lambda: 0) == 0
    assert caplog.messages == []


@pytest.mark.parametrize("exc", [EMFILE, ValueError("no"), MemoryError(), AssertionError("never")])
def test_whatever_a_step_raises_the_caller_goes_on(exc: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """With what was meant for that case, and the log has one error about it."""
    assert guarded("count", raising(exc), 7) == 7
    assert not attempt("weigh", raising(exc))
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
    assert [record.__dict__["event"] for record in caplog.records] == [LogEvent.STEP_FAILED] * 2
    assert [record.__dict__["fields"] for record in caplog.records] == [{"step": "count"}, {"step": "weigh"}]


@pytest.mark.parametrize("exc", [KeyboardInterrupt(), SystemExit(3)])
def test_an_end_of_the_process_is_no_failure(exc: BaseException) -> None:
    """SystemExit and KeyboardInterrupt go through."""
    with pytest.raises(type(exc)):
        guarded("count", raising(exc), 7)
    with pytest.raises(type(exc)):
        attempt("count", raising(exc))


def test_the_kernels_refusal_is_a_sentence_and_a_mistake_has_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """What follows from it stands behind either."""
    say_failed("open it", EMFILE, "trying again")
    say_failed("open it", ValueError("no such thing"), "trying again")
    kernel, mistake = caplog.records
    assert kernel.message == "could not open it: too many open files (EMFILE); trying again"
    assert kernel.exc_info is None
    assert mistake.message == "could not open it: ValueError: no such thing; trying again"
    assert mistake.exc_info is not None


def test_a_kind_of_failure_is_said_once_in_its_time(time: Time, caplog: pytest.LogCaptureFixture) -> None:
    """One that goes on is said again ten seconds after it was said last; how often it came meanwhile is no matter."""
    for _ in range(int(SAID_EVERY_S * 10)):
        say_failed("open it", EMFILE)
        time.now += 0.1
    assert len(caplog.messages) == 1
    time.now += 0.1
    say_failed("open it", EMFILE)
    assert len(caplog.messages) == 2
    time.now += SAID_EVERY_S
    say_failed("open it", EMFILE)
    assert len(caplog.messages) == 3


def test_what_is_another_kind_is_said_for_itself(caplog: pytest.LogCaptureFixture) -> None:
    """Another step, and another class of error; the same of both is one kind whatever it says."""
    say_failed("open it", EMFILE)
    say_failed("close it", EMFILE)
    say_failed("open it", PermissionError(errno.EPERM, "Operation not permitted"))
    say_failed("open it", OSError(errno.ENOMEM, "Cannot allocate memory"))
    assert [message.partition(":")[0] for message in caplog.messages] == [
        "could not open it", "could not close it", "could not open it",
    ]  # fmt: skip


def test_it_is_insisted_until_the_kernel_gives_in(time: Time, caplog: pytest.LogCaptureFixture) -> None:
    """What the step returns in the end is returned, and the wait for it is said once."""
    tries: list[float] = []

    def step() -> str:
        tries.append(time.now)
        if len(tries) < 4:
            raise EMFILE
        return "done"

    assert insist("open it", step) == "done"
    assert caplog.messages == ["could not open it: too many open files (EMFILE); trying again"]


def test_insisting_has_an_end(time: Time) -> None:
    """After ten seconds, and with what the kernel said."""
    began = time.now
    with pytest.raises(OSError) as refused:
        insist("open it", raising(EMFILE))
    assert refused.value is EMFILE
    assert INSIST_S < time.now - began < INSIST_S + 0.2
    assert time.slept == {0.05}


def test_a_mistake_is_not_insisted_on(time: Time) -> None:
    """A mistake of ours is not tried again: it would be one again."""
    before = time.now
    with pytest.raises(ValueError, match="no"):
        insist("open it", raising(ValueError("no")))
    assert time.now == before


@pytest.mark.parametrize(
    ("exc", "said"),
    [
        (EMFILE, "too many open files (EMFILE)"),
        (OSError("Timed out"), "timed out"),
        (OSError(99999, "Strange"), "strange"),
        (OSError("AF_UNIX path too long"), "AF_UNIX path too long"),
        (BlockingIOError(), "BlockingIOError"),
        (OSError(errno.EPERM, ""), "operation not permitted (EPERM)"),
    ],
)
def test_the_kernels_reason(exc: OSError, said: str) -> None:
    """In small letters but for a name at its beginning, and with the errno's name, where there is one; never empty."""
    assert named_reason(exc) == said


def test_a_refusal_that_the_program_asked_for(time: Time, caplog: pytest.LogCaptureFixture) -> None:
    """Has its traceback, for the program's author."""
    say_failed("run service_actions()", EMFILE, theirs=True)
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.getMessage().startswith("could not run service_actions(): OSError: ")
