"""The board: what a reader sees while the master writes, while workers count, die and are folded."""

import itertools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefork.metrics.board import (
    BOOT,
    CONTROL_COMMANDS,
    LISTENER_LOST,
    LIVE_TABLE,
    PATIENCE_NS,
    ROWS,
    Board,
    BoardReader,
    Statistics,
    Word,
    control_requests,
)
from prefork.metrics.connections import ConnectionCounts
from prefork.metrics.facts import (
    AcceptError,
    ChildKind,
    CloseReason,
    Condition,
    ControlCommand,
    ControlResult,
)
from prefork.metrics.scoreboard import (
    ACCEPT_ERRORS,
    ACCEPTED,
    ACCEPTING,
    AWAY,
    BUSY,
    CLOSED,
    COMPLETED,
    DURATION,
    FAILED,
    HANDED_OVER,
    HELD_MOST,
    IDLE,
    IDLE_HERE,
    IN_HAND,
    LISTENERS_MAX,
    LOG_DROPPED,
    MOST_IDLE_HERE,
    MOVES,
    OPENED,
    REJECTED,
    STARTED_NS,
    STATE,
    TRUNCATED,
    Slot,
    SlotReader,
)

HUNG = 30.0
CHILDREN = 200


@contextmanager
def boards() -> Iterator[Board]:
    board = Board()
    try:
        yield board
    finally:
        board.forget()


class Child:
    """A worker as far as the board goes: a slot with two lanes."""

    def __init__(self, board: Board, role: ChildKind = ChildKind.WORKER) -> None:
        self.board = board
        self.slot = Slot(2)
        self.serial = board.enter(role, SlotReader(self.slot))

    def accept(self, lane: int, now_ns: int) -> None:
        words = self.slot.lane(lane)
        words[STARTED_NS], words[STATE] = now_ns, ACCEPTING
        words[ACCEPTED] += 1
        words[STATE] = BUSY

    def finish(self, lane: int, outcome: int = COMPLETED) -> None:
        words = self.slot.lane(lane)
        words[outcome] += 1
        DURATION.observe(words, 1_000_000)
        words[STATE] = IDLE

    def die(self, overdue_before_ns: int | None = None) -> None:
        self.fold(overdue_before_ns)
        self.slot.close()

    def fold(self, overdue_before_ns: int | None = None) -> None:
        self.board.fold(self.serial, overdue_before_ns)


STEPS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 1),
              st.sampled_from(["accept", "accept", COMPLETED, FAILED, REJECTED, HANDED_OVER, "die", "cut"])),
    max_size=60,
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(STEPS)
def test_every_request_is_somewhere(steps: list[tuple[int, int, object]]) -> None:
    """Whoever counts what and dies when: each look finds every accepted request at exactly one of its ends or in
    flight, and no total falls."""
    with boards() as board:
        children = [Child(board) for _ in range(3)]
        busy: set[tuple[int, int]] = set()
        accepted = cut = lost = 0
        before: list[int] = []
        for now_ns, (number, lane, what) in enumerate(steps, 1):
            if what == "accept" and (number, lane) not in busy:
                children[number].accept(lane, now_ns)
                busy.add((number, lane))
                accepted += 1
            elif isinstance(what, int) and (number, lane) in busy:
                children[number].finish(lane, what)
                busy.discard((number, lane))
            elif what in ("die", "cut"):
                mine = {pair for pair in busy if pair[0] == number}
                children[number].die(now_ns if what == "cut" else None)
                children[number] = Child(board)
                busy -= mine
                cut, lost = (cut + len(mine), lost) if what == "cut" else (cut, lost + len(mine))
            found = board.snapshot().statistics()
            ends = (found.completed, found.failed, found.rejected, found.handed_over, found.timed_out, found.lost)
            assert (found.accepted, found.in_flight) == (accepted, len(busy))
            assert found.accepted == sum(ends) + found.in_flight
            assert (found.timed_out, found.lost, found.words_rejected) == (cut, lost, 0)
            totals = [found.accepted, *ends]
            assert all(old <= new for old, new in zip(before, totals, strict=False))
            before = totals
        for child in children:
            child.die()


