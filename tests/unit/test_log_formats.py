"""A record as a line: stable names, fields, and nothing that a client sends forges a line."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import prefork
from prefork.log_formats import JournalFormat, JsonFormat, TextFormat
from prefork.metrics.log_events import LogEvent, event
from prefork.workers.access_log import Fields

ROOT = Path(prefork.__file__).parents[1]
EVIL = "x\n2026-01-01 00:00:00.000 ERROR root: forged\r\x1b[2J\x00\u2028\x85"


def record(msg: str, *args: Any, name: str = "prefork.supervisor", **extra: Any) -> logging.LogRecord:
    made = logging.LogRecord(name, logging.INFO, "file.py", 1, msg, args, None)
    vars(made).update(extra)
    return made


def test_text_begins_each_record_at_the_margin() -> None:
    """A message of several lines is indented below its first; control characters are escapes."""
    first, *rest = TextFormat().format(record("from %s", EVIL)).split("\n")
    assert first.endswith("INFO prefork.supervisor: from x")
    assert rest == ["    2026-01-01 00:00:00.000 ERROR root: forged\\r\\x1b[2J\\x00\\u2028\\x85"]


def test_json_is_one_line_with_the_fields() -> None:
    """A JSON record is one line, with the event's stable name and the fields of the child it is about."""
    said = event(LogEvent.CHILD_READY, slot=3, gen=2, pid=4711, state="ready")
    line = JsonFormat().format(record("%s: %s", "worker slot=3 gen=2 pid=4711", "ready", **said))
    assert "\n" not in line
    found = json.loads(line)
    wanted = {"event": "child_ready", "slot": 3, "gen": 2, "pid": 4711, "state": "ready", "level": "info"}
    assert found | wanted == found


def test_json_has_the_exception_apart() -> None:
    """An exception is a field with its type, its message and its traceback, of which none is in the message."""
    try:
        raise json.JSONDecodeError("no\nJSON", "x", 0)
    except ValueError as exc:
        made = record("could not finish", exc_info=(type(exc), exc, exc.__traceback__))
    found = json.loads(JsonFormat().format(made))
    assert found["message"] == "could not finish"
    assert found["exception"]["type"] == "json.decoder.JSONDecodeError"
    assert found["exception"]["message"] == "no\nJSON: line 1 column 1 (char 0)"
    assert found["exception"]["traceback"].startswith("Traceback (most recent call last):\n  File ")
    text = TextFormat().format(made)
    assert "    Traceback (most recent call last):\n" in text, "people read it below the message"


def test_json_has_details_apart() -> None:
    """What a child had to say, or its stacks, is a field; the message is its first line."""
    said = event(LogEvent.STACKS, slot=3, detail="Thread 1\n  File")
    found = json.loads(JsonFormat().format(record("%s: stacks\n%s", "worker", "Thread 1\n  File", **said)))
    assert (found["message"], found["detail"], found["event"]) == ("worker: stacks", "Thread 1\n  File", "stacks")


@pytest.mark.parametrize("msg", ["listening on %s", "worker slot=9: x %s", "%s"])
def test_an_event_is_never_guessed(msg: str) -> None:
    """A record of the program's own is a message, whatever its words are, and takes no field from them."""
    found = json.loads(JsonFormat().format(record(msg, "slot=7", name="shop", fields="mine")))
    assert (found["event"], found["fields"]) == ("message", "mine")
    assert "slot" not in found


def test_the_process_says_its_slot() -> None:
    """A record of a worker has the fields of that worker."""
    found = json.loads(JsonFormat().format(record("paid", prefork_process="worker slot=3 gen=2 pid=4711")))
    assert (found["slot"], found["gen"], found["pid"]) == (3, 2, 4711)
    assert found["message"] == "worker slot=3 gen=2 pid=4711: paid"


def test_json_keeps_a_users_extra() -> None:
    """What a program gives as `extra` stands beside the fields, and cannot replace ours."""
    given = {"customer": "c1", "level": "forged", "event": "paid"}
    found = json.loads(JsonFormat().format(record("paid %d", 5, name="shop", **given)))
    assert (found["customer"], found["event"], found["level"]) == ("c1", "paid", "info")


def test_the_journal_has_priorities() -> None:
    """For the journal each line begins with its priority and has no time."""
    assert JournalFormat().format(record("a\nb")) == "<6>prefork.supervisor: a\n<6>    b"


def test_colour_is_of_the_level_only() -> None:
    """On a terminal the level is coloured, the message is not."""
    made = record("hello")
    made.levelname = "ERROR"
    assert "\x1b[31mERROR\x1b[0m prefork.supervisor: hello" in TextFormat(colour=True).format(made)


@pytest.mark.parametrize("format", [TextFormat(), JournalFormat(), JsonFormat()])
@given(text=st.text(alphabet=st.characters()))
def test_no_client_forges_a_line(format: logging.Formatter, text: str) -> None:
    """Whatever is in an argument, every line after the first is marked as a continuation, and none has a control
    character."""
    _, *rest = format.format(record("%s", text, name="user")).split("\n")
    assert all(line.startswith(("    ", "<6>    ")) for line in rest)
    shown = format.format(record("%s", text)).replace("\n", "").replace("\t", "")
    assert not any(c < " " or "\x7f" <= c < "\xa0" for c in shown)


@given(text=st.text(alphabet=st.characters()))
def test_access_fields_are_quoted(text: str) -> None:
    """A field with anything that could be mistaken is quoted, in one line of printable characters."""
    shown = str(Fields({"peer": text, "slot": None}))
    assert shown.isprintable()
    assert shown.endswith(" slot=-")
    value = shown.removeprefix("peer=").removesuffix(" slot=-")
    assert value.startswith('"') == value.endswith('"') or value == '"'
    assert value.startswith('"') or not set(value) & set(' "=\\')
