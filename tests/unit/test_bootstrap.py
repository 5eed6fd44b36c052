"""The first steps of a child and the only way out, in a process that is none: what it does, and in which order."""

import _thread
import io
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TextIO

import pytest

from prefork.metrics.facts import ExitReason
from prefork.metrics.scoreboard import LEAVING, Slot, Stacks
from prefork.workers import bootstrap, ending, flushing, sinks
from prefork.workers.bootstrap import Birth, Master, enter, exit_status, leave
from prefork.workers.flushing import disown_output, flush_beside, flush_into_nothing

HUNG = 30.0  # seconds; never reached unless something hangs


class Left(BaseException):
    """os._exit() with this status."""

    def __init__(self, status: int) -> None:
        self.status = status


class Steps:
    """What has been done, in order."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def step(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self.done.append(name)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    """The steps that would change this process are noted, and not done."""

    def leaves(status: int) -> NoReturn:
        raise Left(status)

    steps = Steps()
    monkeypatch.setattr(os, "_exit", leaves)
    monkeypatch.setattr(ending, "forget_master", steps.step("forget_master"))
    monkeypatch.setattr(sinks, "begin_child", steps.step("begin_child"))
    monkeypatch.setattr(bootstrap, "disown_output", steps.step("disown_output"))
    monkeypatch.setattr(bootstrap, "disown_records", steps.step("disown_records"))
    monkeypatch.setattr(bootstrap, "flush_last", steps.step("flush"))
    return steps


@pytest.fixture
def birth(steps: Steps) -> Iterator[Birth]:
    slot = Slot(1)
    yield Birth(slot, Stacks(slot), os.getppid(), True, steps.step("forget"), set())
    slot.close()


def entered(birth: Birth, body: Callable[[], int]) -> int:
    """The status with which a child of this body leaves."""
    masters: list[Master] = []

    def run(birth: Birth, master: Master) -> int:
        masters.append(master)
        return body()

    with pytest.raises(Left) as left:
        enter(birth, run)
    os.close(masters[0].pidfd)
    return left.value.status


def fails(error: BaseException) -> Callable[[], int]:
    def body() -> int:
        raise error

    return body


# The way in.


def test_the_steps_come_in_this_order(birth: Birth, steps: Steps) -> None:
    """What was the master's is forgotten before anything of the child's, its descriptors last; then its body runs."""

    def body() -> int:
        steps.done.append("body")
        return 3

    assert entered(birth, body) == 3
    assert steps.done == ["forget_master", "disown_output", "disown_records", "begin_child", "forget", "body", "flush"]
    assert birth.slot.words[LEAVING] == 0
    assert birth.stacks.size() == 0


@pytest.mark.parametrize(("code", "status"), [(None, 0), (0, 0), (7, 7), ("a reason", 1), (256 + 9, 9), (-1, 255)])
def test_system_exit(code: Any, status: int, birth: Birth) -> None:
    """It ends the child as Python would end a process, and is no crash; a text is its last words."""
    assert entered(birth, fails(SystemExit(code))) == status
    assert birth.slot.words[LEAVING] == ExitReason.EXITED
    assert birth.stacks.take() == (f"{code}\n" if isinstance(code, str) else "")


def test_last_words(birth: Birth) -> None:
    """The traceback is written for the master, once the slot says that these are last words."""
    said: list[int] = []

    class Heard(Stacks):
        def write(self, text: str) -> None:
            said.append(birth.slot.words[LEAVING])
            super().write(text)

    birth = birth._replace(stacks=Heard(birth.slot))
    assert entered(birth, fails(KeyError("gone"))) == 1
    assert birth.slot.words[LEAVING] == ExitReason.CRASHED
    assert said == [ExitReason.CRASHED]
    text = birth.stacks.take()
    assert text.startswith("Traceback")
    assert text.endswith("KeyError: 'gone'\n")


def test_an_exception_is_no_status() -> None:
    """As of a process: 1."""
    assert [exit_status(error) for error in (ValueError(), KeyboardInterrupt(), SystemExit(4))] == [1, 1, 4]


def test_a_flush_that_fails_does_not_keep_it(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child leaves whatever happens."""
    monkeypatch.setattr(bootstrap, "flush_last", fails(MemoryError()))
    with pytest.raises(Left) as left:
        leave(5)
    assert left.value.status == 5