def test_reader_beside_a_writer_sees_no_total_fall() -> None:
    """A reader in another thread looks all the time while children count, die and are folded: no total ever
    falls."""
    with boards() as board:
        done, falls, looks = threading.Event(), [], itertools.count()
        reader, known = BoardReader(board.memory), dict[int, SlotReader]()
        children = []

        def look() -> None:
            before = (0, 0, 0)
            while not done.is_set():
                found = reader.snapshot(known.get).statistics()
                now = (found.accepted, found.completed, found.lost)
                if any(old > new for old, new in zip(before, now, strict=True)):
                    falls.append((before, now))
                before = now
                next(looks)

        thread = threading.Thread(target=look)
        thread.start()
        try:
            for number in range(CHILDREN):
                child = Child(board)
                children.append(child)
                known[child.serial] = SlotReader(child.slot)  # the reader's own, as in the exporter
                for _ in range(5):
                    child.accept(0, number)
                    child.finish(0)
                child.accept(1, number)
                child.fold()
        finally:
            done.set()
            thread.join(HUNG)
            reader.release()
            for child in children:
                child.slot.close()
        final = board.snapshot().statistics()
        assert falls == []
        assert next(looks) > 10
        assert (final.accepted, final.completed, final.lost) == (6 * CHILDREN, 5 * CHILDREN, CHILDREN)


def test_reader_waits_while_the_sequence_is_odd() -> None:
    """While the master is in the middle of a change a reader gets nothing; then it gets all of the change."""
    with boards() as board:
        reader = BoardReader(board.memory)
        inside, go_on, seen = threading.Event(), threading.Event(), []

        def look() -> None:
            inside.wait(HUNG)
            seen.append(reader.snapshot(lambda serial: None).words[Word.SPAWNED])

        thread = threading.Thread(target=look)
        thread.start()
        with board.change() as words:
            words[Word.SPAWNED] = 1
            inside.set()
            assert not go_on.wait(0.02)  # a delay as input: the reader spins meanwhile
            assert seen == []
            words[Word.SPAWNED] = 2
        thread.join(HUNG)
        reader.release()
        assert seen == [2]


def test_writer_that_died_in_the_middle_is_not_waited_for() -> None:
    """A sequence word that stays odd ends a reader's patience, not the reader."""
    assert PATIENCE_NS <= 1_000_000_000
    with boards() as board:
        board.words[Word.SEQUENCE] += 1
        assert BoardReader(board.memory).snapshot(lambda serial: None).serials == frozenset()


def test_change_within_a_change_is_one() -> None:
    """The sequence word is odd from the first to the last of nested changes, and even when an error ends them."""
    with boards() as board:
        with board.change() as words:
            board.add(Word.SPAWNED)
            assert words[Word.SEQUENCE] == 1
        assert board.words[Word.SEQUENCE] == 2
        with pytest.raises(ZeroDivisionError), board.change():
            _ = 1 / 0
        assert board.words[Word.SEQUENCE] == 4


def test_another_image_goes_on() -> None:
    """A board that is adopted by its descriptor, after a reload, has the totals, the rows and the serials it had."""
    with boards() as board:
        child = Child(board)
        child.accept(0, 1)
        dead = Child(board)
        dead.accept(0, 1)
        dead.die()
        again = Board(os.dup(board.fd))
        again.resume(child.serial, SlotReader(child.slot))
        assert again.snapshot().statistics() == board.snapshot().statistics()
        assert next(again.serials) > dead.serial
        with pytest.raises(KeyError):
            again.resume(dead.serial, SlotReader(child.slot))
        again.forget()
        child.die()


def test_rows_are_used_again() -> None:
    """A service that has had more children than the table has rows has one row of it in use."""
    with boards() as board:
        for _ in range(ROWS + 10):
            Child(board).die()
        assert board.words[Word.ROWS_USED] == 1
        assert next(board.serials) == ROWS + 11


