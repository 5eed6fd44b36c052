"""Frames of the control socket: one JSON object per line. Pure.

    {"verb": "scale", "workers": 8}                 a request
    {"verb": "restart", "companion": "indexer"}     another, with a name instead of a number
    {"progress": "3 of 8 workers replaced"}         progress of a long one, any number of times
    {"ok": true, "result": {…}}                     the last line of an answer,
    {"ok": false, "error": "could not …"}           or this one

Owns the rules of a well-formed frame and the limit of its length. The arguments of the verbs are in commands.py; any
other request gets an error of one sentence. Must not read or write a socket. Runs in the master and in its clients.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..commands import BY_VERB, Argument, Row

FRAME_MAX = 64 * 1024  # bytes, including the line end
NAME_MAX = 63  # characters


class BadRequest(ValueError):
    """The input is not a request. The sentence is for the sender; `row` is the verb, if that was understood."""

    def __init__(self, sentence: str, row: Row | None = None) -> None:
        super().__init__(sentence)
        self.row = row


class Request(NamedTuple):
    """A request, completely checked."""

    row: Row
    argument: int | str | None = None


def split(buffer: bytes, *, ended: bool = False) -> tuple[bytes | None, bytes]:
    """Return the first line, without its line end, and the rest. The line is None while it is incomplete.

    With `ended`, nothing will follow and the buffer counts as a line. Raises BadRequest if the line is too long.
    """
    line, end, rest = buffer.partition(b"\n")
    if len(line) + 1 > FRAME_MAX:
        raise BadRequest(f"could not read the request: it is longer than {FRAME_MAX} bytes")
    if end or (ended and line):
        return line, rest
    return None, buffer


def read(line: bytes) -> Request:
    """Parse a request. Raises BadRequest."""
    values = _object(line)
    verb = values.pop("verb", None)
    row = BY_VERB.get(verb) if isinstance(verb, str) else None
    if row is None:
        raise BadRequest(f"could not read the request: it has no verb that is known ({', '.join(BY_VERB)})")
    return Request(row, _argument(row, values))


def _object(line: bytes) -> dict[str, Any]:
    try:
        values = json.loads(line.decode())
    except (ValueError, RecursionError):
        raise BadRequest("could not read the request: it is not JSON") from None
    if not isinstance(values, dict):
        raise BadRequest("could not read the request: it is not a JSON object")
    return values


def _argument(row: Row, values: dict[str, Any]) -> int | str | None:
    wanted = row.argument
    by_name = wanted is not None and wanted.or_name != "" and wanted.or_name in values
    value = None if wanted is None else values.pop(wanted.or_name if by_name else wanted.name, None)
    if values:
        takes = "it takes nothing" if wanted is None else f"it takes {' or '.join(filter(None, _keys(wanted)))}"
        raise BadRequest(f"could not {row.verb}: {ascii(min(values))[:80]} means nothing here; {takes}", row)
    if wanted is None:
        return None
    return named(row, wanted, value) if by_name else checked(row, wanted, value)


def _keys(wanted: Argument) -> tuple[str, str]:
    return wanted.name, wanted.or_name


def named(row: Row, wanted: Argument, value: object) -> str:
    """Return the argument of a verb that is given a name instead of a number. Raises BadRequest."""
    if isinstance(value, str) and 0 < len(value) <= NAME_MAX:
        return value
    raise BadRequest(f"could not {row.verb}: {wanted.or_name} must be a name", row)


def checked(row: Row, wanted: Argument, value: object) -> int | str | None:
    """Return the argument of a verb if it is valid. Raises BadRequest."""
    if value is None and wanted.optional:
        return None
    if wanted.choices:
        if isinstance(value, str) and value in wanted.choices:
            return value
        raise BadRequest(f"could not {row.verb}: {wanted.name} must be one of {', '.join(wanted.choices)}", row)
    if isinstance(value, int) and not isinstance(value, bool) and wanted.at_least <= value <= wanted.at_most:
        return value
    raise BadRequest(
        f"could not {row.verb}: {wanted.name} must be a whole number from {wanted.at_least} to {wanted.at_most}", row
    )


def ask(row: Row, argument: int | str | None) -> bytes:
    """Return the line that makes a request."""
    values: dict[str, Any] = {"verb": row.verb}
    if row.argument is not None and argument is not None:
        values[_keys(row.argument)[isinstance(argument, str) and row.argument.or_name != ""]] = argument
    return line(values)


def line(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, separators=(",", ":")).encode() + b"\n"


def result(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"ok": True, "result": values}


def error(sentence: str) -> dict[str, Any]:
    return {"ok": False, "error": sentence}


def progress(sentence: str) -> dict[str, Any]:
    return {"progress": sentence}
