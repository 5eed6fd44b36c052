"""The record: what goes in on one side of an exec comes out on the other, and only what should survives."""

import json
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from prefork.metrics.board import EXITS, Board, Word
from prefork.metrics.facts import ExitReason
from prefork.reload import handover
from prefork.reload.handover import (
    VERSION,
    Handed,
    Record,
    fold_own,
    handed_on,
    pack_board,
    pack_listener,
    receive,
    resume_board,
)
from prefork.sockets.listener import Listener


@pytest.fixture(autouse=True)
def nothing_stays_handed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "_handed", None)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


def test_descriptors_are_inheritable_only_on_the_way(pipe: tuple[int, int]) -> None:
    """Inside `handed_on()` and nowhere else; those that are not of the record never."""
    with handed_on(Record({}, [pipe[0]])) as fd:
        assert os.get_inheritable(fd)
        assert os.get_inheritable(pipe[0])
        assert not os.get_inheritable(pipe[1])
    assert not os.get_inheritable(pipe[0])
    with pytest.raises(OSError):
        os.fstat(fd)


def test_what_is_received(pipe: tuple[int, int]) -> None:
    """The values come out as they went in, and no descriptor is inheritable any more."""
    with handed_on(Record({"name": "pool", "children": []}, [pipe[0]])) as fd:
        handed = receive(os.dup(fd))
        assert not os.get_inheritable(pipe[0])
    assert handed.values["name"] == "pool"
    assert not handed.rehearsal
    assert handover.handed() is handed
    handed.take()
    assert handover.handed() is None


def test_a_record_of_another_version_is_refused(pipe: tuple[int, int]) -> None:
    """Its descriptors are made safe all the same."""
    fd = os.memfd_create("record")
    os.write(fd, json.dumps({"version": VERSION + 1, "fds": [pipe[0]]}).encode())
    os.set_inheritable(pipe[0], True)
    with pytest.raises(ValueError, match=f"version {VERSION + 1}, not {VERSION}"):
        receive(fd)
    assert not os.get_inheritable(pipe[0])
    assert handover.handed() is None


def given(asked: str = "127.0.0.1:0", **values: Any) -> tuple[Any, Listener]:
    """A listener that was handed over."""
    listener = Listener.adopt(socket.create_server(("127.0.0.1", 0)))
    listener.asked = asked
    record = Record(dict(values))
    record.add("listener", pack_listener(listener, listener.fileno()))
    with handed_on(record) as fd:
        return receive(os.dup(fd)), listener


def test_a_listener_is_given_once_and_only_where_it_was_asked_for() -> None:
    """By the words of its address; another address gets none, and it is then the one that vanished."""
    handed, before = given()
    with before:
        assert handed.listener("listener", "127.0.0.1:1") is None
        found = handed.listener("listener", "127.0.0.1:0")
        assert found is not None
        assert found.getsockname() == before.getsockname()
        assert handed.listener("listener", "127.0.0.1:0") is None
        assert handed.vanished("listener") is None
        handed.take()
        found.detach()


def test_a_program_that_closed_its_listener_has_not_closed_it() -> None:
    """What was lent and closed is put back, under the same number."""
    handed, before = given()
    fd, name = before.fileno(), before.getsockname()
    found = handed.listener("listener", "127.0.0.1:0")
    found.close()
    handed.take_back()
    again = socket.socket(fileno=os.dup(fd))
    with again, before:
        assert again.getsockname() == name
        assert again.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    for spare in handed._spares.values():
        os.close(spare)


def test_totals_go_on() -> None:
    """Totals go on in the same memory where its layout is known, by their names where it is not; without those that
    have none."""
    board = Board()
    with board.change() as words:
        words[Word.SPAWNED] = 7
        words[Word.STARTED_AT_NS] = 11
        words[EXITS + ExitReason.CRASHED] = 3
    packed, _ = pack_board(board)
    same = resume_board({**packed, "fd": os.dup(packed["fd"])})
    assert same.words[Word.SPAWNED] == 7
    same.forget()

    strange = os.memfd_create("of another layout")
    os.write(strange, b"\0" * 4096)
    packed["words"]["NO_SUCH_WORD"] = 1
    packed["exits"]["NO_SUCH_REASON"] = 1
    new = resume_board({**packed, "fd": strange})
    assert new.words[Word.SPAWNED] == 7
    assert new.words[Word.STARTED_AT_NS] == 11
    assert new.words[EXITS + ExitReason.CRASHED] == 3
    new.forget()
    board.forget()


def test_the_masters_own_memory_of_another_layout_is_given_up() -> None:
    """Memory of another layout is closed and left out."""
    strange = os.memfd_create("of another layout")
    board = Board()
    fold_own([{"serial": 1, "slot": strange}], board)
    with pytest.raises(OSError):
        os.fstat(strange)
    board.forget()


# What was lent to the program.


@pytest.mark.parametrize("let_go", [Handed.detach, Handed.take_back])
def test_what_is_lent_is_let_go_of_and_not_closed(let_go: Callable[[Handed], None]) -> None:
    """A program that failed may still hold its objects: they stand on no descriptor any more, and it stays open."""
    handed, ours = Handed({}), socket.socket()
    fd = ours.fileno()
    handed.lend(ours)
    let_go(handed)
    assert ours.fileno() == -1
    os.fstat(fd)
    let_go(handed)  # nothing is lent any more, and the number may be somebody else's
    os.fstat(fd)
    os.close(fd)


def test_what_was_taken_is_not_lent() -> None:
    """Once a supervisor stands on it the program's objects are its own; the spares are given back, and it is told."""
    handed, before = given()
    told: list[bool] = []
    handed.on_taken = lambda: told.append(handed.taken)
    with before:
        found = handed.listener("listener", "127.0.0.1:0")
        spares = [*handed._spares.values()]
        assert len(spares) == 1
        assert not handed.taken
        handed.take()
        handed.detach()
        assert found.fileno() == before.fileno()
        assert (told, handed._spares) == ([True], {})
        for spare in spares:
            with pytest.raises(OSError):
                os.fstat(spare)
        found.detach()


def test_what_is_taken_back_can_be_given_again() -> None:
    """To the program that is tried next: listener and board, whatever the last one has done with them; none of it is
    inheritable."""
    board = Board()
    board.add(Word.SPAWNED, 7)
    record = Record({"own": []})
    values, _ = pack_board(board)
    copy = os.dup(board.fd)
    record.add("board", ({**values, "fd": copy}, [copy]))
    listener = Listener.adopt(socket.create_server(("127.0.0.1", 0)))
    listener.asked = "127.0.0.1:0"
    record.add("listener", pack_listener(listener, listener.fileno()))
    with handed_on(record) as fd:
        handed = receive(os.dup(fd))
    first = handed.listener("listener", "127.0.0.1:0")
    assert first is not None
    first.close()
    handed.board().forget()
    handed.take_back()
    assert not os.get_inheritable(listener.fileno())
    assert not os.get_inheritable(copy)
    again = handed.listener("listener", "127.0.0.1:0")
    assert again is not None
    assert again.getsockname() == listener.getsockname()
    assert handed.board().words[Word.SPAWNED] == 7
    handed.take()
    again.detach()
    handed.board().forget()
    listener.close()
    board.forget()


def test_a_descriptor_that_is_not_there_leaves_no_spare(pipe: tuple[int, int]) -> None:
    """The record cannot be taken then, and what was kept aside of it is given back."""
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError):
        Handed({"listener": {"fd": pipe[0]}, "control": {"fd": pipe[1]}, "board": {"fd": -1}})
    assert set(os.listdir("/proc/self/fd")) == before