def test_a_slot_that_is_withdrawn_was_never_there() -> None:
    """A child that did not come to be counts for nothing, not even as lost, and no reader sees its slot any more."""
    with boards() as board:
        child = Child(board)
        child.accept(0, 1)
        board.withdraw(child.serial)
        child.slot.close()
        snapshot = board.snapshot()
        assert (snapshot.serials, snapshot.statistics().accepted, snapshot.statistics().lost) == (frozenset(), 0, 0)
        assert board.words[Word.ROWS_USED] == 1
        Child(board).die()  # in the row that is free again
        assert board.words[Word.ROWS_USED] == 1


def test_roles_and_conditions() -> None:
    """Only READY and STARTING workers offer lanes; the exporter's slot counts nowhere; workers are named by state."""
    with boards() as board:
        ready, starting, draining = (Child(board) for _ in range(3))
        exporter = Child(board, ChildKind.EXPORTER)
        board.set_condition(ready.serial, Condition.READY)
        board.set_condition(draining.serial, Condition.DRAINING)
        for child in (ready, draining, exporter):
            child.accept(0, 1)
        snapshot = board.snapshot()
        assert snapshot.workers() == {"starting": 1, "idle": 0, "busy": 1, "draining": 1}
        assert snapshot.statistics().lanes == 4
        assert snapshot.statistics().accepted == snapshot.statistics().in_flight == 2
        for child in (ready, starting, draining, exporter):
            child.die()


def test_accept_errors_outlive_their_worker() -> None:
    """Errors of accept are summed over the dead and the living."""
    with boards() as board:
        dead, living = Child(board), Child(board)
        dead.slot.words[ACCEPT_ERRORS + AcceptError.EMFILE] = 2
        living.slot.words[ACCEPT_ERRORS + AcceptError.EMFILE] = 1
        dead.die()
        assert board.snapshot().statistics().accept_errors == {"emfile": 3}
        living.die()


def test_datagrams_that_were_cut_outlive_their_worker() -> None:
    with boards() as board:
        dead, living = Child(board), Child(board)
        dead.slot.lane(0)[TRUNCATED], living.slot.lane(0)[TRUNCATED] = 2, 1
        found = [board.snapshot().words[Word.DATAGRAMS_TRUNCATED]]
        for child in (dead, living):
            child.die()
            found.append(board.snapshot().words[Word.DATAGRAMS_TRUNCATED])
    assert found == [3, 3, 3]


def test_log_drops_and_refused_words_outlive_their_worker() -> None:
    """Log lines that were given up, and words that were refused, are summed over the dead and the living."""
    with boards() as board:
        dead, living = Child(board), Child(board)
        for child, number in ((dead, 2), (living, 1)):
            child.slot.words[LOG_DROPPED] = number
        before = board.snapshot().statistics()  # which is where the words below are compared with
        for child in (dead, living):
            child.slot.lane(0)[COMPLETED] = 1 << 62
        counted = board.snapshot().statistics()
        dead.die()
        after = board.snapshot().statistics()
        living.die()
        at_the_end = board.snapshot().statistics()
    assert [each.log_dropped for each in (before, counted, after, at_the_end)] == [3, 3, 3, 3]
    refused = [each.words_rejected for each in (before, counted, after, at_the_end)]
    assert refused[:2] == [0, 2]
    assert refused == sorted(refused)


def test_words_do_not_overlap() -> None:
    """The areas of the board follow each other without sharing a word, and every control request has one of its own."""
    words = [control_requests(command, result) for command in ControlCommand for result in ControlResult]
    assert len(set(words)) == len(words)
    assert BOOT.end <= min(words)
    assert max(words) < LIVE_TABLE
    assert len(ControlCommand) <= CONTROL_COMMANDS
    assert len({int(word) for word in Word}) == len(Word)
    assert max(word for word in Word if word is not Word.LANES_DEAD) < Word.LANES_DEAD


