"""Frames of the control socket: one JSON object a line. Pure.

    {"verb": "scale", "workers": 8}                 a request
    {"progress": "3 of 8 workers replaced"}         what a long one says meanwhile, any number of them
    {"ok": true, "result": {…}}                     the last line of an answer,
    {"ok": false, "error": "could not …"}           or this one

Owns what is well formed, and the most that is read before a line ends. What a verb takes stands in commands.py; whoever
sends anything else is told in one sentence. Used by the master and by its clients.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..commands import BY_VERB, Argument, Row

FRAME_MAX = 64 * 1024  # bytes, with the line's end


class BadRequest(ValueError):
    """What came is no request; the sentence is for whoever sent it. `row`: the verb, where that much was understood."""

    def __init__(self, sentence: str, row: Row | None = None) -> None:
        super().__init__(sentence)
        self.row = row


@dataclass(frozen=True, slots=True)
class Request:
    """A request whose every part has been checked."""

    row: Row
    argument: int | str | None = None


def split(buffer: bytes, *, ended: bool = False) -> tuple[bytes | None, bytes]:
    """The first line of what was read, without its end, and the rest; None while it is not whole.

    `ended`: nothing will follow, so what there is counts as a line. Raises BadRequest when a line is too long.
    """
    line, end, rest = buffer.partition(b"\n")
    if len(line) + 1 > FRAME_MAX:
        raise BadRequest(f"could not read the request: it is longer than {FRAME_MAX} bytes")
    if end or (ended and line):
        return line, rest
    return None, buffer


def read(line: bytes) -> Request:
    """What a client asks for. Raises BadRequest."""
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
    value = values.pop(wanted.name, None) if wanted is not None else None
    if values:
        takes = f"it takes {wanted.name}" if wanted is not None else "it takes nothing"
        raise BadRequest(f"could not {row.verb}: {ascii(min(values))[:80]} means nothing here; {takes}", row)
    return None if wanted is None else checked(row, wanted, value)


def checked(row: Row, wanted: Argument, value: object) -> int | str | None:
    """The argument of a verb, if it is one. Raises BadRequest."""
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
    """The line of a request."""
    values: dict[str, Any] = {"verb": row.verb}
    if row.argument is not None and argument is not None:
        values[row.argument.name] = argument
    return line(values)


def line(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, separators=(",", ":")).encode() + b"\n"


def result(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"ok": True, "result": values}


def error(sentence: str) -> dict[str, Any]:
    return {"ok": False, "error": sentence}


def progress(sentence: str) -> dict[str, Any]:
    return {"progress": sentence}
