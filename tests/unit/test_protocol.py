"""Frames of the control socket: what is a request, what is not, and that nothing else happens."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.commands import BY_VERB, COMMAND_TABLE, Command, Row
from prefork.control import protocol
from prefork.control.protocol import BadRequest
from prefork.metrics.facts import ControlCommand

# What is documented, in seconds where the name says so: written out, so that a number cannot change unseen.
FRAME_MAX = 65536

JSON = st.none() | st.booleans() | st.integers() | st.sampled_from([1.5, "", "7", "debug", [], [1], {}, {"a": 1}])


@given(st.lists(st.binary(max_size=50).filter(lambda line: b"\n" not in line)), st.lists(st.integers(1, 9)))
def test_lines_are_found_however_they_are_cut(lines: list[bytes], cuts: list[int]) -> None:
    """The same lines come out, in their order, however the bytes are cut into pieces."""
    stream, found, buffer = b"".join(line + b"\n" for line in lines), [], b""
    while stream:
        size = cuts.pop() if cuts else len(stream)
        buffer, stream = buffer + stream[:size], stream[size:]
        while (cut := protocol.split(buffer))[0] is not None:
            line, buffer = cut
            found.append(line)
    assert found == lines
    assert buffer == b""


@given(st.binary(max_size=300))
def test_any_bytes_are_a_request_or_a_bad_one(line: bytes) -> None:
    """Whatever comes is read, or refused in one sentence; nothing else is ever raised."""
    refused = "could not say"
    try:
        assert protocol.read(line).row.verb in BY_VERB
    except BadRequest as exc:
        refused = str(exc)
    assert refused.startswith("could not ")
    assert "\n" not in refused


@given(
    st.sampled_from(sorted(BY_VERB)),
    st.dictionaries(st.sampled_from(["slot", "companion", "workers", "level", "x"]), JSON),
)
def test_any_argument_is_checked(verb: str, values: dict[str, object]) -> None:
    """A known verb with anything beside it is checked: what passes is in range, what does not is refused."""
    row = BY_VERB[verb]
    try:
        request = protocol.read(json.dumps({"verb": verb, **values}).encode())
    except BadRequest:
        return
    assert len(values) <= 1
    assert set(values) <= ({row.argument.name, row.argument.or_name} - {""} if row.argument else set())
    if isinstance(request.argument, int):
        assert row.argument is not None
        assert row.argument.at_least <= request.argument <= row.argument.at_most


@pytest.mark.parametrize("row", [row for row in COMMAND_TABLE if row.verb], ids=lambda row: row.verb)
def test_what_is_asked_is_read(row: Row) -> None:
    """What the client writes is what the master reads."""
    wanted = row.argument
    argument = None if wanted is None else wanted.choices[0] if wanted.choices else 7
    for each in (argument, "indexer") if wanted is not None and wanted.or_name else (argument,):
        request = protocol.read(protocol.ask(row, each).rstrip(b"\n"))
        assert (request.row, request.argument) == (row, each)


@pytest.mark.parametrize(("values", "sentence"), [
    ({"slot": "1"}, "could not restart: slot must be a whole number from 1 to 2040"),
    ({"companion": 1}, "could not restart: companion must be a name"),
    ({"companion": ""}, "could not restart: companion must be a name"),
    ({"companion": None}, "could not restart: companion must be a name"),
    ({"companion": "x" * 64}, "could not restart: companion must be a name"),
    ({"companion": "x", "slot": 1}, "could not restart: 'slot' means nothing here; it takes slot or companion"),
    ({"level": "x"}, "could not restart: 'level' means nothing here; it takes slot or companion"),
])  # fmt: skip
def test_a_number_or_a_name(values: dict[str, object], sentence: str) -> None:
    """What takes either takes one of them, under its own key."""
    with pytest.raises(BadRequest) as refused:
        protocol.read(json.dumps({"verb": "restart", **values}).encode())
    assert str(refused.value) == sentence


NASTY = (
    "[" * 60000, "1" * 60000, "{", '"status"', '{"verb": ["status"]}', '{"verb": "scale"}',
    '{"verb": "status", "x": 1}', '{"verb": "scale", "workers": true}',
)  # fmt: skip


@pytest.mark.parametrize("text", NASTY)
def test_nasty(text: str) -> None:
    """Deep, huge and nearly right lines are refused."""
    with pytest.raises(BadRequest):
        protocol.read(text.encode())


def test_too_long() -> None:
    """A line has at most FRAME_MAX bytes, whether its end is there or not."""
    assert protocol.split(b"x" * (FRAME_MAX - 1) + b"\n")[0] == b"x" * (FRAME_MAX - 1)
    for buffer in (b"x" * FRAME_MAX, b"x" * FRAME_MAX + b"\n"):
        with pytest.raises(BadRequest):
            protocol.split(buffer)


def test_every_command_can_be_given() -> None:
    """Each command has one row with a signal or a verb, help, and a place where it is counted."""
    assert sorted(row.command.name for row in COMMAND_TABLE) == sorted(command.name for command in Command)
    for row in COMMAND_TABLE:
        assert row.signals or row.verb
        assert row.help[:1].islower()
        assert not row.help.endswith(".")
        assert not row.verb or row.command.name in ControlCommand.__members__
