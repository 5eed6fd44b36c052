"""The shared record of a service: what the dead have left, what is in force, and which slots live.

One memfd, behind a sequence word that is odd while the master writes. A reader copies it, adds the slots that it
names, and starts again if the word has moved: so no request is missed or counted twice while a child's slot goes over
into the totals, and no total ever falls. Written by the process that serves and by nobody else; read there for
`statistics()`, and in the exporter. Longer than most files: layout, writer and reader are one contract.
"""

import contextlib
import errno
import itertools
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from time import monotonic_ns

from .application.region import FOLDED_BYTES, Copy, Folded, Region
from .facts import AcceptError, ChildKind, Condition, ControlCommand, ControlResult, ExitReason, ForkFailure
from .histogram import Histogram, bounds
from .scoreboard import (
    ACCEPTED,
    COMPLETED,
    COUNT_WORDS,
    COUNTS,
    FAILED,
    HANDED_OVER,
    LAYOUT_VERSION,
    REJECTED,
    Report,
    SlotReader,
    sealed_memory,
)

SIGNALS = 65
ROWS = 2048  # of the table of live slots
ROW_WORDS = 3  # serial (0: free), role, condition
PATIENCE_NS = 1_000_000_000  # a writer that is in the middle for so long has died there
WORD_MAX = (1 << 64) - 1


class Word(IntEnum):
    """The single words of the board: gauges, which the master sets, and counters, which only grow.

    10, 11, 13 and 19 had a meaning in an earlier layout, and get no other.
    """

    SEQUENCE = 0
    VERSION = 1
    ROWS_USED = 2
    # gauges
    SERVING = 3  # RUNNING with a READY worker: what /-/ready says
    GENERATION = 4
    STARTED_AT_NS = 5  # wall clock
    TURNED_NS = 6  # monotonic: the master's last turn
    MIN_CHILDREN = 7
    MAX_CHILDREN = 8
    BACKING_OFF = 9
    QUEUE_LENGTH_MAX = 12
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
    LAST_RELOAD_AT_NS = 27  # wall clock; 0: there was none
    LOGS_COUNTED = 28  # a gauge: whether anybody counts into LOG_DROPPED
    CONTROL_OPEN = 29  # a gauge: whether there is a control socket
    LANES_DEAD = 32  # the COUNTS of every lane that is gone, summed


