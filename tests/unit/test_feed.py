"""What an exporter hears of new slots, over a real pair of sockets, with the master's side played by the test."""

import errno
import os
import select
from collections.abc import Iterator

import pytest

from prefork.metrics.board import Board, BoardReader
from prefork.metrics.facts import ChildKind
from prefork.metrics.feed import NAME, REST_S, SPARE_SLOTS, Arrivals, Feed, Slots
from prefork.metrics.scoreboard import Slot, SlotReader

LIVING = 8


def close(slots: Slots) -> None:
    for _, fd, _ in slots._arrived.values():
        os.close(fd)


@pytest.fixture
def feed() -> Iterator[Feed]:
    feed = Feed()
    yield feed
    feed.close()


def _wake(arrivals: Arrivals) -> bool:
    return bool(select.select([arrivals], [], [], 0)[0])


def test_a_slot_wakes_once(feed: Feed) -> None:
    """A slot wakes its reader when it comes, and all is quiet when it has been taken."""
    arrivals = Arrivals(feed.theirs)
    slot = Slot(1)
    assert not _wake(arrivals)
    assert feed.send(7, SlotReader(slot, 3))
    assert _wake(arrivals)
    [(name, fd)] = arrivals.take()
    assert NAME.unpack(name) == (7, 3, *slot.shape)
    assert not _wake(arrivals)
    os.close(fd)
    slot.close()


def test_a_master_that_has_replaced_its_image(feed: Feed) -> None:
    """Its end of the feed is closed at the exec: the old exporter serves on and is not woken by it for ever."""
    arrivals = Arrivals(feed.theirs)
    feed.keep_theirs()
    assert _wake(arrivals)
    for _ in range(2):
        assert not list(arrivals.take())
        assert not _wake(arrivals)


def test_a_slot_that_comes_without_its_descriptor(feed: Feed) -> None:
    """A slot that comes without its descriptor, as where none is free, must be told: this exporter would never hear of
    it again."""
    arrivals = Arrivals(feed.theirs)
    feed._ours.send(NAME.pack(1, 1, 1, 1, 8))
    with pytest.raises(OSError, match="open files"):
        list(arrivals.take())


def test_looks_for_folded_slots_now_and_then(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where processes come and go by the hundred an exporter looks at the board once for many, and holds few that are
    folded, even if it is never scraped."""
    looks, serials = list[BoardReader](), BoardReader.serials

    def look(reader: BoardReader) -> frozenset[int]:
        looks.append(reader)
        return serials(reader)

    monkeypatch.setattr(BoardReader, "serials", look)
    monkeypatch.setattr(BoardReader, "snapshot", None)
    board, living, most = Board(), list[tuple[int, Slot]](), 0
    slots = Slots(board, feed.theirs)
    board.announce = feed.send
    for turn in range(400):
        slot = Slot(1)
        living.append((board.enter(ChildKind.WORKER, SlotReader(slot)), slot))
        if len(living) > LIVING:
            serial, slot = living.pop(0)
            board.fold(serial)
            slot.close()
        slots.receive(turn)
        most = max(most, len(slots._readers) + len(slots._arrived))
    assert most <= 2 * LIVING + SPARE_SLOTS
    assert 400 // (LIVING + SPARE_SLOTS) <= len(looks) <= 400 // SPARE_SLOTS
    assert {serial for serial, _ in living} <= {*slots._readers, *slots._arrived}
    close(slots)
    for _, slot in living:
        slot.close()
    board.forget()


class NoMemory:
    """An epoll whose kernel has no memory for a change."""

    def modify(self, *arguments: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


def test_a_rest_that_the_kernel_refuses(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it cannot sleep or not wake, it is tried again a moment later, and nothing that came is lost."""
    board, slot = Board(), Slot(1)
    slots = Slots(board, feed.theirs)

    def received(at: float, *, refused: bool) -> float | None:
        with monkeypatch.context() as patch:
            if refused:
                patch.setattr(slots._arrivals, "_epoll", NoMemory())
            slots.receive(at)
        return slots.look_again_at

    def wakes() -> bool:
        assert feed.send(next(board.serials), SlotReader(slot))
        return bool(select.select([slots], [], [], 0)[0])

    assert wakes()
    assert received(1.0, refused=True) == 1.0 + REST_S
    assert wakes()
    assert received(2.0, refused=False) == 2.0 + REST_S
    assert received(3.0, refused=True) == 3.0 + REST_S
    assert received(4.0, refused=False) is None
    assert wakes()
    close(slots)
    slot.close()
    board.forget()


def test_what_comes_by_the_hundred_wakes_now_and_then(feed: Feed) -> None:
    """A slot wakes the exporter, and what follows within a moment is taken at once; then it sleeps again."""
    board = Board()
    slots = Slots(board, feed.theirs)
    slot = Slot(1)

    def comes() -> bool:
        assert feed.send(next(board.serials), SlotReader(slot))
        return bool(select.select([slots], [], [], 0)[0])

    assert comes()
    slots.receive(10.0)
    assert not any(comes() for _ in range(20))
    assert slots.look_again_at == 10.0 + REST_S
    slots.receive(11.0)
    assert len(slots._arrived) == 21
    slots.receive(12.0)
    assert not slots._arrived  # it was quiet: time to look which of them are to be kept
    assert comes()
    close(slots)
    slot.close()
    board.forget()


def test_short_lives_are_never_mapped(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody scrapes, of hundreds of processes that are gone before the board is looked at none is mapped, and no
    descriptor is left; one that lives is read all the same, and so is one that has just come."""
    mapped: list[int] = []
    view = Slot.view

    def seen(fd: int, shape: tuple[int, int, int]) -> Slot:
        mapped.append(fd)
        return view(fd, shape)

    monkeypatch.setattr(Slot, "view", seen)
    board = Board()
    slots, before = Slots(board, feed.theirs), len(os.listdir("/proc/self/fd"))
    board.announce = feed.send
    long = Slot(1)
    board.enter(ChildKind.WORKER, SlotReader(long))
    for turn in range(300):
        slot = Slot(1)
        serial = board.enter(ChildKind.REQUEST, SlotReader(slot))
        slots.receive(turn)
        board.fold(serial)
        slot.close()
        assert len(os.listdir("/proc/self/fd")) - before <= SPARE_SLOTS + 3
    assert 1 <= len(mapped) <= 300 // SPARE_SLOTS + 2
    new = Slot(1)
    board.enter(ChildKind.WORKER, SlotReader(new))
    assert len(slots.snapshot().live) == 2
    for slot in (long, new):
        slot.close()
    board.forget()
