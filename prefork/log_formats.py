"""Format log records: as text for people, as text for the journal, or as JSON.

Pure; runs in every process that logs. No format lets data from a client forge a record: only a record begins at the
left margin, and control characters are escaped.
"""

import logging
import re
from time import gmtime, strftime
from typing import Any

from prefork.metrics.log_events import LogEvent

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_FIELD = re.compile(r"\b(slot|gen|pid)=(\d+)")  # in the name of a process
_COLOURS = {"DEBUG": "2", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}
_PRIORITIES = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}  # sd-daemon(3)
_ORDINARY = {*vars(logging.makeLogRecord({})), "message", "asctime", "event", "prefork_process", "taskName"}


def escaped(text: str) -> str:
    """Return the text with control characters escaped, except line ends."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), text)


class TextFormat(logging.Formatter):
    """`2026-03-01 12:00:00.123 INFO prefork.supervisor: message`; further lines of a record are indented."""

    default_msec_format = "%s.%03d"

    def __init__(self, *, colour: bool = False) -> None:
        super().__init__()
        self.colour = colour

    def format(self, record: logging.LogRecord) -> str:
        level = record.levelname
        if self.colour and level in _COLOURS:
            level = f"\x1b[{_COLOURS[level]}m{level}\x1b[0m"
        first, *rest = self.text(record)
        head = f"{self.formatTime(record)} {level} {escaped(record.name)}: {first}"
        return "\n    ".join((head, *rest))

    def text(self, record: logging.LogRecord) -> list[str]:
        """Return the lines of the message and of the traceback."""
        text = record.getMessage()
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        parts = [text, record.exc_text, self.formatStack(record.stack_info) if record.stack_info else None]
        lines = escaped("\n".join(part for part in parts if part)).split("\n")
        process = getattr(record, "prefork_process", "")
        if process:
            lines[0] = f"{process}: {lines[0]}"
        return lines


class JournalFormat(TextFormat):
    """Text for the journal, which adds the time itself. Each line has its priority; see sd-daemon(3)."""

    def format(self, record: logging.LogRecord) -> str:
        priority = f"<{_PRIORITIES.get(record.levelname, 6)}>"
        first, *rest = self.text(record)
        return "\n".join((f"{priority}{escaped(record.name)}: {first}", *(f"{priority}    {line}" for line in rest)))


class JsonFormat(TextFormat):
    """One JSON object per line.

    `event` is a name of log_events.py, which never changes; `message` is for people. The event's fields, and the
    program's own `extra`, are further keys.
    """

    def __init__(self) -> None:
        super().__init__()
        import json

        self._encode = json.JSONEncoder(default=str).encode  # json.dumps() creates one per call

    def format(self, record: logging.LogRecord) -> str:
        process = getattr(record, "prefork_process", "")
        found: dict[str, Any] = {
            "time": _utc(record.created),
            "level": record.levelname.lower(),
            "event": _event(record),
            "logger": record.name,
            "process": record.process,
        }
        found |= {name: int(value) for name, value in _FIELD.findall(process)}
        given = dict(vars(record))
        if _is_ours(record):
            found |= given.pop("fields")
        found |= {name: value for name, value in given.items() if name not in _ORDINARY and name not in found}
        if record.exc_info and record.exc_info[1] is not None:
            found["exception"] = self._exception(record.exc_info[1])
        found["message"] = self._message(record, process, found)
        return self._encode(found)

    def _message(self, record: logging.LogRecord, process: str, found: dict[str, Any]) -> str:
        text = record.getMessage()
        if "detail" in found and _is_ours(record):
            text = text.partition("\n")[0]  # the rest is in `detail`
        if record.stack_info:
            text += "\n" + self.formatStack(record.stack_info)
        return escaped(f"{process}: {text}" if process else text)

    def _exception(self, exc: BaseException) -> dict[str, str]:
        kind = type(exc)
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        text = self.formatException((kind, exc, exc.__traceback__))
        return {"type": name, "message": escaped(str(exc)), "traceback": escaped(text)}


def _utc(seconds: float) -> str:
    """Return a time as RFC 3339 has it. (The module `datetime` is a fortieth of all that prefork loads.)"""
    whole, thousandths = divmod(round(seconds * 1e6) // 1000, 1000)
    return f"{strftime('%Y-%m-%dT%H:%M:%S', gmtime(whole))}.{thousandths:03d}+00:00"


def _event(record: logging.LogRecord) -> str:
    """Return the name of the event. A program's own record may give one as `extra`."""
    named = getattr(record, "event", LogEvent.MESSAGE)
    return named.label if isinstance(named, LogEvent) else str(named)


def _is_ours(record: logging.LogRecord) -> bool:
    return isinstance(getattr(record, "event", None), LogEvent)