EXITS = Word.LANES_DEAD + COUNT_WORDS
ACCEPT_ERRORS_DEAD = EXITS + len(ExitReason) + 1
SIGNAL_DEATHS = ACCEPT_ERRORS_DEAD + len(AcceptError)
FORK_FAILURES = SIGNAL_DEATHS + SIGNALS
BOOT = Histogram(
    FORK_FAILURES + len(ForkFailure), bounds(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
)
LOOP_DELAY = Histogram(BOOT.end, bounds(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5))
CONTROL_REQUESTS = LOOP_DELAY.end
CONTROL_COMMANDS = 16  # room for more of them
LIVE_TABLE = CONTROL_REQUESTS + CONTROL_COMMANDS * len(ControlResult)
BOARD_WORDS = LIVE_TABLE + ROWS * ROW_WORDS
BOARD_BYTES = BOARD_WORDS * 8 + FOLDED_BYTES  # behind the table: the user's metrics of the dead


def control_requests(command: ControlCommand, result: ControlResult) -> int:
    """The word of the board that counts these: `board.add(control_requests(…))`."""
    return CONTROL_REQUESTS + command * len(ControlResult) + result


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a service has done so far and does now. Immutable; every number is over all its processes, dead and living.

    `accepted == completed + failed + timed_out + rejected + handed_over + lost + in_flight`, but for requests on
    their way between two of these at the moment of the look.
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
    generation: int = 0  # in service
    reloads: dict[str, int] = field(default_factory=dict)  # by result: ok, failed
    workers: dict[str, int] = field(default_factory=dict)
    exits: dict[str, int] = field(default_factory=dict)
    accept_errors: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Live:
    """One slot that lives, at the moment of the look."""

    role: ChildKind
    condition: Condition
    report: Report


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The board and every live slot at one moment. Plain numbers; the pure source of statistics and metrics."""

    words: list[int]  # of the board, without the table
    counts: list[int]  # COUNTS over all lanes, dead and living
    accept_errors: list[int]
    words_rejected: int
    live: tuple[Live, ...]
    application: tuple[Copy, ...]  # the user's metrics, where they were asked for: the youngest first, the dead last
    serials: frozenset[int]  # of every slot on the board, also one the reader did not have
    now_ns: int

    def count(self, lane_word: int) -> int:
        return self.counts[lane_word - COUNTS.start]

    def histogram(self, histogram: Histogram) -> list[int]:
        """Of the lanes: the words of DURATION or QUEUE_WAIT."""
        return self.counts[histogram.start - COUNTS.start : histogram.end - COUNTS.start]

    def workers(self) -> dict[str, int]:
        """Workers by what they do: starting, idle, busy, draining."""
        found = {"starting": 0, "idle": 0, "busy": 0, "draining": 0}
        for live in self.live:
            if live.role is ChildKind.WORKER:
                ready = live.condition is Condition.READY
                found[("busy" if live.report.busy else "idle") if ready else live.condition.label] += 1
        return found

    @property
    def serving(self) -> tuple[Live, ...]:
        """The slots whose lanes take requests."""
        return tuple(
            live for live in self.live
            if live.role is not ChildKind.EXPORTER and live.condition is not Condition.DRAINING
        )  # fmt: skip

    @property
    def busy_since_ns(self) -> list[int]:
        return [
            since for live in self.live if live.role is not ChildKind.EXPORTER for since in live.report.busy_since_ns
        ]

    def statistics(self) -> Statistics:
        words, busy = self.words, self.busy_since_ns
        return Statistics(
            accepted=self.count(ACCEPTED), completed=self.count(COMPLETED), failed=self.count(FAILED),
            timed_out=words[Word.TIMED_OUT], rejected=self.count(REJECTED), handed_over=self.count(HANDED_OVER),
            lost=words[Word.LOST], in_flight=len(busy), spawned=words[Word.SPAWNED],
            fork_failures=sum(words[FORK_FAILURES : FORK_FAILURES + len(ForkFailure)]),
            lanes=sum(live.report.lanes for live in self.serving), lanes_busy=len(busy),
            words_rejected=self.words_rejected, log_dropped=words[Word.LOG_DROPPED], generation=words[Word.GENERATION],
            reloads={"ok": words[Word.RELOADS_OK], "failed": words[Word.RELOADS_FAILED]}, workers=self.workers(),
            exits={r.label: words[EXITS + r] for r in ExitReason if words[EXITS + r]},
            accept_errors={e.label: self.accept_errors[e] for e in AcceptError if self.accept_errors[e]},
        )  # fmt: skip


class BoardReader:
    """Reads a board again and again; `reader_of` finds the reader of a live slot by its serial, or None."""

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
        """Let go of the memory, so that it can be unmapped."""
        self._dead_memory.release()
        self._words.release()
        self._memory.release()

    def snapshot(self, reader_of: Callable[[int], SlotReader | None], *, application: bool = False) -> Snapshot:
        """Everything at one moment, the user's metrics too where asked for. A writer that died in the middle is not
        waited for."""
        give_up_at = monotonic_ns() + PATIENCE_NS
        while True:
            sequence = self._words[Word.SEQUENCE]
            whole = sequence % 2 == 0
            if whole or monotonic_ns() > give_up_at:
                found = self._read(reader_of, application)
                if not whole or self._words[Word.SEQUENCE] == sequence or monotonic_ns() > give_up_at:
                    return found
            os.sched_yield()

    def _read(self, reader_of: Callable[[int], SlotReader | None], application: bool) -> Snapshot:
        words = self._words[:LIVE_TABLE].tolist()
        counts = words[Word.LANES_DEAD : Word.LANES_DEAD + COUNT_WORDS]
        errors = words[ACCEPT_ERRORS_DEAD : ACCEPT_ERRORS_DEAD + len(AcceptError)]
        rejected = words[Word.WORDS_REJECTED]
        live = []
        copies = []
        now_ns = monotonic_ns()
        rows = list(self._rows(words[Word.ROWS_USED]))
        for serial, role, condition in sorted(rows, reverse=True):
            reader = reader_of(serial)
            if reader is None:
                continue
            if role != ChildKind.EXPORTER:
                counts = [a + b for a, b in zip(counts, reader.counts(), strict=True)]
                errors = [a + b for a, b in zip(errors, reader.accept_errors(), strict=True)]
            live.append(Live(ChildKind(role), Condition(condition), reader.look(now_ns)))
            rejected += reader.words_rejected
            words[Word.LOG_DROPPED] += reader.log_dropped()
            if application:
                copies.append(reader.region.copy())
        if application:
            copies.append(self._dead.copy())
        serials = frozenset(row[0] for row in rows)
        return Snapshot(words, counts, errors, rejected, tuple(live), tuple(copies), serials, now_ns)

    def _rows(self, used: int) -> Iterator[list[int]]:
        table = self._words[LIVE_TABLE : LIVE_TABLE + used * ROW_WORDS].tolist()
        for start in range(0, len(table), ROW_WORDS):
            if table[start]:
                yield table[start : start + ROW_WORDS]


class Board:
    """The writing side. One process writes; its threads take turns at the lock: any may ask for `statistics()`."""

    def __init__(self, fd: int | None = None) -> None:
        """A new board, or with `fd` the one that another image of this process wrote: its totals go on.

        Raises ValueError when that is none of this version, OSError when descriptors or memory are short.
        """
        if fd is None:
            self.fd, self.memory = sealed_memory("prefork-board", BOARD_BYTES)
        else:
            self.fd, self.memory = fd, mmap.mmap(fd, 0)
            BoardReader(self.memory).release()  # refuses another version's
        self._view = memoryview(self.memory)
        self.words = self._view[: BOARD_WORDS * 8].cast("Q")
        if fd is None:
            self.words[Word.VERSION] = LAYOUT_VERSION
        self.words[Word.SEQUENCE] += self.words[Word.SEQUENCE] % 2  # the other image was in the middle of nothing
        self.folded = Folded(self._view[BOARD_WORDS * 8 :])
        self.reader = BoardReader(self.memory)
        self.lock = threading.RLock()
        rows = self.words[LIVE_TABLE : LIVE_TABLE + self.words[Word.ROWS_USED] * ROW_WORDS : ROW_WORDS].tolist()
        self.serials = itertools.count(self.words[Word.SERIALS_USED] + 1)  # each names one slot for ever
        self.announce: Callable[[int, SlotReader], object] = unannounced  # before it stands on the board
        self._readers: dict[int, SlotReader] = {}
        self._rows: dict[int, int] = {serial: row for row, serial in enumerate(rows) if serial}
        self._free = [row for row in range(ROWS - 1, -1, -1) if row not in self._rows.values()]

    @contextlib.contextmanager
    def change(self) -> Iterator[memoryview]:
        """Write inside: a reader sees all of it or nothing. One change may be part of another."""
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
        """A slot lives from now on; the serial that names it. Raises OSError when there is no row for it, or when it
        cannot be announced."""
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
        """A slot was entered for a child that did not come to be: nothing of it counts."""
        with self.change() as words:
            row = self._rows.pop(serial)
            del self._readers[serial]
            words[LIVE_TABLE + row * ROW_WORDS] = 0
            self._free.append(row)

    def resume(self, serial: int, reader: SlotReader) -> None:
        """A slot that stands on an adopted board is read again. Raises KeyError when it does not stand there."""
        if serial not in self._rows:
            raise KeyError(serial)
        self._readers[serial] = reader

    def keep_only_resumed(self) -> None:
        """Forget the rows that nobody resumed: what they counted cannot be read any more."""
        with self.change() as words:
            for serial in set(self._rows) - set(self._readers):
                row = self._rows.pop(serial)
                words[LIVE_TABLE + row * ROW_WORDS] = 0
                self._free.append(row)

    def set_condition(self, serial: int, condition: Condition) -> None:
        with self.change() as words:
            words[LIVE_TABLE + self._rows[serial] * ROW_WORDS + 2] = condition

    def fold(self, serial: int, overdue_before_ns: int | None = None) -> None:
        """A slot's owner is gone: its counts become totals. What it took with it counts as lost, or as timed out when
        it had begun before `overdue_before_ns`."""
        with self.change() as words:
            row = self._rows.pop(serial)
            reader = self._readers.pop(serial)
            words[LIVE_TABLE + row * ROW_WORDS] = 0
            self._free.append(row)
            self._add(Word.LANES_DEAD, reader.counts())
            self._add(ACCEPT_ERRORS_DEAD, reader.accept_errors())
            words[Word.LOG_DROPPED] += reader.log_dropped()
            words[Word.WORDS_REJECTED] += reader.words_rejected + self.folded.fold(reader.region)
            for started_ns in reader.outstanding():
                overdue = overdue_before_ns is not None and started_ns <= overdue_before_ns
                words[Word.TIMED_OUT if overdue else Word.LOST] += 1

    def add(self, word: int, amount: int = 1) -> None:
        with self.change() as words:
            words[word] += amount

    def observe(self, histogram: Histogram, seconds: float) -> None:
        with self.change() as words:
            histogram.observe(words, max(0, int(seconds * 1e9)))

    def readers(self) -> dict[int, SlotReader]:
        """Of every live slot, by serial."""
        return dict(self._readers)

    def forget(self) -> None:
        """In a new child: this memory is not its to write."""
        self._readers.clear()
        self.reader.release()
        self.folded.release()
        self.words.release()
        self._view.release()
        self.memory.close()
        os.close(self.fd)

    def snapshot(self) -> Snapshot:
        with self.lock:
            return self.reader.snapshot(self._readers.get)

    def _add(self, start: int, amounts: list[int]) -> None:
        for index, amount in enumerate(amounts, start):
            self.words[index] = min(self.words[index] + amount, WORD_MAX)  # children that scribble may add up to more


def unannounced(serial: int, reader: SlotReader) -> None:
    """Nobody else reads."""