@pytest.mark.parametrize("left", [[], ["stdout"]])
def test_what_could_not_be_flushed_is_told(left: list[str], steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a sentence, to who wants to hear it; otherwise nothing is."""
    told: list[str] = []
    monkeypatch.setattr(bootstrap, "flush_last", lambda: left)
    for tell in (told.append, None):
        with pytest.raises(Left) as end:
            leave(300, tell)
        assert end.value.status == 44
    assert [text.startswith("could not flush stdout") for text in told] == [True] * len(left)


# The master, seen from a child.


def test_a_master_that_is_gone(birth: Birth, steps: Steps) -> None:
    """Whose pid is not our parent's has died meanwhile; its child leaves at once."""
    with pytest.raises(Left) as left:
        Master(Birth(birth.slot, birth.stacks, os.getpid(), True, birth.forget, set()))
    assert left.value.status == 1
    traceback = left.tb
    while traceback.tb_next is not None and "self" not in traceback.tb_frame.f_locals:
        traceback = traceback.tb_next
    os.close(traceback.tb_frame.f_locals["self"].pidfd)


class LibC:
    def __init__(self) -> None:
        self.asked: list[tuple[int, ...]] = []

    def prctl(self, *arguments: int) -> int:
        self.asked.append(arguments)
        return 0


@pytest.mark.parametrize(("main", "asked"), [(True, [(1, signal.SIGTERM, 0, 0, 0)]), (False, [])])
def test_the_kernel_tells_of_its_death(
    main: bool, asked: list[tuple[int, ...]], birth: Birth, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By TERM; prctl(2) has PR_SET_PDEATHSIG as 1, and wants the rest 0. A thread may end before its process does."""
    libc = LibC()
    monkeypatch.setattr(bootstrap, "_prctl", libc.prctl)
    master = Master(Birth(birth.slot, birth.stacks, os.getppid(), main, birth.forget, set()))
    master.tell_us_when_dying()
    assert libc.asked == asked
    assert master.fileno() == master.pidfd
    assert not master.gone()
    os.close(master.pidfd)


# What was printed.


class Unwell(io.StringIO):
    """A stream whose reader is gone."""

    def flush(self) -> None:
        raise BrokenPipeError


class Counting(io.StringIO):
    flushed = 0

    def flush(self) -> None:
        self.flushed += 1


def test_all_that_was_printed_and_logged_is_flushed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that cannot be costs none of the others; a process may have no output at all."""
    out, logged = Counting(), Counting()
    handler = logging.StreamHandler(logged)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", Unwell())
    assert flush_beside(within_s=HUNG) == []
    assert out.flushed == 1
    assert logged.flushed == 1
    monkeypatch.setattr(sys, "stderr", None)
    assert flush_beside(within_s=HUNG) == []
    assert logged.flushed == 2
    handler.close()


@pytest.mark.parametrize("alone", [True, False])
def test_the_last_flush_is_bounded(alone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not end is named, and what comes after it is flushed all the same: without a thread where nobody can
    hold a lock for ever, with one where a thread of the master's may."""
    after = Counting()
    forever = _thread.allocate_lock()
    forever.acquire()

    class Stuck(Counting):
        def flush(self) -> None:
            forever.acquire()

    monkeypatch.setattr(flushing, "_alone", alone)
    monkeypatch.setattr(flushing, "FLUSH_S", 2.0 if alone else 0.2)  # half of it is left for what comes after
    monkeypatch.setattr(flushing, "_all", lambda: [("stuck", Stuck()), ("after", after)])
    left = flushing.flush_last()
    assert left[0] == "stuck"
    assert (left, after.flushed) == ((["stuck"], 1) if alone else (["stuck", "after"], 0))
    forever.release()


def test_what_the_master_has_not_flushed_is_the_masters(monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy in the child is thrown away; what the child prints then comes, and no descriptor is left open."""
    with tempfile.TemporaryFile("w+") as out:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", io.StringIO())  # has no descriptor
        os.set_inheritable(out.fileno(), True)
        before = len(os.listdir("/proc/self/fd"))
        out.write("of the master")
        disown_output()
        assert len(os.listdir("/proc/self/fd")) == before
        assert os.get_inheritable(out.fileno())
        out.write("of the child\n")
        out.flush()
        assert os.pread(out.fileno(), 99, 0) == b"of the child\n"


def test_a_stream_that_fails_keeps_its_descriptor(tmp_path: Path) -> None:
    """Whatever flush() raises, its number leads again where it led."""

    class Fails:
        def __init__(self, file: TextIO) -> None:
            self.fileno = file.fileno

        def flush(self) -> None:
            raise BrokenPipeError

    with open(tmp_path / "out", "w") as file:
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(BrokenPipeError):
            flush_into_nothing(Fails(file), Fails(file).flush)
        assert os.path.samestat(os.fstat(file.fileno()), os.stat(tmp_path / "out"))
        assert len(os.listdir("/proc/self/fd")) == before
