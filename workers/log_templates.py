"""Records of one kind, written by a template: the line that logging would have made, for a fifth of its price.

Runs in a worker. Formats nothing itself: once a second the formatter of the log's own handler makes a line of a sample,
in which marks stand for what varies; what it makes of the time, the process and the rest is taken from there. Must not
write where logging would do anything else: another handler, a filter, a level, another formatter or another class of
records, which is asked before each record; and methods of logging in whose place the program has put others, which is
asked once a second.
"""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from logging import INFO, LogRecord, getLogRecordFactory
from operator import itemgetter
from time import time_ns
from types import FunctionType
from typing import Any, NamedTuple

from prefork.metrics.loggers import ServiceLogger

from . import sinks
from .sinks import SinkHandler

_MARKS = 7_305_914_682_000  # and the numbers after it, which nothing else in a line is
_MARK = re.compile(r"73059146820\d\d")
_SECOND_NS = 1_000_000_000
_MILLISECONDS = (123, 987)  # of the two samples that show where they stand: they differ in each digit

# Make a record: of what the message shows, by name, and of the fields that stand beside it in JSON.
Sample = Callable[[dict[str, Any], dict[str, Any]], logging.LogRecord]
JsonText = Callable[[str], str]


class _Made(NamedTuple):
    """A template, and what it was made of: the second, by when it began, and what this process is called."""

    template: str | None = None  # None: logging has to do it
    order: Callable[[Sequence[Any]], Any] = tuple  # in which the values stand
    json_text: JsonText | None = None  # None: the lines are no JSON
    second_ns: int = -_SECOND_NS
    prefix: str = ""


class LogTemplate:
    """The records of one logger that `sample` makes, in which the values of `names` vary.

    The first value may be any text, the others none that needs quotes. `text` returns how the message shows it.
    """

    def __init__(self, log: logging.Logger, names: Sequence[str], sample: Sample, text: Callable[[str], str]) -> None:
        self._log = log
        self._names = names
        self._sample = sample
        self._text = text
        self._handler = sinks.installed()
        self._made = _Made()

    def write(self, values: Sequence[Any]) -> bool:
        """Write a record with these values, one for each name. Return False if logging has to do it."""
        handler = self._handler
        if handler is None or not self._is_alone(handler):
            return False
        now_ns = time_ns()
        template, order, json_text, second_ns, prefix = self._made
        if not 0 <= now_ns - second_ns < _SECOND_NS or prefix is not handler.prefix:
            template, order, json_text, second_ns, _ = self._made = self._make(handler, now_ns // _SECOND_NS)
        if template is None:
            return False
        first = values[0]
        texts = values if None not in values else ["-" if value is None else value for value in values]
        shown, millisecond = "-" if first is None else self._text(first), (now_ns - second_ns) // 1_000_000
        if json_text is None:
            line = template % order((millisecond, shown, *texts[1:]))
        else:
            literals = values if texts is values else ["null" if value is None else value for value in values]
            literal = "null" if first is None else json_text(first)
            line = template % order((millisecond, json_text(shown)[1:-1], *texts[1:], literal, *literals[1:]))
        handler.put(line)
        return True

    def _is_alone(self, handler: SinkHandler) -> bool:
        """Return whether nothing but the handler of `prefork run`, as it was set up, would see or change a record."""
        at = self._log
        if (
            handler.formatter is not handler.own_formatter or handler.filters or handler.level > INFO
            or at.filters or getLogRecordFactory() is not LogRecord or not at.isEnabledFor(INFO)
        ):  # fmt: skip
            return False
        while (above := at.parent) is not None:
            if at.handlers or not at.propagate:
                return False
            at = above
        return at.handlers == [handler]

    def _make(self, handler: SinkHandler, second: int) -> _Made:
        line = _with_time(*self._sample_lines(handler, second))
        if line is None:
            return _Made(None, tuple, None, second * _SECOND_NS, handler.prefix)
        order = [int(mark) - _MARKS for mark in _MARK.findall(line)]
        template = _MARK.sub(lambda mark: "%03d" if mark[0] == str(_MARKS) else "%s", line.replace("%", "%%"))
        json_text: JsonText | None = None
        if max(order) > len(self._names):
            from json.encoder import encode_basestring_ascii as json_text
        in_order = order == list(range(1 + len(self._names)))
        return _Made(
            template, tuple if in_order else itemgetter(*order), json_text, second * _SECOND_NS, handler.prefix
        )

    def _sample_lines(self, handler: SinkHandler, second: int) -> Iterator[str]:
        """Yield a line for each of _MILLISECONDS; none where a method of logging is not what it was."""
        if not (all(map(_is_standard, _standard_steps())) and _steps_of_ours() == _OURS):
            return
        shown, fields = (
            {name: _MARKS + at for at, name in enumerate(self._names, start)} for start in (1, 1 + len(self._names))
        )
        for millisecond in _MILLISECONDS:
            record = self._sample(shown, fields)
            record.created, record.msecs = second + millisecond / 1000, float(millisecond)
            record.prefork_process = handler.prefix
            try:
                yield handler.format(record)
            except Exception:  # by something of the program's, as Formatter.converter: logging tells of it
                return


def _with_time(first: str = "", second: str = "") -> str | None:
    """Return a line with a mark for the milliseconds, of two that differ in nothing else; None if they do otherwise."""
    at = next((index for index, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)
    if at is None:
        return first if first and first == second else None
    before, after = first[:at], first[at + 3 :]
    as_expected = [f"{before}{each}{after}" for each in _MILLISECONDS] == [first, second]
    return f"{before}{_MARKS}{after}" if as_expected else None


def _standard_steps() -> list[Any]:
    """Return the methods of logging's by which a record goes its way. Programs replace some, to see every record."""
    of_loggers = [getattr(logging.Logger, name) for name in ("info", "_log", "makeRecord", "handle", "callHandlers")]
    return [*of_loggers, logging.Handler.handle, logging.Handler.format, logging.LogRecord.__init__]


def _steps_of_ours() -> list[Any]:
    return [ServiceLogger._log, ServiceLogger.callHandlers, SinkHandler.emit, SinkHandler.write]


_OURS = _steps_of_ours()


def _is_standard(step: Any) -> bool:
    """Return whether a method is the standard library's own, whatever it says of itself (functools.wraps)."""
    return type(step) is FunctionType and step.__code__.co_filename == logging.addLevelName.__code__.co_filename
