"""The board, the shared record of a service: totals of the dead processes, settings in force, table of live slots.

One memfd, guarded by a sequence word that is odd while the master writes. A reader copies it, adds the slots that it
lists, and starts again if the word has changed: so no request is missed or counted twice while a child's slot is folded
into the totals, and no total ever falls. Only the process that serves may write it; that process reads it for
`statistics()`, and the exporter reads it. Longer than most files: layout, writer and reader are one contract.
"""

import contextlib
import errno
import itertools
import mmap
import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from enum import IntEnum
from time import monotonic_ns
from typing import NamedTuple, TypeVar

from .application.region import FOLDED_BYTES, Folded, Glance, Region
from .connections import ConnectionCounts, Whereabouts
from .facts import (
    AcceptError,
    ChildKind,
    CloseReason,
    Condition,
    ControlCommand,
    ControlResult,
    ExitReason,
    ForkFailure,
    Refusal,
)
from .histogram import Histogram, bounds
from .scoreboard import (
    ACCEPTED,
    CLOSED,
    COMPLETED,
    COUNT_WORDS,
    COUNTS,
    FAILED,
    HANDED_OVER,
    LAYOUT_VERSION,
    LISTENERS_MAX,
    LOST,
    OPENED,
    REJECTED,
    Report,
    SlotReader,
    mapped,
    sealed_memory,
)

SIGNALS = 65
ROWS = 2048  # rows of the table of live slots
ROW_WORDS = 3  # serial (0: free), role, condition
SERVE_NOBODY = (ChildKind.EXPORTER, ChildKind.HOLDER)  # what their slots say is of no request of the service's
PATIENCE_NS = 1_000_000_000  # a writer that has been in the middle of a change for this long died there
WORD_MAX = (1 << 64) - 1

Read = TypeVar("Read")


class Word(IntEnum):
    """The single words of the board: gauges, which the master sets, and counters, which only grow.

    10, 11, 12, 13, 19 and 30 had a meaning in an earlier layout and must not get another.
    """

    SEQUENCE = 0
    VERSION = 1
    ROWS_USED = 2
    # gauges
    SERVING = 3  # RUNNING with a READY worker, no queue that nobody takes from, no lost path: the answer of /-/ready
    GENERATION = 4
    STARTED_AT_NS = 5  # wall clock
    TURNED_NS = 6  # monotonic: the last turn of the master's loop
    MIN_CHILDREN = 7
    MAX_CHILDREN = 8
    BACKING_OFF = 9
    # counters
    SPAWNED = 14
    LOST = 15
    TIMED_OUT = 16
    WORDS_REJECTED = 17
    SATURATED_NS = 18
    CPU_USER_NS = 20
    CPU_SYSTEM_NS = 21
    LOG_DROPPED = 22
    SERIALS_USED = 23
    RELOADS_OK = 24
    RELOADS_FAILED = 25
    LAST_RELOAD_OK = 26
    LAST_RELOAD_AT_NS = 27  # wall clock; 0: no reload yet
    LOGS_COUNTED = 28  # a gauge: 1 if dropped log lines are counted in LOG_DROPPED
    CONTROL_OPEN = 29  # a gauge: 1 if there is a control socket
    DATAGRAMS_TRUNCATED = 31
    LANES_DEAD = 32  # first of the COUNTS, summed over the lanes of dead processes


