"""The slot: where words stand, what a reader believes, and what it refuses and counts."""

import errno
import mmap
import os
from array import array
from collections.abc import Iterator
from time import monotonic_ns
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefork.metrics.facts import AcceptError, ExitReason
from prefork.metrics.scoreboard import (
    ACCEPT_ERRORS,
    ACCEPTED,
    ACCEPTING,
    BUSY,
    COMPLETED,
    COUNT_WORDS,
    COUNTS,
    DRAIN_ASKED,
    DUE,
    DURATION,
    ENDS,
    FAILED,
    HANDED_OVER,
    HEADER_WORDS,
    HELD_MOST,
    IDLE,
    IDLE_HERE,
    IN_HAND,
    LANE_WORDS,
    LANES,
    LAYOUT_VERSION,
    LEAVING,
    LOG_DROPPED,
    MOST_GROWTH,
    MOST_IDLE_HERE,
    MOST_SUM_GROWTH,
    OPEN_FDS,
    PRIVATE_MEMORY,
    QUEUE_WAIT,
    READY,
    REJECTED,
    STACKS_MAX,
    STARTED_NS,
    STATE,
    TEXT_AT,
    TOLD_TO_DRAIN,
    TRUNCATED,
    VERSION,
    YES,
    Slot,
    SlotReader,
    Stacks,
    leave_to_drain,
)

WORD = st.integers(0, (1 << 64) - 1)


@pytest.fixture
def slot() -> Iterator[Slot]:
    slot = Slot(2)
    yield slot
    slot.close()


# Layout.


def test_version_comes_first(slot: Slot) -> None:
    """The first word is the version, so that a reader of any other version knows that it is none."""
    assert VERSION == 0
    assert slot.words[0] == LAYOUT_VERSION


def test_words_do_not_overlap() -> None:
    """Header, lanes, and in a lane its counters and histograms, each have words of their own."""
    assert max(LANES, READY, DUE, LEAVING, DRAIN_ASKED, PRIVATE_MEMORY, OPEN_FDS) < ACCEPT_ERRORS
    assert ACCEPT_ERRORS + len(AcceptError) <= HEADER_WORDS
    assert len({STATE, STARTED_NS, ACCEPTED, COMPLETED, FAILED, REJECTED, HANDED_OVER}) == 7
    assert DURATION.start > HANDED_OVER
    assert DURATION.end <= QUEUE_WAIT.start < QUEUE_WAIT.end <= LANE_WORDS
    assert COUNTS.start > max(STATE, STARTED_NS)


def test_lanes_are_apart(slot: Slot) -> None:
    """What one lane writes is no other lane's, nor the header's."""
    header = slot.words[:HEADER_WORDS].tolist()
    slot.lane(0)[:] = memoryview(b"\xff" * 8 * LANE_WORDS).cast("Q")
    assert slot.lane(1).tolist() == [0] * LANE_WORDS
    assert slot.words[:HEADER_WORDS].tolist() == header


def test_memory_cannot_be_resized(slot: Slot) -> None:
    """Nobody who has the descriptor can cut the memory off under a reader; text may grow behind it."""
    for size in (0, len(slot.memory) - 1):
        with pytest.raises(PermissionError) as refused:
            os.ftruncate(slot.fd, size)
        assert refused.value.errno == errno.EPERM


def test_a_slot_of_the_previous_image(slot: Slot) -> None:
    """It shows what the child writes; all that can be written there is that the child is to drain."""
    again = Slot.resume(os.dup(slot.fd))
    slot.lane(1)[ACCEPTED] = 7
    assert again.lane(1)[ACCEPTED] == 7
    with pytest.raises(TypeError):
        again.lane(1)[ACCEPTED] = 8
    before = slot.words.tolist()
    again.tell_to_drain()
    assert (slot.told_to_drain, slot.told_to_end) == (True, False)
    assert [at for at, word in enumerate(slot.words) if word != before[at]] == [TOLD_TO_DRAIN]
    again.tell_to_drain(ends=True)
    assert (slot.told_to_drain, slot.told_to_end) == (True, True)
    again.close()
    with pytest.raises(ValueError, match="released"):
        again.tell_to_drain()


def test_a_slot_that_cannot_be_read(slot: Slot) -> None:
    """Its child, whom nobody could tell any more, is told to drain before it is closed, however little of it there is;
    what is too small for the word stays as it is."""
    slot.words[VERSION] = LAYOUT_VERSION + 1
    leave_to_drain(fd := os.dup(slot.fd))
    assert slot.told_to_drain
    small = os.memfd_create("small")
    os.ftruncate(small, 8)
    leave_to_drain(os.dup(small))
    assert os.pread(small, 9, 0) == bytes(8)
    os.close(small)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


