"""The lanes of a worker without max_threads: opened as they are needed, and only those are read."""

from collections.abc import Iterator

import pytest

from prefork.metrics.scoreboard import ACCEPTED, BUSY, COMPLETED, LANES_OPEN, STATE, Slot, SlotReader
from prefork.workers.open_lanes import MOST_LANES, OPENED_AT_ONCE, OpenLanes, lanes_of


@pytest.fixture
def slot() -> Iterator[Slot]:
    slot = Slot(150, 0, 64)
    yield slot
    slot.close()


def test_how_many() -> None:
    """With a limit as many as that, all open; without one there are more than threads are of any use."""
    assert lanes_of(1) == (1, 0)
    assert lanes_of(500) == (500, 0)
    assert lanes_of(None) == (MOST_LANES, OPENED_AT_ONCE) == (4096, 64)


def test_opened_as_needed(slot: Slot) -> None:
    """Every lane once, in their order, some at a time, to the last; the slot says how many."""
    opened = OpenLanes(slot)
    parts = [opened.first()]
    while (part := opened.more()) is not None:
        parts.append(part)
    assert [(part.lanes, part.first) for part in parts] == [(64, 0), (64, 64), (22, 128)]
    assert slot.words[LANES_OPEN] == 150
    for number, part in enumerate(parts):
        part.lane(part.lanes - 1)[ACCEPTED] = number + 1
    assert [slot.lane(last)[ACCEPTED] for last in (63, 127, 149)] == [1, 2, 3]


def test_a_limit() -> None:
    """All lanes are there from the first, and no more."""
    slot = Slot(70)
    opened = OpenLanes(slot)
    assert opened.first().lanes == 70
    assert opened.more() is None
    assert slot.words[LANES_OPEN] == 0
    assert SlotReader(slot).look(1).lanes == 70
    slot.close()


def test_what_is_read(slot: Slot) -> None:
    """The open lanes, and none that was open is forgotten: no total may fall. An impossible number is not believed."""
    reader, opened = SlotReader(slot), OpenLanes(slot)
    assert reader.look(1).lanes == 64
    part = opened.more()
    assert part is not None
    part.lane(0)[ACCEPTED], part.lane(0)[STATE] = 1, BUSY
    assert (reader.look(1).lanes, reader.look(1).busy, reader.counts()[0]) == (128, 1, 1)
    for impossible in (1 << 60, 3):
        slot.words[LANES_OPEN] = impossible
        assert (reader.look(1).lanes, reader.look(1).busy) == (128, 1)
        assert reader.counts()[:2] == [1, 0]
    part.lane(0)[COMPLETED] = 1
    assert reader.counts()[COMPLETED - ACCEPTED] == 1
    assert reader.outstanding() == []