EXITS = Word.LANES_DEAD + COUNT_WORDS
EXIT_WORDS = 24  # leaves room for more reasons
ACCEPT_ERRORS_DEAD = EXITS + EXIT_WORDS
SIGNAL_DEATHS = ACCEPT_ERRORS_DEAD + len(AcceptError)
FORK_FAILURES = SIGNAL_DEATHS + SIGNALS
BOOT = Histogram(
    FORK_FAILURES + len(ForkFailure), bounds(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
)
LOOP_DELAY = Histogram(BOOT.end, bounds(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5))
CONTROL_REQUESTS = LOOP_DELAY.end
CONTROL_COMMANDS = 16  # leaves room for more commands
# Of each listener, by its number: the COUNTS of dead processes, and these.
# KEEPS: 1 if connections that come by it are kept, so that a holder has those that are idle.
LISTENER_LOST, LISTENER_TIMED_OUT, QUEUE_LENGTH_MAX, TLS_EXPIRES_AT_S, KEEPS = range(COUNT_WORDS, COUNT_WORDS + 5)
LISTENER_WORDS = COUNT_WORDS + 5
OF_LISTENERS = CONTROL_REQUESTS + CONTROL_COMMANDS * len(ControlResult)
LIVE_TABLE = OF_LISTENERS + LISTENERS_MAX * LISTENER_WORDS
BOARD_WORDS = LIVE_TABLE + ROWS * ROW_WORDS
BOARD_BYTES = BOARD_WORDS * 8 + FOLDED_BYTES  # after the table: the user's metrics of dead processes


def exit_word(reason: ExitReason) -> int:
    """Return the word of the board that counts the workers that ended for this reason."""
    return EXITS + reason


def control_requests(command: ControlCommand, result: ControlResult) -> int:
    """Return the word of the board that counts these requests, for `board.add(control_requests(…))`."""
    return CONTROL_REQUESTS + command * len(ControlResult) + result


def listener_word(number: int, word: int) -> int:
    """Return the word of the board for this one of a listener: an index of COUNTS, or QUEUE_LENGTH_MAX and the like."""
    return OF_LISTENERS + number * LISTENER_WORDS + word


class Statistics(NamedTuple):
    """The work of a service, so far and at this moment. Immutable; every number covers all processes, dead and live.

    `accepted == completed + failed + timed_out + rejected + handed_over + lost + in_flight`, except for requests that
    are changing from one of these to another at the moment of reading.

    Where connections are kept (KeepAliveMixIn) all this counts requests, and `connections_opened` the connections: it
    is the sum of `connections` and `connections_closed`.
    """

    accepted: int = 0
    completed: int = 0
    failed: int = 0
    timed_out: int = 0
    rejected: int = 0
    handed_over: int = 0
    lost: int = 0
    in_flight: int = 0
    spawned: int = 0
    fork_failures: int = 0
    lanes: int = 0
    lanes_busy: int = 0
    words_rejected: int = 0
    log_dropped: int = 0
    generation: int = 0  # the one in service
    reloads: dict[str, int] = {}  # by result: ok, failed
    workers: dict[str, int] = {}
    exits: dict[str, int] = {}
    accept_errors: dict[str, int] = {}
    connections_opened: int = 0
    connections: dict[str, int] = {}  # those open now: active, lingering, held, queued; empty if none was ever opened
    connections_closed: dict[str, int] = {}  # by reason
    connection_moves: int = 0  # times that a worker got one from the holder


class Live(NamedTuple):
    """One live slot, at the moment of reading."""

    role: ChildKind
    condition: Condition
    report: Report


class Snapshot(NamedTuple):
    """The board and every live slot at one moment. Plain numbers, from which statistics and metrics are computed."""

    words: list[int]  # of the board, without the table
    counts: list[int]  # COUNTS, summed over all lanes, dead and live
    accept_errors: list[int]
    words_rejected: int
    live: tuple[Live, ...]
    application: tuple[Glance, ...]  # the user's metrics, if asked for: the youngest process first, the dead last
    serials: frozenset[int]  # of every slot on the board, including those the reader does not have
    now_ns: int
    by_listener: Mapping[int, list[int]] = {}  # COUNTS of the live slots, by the listener's number
    whereabouts: Mapping[int, Whereabouts] = {}  # of the kept connections that came by it
    held_most: int = 0  # connections that the holder may have; 0: unknown

    def count(self, lane_word: int) -> int:
        return self.counts[lane_word - COUNTS.start]

    def of_listener(self, number: int) -> list[int]:
        """Return the words of a listener, dead and live: COUNTS, then LISTENER_LOST and so on."""
        start = listener_word(number, 0)
        words, live = self.words[start : start + LISTENER_WORDS], self.by_listener.get(number, [0] * COUNT_WORDS)
        return [a + b for a, b in zip(words, live, strict=False)] + words[COUNT_WORDS:]

    def in_flight(self, number: int) -> int:
        """Return how many requests that came by this listener run now."""
        return sum(live.report.busy_at.count(number) for live in self.live if live.role not in SERVE_NOBODY)

    def needs_holder(self, number: int) -> bool:
        """Return whether idle connections that came by this listener go to a holder."""
        return bool(self.words[listener_word(number, KEEPS)])

    def keeps(self, number: int) -> bool:
        """Return whether connections that come by this listener are kept, or were."""
        return self.needs_holder(number) or bool(self.of_listener(number)[OPENED - COUNTS.start])

    def connections_of(self, number: int) -> ConnectionCounts:
        """Return the counts of the connections that came by this listener."""
        return ConnectionCounts.of(self.of_listener(number), self.whereabouts.get(number, Whereabouts()))

    @property
    def connections(self) -> ConnectionCounts:
        """The connections of all listeners."""
        where = Whereabouts(*map(sum, zip(Whereabouts(), *self.whereabouts.values(), strict=True)))
        return ConnectionCounts.of(self.counts, where)

    @property
    def holders(self) -> int:
        """The number of holders that hold."""
        return sum(live.role is ChildKind.HOLDER and live.condition is Condition.READY for live in self.live)

    @property
    def refused(self) -> int:
        """Requests that no handler saw, for any reason."""
        return sum(self.count(REJECTED + refusal) for refusal in Refusal)

    def histogram(self, histogram: Histogram) -> list[int]:
        """Return the words of DURATION or QUEUE_WAIT, summed over the lanes."""
        return self.counts[histogram.start - COUNTS.start : histogram.end - COUNTS.start]

    def workers(self) -> dict[str, int]:
        """Return the number of workers that are starting, idle, busy and draining."""
        found = {"starting": 0, "idle": 0, "busy": 0, "draining": 0}
        for live in self.live:
            if live.role is ChildKind.WORKER:
                ready = live.condition is Condition.READY
                found[("busy" if live.report.busy else "idle") if ready else live.condition.label] += 1
        return found

    @property
    def serving(self) -> tuple[Live, ...]:
        """The slots whose lanes take new requests: not those of the exporter, the holder or draining children."""
        return tuple(
            live for live in self.live if live.role not in SERVE_NOBODY and live.condition is not Condition.DRAINING
        )

    @property
    def busy_since_ns(self) -> list[int]:
        return [since for live in self.live if live.role not in SERVE_NOBODY for since in live.report.busy_since_ns]

    def statistics(self) -> Statistics:
        words, busy, connections = self.words, self.busy_since_ns, self.connections
        return Statistics(
            accepted=self.count(ACCEPTED), completed=self.count(COMPLETED), failed=self.count(FAILED),
            timed_out=words[Word.TIMED_OUT], rejected=self.refused, handed_over=self.count(HANDED_OVER),
            lost=words[Word.LOST] + self.count(LOST), in_flight=len(busy), spawned=words[Word.SPAWNED],
            fork_failures=sum(words[FORK_FAILURES : FORK_FAILURES + len(ForkFailure)]),
            lanes=sum(live.report.lanes for live in self.serving), lanes_busy=len(busy),
            words_rejected=self.words_rejected, log_dropped=words[Word.LOG_DROPPED], generation=words[Word.GENERATION],
            reloads={"ok": words[Word.RELOADS_OK], "failed": words[Word.RELOADS_FAILED]}, workers=self.workers(),
            exits={r.label: words[exit_word(r)] for r in ExitReason if words[exit_word(r)]},
            accept_errors={e.label: self.accept_errors[e] for e in AcceptError if self.accept_errors[e]},
            connections_opened=connections.opened, connections=connections.open if connections.opened else {},
            connections_closed={reason: count for reason, count in connections.closed.items() if count},
            connection_moves=connections.moves,
        )  # fmt: skip


class BoardReader:
    """Read a board, any number of times."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memoryview(memory)
        if len(memory) != BOARD_BYTES:
            raise ValueError("this memory is no board of this version")
        self._words = self._memory[: BOARD_WORDS * 8].cast("Q")
        if self._words[Word.VERSION] != LAYOUT_VERSION:
            raise ValueError("this memory is no board of this version")
        self._dead_memory = self._memory[BOARD_WORDS * 8 :]
        self._dead = Region(self._dead_memory, None)

    def release(self) -> None:
        """Release the views of the memory, so that it can be unmapped."""
        self._dead_memory.release()
        self._words.release()
        self._memory.release()

    def snapshot(self, reader_of: Callable[[int], SlotReader | None], *, application: bool = False) -> Snapshot:
        """Return the state at one moment; `application`: including the user's metrics.

        `reader_of` returns the reader of the live slot with a given serial, or None. Waits at most PATIENCE_NS for a
        writer that died in the middle of a change.
        """
        return self._consistent(lambda: self._read(reader_of, application))

    def serials(self) -> frozenset[int]:
        """Return the serial of every slot on the board at one moment."""
        return self._consistent(lambda: frozenset(row[0] for row in self._rows(self._words[Word.ROWS_USED])))

    def _consistent(self, read: Callable[[], Read]) -> Read:
        give_up_at = monotonic_ns() + PATIENCE_NS
        while True:
            sequence = self._words[Word.SEQUENCE]
            whole = sequence % 2 == 0
            if whole or monotonic_ns() > give_up_at:
                found = read()
                if not whole or self._words[Word.SEQUENCE] == sequence or monotonic_ns() > give_up_at:
                    return found
            os.sched_yield()

    def _read(self, reader_of: Callable[[int], SlotReader | None], application: bool) -> Snapshot:
        words = self._words[:LIVE_TABLE].tolist()
        counts = words[Word.LANES_DEAD : Word.LANES_DEAD + COUNT_WORDS]
        errors = words[ACCEPT_ERRORS_DEAD : ACCEPT_ERRORS_DEAD + len(AcceptError)]
        rejected = words[Word.WORDS_REJECTED]
        live = []
        by_listener: dict[int, list[int]] = {}
        whereabouts: dict[int, Whereabouts] = {}
        held_most = 0
        looks = []
        rows = list(self._rows(words[Word.ROWS_USED]))
        for serial, role, condition in sorted(rows, reverse=True):
            reader = reader_of(serial)
            if reader is None:
                continue
            read, report = reader.read()
            if role != ChildKind.EXPORTER:
                counts = [a + b for a, b in zip(counts, read, strict=True)]
                errors = [a + b for a, b in zip(errors, reader.accept_errors(), strict=True)]
                for number, its in reader.by_listener():
                    before = by_listener.get(number)
                    by_listener[number] = its if before is None else [a + b for a, b in zip(before, its, strict=True)]
            holder = role == ChildKind.HOLDER
            for number, *waiting in reader.connections():
                before_it = whereabouts.get(number, Whereabouts())
                whereabouts[number] = before_it.with_more(*waiting, holder=holder)
            held_most = max(held_most, reader.held_most() if holder else 0)
            live.append(Live(ChildKind(role), Condition(condition), report))
            rejected += reader.words_rejected
            words[Word.LOG_DROPPED] += reader.log_dropped()
            words[Word.DATAGRAMS_TRUNCATED] += reader.truncated()
            if application:
                looks.append(reader.region.view())
        if application:
            looks.append(self._dead.copy())
        serials = frozenset(row[0] for row in rows)
        now_ns = monotonic_ns()
        return Snapshot(
            words, counts, errors, rejected, tuple(live), tuple(looks), serials, now_ns, by_listener, whereabouts,
            held_most,
        )  # fmt: skip

    def _rows(self, used: int) -> Iterator[list[int]]:
        table = self._words[LIVE_TABLE : LIVE_TABLE + used * ROW_WORDS].tolist()
        for start in range(0, len(table), ROW_WORDS):
            if table[start]:
                yield table[start : start + ROW_WORDS]


class Board:
    """The writing side. Only one process writes; its threads share a lock, since any may ask for `statistics()`."""

    def __init__(self, fd: int | None = None) -> None:
        """Create a board, or with `fd` adopt that of the previous image of this process, and continue its totals.

        Raises ValueError when that has another layout version, OSError when descriptors or memory are short.
        """
        if fd is None:
            self.fd, self.memory = sealed_memory("prefork-board", BOARD_BYTES)
        else:
            self.fd, self.memory = fd, mapped(fd, os.fstat(fd).st_size)
            BoardReader(self.memory).release()  # raises for another version
        self._view = memoryview(self.memory)
        self.words = self._view[: BOARD_WORDS * 8].cast("Q")
        if fd is None:
            self.words[Word.VERSION] = LAYOUT_VERSION
        self.words[Word.SEQUENCE] += self.words[Word.SEQUENCE] % 2  # even: no change is under way
        self.folded = Folded(self._view[BOARD_WORDS * 8 :])
        self.reader = BoardReader(self.memory)
        self.lock = threading.RLock()
        rows = self.words[LIVE_TABLE : LIVE_TABLE + self.words[Word.ROWS_USED] * ROW_WORDS : ROW_WORDS].tolist()
        self.serials = itertools.count(self.words[Word.SERIALS_USED] + 1)  # never reused: each names one slot for ever
        self.announce: Callable[[int, SlotReader], object] = unannounced  # called before a slot is on the board
        self._readers: dict[int, SlotReader] = {}
        self._rows: dict[int, int] = {serial: row for row, serial in enumerate(rows) if serial}
        self._free = [row for row in range(ROWS - 1, -1, -1) if row not in self._rows.values()]

    @contextlib.contextmanager
    def change(self) -> Iterator[memoryview]:
        """Write inside the block: a reader sees all of it or nothing. Changes may be nested."""
        with self.lock:
            begins = self.words[Word.SEQUENCE] % 2 == 0
            if begins:
                self.words[Word.SEQUENCE] += 1
            try:
                yield self.words
            finally:
                if begins:
                    self.words[Word.SEQUENCE] += 1

    def enter(self, role: ChildKind, reader: SlotReader) -> int:
        """Enter a slot as live and return its serial. Raises OSError when no row is free or it cannot be announced."""
        if not self._free:
            raise OSError(errno.ENOMEM, f"the table of live slots has {ROWS} rows, and all are taken")
        serial = next(self.serials)
        self.announce(serial, reader)
        with self.change() as words:
            words[Word.SERIALS_USED] = serial
            row = self._rows[serial] = self._free.pop()
            self._readers[serial] = reader
            words[Word.ROWS_USED] = max(words[Word.ROWS_USED], row + 1)
            start = LIVE_TABLE + row * ROW_WORDS
            words[start + 1], words[start + 2] = role, Condition.STARTING
            words[start] = serial
        return serial

    def withdraw(self, serial: int) -> None:
        """Remove a slot that was entered for a child that could not be started. Nothing in it counts."""
        with self.change() as words:
            row = self._rows.pop(serial)
            del self._readers[serial]
            words[LIVE_TABLE + row * ROW_WORDS] = 0
            self._free.append(row)

    def resume(self, serial: int, reader: SlotReader) -> None:
        """Read a slot of an adopted board again. Raises KeyError when the slot is not on the board."""
        if serial not in self._rows:
            raise KeyError(serial)
        self._readers[serial] = reader

    def keep_only_resumed(self) -> None:
        """Free the rows of slots that were not resumed: their counts can no longer be read."""
        with self.change() as words:
            for serial in set(self._rows) - set(self._readers):
                row = self._rows.pop(serial)
                words[LIVE_TABLE + row * ROW_WORDS] = 0
                self._free.append(row)

    def set_condition(self, serial: int, condition: Condition) -> None:
        with self.change() as words:
            words[LIVE_TABLE + self._rows[serial] * ROW_WORDS + 2] = condition

    def fold(self, serial: int, overdue_before_ns: int | None = None, *, ended_well: bool = False) -> None:
        """Add the counts of a slot to the totals and remove it, because its process is gone.

        Requests that died with the process count as lost, or as timed out if they began before `overdue_before_ns`;
        with `ended_well` as completed, because the end of the process was theirs.
        """
        with self.change() as words:
            row = self._rows.pop(serial)
            reader = self._readers.pop(serial)
            words[LIVE_TABLE + row * ROW_WORDS] = 0
            self._free.append(row)
            self._add(Word.LANES_DEAD, reader.counts())
            for number, counts in reader.by_listener():
                self._add(listener_word(number, 0), counts)
            self._add(ACCEPT_ERRORS_DEAD, reader.accept_errors())
            words[Word.LOG_DROPPED] += reader.log_dropped()
            words[Word.DATAGRAMS_TRUNCATED] += reader.truncated()
            words[Word.WORDS_REJECTED] += reader.words_rejected + self.folded.fold(reader.region)
            for started_ns, number in reader.outstanding():
                overdue = overdue_before_ns is not None and started_ns <= overdue_before_ns
                lost, its = (
                    (Word.LANES_DEAD + COMPLETED - COUNTS.start, COMPLETED - COUNTS.start) if ended_well
                    else (Word.TIMED_OUT, LISTENER_TIMED_OUT) if overdue else (Word.LOST, LISTENER_LOST)
                )  # fmt: skip
                words[lost] += 1
                words[listener_word(number, its)] += 1
            for number, connections in reader.left_open():
                word = CLOSED + CloseReason.LOST - COUNTS.start
                words[Word.LANES_DEAD + word] += connections
                words[listener_word(number, word)] += connections

    def begin_listener(self, number: int) -> None:
        """Begin the counts of a listener that has got this number. Those of the one before are in the totals only."""
        with self.change() as words:
            for word in range(LISTENER_WORDS):
                words[listener_word(number, word)] = 0

    def say_who_keeps(self, numbers: Collection[int]) -> None:
        """Say by which listeners connections come that are kept."""
        with self.change() as words:
            for number in range(LISTENERS_MAX):
                words[listener_word(number, KEEPS)] = number in numbers

    def add(self, word: int, amount: int = 1) -> None:
        with self.change() as words:
            words[word] += amount

    def observe(self, histogram: Histogram, seconds: float) -> None:
        with self.change() as words:
            histogram.observe(words, max(0, int(seconds * 1e9)))

    def readers(self) -> dict[int, SlotReader]:
        """Return the reader of every live slot, by serial."""
        return dict(self._readers)

    def forget(self) -> None:
        """Let go of the board in a new child, which must not write it."""
        self._readers.clear()
        self.reader.release()
        self.folded.release()
        self.words.release()
        self._view.release()
        self.memory.close()
        with contextlib.suppress(OSError):  # the program has closed it
            os.close(self.fd)

    def snapshot(self) -> Snapshot:
        with self.lock:
            return self.reader.snapshot(self._readers.get)

    def _add(self, start: int, amounts: list[int]) -> None:
        for index, amount in enumerate(amounts, start):
            self.words[index] = min(self.words[index] + amount, WORD_MAX)  # corrupt slots may add up to more


def unannounced(serial: int, reader: SlotReader) -> None:
    """Do nothing: no other process reads the slot."""
