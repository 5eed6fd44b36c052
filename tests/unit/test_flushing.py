"""The last flush: in which order, within which time, and what becomes of what cannot be flushed."""

import _thread
import contextlib
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from logging.handlers import BufferingHandler, MemoryHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prefork.metrics.loggers import HeldUp
from prefork.workers import flushing
from prefork.workers.flushing import (
    disown_output,
    disown_records,
    flush_beside,
    flush_here,
    flush_last,
    given_up_sentence,
    targets,
)

PYTHON: Any = SimpleNamespace()  # stands for `sys`


class Stream(io.StringIO):
    """Notes its flushes; may do something in them."""

    def __init__(self, does: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self.does = does
        self.flushed = 0

    def flush(self) -> None:
        self.flushed += 1
        self.does()


class Handler(logging.Handler):
    """Flushed with its lock held; may do something in it."""

    def __init__(self, does: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self.done: list[str] = []
        self.does = does

    def acquire(self) -> None:
        self.done.append("acquire")

    def flush(self) -> None:
        self.done.append("flush")
        self.does()

    def release(self) -> None:
        self.done.append("release")


def held_up() -> None:
    raise HeldUp


def fails() -> None:
    raise BrokenPipeError


@pytest.fixture(autouse=True)
def nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """No stream and no handler but those of the test, and no thread at the fork."""
    vars(PYTHON).update(dict.fromkeys(("stdout", "stderr", "__stdout__", "__stderr__")))
    monkeypatch.setattr(flushing, "is_alone", lambda: True)
    monkeypatch.setattr(logging, "_handlerList", [])
    monkeypatch.setattr(flushing, "_alone", True)
    monkeypatch.setattr(flushing, "sys", PYTHON)


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long a block may take, each time that one is asked for."""
    asked: list[float] = []

    @contextlib.contextmanager
    def interrupted_after(seconds: float) -> Iterator[None]:
        asked.append(seconds)
        yield

    monkeypatch.setattr(flushing, "interrupted_after", interrupted_after)
    return asked


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], float]]:
    """What was flushed in a thread beside, within which time. It all takes too long."""
    asked: list[tuple[list[str], float]] = []

    def flush(left: flushing.Targets | None = None, within_s: float = 0.5) -> list[str]:
        names = [name for name, _ in left or ()]
        asked.append((names, within_s))
        return names

    monkeypatch.setattr(flushing, "flush_beside", flush)
    return asked


def lists(*handlers: logging.Handler) -> list[Any]:
    return [lambda each=each: each for each in handlers]


# What there is to flush.


def test_all_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams, then handlers; those that take nothing now are last; what is None is none."""
    first, second, out = Handler(), Handler(), Stream()
    monkeypatch.setattr(logging, "_handlerList", [*lists(first), lambda: None, *lists(second)])
    monkeypatch.setattr(PYTHON, "stdout", out)
    assert targets() == [("stdout", out), ("the log handler Handler", first), ("the log handler Handler", second)]
    monkeypatch.setattr(flushing, "writable", lambda target: target is second)
    assert [target for _, target in targets()] == [second, out, first]


def test_a_handler_is_flushed_under_its_lock() -> None:
    """As logging.shutdown() does; a flush that raises gives it back. A stream has none."""
    handler = Handler(fails)
    with pytest.raises(BrokenPipeError):
        flushing._flush(handler)
    assert handler.done == ["acquire", "flush", "release"]
    stream = Stream()
    flushing._flush(stream)
    assert stream.flushed == 1


def test_the_sentence() -> None:
    """Names what is lost, and how long it was tried: half a second."""
    assert given_up_sentence(["stdout", "stderr"]) == (
        "could not flush stdout, stderr within 0.5 s: what that held is lost"
    )


# In a child.


@pytest.mark.parametrize(
    ("at_fork", "now", "alone"), [(True, 1, True), (False, 1, False), (True, 2, False), (False, 2, False)]
)
def test_who_is_alone(
    at_fork: bool, now: int, alone: bool, limits: list[float], beside: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there was no thread at the fork, and is none now, nobody else can hold a lock: no thread is started."""
    monkeypatch.setattr(flushing, "_alone", at_fork)
    monkeypatch.setattr(flushing, "is_alone", lambda: now == 1)
    monkeypatch.setattr(PYTHON, "stdout", out := Stream())
    assert flush_last() == ([] if alone else ["stdout"])
    assert limits == [0.25] * alone
    assert beside == [] if alone else beside == [(["stdout"], 0.5)]
    assert out.flushed == alone


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_noted_at_the_fork(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what fork(2) is about to leave behind."""
    monkeypatch.setattr(flushing, "is_alone", lambda: threads == 1)
    flushing._note_threads()
    assert flushing._alone is (threads == 1)


def test_what_raises_is_lost_and_what_hangs_is_named(
    limits: list[float], beside: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first half of the time is for all of them; what comes after one that hangs has the other, in a thread."""
    handlers = [Handler(fails), Handler(held_up), Handler(), Handler()]
    monkeypatch.setattr(logging, "_handlerList", lists(*handlers))
    monkeypatch.setattr(PYTHON, "stderr", err := Stream())
    assert flush_last() == ["the log handler Handler"] * 3
    assert err.flushed == 1
    assert limits == [0.25]
    assert beside == [(["the log handler Handler"] * 2, 0.25)]


def test_the_time_is_over_after_the_last(limits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nothing is left to be named."""

    @contextlib.contextmanager
    def too_late(seconds: float) -> Iterator[None]:
        yield
        raise HeldUp

    monkeypatch.setattr(flushing, "interrupted_after", too_late)
    monkeypatch.setattr(PYTHON, "stdout", Stream())
    assert flush_last() == []


def test_beside_where_there_is_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is done here."""

    def none_left(function: object, arguments: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", none_left)
    monkeypatch.setattr(PYTHON, "stdout", out := Stream())
    assert flush_beside() == []
    assert out.flushed == 1


def test_beside_only_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """In its order, each once."""
    monkeypatch.setattr(PYTHON, "stdout", out := Stream())
    others = [Stream(), Stream(fails), Stream()]
    assert flush_beside([("other", each) for each in others]) == []
    assert [each.flushed for each in (out, *others)] == [0, 1, 1, 1]


# In the master.


class Limits:
    """The limits of the blocks, by what each gets of the time; which passes in `writable`, half of what is left."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, takes: Callable[[Any], bool] = lambda target: True) -> None:
        self.now, self.waited, self.blocks = 100.0, list[float](), list[float]()
        self._takes = takes
        monkeypatch.setattr(flushing, "monotonic", lambda: self.now)
        monkeypatch.setattr(flushing, "writable", self.writable)

    def writable(self, target: Any, within_s: float | None = None) -> bool:
        if within_s is None:
            return True
        self.waited.append(within_s)
        self.now += 0.3
        return self._takes(target)

    @contextlib.contextmanager
    def __call__(self, seconds: float) -> Iterator[None]:
        self.blocks.append(seconds)
        yield


def test_half_a_second_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is waited for as long as there is time, and flushed in a moment when there is none."""
    handlers = [Handler(), Handler(fails), Handler()]
    monkeypatch.setattr(logging, "_handlerList", lists(*handlers))
    limits = Limits(monkeypatch)
    assert flush_here(limits) == []
    assert limits.waited == [pytest.approx(0.5), pytest.approx(0.2), 0.0]
    assert limits.blocks == [pytest.approx(0.5), pytest.approx(0.2), 0.01]
    assert all("flush" in handler.done for handler in handlers)


@pytest.mark.parametrize("discard", [True, False, None])
def test_what_nobody_takes(discard: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is named, and thrown away if that is asked for: a handler is forgotten by logging, a stream is emptied. What
    raises is thrown away too; the others stay."""
    full, raises, well = Handler(), Handler(fails), Handler()
    monkeypatch.setattr(logging, "_handlerList", listed := lists(full, raises, well))
    monkeypatch.setattr(PYTHON, "stdout", out := Stream(held_up))
    monkeypatch.setattr(PYTHON, "stderr", err := Stream(held_up))
    emptied: list[tuple[str, Any, float]] = []
    monkeypatch.setattr(flushing, "_empty", lambda *arguments: emptied.append(arguments))
    limits = Limits(monkeypatch, lambda target: target is not full)
    given_up = flush_here(limits) if discard is None else flush_here(limits, discard=discard)
    assert given_up == ["stdout", "stderr", "the log handler Handler"]
    assert full.done == []
    assert [each() for each in listed] == ([well] if discard else [full, raises, well])
    assert emptied == ([("stdout", out, 0.5), ("stderr", err, 0.5)] if discard else [])


# A stream with a text that is the master's.


@pytest.mark.parametrize("alone", [True, False])
def test_output_that_is_the_masters(alone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is discarded here, or beside, within a tenth of a second, where a thread may hold the lock; that of Python's
    stream too, which the program's may write into."""
    monkeypatch.setattr(flushing, "_alone", alone)
    into_nothing: list[Any] = []
    emptied: list[tuple[str, Any, float]] = []
    monkeypatch.setattr(flushing, "flush_into_nothing", lambda stream, flush: into_nothing.append(stream))
    monkeypatch.setattr(flushing, "_empty", lambda *arguments: emptied.append(arguments))
    monkeypatch.setattr(PYTHON, "stdout", out := Stream())
    monkeypatch.setattr(PYTHON, "__stdout__", pythons := Stream())
    monkeypatch.setattr(PYTHON, "stderr", err := Stream())
    monkeypatch.setattr(PYTHON, "__stderr__", err)
    disown_output()
    assert into_nothing == ([pythons, out, err] if alone else [])
    assert emptied == ([] if alone else [("stdout", pythons, 0.1), ("stdout", out, 0.1), ("stderr", err, 0.1)])


def test_records_that_are_the_masters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Are forgotten, whatever else the program has among its handlers."""
    holds, well, broken = MemoryHandler(10), Handler(), BufferingHandler(10)
    broken.buffer = None  # type: ignore[assignment]
    monkeypatch.setattr(logging, "_handlerList", lists(well, broken, holds))
    holds.emit(logging.makeLogRecord({"levelno": logging.INFO}))
    monkeypatch.setattr(PYTHON, "modules", {}, raising=False)
    disown_records()
    assert len(holds.buffer) == 1, "there can be none where nobody has loaded their module"
    monkeypatch.setattr(PYTHON, "modules", sys.modules)
    disown_records()
    assert holds.buffer == []


@pytest.mark.parametrize("line_buffering", [True, False])
def test_a_stream_in_which_a_thread_hangs(
    line_buffering: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is replaced by one like it, wherever the program sees it, and is never collected; the others stay."""
    with (
        open(tmp_path / "out", "w", 1 if line_buffering else -1, "latin-1", "replace") as stuck,
        open(tmp_path / "other", "w") as other,
    ):
        handler, another, third = logging.StreamHandler(stuck), logging.StreamHandler(other), Handler()
        third.stream = stuck  # type: ignore[attr-defined]  # of the program's own, whatever that means to it
        monkeypatch.setattr(logging, "_handlerList", lists(handler, another, third))
        monkeypatch.setattr(PYTHON, "stdout", stuck)
        monkeypatch.setattr(PYTHON, "__stdout__", stuck)
        monkeypatch.setattr(flushing, "flush_beside", lambda left, within_s: [name for name, _ in left])
        before = sys.getrefcount(stuck)
        flushing._empty("stdout", stuck, 0.1)
        fresh: Any = PYTHON.stdout
        assert fresh is not stuck
        assert PYTHON.__stdout__ is handler.stream is fresh
        assert (another.stream, third.stream) == (other, stuck)  # type: ignore[attr-defined]
        assert (fresh.encoding, fresh.errors) == ("latin-1", "replace")
        assert fresh.line_buffering is line_buffering
        assert sys.getrefcount(stuck) == before - 3 + 1, "two names and a handler let go of it, and one never will"
        fresh.write("é\n")
        fresh.close()
        assert (tmp_path / "out").read_bytes() == b"\xe9\n"
        os.fstat(stuck.fileno())
        handler.close()
        another.close()


def test_a_stream_in_which_nobody_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is emptied, and stays."""
    with open(tmp_path / "out", "w") as out:
        monkeypatch.setattr(PYTHON, "stdout", out)
        out.write("of the master")
        flushing._empty("stdout", out, 20.0)
        assert PYTHON.stdout is out
        out.write("of the child")
    assert (tmp_path / "out").read_text() == "of the child"


def test_a_stream_of_another_name_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the program has put one of its own in the place of Python's."""
    with open(tmp_path / "out", "w") as out, open(tmp_path / "pythons", "w") as pythons:
        monkeypatch.setattr(PYTHON, "stdout", out)
        monkeypatch.setattr(PYTHON, "__stdout__", pythons)
        flushing._renew("stdout", out)
        assert PYTHON.stdout is not out
        assert PYTHON.__stdout__ is pythons
        PYTHON.stdout.close()
