"""Memory layout of a child's slot, and both views of it: the child writes, the master reads and folds.

One memfd per child, sealed against resizing, new for each child and never reused. All cells are 8-byte words, written
by assignment. The header is the child's report of itself; then comes one group of words per lane, each written by one
request at a time. Nothing in a slot is ever used as a pid, an index or an address: the reader checks every word
against what it can mean, refuses what it cannot, and counts the refusal.

                   creates   writes                    closes
    slot           master    the child, nobody else    master at the reap; the child's copy ends with it
    stacks (text)  master    faulthandler, bootstrap   master at the reap
    Totals         master    the master's fold         with the server object
"""

import fcntl
import mmap
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from .facts import AcceptError, Activity, ExitReason

LAYOUT_VERSION = 1

# Words of the header.
VERSION, LANES, READY, DUE, LEAVING, DRAIN_ASKED, PRIVATE_MEMORY = range(7)
ACCEPT_ERRORS = 8
HEADER_WORDS = 16

# Words of a lane: one cache line.
STATE, STARTED_NS, ACCEPTED, COMPLETED, FAILED, REJECTED, HANDED_OVER = range(7)
LANE_WORDS = 8

IDLE, ACCEPTING, BUSY = (int(activity) for activity in Activity)

# A flag is this number or it is not set: a scribbling child does not hit it by chance.
YES = 0x7072_6566_6F72_6B21

# No counter of a slot grows faster than this between two looks.
MOST_GROWTH = 1 << 40
STACKS_MAX = 256 * 1024



class Slot:
    """The shared memory of one child process, as whoever maps it sees it."""

    def __init__(self, lanes: int) -> None:
        """Create the slot. Raises OSError when descriptors or memory are short; nothing is left behind then."""
        self.lanes = lanes
        size = (HEADER_WORDS + lanes * LANE_WORDS) * 8
        self.fd = os.memfd_create("prefork-slot", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, size)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            self.memory = mmap.mmap(self.fd, size)
        except BaseException:
            os.close(self.fd)
            raise
        self.words = memoryview(self.memory).cast("Q")
        self.words[VERSION] = LAYOUT_VERSION
        self.words[LANES] = lanes

    def lane(self, index: int) -> memoryview:
        start = HEADER_WORDS + index * LANE_WORDS
        return self.words[start : start + LANE_WORDS]

    def close(self) -> None:
        """Give the descriptor back, and the mapping as soon as nobody holds a lane of it."""
        os.close(self.fd)
        try:
            self.words.release()
            self.memory.close()
        except BufferError:
            pass  # a lane of it is still held (a request in this process); it goes with its last holder


