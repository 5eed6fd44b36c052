"""Lines written by a template: those that logging would have written, and none where logging would do anything else."""

import contextlib
import functools
import json
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefork.log_formats import JournalFormat, JsonFormat, TextFormat
from prefork.metrics.log_events import LogEvent, event
from prefork.workers import access_log, log_templates, sinks
from prefork.workers.access_log import MESSAGE, AccessLog, Fields, LogContext
from prefork.workers.sinks import Sink, SinkHandler

from .test_log_handing import close

PROCESS = "worker slot=3 gen=2 pid=4711"
AT = 1_700_000_000_000_000_000
VALUES = ("127.0.0.1:50000", "ok", 0.32, 6, 6, 0)
FORMATS = [TextFormat(), TextFormat(colour=True), JournalFormat(), JsonFormat()]


@pytest.fixture
def handler(tmp_path: Path) -> Iterator[SinkHandler]:
    """The handler of `prefork run`, the only one of the root logger: one of its own, for pytest has handlers there."""
    root, log, sink = logging.Logger("root"), access_log.log, Sink(str(tmp_path / "log"))
    parent, level = log.parent, log.level
    handler = SinkHandler(sink)
    handler.setFormatter(TextFormat())
    root.handlers[:] = [handler]
    log.parent = root
    sinks.install(handler)
    sinks.name_child(PROCESS)
    try:
        yield handler
    finally:
        sinks.install(None)
        log.parent = parent
        log.setLevel(level)
        close(sink)


def access(listener: str = "127.0.0.1:9871", keeps: bool = False) -> AccessLog:
    return AccessLog(LogContext(listener, 3, str, keeps))


def written(handler: SinkHandler) -> list[str]:
    assert handler.sink.path is not None
    return Path(handler.sink.path).read_bytes().decode().splitlines()


def by_logging(handler: SinkHandler, log: AccessLog, values: tuple[Any, ...], at_ns: int) -> str:
    """The line that logging makes of a record with these values."""
    fields = log._fields(dict(zip(log.varying, values, strict=True)))
    record = logging.LogRecord(log_name(), logging.INFO, __file__, 0, MESSAGE, (Fields(fields),), None)
    vars(record).update(event(LogEvent.REQUEST, **fields), prefork_process=handler.prefix)
    record.created, record.msecs = at_ns / 1e9, at_ns // 1_000_000 % 1000 + 0.0
    return handler.format(record)


def log_name() -> str:
    return access_log.log.name


def with_format(handler: SinkHandler, format: logging.Formatter) -> None:
    handler.setFormatter(format)
    sinks.install(handler)


TEXT = st.text(alphabet=st.characters()) | st.sampled_from(["%s", "{0}", "%(x)s", "7305914682001", "x\n2026-", "a\\"])
NUMBER = st.none() | st.integers(0, 1 << 60)