NO_SLOT = [(VERSION, LAYOUT_VERSION + 1), (LANES, 3), (LANES, 1 << 63), (TEXT_AT, HEADER_WORDS * 8 + 3)]


@pytest.mark.parametrize(("word", "value"), NO_SLOT)
def test_a_view_of_what_was_written_over(slot: Slot, word: int, value: int) -> None:
    """Whoever knows its shape sees what stands there, though its child has spoilt what it says of itself."""
    slot.lane(1)[ACCEPTED] = 7
    slot.words[word] = value
    view = Slot.view(os.dup(slot.fd), slot.shape)
    assert view.shape == slot.shape
    assert (view.lane(1)[ACCEPTED], len(view.application)) == (7, len(slot.application))
    with pytest.raises(TypeError):
        view.lane(1)[ACCEPTED] = 8
    view.close()


@pytest.mark.parametrize(("word", "value"), NO_SLOT)
def test_no_slot_is_refused(slot: Slot, word: int, value: int) -> None:
    """Memory of another version, of more lanes than it has room for, or cut off in a word, is not mapped."""
    slot.words[word] = value
    with pytest.raises(ValueError, match="no slot of this version"):
        Slot.resume(slot.fd)


def test_region_is_behind_the_lanes() -> None:
    """The program's own metrics have the size that was asked for, and share no byte with a lane."""
    slot = Slot(3, 4096)
    assert slot.application.nbytes == 4096
    slot.application[:] = b"\xff" * 4096
    assert slot.lane(2).tolist() == [0] * LANE_WORDS
    slot.close()


# Reading.


def test_report(slot: Slot) -> None:
    """What a child says of itself comes out as it was written."""
    slot.words[READY], slot.words[DRAIN_ASKED] = YES, YES
    slot.words[DUE], slot.words[LEAVING] = ExitReason.MAX_MEMORY, ExitReason.DRAINED
    slot.words[PRIVATE_MEMORY], slot.words[OPEN_FDS] = 1 << 20, 12
    lane = slot.lane(1)
    lane[STARTED_NS], lane[STATE], lane[ACCEPTED] = 50, BUSY, 3
    report = SlotReader(slot).look(100)
    assert (report.ready, report.drain_asked, report.due, report.leaving) == (
        True, True, ExitReason.MAX_MEMORY, ExitReason.DRAINED,
    )  # fmt: skip
    assert (report.private_memory, report.open_fds, report.lanes) == (1 << 20, 12, 2)
    assert (report.busy_since_ns, report.busy, report.accepted) == ((50,), 1, 3)


class EndsWhenRead:
    """The words of a slot whose request ends, and another one begins, as soon as anybody has read some of them."""

    def __init__(self, slot: Slot) -> None:
        self._words, self._lane, self._next = slot.words, slot.lane(0), slot.lane(1)

    def __getitem__(self, key: Any) -> Any:
        found = self._words[key]
        if not isinstance(key, slice):
            return found
        found = memoryview(array("Q", found.tolist()))
        self._lane[COMPLETED], self._lane[STATE] = 1, IDLE
        self._next[STARTED_NS], self._next[ACCEPTED], self._next[STATE] = monotonic_ns(), 1, BUSY
        return found


def test_counts_and_report_are_of_one_moment(slot: Slot) -> None:
    """A request that ends while its slot is read is in flight or has ended, and one that begins is both or neither."""
    slot.lane(0)[STARTED_NS], slot.lane(0)[ACCEPTED], slot.lane(0)[STATE] = monotonic_ns(), 1, BUSY
    reader = SlotReader(slot.part(0, 2))
    vars(reader.slot)["words"] = EndsWhenRead(slot)
    for accepted, in_flight in ((1, 1), (2, 1)):
        counts, report = reader.read()
        ended = sum(counts[ENDS.start - ACCEPTED : ENDS.stop - ACCEPTED])
        assert (counts[0], report.busy) == (accepted, in_flight)
        assert counts[0] == ended + report.busy


@given(WORD, WORD, WORD, st.lists(WORD, min_size=2, max_size=2), st.lists(WORD, min_size=2, max_size=2))
def test_report_believes_what_can_be(flag: int, due: int, leaving: int, states: list[int], since: list[int]) -> None:
    """Any words whatever: a flag is the one number, a reason one of the list, a lane busy only since the past."""
    slot = Slot(2)
    slot.words[READY], slot.words[DUE], slot.words[LEAVING] = flag, due, leaving
    for index in range(2):
        slot.lane(index)[STATE], slot.lane(index)[STARTED_NS] = states[index], since[index]
    report = SlotReader(slot).look(1 << 40)
    assert report.ready is (flag == YES)
    assert report.due in (None, *ExitReason)
    assert report.leaving in (None, *ExitReason)
    assert (report.due is None) is (due not in set(map(int, ExitReason)))
    assert all(started <= 1 << 40 for started in report.busy_since_ns)
    assert report.busy <= sum(state in (ACCEPTING, BUSY) for state in states)
    slot.close()


