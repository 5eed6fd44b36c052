"""The record: what goes in on one side of an exec comes out on the other, and only what should survives."""

import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prefork.errors import PreforkError
from prefork.master.children import Child, ChildState
from prefork.metrics.board import EXITS, Board, Word
from prefork.metrics.facts import ChildKind, ExitReason
from prefork.metrics.scoreboard import ACCEPTED, COMPLETED, YES, Slot, SlotReader, Stacks
from prefork.reload import handover
from prefork.reload.handover import (
    VERSION,
    Handed,
    Record,
    fold_own,
    handed_on,
    pack_board,
    pack_child,
    pack_listener,
    pack_own,
    receive,
    resume_board,
    resume_child,
)
from prefork.sockets.listener import Listener
from prefork.workers.kept import Queues


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


@pytest.mark.parametrize("passed", [True, False])
def test_sockets_that_were_passed(passed: bool, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Only those that the previous image hands on are still the service manager's; one that does not say so, of an
    earlier version, hands on what it hands on."""
    kept: list[set[int]] = []
    monkeypatch.setattr("prefork.systemd.keep_only", kept.append)
    with handed_on(Record({"passed": [77]} if passed else {}, [pipe[0]])) as fd:
        handover.receive(os.dup(fd))._close_spares()
    assert kept == [{77} if passed else {pipe[0]}]


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
        assert handed.listener("127.0.0.1:1") is None
        assert handed.metrics("127.0.0.1:0") is None
        found = handed.listener("127.0.0.1:0")
        assert found is not None
        assert found.getsockname() == before.getsockname()
        assert handed.listener("127.0.0.1:0") is None
        assert handed.vanished("listener") is None
        handed.take()
        found.detach()


@pytest.mark.parametrize("times", [1, 2])
def test_a_listener_that_was_shut_down_since(times: int, caplog: pytest.LogCaptureFixture) -> None:
    """By old workers, while nobody supervises: it listens at the port that the kernel has chosen, and it is said."""
    handed, before = given()
    with before:
        name = before.getsockname()
        for _ in range(times):
            with contextlib.suppress(OSError):
                before.shutdown(socket.SHUT_RDWR)
        found = handed.listener("127.0.0.1:0")
        assert found is not None
        found.listen(10)
        with socket.create_connection(name) as client, found.accept()[0] as accepted:
            client.send(b"x")
            assert accepted.recv(1) == b"x"
        handed.take()
        found.detach()
    assert "%s:%d was shut down by a process of the service: it listens again" % name in caplog.text


@pytest.mark.parametrize("taken", [False, True])
@pytest.mark.parametrize("asked", [False, True])
def test_what_a_process_that_the_program_forks_has_of_it(asked: bool, taken: bool) -> None:
    """Nothing but what the program has an object of, and no number that may be another file's by now."""
    handed, before = given()
    found = handed.listener("127.0.0.1:0") if asked else None
    if taken:
        handed.take()
    handed.forget()
    assert handover.handed() is None
    assert handed.spares == 0
    fd = before.detach()
    if found is not None:
        found.detach()
    if asked or taken:
        os.close(fd)
    else:
        with pytest.raises(OSError):
            os.fstat(fd)


def test_a_program_that_closed_its_listener_has_not_closed_it() -> None:
    """What was lent and closed is put back, under the same number."""
    handed, before = given()
    fd, name = before.fileno(), before.getsockname()
    found = handed.listener("127.0.0.1:0")
    found.close()
    handed.take_back()
    again = socket.socket(fileno=os.dup(fd))
    with again, before:
        assert again.getsockname() == name
        assert again.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    for spare in handed._spares.values():
        os.close(spare)


def test_queues_that_the_program_has_closed() -> None:
    """Each of their ends is missed, and there again for whoever goes on without the program."""
    kept = Queues.made()
    packed, fds = kept.pack()
    handed = Handed({"queues": packed, "fds": fds})
    for fd in fds:
        handed.require("queues")
        os.close(fd)
        with pytest.raises(PreforkError, match="closed"):
            handed.require("queues")
        handed.take_back()
    kept.ready_in.sock.send(b"x")
    assert kept.ready_out.sock.recv(2) == b"x"
    handed._close_spares()
    kept.close()


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


# The memory of a service that runs with layout 3: that of its board, and a slot with one lane.
BOARD_OF_LAYOUT_3 = 57368 + (4 << 20)
SLOT_OF_LAYOUT_3 = (24 + 48) * 8
TOLD_TO_DRAIN_IN_LAYOUT_3 = 23


def memory_of_layout_3(name: str, size: int, words: dict[int, int]) -> int:
    """Make memory with these words, as an image with that layout would leave it behind."""
    fd = os.memfd_create(name)
    os.ftruncate(fd, size)
    for word, value in words.items():
        os.pwrite(fd, value.to_bytes(8, "little"), word * 8)
    return fd


def test_an_upgrade_from_layout_3(caplog: pytest.LogCaptureFixture) -> None:
    """The named totals go on, which the log says; so does the child, which is told to drain in its old slot."""
    packed = {
        "fd": memory_of_layout_3("board-3", BOARD_OF_LAYOUT_3, {1: 3, 14: 7, 15: 2, 33: 99}),
        "words": {"SPAWNED": 7, "LOST": 2}, "exits": {"CRASHED": 3, "DRAINED": 5},
    }  # fmt: skip
    board = resume_board(packed)
    assert [record.name for record in caplog.records] == ["prefork.supervisor"]
    statistics = board.snapshot().statistics()
    assert (statistics.spawned, statistics.lost) == (7, 2)
    assert statistics.exits == {"crashed": 3, "drained": 5}
    assert statistics.accepted == 0
    assert not _is_open("board-3")

    child = _child(board)
    slot = memory_of_layout_3("slot-3", SLOT_OF_LAYOUT_3, {0: 3, 1: 1, 17: SLOT_OF_LAYOUT_3, 24 + 2: 9})
    its = os.dup(slot)  # the child's own descriptor of it
    same = resume_child({**pack_child(child)[0], "slot": slot}, board)
    assert (same.pid, same.slot.lanes, same.reader.counts()[0]) == (4711, 0, 0)
    told = os.pread(its, 8, TOLD_TO_DRAIN_IN_LAYOUT_3 * 8)
    assert int.from_bytes(told, "little") == YES
    os.close(its)
    assert not _is_open("slot-3")
    same.slot.close()
    child.slot.close()
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


def test_the_paths_that_it_must_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those by which the service is found, while somebody listens there, until it has taken over; no other."""
    monkeypatch.chdir(tmp_path)
    values: dict[str, Any] = {"metrics": None, "control_path": str(tmp_path / "c")}
    handed = Handed({})
    handed.values = {**values, "listener": {"path": str(tmp_path / "s")}}
    with contextlib.ExitStack() as stack:
        for name in "csx":
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(name)
        assert [name for name in "csx" if handed.keeps(name)] == ["c", "s"]
        handed.values["listener"] = {"path": None}  # one that came bound
        assert [name for name in "csx" if handed.keeps(name)] == ["c"]
        handed.take()
        assert not any(map(handed.keeps, "csx"))
    handed.taken = False
    assert not any(map(handed.keeps, "csx"))


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
    """Once a supervisor stands on it the program's objects are its own; the spares are given back. It is told before:
    what may still end the program must do it while the service can go on without it."""
    handed, before = given()
    told: list[bool] = []
    handed.on_taken = lambda: told.append(handed.taken)
    with before:
        found = handed.listener("127.0.0.1:0")
        spares = [*handed._spares.values()]
        assert len(spares) == 1
        assert not handed.taken
        handed.take()
        handed.detach()
        assert found.fileno() == before.fileno()
        assert (told, handed._spares) == ([False], {})
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
    first = handed.listener("127.0.0.1:0")
    assert first is not None
    first.close()
    handed.board().forget()
    handed.take_back()
    assert not os.get_inheritable(listener.fileno())
    assert not os.get_inheritable(copy)
    again = handed.listener("127.0.0.1:0")
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


# The memory of the processes that go on, and of the master itself.


def _worked(board: Board, kind: ChildKind) -> tuple[int, Slot]:
    """A slot on the board, with one request that was accepted and completed."""
    slot = Slot(1)
    slot.lane(0)[ACCEPTED] = slot.lane(0)[COMPLETED] = 1
    return board.enter(kind, SlotReader(slot)), slot


def test_the_masters_own_requests_are_folded_once() -> None:
    """Whoever asks for the board, and however often; also when it was taken back in between."""
    board = Board()
    serial, slot = _worked(board, ChildKind.SERVER)
    packed, fds = pack_own([(serial, slot)])
    assert fds == [slot.fd]
    values, _ = pack_board(board)
    copies = [os.dup(board.fd), os.dup(slot.fd)]
    handed = Handed({"board": {**values, "fd": copies[0]}, "own": [{**packed[0], "slot": copies[1]}]})
    first = handed.board()
    assert handed.board() is first
    counted = first.snapshot().statistics()
    assert (counted.accepted, counted.completed, counted.lost) == (1, 1, 0)
    first.forget()
    handed.take_back()
    others = [os.memfd_create("somebody else's, in its place") for _ in range(4)]
    again = handed.board()
    for other in others:
        os.close(other)
    assert again is not first
    assert again.snapshot().statistics().completed == 1
    assert again.snapshot().serials == frozenset()
    handed.take()
    again.forget()
    slot.close()
    board.forget()


def test_a_slot_that_is_not_on_the_board_is_given_up() -> None:
    """Closed, and counted nowhere."""
    board, slot = Board(), Slot(1)
    fd = os.dup(slot.fd)
    fold_own([{"serial": 4711, "slot": fd}], board)
    with pytest.raises(OSError):
        os.fstat(fd)
    assert board.snapshot().statistics().accepted == 0
    slot.close()
    board.forget()


@pytest.mark.parametrize(("identity", "resumed"), [([1, 2], (1, 2)), (None, None), ([], None)])
def test_who_takes_a_path_has_to_remove_it(identity: list[int] | None, resumed: tuple[int, ...] | None) -> None:
    """The path and what it was when it was bound come with the socket, and not before it is taken."""
    handed, before = given()
    handed.values["listener"] |= {"path": "/run/s", "identity": identity}
    with before:
        found = handed.resume("listener")
        said = [(found.path, found.identity)]
        handed.take()
        said.append((found.path, found.identity))
        assert said == [(None, None), ("/run/s", resumed)]
        found.path = None
        found.detach()


def test_a_path_that_was_removed_or_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that asks for it gets nothing, and binds anew; what listened there is given up."""
    monkeypatch.chdir(tmp_path)
    with Listener(socket.AF_UNIX, socket.SOCK_STREAM) as before:
        before.bind("s")
        before.listen()
        before.asked = "s"
        values, _ = pack_listener(before, os.dup(before.fileno()))
        for lost in (False, True):
            if lost:
                os.rename("s", "elsewhere")
            handed = Handed({"listener": dict(values)})
            found = handed.listener("s")
            assert (found is None) is lost
            if lost:
                found = handed.vanished("listener")
            assert found is not None
            handed.take_back()
            assert found.fileno() == -1
            handed._close_spares()
        os.close(values["fd"])
        before.path = None


def _child(board: Board, **changed: Any) -> Child:
    serial, slot = _worked(board, ChildKind.WORKER)
    values: dict[str, Any] = {
        "serial": serial, "number": 3, "kind": ChildKind.WORKER, "generation": 5, "pid": 4711, "pidfd": 7,
        "slot": slot, "stacks": Stacks(slot), "reader": SlotReader(slot, 3), "started": 1.5, "changed": 2.5,
        "state": ChildState.DRAINING, "booted": True, "deadline": 9.5, "lifetime": 99.5, "cut_at": 8.5,
        "reason": ExitReason.REPLACED, "cut_for": ExitReason.MAX_MEMORY, "cut_tried_ns": 12,
    }  # fmt: skip
    return Child(**{**values, **changed})


def _is_open(name: str) -> bool:
    """Whether this process has a memfd of this name; its number may be somebody else's by now."""
    found = [os.path.join("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd")]
    return any(f"memfd:{name} " in os.readlink(fd) for fd in found if os.path.islink(fd))


@pytest.mark.parametrize("reason", [None, ExitReason.REPLACED])
def test_a_child_goes_on_as_it_was(reason: ExitReason | None) -> None:
    """All that the next master plans by, by value or by name; its row on the board is its own again."""
    board = Board()
    child = _child(board, reason=reason)
    packed, fds = pack_child(child)
    assert fds == [7, child.slot.fd]
    packed = {**json.loads(json.dumps(packed)), "slot": os.dup(child.slot.fd)}
    same = resume_child(packed, board)
    for name in ("serial", "number", "kind", "generation", "pid", "pidfd", "started", "changed", "state", "booted",
                 "deadline", "lifetime", "cut_at", "reason", "cut_for", "cut_tried_ns", "drain_signal"):  # fmt: skip
        assert getattr(same, name) == getattr(child, name), name
    assert same.reader.number == 3
    assert board.snapshot().statistics().completed == 1
    same.slot.close()
    child.slot.close()
    board.forget()


def test_a_child_of_an_earlier_version() -> None:
    """It hears TERM; what had a descriptor of its own is closed, and what it did not know has its default."""
    board = Board()
    child = _child(board)
    packed, _ = pack_child(child)
    for name in ("drain_signal", "cut_for", "cut_tried_ns"):
        del packed[name]
    stacks = os.memfd_create("stacks")
    same = resume_child({**packed, "slot": os.dup(child.slot.fd), "stacks": stacks}, board)
    assert (same.drain_signal, same.cut_for, same.cut_tried_ns) == (signal.SIGTERM, ExitReason.TIMEOUT, 0)
    assert not _is_open("stacks")
    same.slot.close()
    child.slot.close()
    board.forget()


def test_a_child_whose_memory_is_of_another_layout() -> None:
    """It is supervised, with a row of its own and nothing in it."""
    board = Board()
    child = _child(board)
    packed, _ = pack_child(child)
    strange = os.memfd_create("of another layout")
    same = resume_child({**packed, "slot": strange}, board)
    assert not _is_open("of another layout")
    assert same.serial not in (child.serial, 0)
    assert same.serial in board.snapshot().serials
    assert (same.slot.lanes, same.reader.number, same.pid) == (0, 3, 4711)
    same.slot.close()
    child.slot.close()
    board.forget()