@pytest.mark.parametrize("format", FORMATS, ids=["text", "colour", "journal", "json"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.tuples(
        st.none() | TEXT, st.sampled_from(["ok", "error", "handed_over"]),
        st.integers(0, 1 << 50).map(lambda us: us / 1000), NUMBER, NUMBER, NUMBER,
    ),
    at_ms=st.integers(0, 4_000_000_000_000),
    listener=st.sampled_from(["127.0.0.1:9871", "/run/100%/x.987", 'a "b"', "é\u2028", "%(time)03d"]),
    number=st.just(()) | st.tuples(NUMBER),  # where connections are kept
)  # fmt: skip
def test_the_line_is_loggings(
    handler: SinkHandler, format: logging.Formatter, values: tuple[Any, ...], at_ms: int, listener: str,
    number: tuple[int | None, ...],
) -> None:  # fmt: skip
    """Whatever the values are, at whatever time, in every format: to the byte."""
    with_format(handler, format)
    log, values = access(listener, keeps=bool(number)), values + number
    lines: list[str] = []
    at_ns = at_ms * 1_000_000 + 500_000  # in the middle of it: the formats round a float of seconds
    with (
        mock.patch.object(log_templates, "time_ns", return_value=at_ns),
        mock.patch.object(handler, "put", lines.append),
    ):
        assert log._template.write(values)
    assert lines == [by_logging(handler, log, values, at_ns)]
    if isinstance(format, JsonFormat):
        assert json.loads(lines[0])["peer"] == values[0]


def test_it_is_written_at_once(handler: SinkHandler) -> None:
    """A record stands in the file when the request ends."""
    log = access()
    for count in range(1, 4):
        assert log._template.write(VALUES)
        assert len(written(handler)) == count


def test_time_goes_on(handler: SinkHandler, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line has its own time, also in another second, and the clock may go back."""
    log, times = access(), [AT, AT + 999_000_000, AT + 1_000_000_000, AT - 500_000_000]
    for at in times:
        monkeypatch.setattr(log_templates, "time_ns", lambda at=at: at)
        assert log._template.write(VALUES)
    assert written(handler) == [by_logging(handler, log, VALUES, at) for at in times]


def test_what_the_formatter_makes_of_time_is_its_own(handler: SinkHandler, monkeypatch: pytest.MonkeyPatch) -> None:
    """`logging.Formatter.converter` and its like, which programs set for all formatters, are in force."""
    log = access()
    monkeypatch.setattr(logging.Formatter, "converter", lambda self, seconds: (1999, 12, 31, 23, 59, 58, 4, 365, 0))
    assert log._template.write(VALUES)
    assert written(handler)[0].startswith("1999-12-31 23:59:58.")


def test_a_converter_that_raises(handler: SinkHandler, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logging tells of it, and the request hears nothing."""
    monkeypatch.setattr(logging.Formatter, "converter", lambda self, seconds: 1 / 0)
    assert not access()._template.write(VALUES)


def test_a_process_that_is_named_anew(handler: SinkHandler) -> None:
    """The line says which process it is of."""
    log = access()
    assert log._template.write(VALUES)
    sinks.name_child("worker slot=4 gen=2 pid=4712")
    assert log._template.write(VALUES)
    assert [line.partition(": worker ")[2][:6] for line in written(handler)] == ["slot=3", "slot=4"]


class Plain(logging.Formatter):
    """A formatter of the program's, whose lines are no template: it shows a time of its own."""

    count = 0

    def format(self, record: logging.LogRecord) -> str:
        self.count += 1
        return f"{self.count}" * self.count


def _replaced(name: str) -> Any:
    standard = vars(logging.Logger)[name]

    @functools.wraps(standard)
    def replaced(*args: Any, **kwargs: Any) -> Any:
        return standard(*args, **kwargs)

    return mock.patch.object(logging.Logger, name, replaced)


def _attribute(of: str, name: str, value: Any) -> Any:
    found = {"log": access_log.log, "root": access_log.log.parent, "handler": sinks.installed()}[of]
    return mock.patch.object(found, name, value)


@contextlib.contextmanager
def _disabled() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def _between() -> logging.Logger:
    between = logging.Logger("prefork")
    between.parent = access_log.log.parent
    between.addHandler(logging.NullHandler())
    return between


CHANGES: dict[str, Any] = {
    "a filter of the logger": lambda: _attribute("log", "filters", [lambda record: True]),
    "a handler of the logger": lambda: _attribute("log", "handlers", [logging.NullHandler()]),
    "its records stay": lambda: _attribute("log", "propagate", False),
    "its level": lambda: _attribute("log", "level", logging.WARNING),
    "another handler": lambda: _attribute("root", "handlers", [sinks.installed(), logging.NullHandler()]),
    "no handler": lambda: _attribute("root", "handlers", []),
    "a filter of the handler": lambda: _attribute("handler", "filters", [lambda record: True]),
    "the handler's level": lambda: _attribute("handler", "level", logging.WARNING),
    "another formatter": lambda: _attribute("handler", "formatter", logging.Formatter("%(asctime)s %(message)s")),
    "a factory of records": lambda: mock.patch.object(logging, "_logRecordFactory"),
    "nothing is logged": lambda: _disabled(),
    "disabled": lambda: _attribute("log", "_disabled", True),
    "a handler between": lambda: mock.patch.object(access_log.log, "parent", _between()),
    **{f"its own {name}()": functools.partial(_replaced, name)
       for name in ("info", "_log", "makeRecord", "handle", "callHandlers")},
    "its own Handler.handle()": lambda: mock.patch.object(logging.Handler, "handle"),
    "its own emit()": lambda: mock.patch.object(SinkHandler, "emit"),
}  # fmt: skip


def test_the_handlers_own_level(handler: SinkHandler) -> None:
    """One that lets records of requests pass is in nobody's way."""
    handler.setLevel(logging.INFO)
    assert access()._template.write(VALUES)


def test_two_lines_that_are_a_template() -> None:
    """They differ in the milliseconds alone, or not at all; and there are two."""
    assert log_templates._with_time("a.123 b", "a.987 b") == f"a.{log_templates._MARKS} b"
    assert log_templates._with_time("a", "a") == "a"
    for lines in (("a", "ab"), ("ab", "a"), ("a.123 b", "a.987 c"), ("a.124 b", "a.987 b"), ("a",), ()):
        assert log_templates._with_time(*lines) is None


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_what_the_program_changes(handler: SinkHandler, change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As soon as anything else would see or change a record, logging does it; the template again when that is over."""
    log, seconds = access(), iter(range(10))
    monkeypatch.setattr(log_templates, "time_ns", lambda: AT + next(seconds) * 1_000_000_000)
    logging.getLogger().manager._clear_cache()  # type: ignore[attr-defined]
    assert log._template.write(VALUES)
    with change():
        logging.getLogger().manager._clear_cache()  # type: ignore[attr-defined]
        assert not log._template.write(VALUES)
    logging.getLogger().manager._clear_cache()  # type: ignore[attr-defined]
    assert log._template.write(VALUES)


def test_a_program_that_sets_up_its_own_logging(handler: SinkHandler) -> None:
    """Without the handler of `prefork run`, logging does it."""
    sinks.install(None)
    assert not access()._template.write(VALUES)


def test_a_formatter_whose_lines_are_no_template(handler: SinkHandler) -> None:
    """What differs in more than the time cannot be taken apart."""
    with_format(handler, Plain())
    assert not access()._template.write(VALUES)


def test_a_line_that_nobody_takes_is_counted(handler: SinkHandler) -> None:
    """It is dropped as logging would drop it: counted, and the master told."""
    counted: list[int] = []
    handler.count_with(counted.append)
    with mock.patch.object(handler.sink, "write", return_value=False):
        assert access()._template.write(VALUES)
    assert counted == [1]


def test_a_reader_that_is_gone(tmp_path: Path) -> None:
    """A broken pipe costs the line, not the process, also where SIGPIPE has its default action."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    sink, counted = Sink(str(path)), list[int]()
    handler = SinkHandler(sink)
    handler.count_with(counted.append)
    os.close(reader)
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        handler.put("line")
    finally:
        signal.signal(signal.SIGPIPE, before)
        close(sink)
    assert counted == [1]
