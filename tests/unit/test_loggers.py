"""Our loggers: what handlers of the program's do is nothing to who logs, nor to the other handlers."""

import contextlib
import logging
import logging.config
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prefork.metrics import loggers
from prefork.metrics.loggers import HeldUp, ServiceLogger, impatient, known_levels
from prefork.workers.flushing import flush_beside, flush_here
from tests.unit.test_house import MODULES

LEFT_OUT_S = 60.0


class Handler(logging.Handler):
    """Notes what it gets; may do something first."""

    def __init__(self, first: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self.got: list[str] = []
        self.first = first

    def emit(self, record: logging.LogRecord) -> None:
        self.first()
        self.got.append(record.getMessage())

    def flush(self) -> None:
        self.first()


def raise_it() -> None:
    raise ValueError("no")


def hold_up() -> None:
    raise HeldUp


@contextlib.contextmanager
def limit(seconds: float) -> Iterator[None]:
    """A limit that handlers of this test exceed by themselves."""
    yield


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> ServiceLogger:
    """One of its own, in which nothing has failed yet; time passes when a test says so."""
    log = ServiceLogger("prefork.test", logging.DEBUG)
    monkeypatch.setattr(loggers, "_told", {})
    return log


def add(log: logging.Logger, *handlers: Handler) -> None:
    for handler in handlers:
        log.addHandler(handler)


def test_every_logger_of_ours_is_one() -> None:
    """Whatever module names it."""
    named = {
        name for path in MODULES.values() for name in re.findall(r'getLogger\("(prefork\.[^"]+)"\)', path.read_text())
    }
    assert named == set(loggers.NAMES)
    assert {type(logging.getLogger(name)) for name in named} == {ServiceLogger}


def test_it_is_disabled_on_purpose_only(log: ServiceLogger) -> None:
    """By the program, not by logging.config, which disables every logger that is not named."""
    exec("log.disabled = True", {"__name__": logging.config.__name__, "log": log})
    assert not log.disabled
    log.disabled = True
    assert log.disabled


def test_the_levels_that_it_knows() -> None:
    """Those that were asked for, until any is set anew; another logger than ours tells none."""
    log = logging.getLogger("prefork.supervisor")
    levels, before = known_levels(log), log.level
    try:
        for level in (logging.INFO, logging.DEBUG):
            log.setLevel(level)
            assert levels == {}
            assert log.isEnabledFor(logging.DEBUG) is (level == logging.DEBUG)
            assert levels == {logging.DEBUG: level == logging.DEBUG}
    finally:
        log.setLevel(before)
    assert known_levels(logging.Logger("another")) == {}


def test_a_handler_that_raises_is_nothing_to_the_others(log: ServiceLogger) -> None:
    """They get the message, and are told of it, once in ten seconds."""
    add(log, one := Handler(), Handler(raise_it), two := Handler())
    log.info("first")
    log.info("second")
    assert "could not log by the handler Handler of the program's: ValueError('no')" in one.got
    assert sorted(one.got) == sorted(two.got)
    assert [text for text in one.got if "could not" not in text] == ["first", "second"]
    assert len(one.got) == 3


def test_a_filter_that_raises(log: ServiceLogger) -> None:
    """It is told of."""
    add(log, handler := Handler())
    log.addFilter(lambda record: bool(1 / 0))
    log.info("first")
    assert handler.got == [
        "could not log by a filter or record factory of the program's: ZeroDivisionError('division by zero')"
    ]


def test_the_caller_is_who_logs(log: ServiceLogger) -> None:
    """A record says where the message was logged."""
    add(log, handler := Handler())
    handler.addFilter(lambda record: record.filename == Path(__file__).name)
    log.info("here")
    assert handler.got == ["here"]


def test_an_end_of_the_process_passes(log: ServiceLogger) -> None:
    """SystemExit, as a signal handler of the program's raises it anywhere."""
    add(log, Handler(sys.exit))
    with pytest.raises(SystemExit):
        log.info("first")


def test_a_handler_that_takes_too_long_is_left_out(log: ServiceLogger, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a minute; then it is told how many messages it has missed. The others miss none."""
    now = 1000.0
    monkeypatch.setattr(loggers, "monotonic", lambda: now)
    slow, other = Handler(hold_up), Handler()
    add(log, slow, other)
    with impatient(limit):
        for number in range(4):
            log.info("%d", number)
        slow.first = lambda: None
        now += LEFT_OUT_S
        log.info("4")
    assert slow.got == ["3 log messages were dropped", "4"]
    assert [text for text in other.got if len(text) == 1] == ["0", "1", "2", "3", "4"]
    assert any("took 0.5 s, and is left out for 60 s" in text for text in other.got)


def test_a_pipe_that_is_full_is_not_waited_for(log: ServiceLogger) -> None:
    """Its handler misses messages until somebody reads, and is told how many."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write, bytes(4096))
    os.set_blocking(write, True)
    with os.fdopen(write, "w") as stream, os.fdopen(read, "rb", buffering=0) as reader, impatient(limit):
        log.addHandler(logging.StreamHandler(stream))
        log.info("first")
        log.info("second")
        while len(reader.read(1 << 20)) == 1 << 20:
            pass
        log.info("third")
        assert reader.read(1 << 10) == b"2 log messages were dropped\nthird\n"
    log.handlers.clear()


def test_what_cannot_be_flushed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this thread or beside it: what raises is lost, what takes too long is named."""
    monkeypatch.setattr(
        logging, "_handlerList", [lambda each=each: each for each in (Handler(raise_it), Handler(hold_up))]
    )
    monkeypatch.setattr(sys, "stdout", object())
    monkeypatch.setattr(sys, "stderr", None)
    assert flush_here(limit) == ["the log handler Handler"]
    assert flush_beside() == []
