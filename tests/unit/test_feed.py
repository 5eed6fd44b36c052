"""What an exporter hears of new slots, over a real pair of sockets, with the master's side played by the test."""

import os
import select
from collections.abc import Iterator

import pytest

from prefork.metrics.feed import NAME, Arrivals, Feed
from prefork.metrics.scoreboard import Slot, SlotReader


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
    feed._ours.send(NAME.pack(1, 1, 1, 8))
    with pytest.raises(OSError, match="open files"):
        list(arrivals.take())
