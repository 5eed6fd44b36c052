"""How a log record looks as a line: text for people, text for the journal, or JSON.

Pure. Every format keeps what a client sent from forging a line: a record begins at the left margin and nothing else
does, and control characters are written as escapes.
"""

import json
import logging
import re
from datetime import UTC, datetime
from itertools import islice
from typing import Any

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_FIELD = re.compile(r"\b(slot|gen|pid|min_children|max_children)=(\d+)")  # closed: a client may send the like
_PLACEHOLDER = re.compile(r"%\S*?[sdrf]")
_JSON = json.JSONEncoder(default=str)  # json.dumps() makes one for each call
_COLOURS = {"DEBUG": "2", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}
_PRIORITIES = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}  # sd-daemon(3)
_ORDINARY = {*vars(logging.makeLogRecord({})), "message", "asctime", "event", "fields", "prefork_process", "taskName"}

# By the template of a message: the stable name of the event ({n}: an argument), and its arguments' names as fields.
# What is not here is named by the first words of its template.
EVENTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "listening on %s": ("listening", ("address",)),
    "metrics on %s": ("metrics_listening", ("address",)),
    "command: %s": ("command", ("command",)),
    "%s": ("{0}", ()),  # a phase
    "%s: %s": ("child_{1}", ("", "state")),
    "%s: %s%s": ("child_ended", ("", "reason", "")),
    "%s: killed after %.1f s in state %s": ("child_killed", ("", "after_s", "state")),
    "%s: asked to end the service": ("drain_asked", ()),
    "%s: stacks of its threads\n%s": ("stacks", ()),
    "%s: a request has run for longer than request_timeout": ("request_timeout", ()),
    "%s: a request has run for longer than slow_request_timeout": ("slow_request", ()),
    "pool: min_children=%d max_children=%d": ("pool_resized", ("min_children", "max_children")),
    "there is no log file of prefork's own to reopen": ("nothing_to_reopen", ()),
}


def event(record: logging.LogRecord) -> tuple[str, dict[str, Any]]:
    """The stable name of what happened, and its fields."""
    fields = getattr(record, "fields", {})
    named: str | None = getattr(record, "event", None)
    if named is not None:
        return named, fields
    template, args = str(record.msg), record.args if isinstance(record.args, tuple) else ()
    if template in EVENTS and record.name.startswith("prefork."):
        name, names = EVENTS[template]
        return name.format(*args), {name: value for name, value in zip(names, args, strict=False) if name} | fields
    words = re.findall(r"[a-z]+", _PLACEHOLDER.sub(" ", template.partition("\n")[0].lower()))
    return "_".join(words[:6]) or "message", fields


def escaped(text: str) -> str:
    """Control characters, line ends apart, as escapes."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), text)


class TextFormat(logging.Formatter):
    """`2026-03-01 12:00:00.123 INFO prefork.supervisor: message`; what belongs to it is indented below it."""

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
        """The lines of the message, and of the traceback."""
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
    """For the journal, which has the time already: each line with its priority, as sd-daemon(3) says."""

    def format(self, record: logging.LogRecord) -> str:
        priority = f"<{_PRIORITIES.get(record.levelname, 6)}>"
        first, *rest = self.text(record)
        return "\n".join((f"{priority}{escaped(record.name)}: {first}", *(f"{priority}    {line}" for line in rest)))


class JsonFormat(TextFormat):
    """One object in one line. `event` is stable, `message` is for people; fields of the event stand beside them."""

    def format(self, record: logging.LogRecord) -> str:
        first, *rest = self.text(record)
        name, fields = event(record)
        found: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": name,
            "logger": record.name,
            "process": record.process,
        }
        found |= _fields(first) | fields
        found |= {name: value for name, value in vars(record).items() if name not in _ORDINARY and name not in found}
        found["message"] = "\n".join((first, *rest))
        return _JSON.encode(found)


def _fields(text: str) -> dict[str, Any]:
    return {found[1]: int(found[2]) for found in islice(_FIELD.finditer(text), 3)}  # ours come first