def test_memory_of_another_version_is_refused() -> None:
    """A board is read only where size and version are ours."""
    with boards() as board:
        board.words[Word.VERSION] += 1
        with pytest.raises(ValueError, match="no board of this version"):
            BoardReader(board.memory)


def test_a_service_that_has_done_nothing() -> None:
    """Every number is 0 and every table empty."""
    assert not any(Statistics())


def test_who_takes_new_requests() -> None:
    """Lanes of draining workers, of the exporter and the holder are none that serve; what workers hold is in flight
    either way."""
    board = Board()
    slots = [Slot(lanes) for lanes in (1, 2, 4, 8)]
    kinds = (ChildKind.WORKER, ChildKind.WORKER, ChildKind.EXPORTER, ChildKind.HOLDER)
    for slot, kind in zip(slots, kinds, strict=True):
        serial = board.enter(kind, SlotReader(slot))
        board.set_condition(serial, Condition.DRAINING if slot is slots[0] else Condition.READY)
        slot.lane(0)[STATE] = BUSY
    found = board.snapshot().statistics()
    assert (found.lanes, found.lanes_busy, found.in_flight) == (2, 2, 2)
    assert board.snapshot().in_flight(0) == 2
    assert found.workers == {"starting": 0, "idle": 0, "busy": 1, "draining": 1}
    board.forget()
    assert board.readers() == {}
    for slot in slots:
        slot.close()


def test_slots_that_nobody_resumed() -> None:
    """Their rows are free again, and they are live no more; those that were are left alone."""
    board, slots = Board(), [Slot(1), Slot(1)]
    kept, left = (board.enter(ChildKind.WORKER, SlotReader(slot)) for slot in slots)
    adopted = Board(os.dup(board.fd))
    adopted.resume(kept, SlotReader(slots[0]))
    adopted.keep_only_resumed()
    assert adopted.snapshot().serials == {kept}
    with pytest.raises(KeyError):
        adopted.resume(left, SlotReader(slots[1]))
    again = adopted.enter(ChildKind.WORKER, SlotReader(slots[1]))
    assert adopted.snapshot().serials == {kept, again}
    assert adopted.words[Word.ROWS_USED] == 2
    adopted.forget()
    board.forget()
    for slot in slots:
        slot.close()


def test_each_listener_has_totals_of_its_own() -> None:
    """What a process leaves is added to its listeners' totals and to the service's; a number that is given to another
    listener begins at nothing, and the service's totals stay."""
    with boards() as board:
        slot = Slot(1, listeners=0b11)
        reader = SlotReader(slot)
        serial = board.enter(ChildKind.WORKER, reader)
        for number, count in ((0, 2), (1, 3)):
            slot.of_listener(number).lane(0)[ACCEPTED] = count
            slot.of_listener(number).lane(0)[COMPLETED] = count - 1
        before = board.snapshot()
        board.fold(serial)
        slot.close()
        after = board.snapshot()
        for snapshot in (before, after):
            assert [snapshot.of_listener(number)[0] for number in range(3)] == [2, 3, 0]
        assert [after.of_listener(number)[LISTENER_LOST] for number in range(3)] == [1, 1, 0]
        board.begin_listener(1)
        assert [board.snapshot().of_listener(number)[0] for number in range(3)] == [2, 0, 0]
        assert board.snapshot().statistics().accepted == 5


def open_in(child: Child, lane: int, in_hand: int, idle: int, **counts: int) -> None:
    """Write what a process counts of kept connections."""
    words = child.slot.lane(lane)
    words[IN_HAND], words[IDLE_HERE] = in_hand, idle
    for name, count in counts.items():
        word = {"opened": OPENED, "moves": MOVES}.get(name)
        words[CLOSED + CloseReason[name.upper()] if word is None else word] = count