class Stacks:
    """A memfd for text: faulthandler or a dying child writes, the master logs. Never to a log at once: it may block."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("prefork-stacks", os.MFD_CLOEXEC)
        # Writer and reader share the file description; appending leaves each writer at the end after a truncation.
        fcntl.fcntl(self.fd, fcntl.F_SETFL, os.O_APPEND)

    def write(self, text: str) -> None:
        os.write(self.fd, text.encode("utf-8", "backslashreplace")[-STACKS_MAX:])

    def size(self) -> int:
        return os.fstat(self.fd).st_size

    def take(self) -> str:
        text = os.pread(self.fd, STACKS_MAX, 0).decode("utf-8", "replace")
        os.ftruncate(self.fd, 0)
        return text

    def close(self) -> None:
        os.close(self.fd)


@dataclass(frozen=True, slots=True)
class Report:
    """What a slot said at one look, after the check of every word."""

    ready: bool
    due: ExitReason | None
    leaving: ExitReason | None
    drain_asked: bool
    private_memory: int
    lanes: int
    busy_since_ns: tuple[int, ...]  # of each lane that holds a request or an accept
    accepted: int
    completed: int
    failed: int
    rejected: int
    handed_over: int
    accept_errors: tuple[int, ...]

    @property
    def busy(self) -> int:
        return len(self.busy_since_ns)


_REASONS = {int(reason): reason for reason in ExitReason}


class SlotReader:
    """Reads one slot again and again. Owns the last plausible value of each counter; an implausible one is refused."""

    COUNTERS = slice(ACCEPTED, HANDED_OVER + 1)

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.words_rejected = 0
        self._counts = [[0] * 5 for _ in range(slot.lanes)]
        self._errors = [0] * len(AcceptError)

    def look(self, now_ns: int) -> Report:
        words = self.slot.words.tolist()
        self._errors = self._checked(self._errors, words[ACCEPT_ERRORS : ACCEPT_ERRORS + len(AcceptError)])
        busy = []
        for index in range(self.slot.lanes):
            start = HEADER_WORDS + index * LANE_WORDS
            lane = words[start : start + LANE_WORDS]
            self._counts[index] = self._checked(self._counts[index], lane[self.COUNTERS])
            if lane[STATE] in (ACCEPTING, BUSY) and lane[STARTED_NS] <= now_ns:
                busy.append(lane[STARTED_NS])
        counts = [sum(column) for column in zip(*self._counts, strict=True)] or [0] * 5
        return Report(
            words[READY] == YES, _REASONS.get(words[DUE]), _REASONS.get(words[LEAVING]), words[DRAIN_ASKED] == YES,
            words[PRIVATE_MEMORY], self.slot.lanes, tuple(busy),
            counts[0], counts[1], counts[2], counts[3], counts[4], tuple(self._errors),
        )  # fmt: skip

    def outstanding(self) -> list[int]:
        """`started_ns` of each request that was accepted and never counted to its end. For a child that is gone."""
        left = []
        for index, (accepted, *ended) in enumerate(self._counts):
            if accepted > sum(ended):
                left.append(self.slot.words[HEADER_WORDS + index * LANE_WORDS + STARTED_NS])
        return left

    def _checked(self, last: list[int], seen: list[int]) -> list[int]:
        if all(old <= new <= old + MOST_GROWTH for old, new in zip(last, seen, strict=True)):
            return seen
        self.words_rejected += 1
        return last


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
    workers: dict[str, int] = field(default_factory=dict)
    exits: dict[str, int] = field(default_factory=dict)
    accept_errors: dict[str, int] = field(default_factory=dict)


class Totals:
    """What the dead have left behind. Only the master writes it, by `fold()`, once for each child at its reap."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.exits: Counter[str] = Counter()
        self.accept_errors: Counter[str] = Counter()

    def fold(self, reader: SlotReader, reason: ExitReason | None, overdue_before_ns: int) -> None:
        """Add a dead child's slot. What it took with it counts as lost, or timed_out where that is why it ended."""
        self._add(reader.look((1 << 64) - 1))
        self.counts["words_rejected"] += reader.words_rejected
        for started_ns in reader.outstanding():
            cut = reason is ExitReason.TIMEOUT and started_ns <= overdue_before_ns
            self.counts["timed_out" if cut else "lost"] += 1
        if reason is not None:
            self.exits[reason.label] += 1

    def _add(self, report: Report) -> None:
        for name in ("accepted", "completed", "failed", "rejected", "handed_over"):
            self.counts[name] += getattr(report, name)
        for error, count in zip(AcceptError, report.accept_errors, strict=True):
            if count:
                self.accept_errors[error.label] += count

    def with_living(self, reports: Iterable[Report], workers: dict[str, int], lanes: int) -> Statistics:
        """The totals plus what the living say now. Does not change the totals."""
        seen = Totals()
        for mine, theirs in ((seen.counts, self.counts), (seen.accept_errors, self.accept_errors)):
            mine.update(theirs)
        busy = 0
        for report in reports:
            seen._add(report)
            busy += report.busy
        return Statistics(
            **seen.counts, in_flight=busy, lanes_busy=busy, lanes=lanes, workers=workers,
            exits=dict(self.exits), accept_errors=dict(seen.accept_errors),
        )  # fmt: skip