LANE = st.lists(st.integers(0, 1 << 40) | WORD, min_size=COUNT_WORDS, max_size=COUNT_WORDS)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 1), LANE), max_size=8))
def test_counters_never_fall(writes: list[tuple[int, list[int]]]) -> None:
    """Whatever stands in a lane's counters, what the reader says of them only grows, never by more than can be, and
    what it refused is counted; the other lane's numbers are not lost with it."""
    slot = Slot(2)
    reader = SlotReader(slot)
    believed, before, rejected = [[0] * COUNT_WORDS, [0] * COUNT_WORDS], [0] * COUNT_WORDS, 0
    for index, words in writes:
        slot.lane(index)[COUNTS] = memoryview(b"".join(word.to_bytes(8, "little") for word in words)).cast("Q")
        # The oracle, in its own words: each word is believed or not; sums have a bound of their own.
        for lane in range(2):
            for place, new in enumerate(slot.lane(lane)[COUNTS].tolist()):
                most = MOST_SUM_GROWTH if place + ACCEPTED in (DURATION.end - 1, QUEUE_WAIT.end - 1) else MOST_GROWTH
                if 0 <= new - believed[lane][place] <= most:
                    believed[lane][place] = new
                else:
                    rejected += 1
        counts = reader.counts()
        assert counts == [a + b for a, b in zip(*believed, strict=True)]
        assert all(new >= old for old, new in zip(before, counts, strict=True))
        assert reader.words_rejected == rejected
        before = counts
    slot.close()


def test_a_request_of_a_month(slot: Slot) -> None:
    """One that took thirty days is counted, and so is the lane's next; a word that cannot be is refused alone."""
    reader, lane = SlotReader(slot), slot.lane(0)
    for took in (30 * 86400 * 10**9, 1):
        lane[ACCEPTED] += 1
        lane[COMPLETED] += 1
        DURATION.observe(lane, took)
        reader.counts()
    lane[FAILED] = 1 << 63
    lane[REJECTED] = 1
    counts = reader.counts()
    assert [counts[word - ACCEPTED] for word in (ACCEPTED, COMPLETED, FAILED, REJECTED)] == [2, 2, 0, 1]
    assert counts[DURATION.end - 1 - ACCEPTED] == 30 * 86400 * 10**9 + 1
    assert reader.words_rejected == 1


def test_accept_errors_never_fall(slot: Slot) -> None:
    """An error counter that falls is refused and counted."""
    reader = SlotReader(slot)
    slot.words[ACCEPT_ERRORS + AcceptError.EMFILE] = 5
    assert reader.accept_errors()[AcceptError.EMFILE] == 5
    slot.words[ACCEPT_ERRORS + AcceptError.EMFILE] = 4
    assert (reader.accept_errors()[AcceptError.EMFILE], reader.words_rejected) == (5, 1)


@pytest.mark.parametrize("outcome", [None, COMPLETED, FAILED, REJECTED, HANDED_OVER])
def test_outstanding(slot: Slot, outcome: int | None) -> None:
    """What was accepted and came to none of the ends is what a dying child took with it, by its start."""
    lane = slot.lane(1)
    lane[STARTED_NS], lane[ACCEPTED] = 77, 3
    lane[COMPLETED] = 2
    if outcome is not None:
        lane[outcome] += 1
    reader = SlotReader(slot)
    reader.counts()
    assert reader.outstanding() == ([(77, 0)] if outcome is None else [])


def test_datagrams_that_were_cut_are_summed_over_the_lanes(slot: Slot) -> None:
    """And never fall, as dropped log lines."""
    reader = SlotReader(slot)
    for first, last, believed, rejected in ((0, 0, 0, 0), (3, 4, 7, 0), (2, 4, 7, 1), (4, 4, 8, 1)):
        slot.lane(0)[TRUNCATED], slot.lane(slot.lanes - 1)[TRUNCATED] = first, last
        assert reader.truncated() == believed
        assert reader.words_rejected == rejected