def test_connections_in_threads_of_the_program() -> None:
    """They are told as in hand, beside those of the lanes, and as left by a process that is gone; an impossible number
    of them is none."""
    with boards() as board:
        child = Child(board)
        open_in(child, 0, 1, 2 * AWAY + 3, opened=6)
        found = board.snapshot().connections
        assert (found.active, found.lingering, found.queued) == (3, 3, 0)
        assert SlotReader(child.slot).left_open() == [(0, 6)]
        open_in(child, 0, 1, 2 * AWAY + MOST_IDLE_HERE + 1)
        found = board.snapshot().connections
        assert (found.active, found.lingering, found.queued) == (1, 0, 5)
        child.die()


def test_every_connection_is_somewhere() -> None:
    """What was opened is closed, or open in a worker or the holder, or on its way between them; what a dead process has
    counted stays."""
    with boards() as board:
        dead, one, other = (Child(board) for _ in range(3))
        holder = Child(board, ChildKind.HOLDER)
        open_in(dead, 0, 0, 0, opened=5, moves=2, handler=1)
        dead.die()
        open_in(one, 0, 1, 0, opened=40, moves=3, client=2)
        open_in(one, 1, 1, 1)
        open_in(other, 1, 0, 1, opened=7, lost=1)
        open_in(holder, 0, 0, 30, idle_timeout=4, evicted=5)
        found = board.snapshot()
        assert found.connections_of(0) == found.connections == ConnectionCounts(
            52, {"client": 2, "handler": 1, "idle_timeout": 4, "evicted": 5, "drained": 0, "lost": 1}, 5, 2, 2, 30, 5
        )  # fmt: skip
        statistics = found.statistics()
        assert statistics.connections_opened == 52
        assert statistics.connections == {"active": 2, "lingering": 2, "held": 30, "queued": 5}
        assert statistics.connections_closed == {"client": 2, "handler": 1, "idle_timeout": 4, "evicted": 5, "lost": 1}
        assert statistics.connection_moves == 5
        assert statistics.accepted == 0
        for child in (one, other, holder):
            child.die()


def test_the_connections_of_each_listener() -> None:
    """Each has its own; the service has all."""
    with boards() as board:
        slot = Slot(1, listeners=0b11)
        serial = board.enter(ChildKind.WORKER, SlotReader(slot))
        for number, count in ((0, 2), (1, 3)):
            lane = slot.of_listener(number).lane(0)
            lane[OPENED], lane[IDLE_HERE] = count, 1
        found = board.snapshot()
        assert [found.connections_of(number).opened for number in range(3)] == [2, 3, 0]
        assert [found.connections_of(number).lingering for number in range(3)] == [1, 1, 0]
        assert (found.connections.opened, found.connections.lingering) == (5, 2)
        board.fold(serial)
        slot.close()


def test_who_keeps_connections() -> None:
    """The listeners that were named last, and any by which one has come that may be kept; the holder is for those."""
    with boards() as board:
        child = Child(board)
        for named in ({0, 3}, {3}, set[int]()):
            board.say_who_keeps(named)
            for asked in (board.snapshot().keeps, board.snapshot().needs_holder):
                assert {number for number in range(LISTENERS_MAX) if asked(number)} == named
        child.slot.lane(0)[OPENED] = 1
        assert board.snapshot().keeps(0)
        child.die()
        assert board.snapshot().keeps(0)
        assert not board.snapshot().needs_holder(0)


def test_holders() -> None:
    """Those that are ready hold; the limit is that of the one that says the most, while there are two."""
    with boards() as board:
        first, second = Child(board, ChildKind.HOLDER), Child(board, ChildKind.HOLDER)
        assert (board.snapshot().holders, board.snapshot().held_most) == (0, 0)
        first.slot.words[HELD_MOST], second.slot.words[HELD_MOST] = 70, 60
        board.set_condition(first.serial, Condition.DRAINING)
        board.set_condition(second.serial, Condition.READY)
        assert (board.snapshot().holders, board.snapshot().held_most) == (1, 70)
        first.die()
        assert (board.snapshot().holders, board.snapshot().held_most) == (1, 60)
        second.die()
        assert (board.snapshot().holders, board.snapshot().held_most) == (0, 0)