def test_kept_connections_by_where_they_are() -> None:
    """Those in hand and those that wait, of each listener, as the counts of the same moment have them."""
    slot = Slot(2, listeners=0b101)
    reader = SlotReader(slot)
    assert list(reader.connections()) == [(0, 0, 0), (2, 0, 0)]
    second = slot.of_listener(2)
    for lane, in_hand, idle in (
        (slot.lane(0), 1, 0),
        (slot.lane(1), 0, 3),
        (second.lane(0), 1, 4),
        (second.lane(1), 1, 5),
    ):
        lane[IN_HAND], lane[IDLE_HERE] = in_hand, idle
    assert list(reader.connections()) == [(0, 0, 0), (2, 0, 0)]
    reader.counts()
    assert list(reader.connections()) == [(0, 1, 3), (2, 2, 9)]
    assert reader.words_rejected == 0
    second.lane(0)[IN_HAND], second.lane(1)[IDLE_HERE] = 2, MOST_IDLE_HERE + 1
    reader.counts()
    assert list(reader.connections()) == [(0, 1, 3), (2, 1, 4)]
    assert reader.words_rejected == 2
    slot.close()


def test_how_many_a_holder_may_have(slot: Slot) -> None:
    """As it says; nothing is known where it cannot be."""
    reader = SlotReader(slot)
    for said, believed in ((0, 0), (36, 36), (MOST_IDLE_HERE, MOST_IDLE_HERE), (MOST_IDLE_HERE + 1, 0)):
        slot.words[HELD_MOST] = said
        assert reader.held_most() == believed


def test_dropped_log_lines_never_fall(slot: Slot) -> None:
    """A number that cannot be is not believed, and counted as such."""
    reader = SlotReader(slot)
    for said, believed, rejected in ((0, 0, 0), (7, 7, 0), (6, 7, 1), (8, 8, 1), (8 + 2 * MOST_GROWTH, 8, 2)):
        slot.words[LOG_DROPPED] = said
        assert reader.log_dropped() == believed
        assert reader.words_rejected == rejected


def test_no_lanes() -> None:
    """The exporter's own slot has none: its counts are zeroes."""
    slot = Slot(0)
    assert SlotReader(slot).counts() == [0] * COUNT_WORDS
    slot.close()


# What is given back.


def test_nothing_is_left_when_memory_is_short() -> None:
    """A slot that cannot be mapped leaves no descriptor behind (the suite's own fixture looks)."""
    with pytest.raises((OSError, ValueError, OverflowError)):
        Slot(1, 1 << 62)


def test_close_while_a_lane_is_held() -> None:
    """A slot can be closed while a request of this process holds a lane; the lane can still be written."""
    slot = Slot(1)
    lane = slot.lane(0)
    slot.close()
    lane[COMPLETED] += 1
    assert lane[COMPLETED] == 1
    lane.release()


# Stacks.


def test_stacks_are_taken_once() -> None:
    """Text that was written is taken, whole and once; the next text begins anew."""
    slot = Slot(1)
    stacks = Stacks(slot)
    stacks.write("first\n")
    stacks.write("half a surrogate \udc80\n")
    assert stacks.take() == "first\nhalf a surrogate \\udc80\n"
    assert (stacks.take(), stacks.size()) == ("", 0)
    stacks.write("second")
    assert stacks.take() == "second"
    slot.close()


def test_stacks_are_bounded() -> None:
    """Of a text without end the end is kept, which says what went wrong."""
    slot = Slot(1)
    stacks = Stacks(slot)
    stacks.write("x" * STACKS_MAX + "the error")
    assert stacks.take().endswith("the error")
    slot.close()


def test_page_sizes() -> None:
    """A slot of one lane without metrics of the program's takes one page."""
    assert (HEADER_WORDS + LANE_WORDS) * 8 <= mmap.PAGESIZE


def test_the_words_of_each_listener() -> None:
    """A lane has a group of words for each; what is counted there is the listener's, and the sum of them the slot's. A
    lane is busy with one request, whichever it came by."""
    slot = Slot(2, listeners=0b1001)
    reader = SlotReader(slot)
    third = slot.of_listener(3)
    slot.of_listener(0).lane(1)[ACCEPTED] = 5
    third.lane(1)[ACCEPTED], third.lane(1)[COMPLETED] = 7, 6
    third.lane(1)[STARTED_NS], third.lane(1)[STATE] = 50, BUSY
    counts, report = reader.read()
    assert (counts[0], counts[COMPLETED - ACCEPTED], report.accepted) == (12, 6, 12)
    assert (report.lanes, report.busy, report.busy_at) == (2, 1, (3,))
    assert {number: found[0] for number, found in reader.by_listener()} == {0: 5, 3: 7}
    assert reader.outstanding() == [(0, 0), (50, 3)]
    view = SlotReader(Slot.view(os.dup(slot.fd), slot.shape))
    view.counts()
    assert {number: found[0] for number, found in view.by_listener()} == {0: 5, 3: 7}
    again = SlotReader(Slot.resume(os.dup(slot.fd), slot.listeners))
    assert again.counts()[0] == 12
    for each in (view, again, reader):
        each.slot.close()
