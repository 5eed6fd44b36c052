"""The memory layout of a child's slot, and both views of it: the child writes, the master and the exporter read.

One memfd per child, sealed against shrinking, new for each child and never reused. All cells are 8-byte words, written
by assignment. First the header, the child's report about itself; then one group of words per lane, for each listener
by which its requests may come, each written by one request at a time; then the region of the user's own metrics. One
word of the header is the master's: it tells the child to drain. Nothing in a slot may ever be used as a pid, an index
or an address: the reader checks every word against its possible values, and rejects and counts impossible ones. Longer
than most files: both views are one contract.

The children of a plain forking server that nobody measures have no slot: each has a lane of its parent's, from the fork
until it is reaped, and its last words stand in the text of that slot under its pid (last_words.py).

                   creates   writes                    closes
    slot           master    the child; the master    master at the reap; the child's copy ends with it
                             one word
    stacks (text)  after the words of the slot, in the same memfd: faulthandler and bootstrap append, the master takes
    board          master    master (board.py)         with the server object
"""

import contextlib
import ctypes
import fcntl
import mmap
import os
import sys
from collections.abc import Iterator, Sequence
from time import monotonic_ns
from typing import NamedTuple, Self

from .application.region import Region
from .facts import AcceptError, Activity, ExitReason
from .histogram import Histogram, bounds

LAYOUT_VERSION = 4
LISTENERS_MAX = 16
FIRST_LISTENER = 1  # the set of listeners, as bits, of a child that has one, number 0

# Words of the header.
(
    VERSION, LANES, READY, DUE, LEAVING, DRAIN_ASKED, PRIVATE_MEMORY, OPEN_FDS, FDS_LIMIT, CPU_USER_NS, CPU_SYSTEM_NS,
) = range(11)  # fmt: skip
ACCEPT_ERRORS = 11
LOG_DROPPED = 16  # log lines that this process dropped
TEXT_AT = 17  # offset of the text in bytes; 0 in a slot of a version that kept it elsewhere
CONNECTIONS_TAKEN = 18  # connections accepted by an exporter
REPLACE_ASKED = 19  # a flag: the child was sent TERM by somebody else than its master
LOG_FOLLOWED = 20  # how often the log file had been reopened when this process went on in it
LOG_KEPT = 21  # the same, when it had to go on with the old file instead
LANES_OPEN = 22  # lanes that have been in use, of a child that takes them as it needs them; 0: all
# A flag, or FOR_GOOD where the service ends.
TOLD_TO_DRAIN = 23  # at this place in every layout: the master writes it before it sends the signal to drain
HELD_MOST = 24  # connections that a holder may have; 0: it has not said
HEADER_WORDS = 32

# Words of a lane. From ACCEPTED on they only grow.
STATE, STARTED_NS, ACCEPTED, COMPLETED, FAILED, HANDED_OVER, REJECTED = range(7)
LOST = 15  # with a child that had the lane of its parent, and has left it without a word
ENDS = slice(COMPLETED, LOST + 1)  # of a request; REJECTED + Refusal.… is one, with room for two more
DURATION = Histogram(16, bounds(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60))
# The kernel measures this in jiffies of up to 10 ms.
QUEUE_WAIT = Histogram(DURATION.end, bounds(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30))
# Connections that may be kept (KeepAliveMixIn); the requests of one are counted above, each for itself.
OPENED = QUEUE_WAIT.end
CLOSED = OPENED + 1  # CLOSED + CloseReason.…, with room for two more
MOVES = CLOSED + 8  # connections that this process has taken from a queue
COUNTS = slice(ACCEPTED, MOVES + 1)
TRUNCATED = COUNTS.stop  # datagrams that were longer than max_packet_size
IN_HAND = TRUNCATED + 1  # a gauge: the kept connections that are served on this lane now, 0 or 1
IDLE_HERE = IN_HAND + 1  # a gauge: those that wait in this process: lingering in a worker, all of a holder's
AWAY = 1 << 48  # in IDLE_HERE, for each that a thread of the program's own serves, on no lane; of 16 bits
LANE_WORDS = IDLE_HERE + 1
COUNT_WORDS = COUNTS.stop - COUNTS.start

IDLE, ACCEPTING, BUSY = (int(activity) for activity in Activity)

# A flag is set if it is this number, which a child that corrupts its slot does not hit by chance.
YES = 0x7072_6566_6F72_6B21
FOR_GOOD = YES ^ 0xFF  # in TOLD_TO_DRAIN: the service ends

# No counter of a slot grows by more than this between two reads; nor does a sum of nanoseconds on one lane by more than
# 417 days. With 13 days, a lane with one long request was rejected for ever.
MOST_GROWTH = 1 << 50
MOST_SUM_GROWTH = 1 << 55
MOST_IDLE_HERE = 1 << 30  # descriptors that one process may have, as the kernel counts them
_SUMS = {DURATION.end - 1 - ACCEPTED, QUEUE_WAIT.end - 1 - ACCEPTED}
_MOST = [MOST_SUM_GROWTH if word in _SUMS else MOST_GROWTH for word in range(COUNT_WORDS)]
STACKS_MAX = 256 * 1024

_TOLD = slice(TOLD_TO_DRAIN * 8, TOLD_TO_DRAIN * 8 + 8)
_REASONS = {int(reason): reason for reason in ExitReason}
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL  # the mapped part stays; text may grow after it
FALLOC_PUNCH_HOLE_KEEP_SIZE = 0x03
MAP_FIXED = 0x10

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]


def sealed_memory(name: str, size: int) -> tuple[int, mmap.mmap]:
    """Create a memfd that cannot be shrunk (memfd_create(2)), and return it with a writable mapping.

    Raises OSError when descriptors or memory are short, and then leaves nothing open.
    """
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        # Every holder of the descriptor appends text: they share the open file description, and so this flag.
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
        return fd, mapped(fd, size)
    except BaseException:
        os.close(fd)
        raise


def mapped(fd: int, size: int, protection: int = mmap.PROT_READ | mmap.PROT_WRITE) -> mmap.mmap:
    """Map the descriptor's memory. Raises OSError, or ValueError when it is smaller.

    `mmap.mmap(fd, size)` would keep a duplicate of the descriptor: one more for each child, in the master.
    """
    if not 0 < size <= os.fstat(fd).st_size:
        raise ValueError("there is less memory than was asked for")
    memory = mmap.mmap(-1, size)
    window = (ctypes.c_char * size).from_buffer(memory)
    address = ctypes.addressof(window)
    del window  # else the memory could not be closed
    try:
        map_over(address, size, protection, mmap.MAP_SHARED, fd)
    except OSError:
        memory.close()
        raise
    return memory


def map_over(address: int, size: int, protection: int, flags: int, fd: int) -> None:
    """Map anew what is mapped at this address: mmap(2) with MAP_FIXED. Raises OSError."""
    if _libc.mmap(address, size, protection, flags | MAP_FIXED, fd, 0) != address:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Slot:
    """The shared memory of one child process, as mapped in this process."""

    first = 0  # the lane that this view of a slot begins with
    rank = 0  # and the listener, in the order of their numbers, whose words it shows

    def __init__(
        self, lanes: int, application_bytes: int = 0, opened: int = 0, listeners: int = FIRST_LISTENER
    ) -> None:  # fmt: skip
        """Create the slot, with so many lanes open at first (0: all), for these listeners: a bit for each number.

        Raises OSError when descriptors or memory are short, and then leaves nothing open.
        """
        application_at = (HEADER_WORDS + lanes * listeners.bit_count() * LANE_WORDS) * 8
        size = application_at + application_bytes
        self._use(*sealed_memory("prefork-slot", size), lanes, listeners, writable=True)
        self.words[VERSION] = LAYOUT_VERSION
        self.words[LANES] = lanes
        self.words[TEXT_AT] = size
        self.words[LANES_OPEN] = opened

    @classmethod
    def resume(cls, fd: int, listeners: int = FIRST_LISTENER) -> Self:
        """Map a slot that an earlier image of this process has made, and take over its descriptor. It can be read, and
        its child told to drain.

        Raises ValueError when it is not a slot of this version; then the descriptor remains the caller's.
        """
        memory = mapped(fd, _mapped_bytes(fd) or os.fstat(fd).st_size)
        words = memoryview(memory)[: len(memory) // 8 * 8].cast("Q")
        lanes = words[LANES] if len(words) >= HEADER_WORDS and words[VERSION] == LAYOUT_VERSION else None
        if lanes is None or HEADER_WORDS + lanes * listeners.bit_count() * LANE_WORDS > len(words):
            raise ValueError("this memory is no slot of this version")
        words.release()
        slot = cls.__new__(cls)
        slot._use(fd, memory, lanes, listeners)
        slot._told = memoryview(memory)[_TOLD].cast("Q")
        return slot

    @property
    def shape(self) -> tuple[int, int, int]:
        """The number of lanes, the listeners, and the number of bytes mapped."""
        return self.lanes, self.listeners, len(self.memory)

    @classmethod
    def view(cls, fd: int, shape: tuple[int, int, int]) -> Self:
        """Map a slot read-only by the shape that its creator reports, whatever its contents are; close its descriptor.

        An exporter has a slot for each worker, and the soft limit of descriptors that the service was started with.
        """
        slot = cls.__new__(cls)
        try:
            slot._use(-1, mapped(fd, shape[2], mmap.PROT_READ), *shape[:2])
        finally:
            os.close(fd)
        return slot

    def _use(self, fd: int, memory: mmap.mmap, lanes: int, listeners: int, *, writable: bool = False) -> None:
        self.fd = fd
        self.memory = memory
        self.lanes = lanes
        self.listeners = listeners
        self.numbers = [number for number in range(LISTENERS_MAX) if listeners >> number & 1]
        words = HEADER_WORDS + lanes * len(self.numbers) * LANE_WORDS
        whole = memoryview(memory) if writable else memoryview(memory).toreadonly()
        self.words = whole[: words * 8].cast("Q")
        self.application = whole[words * 8 :]
        self._told = whole[_TOLD].cast("Q")

    @property
    def told_to_drain(self) -> bool:
        """True once the master has told the child to drain."""
        return self._told[0] in (YES, FOR_GOOD)

    @property
    def told_to_end(self) -> bool:
        """True once the master has told the child so because the service ends: nobody comes after it."""
        return bool(self._told[0] == FOR_GOOD)

    def tell_to_drain(self, *, ends: bool = False) -> None:
        """Say that the signal to drain, which is sent next, is the master's; and whether the service `ends`. Called in
        the master only."""
        self._told[0] = FOR_GOOD if ends else YES

    def lane(self, index: int) -> memoryview:
        start = HEADER_WORDS + ((self.first + index) * len(self.numbers) + self.rank) * LANE_WORDS
        return self.words[start : start + LANE_WORDS]

    def part(self, first: int, lanes: int) -> Self:
        """Return a view of some of its lanes, which is not to be closed."""
        part = self.__new__(type(self))
        vars(part).update(vars(self), first=first, lanes=lanes)
        return part

    def of_listener(self, number: int) -> Self:
        """Return a view of its lanes that shows the words of this listener's requests, which is not to be closed."""
        part = self.part(self.first, self.lanes)
        part.rank = self.numbers.index(number)
        return part

    def close(self) -> None:
        """Close the descriptor, and the mapping as soon as no lane of it is held."""
        if self.fd != -1:
            with contextlib.suppress(OSError):  # the program has closed it
                os.close(self.fd)
        try:
            self._told.release()
            self.words.release()
            self.application.release()
            self.memory.close()
        except BufferError:
            pass  # a request in this process still holds a lane: the mapping goes with the last view of it


def leave_to_drain(fd: int) -> None:
    """Close the slot of a child that cannot be read, as that of another layout. Nobody could tell the child to drain
    any more, so it is told beforehand, and then obeys whoever sends the signal."""
    with contextlib.suppress(OSError, ValueError):  # there is less of it than the word takes
        memory = mapped(fd, _TOLD.stop)
        memory[_TOLD] = YES.to_bytes(8, sys.byteorder)
        memory.close()
    os.close(fd)


def _mapped_bytes(fd: int) -> int:
    """Return the bytes of a slot that are words; the rest is text. 0 (map all) if the slot gives no valid offset."""
    at = int.from_bytes(os.pread(fd, 8, TEXT_AT * 8), sys.byteorder)
    return at if HEADER_WORDS * 8 <= at <= os.fstat(fd).st_size else 0


class Stacks:
    """The text at the end of a slot: faulthandler or a dying child appends, the master logs.

    A child must not write it to a log directly, which may block. Text that was taken is released to the kernel and then
    reads as zeros, for the next image too.
    """

    def __init__(self, slot: Slot) -> None:
        self.fd = slot.fd
        self.taken = len(slot.memory)  # the end of what was taken

    def write(self, text: str) -> None:
        os.write(self.fd, text.encode("utf-8", "backslashreplace")[-STACKS_MAX:])

    def size(self) -> int:
        """Return the number of bytes not taken yet."""
        return max(0, os.fstat(self.fd).st_size - self.taken)

    def take(self) -> str:
        """Return the text not taken yet, only the last STACKS_MAX bytes of it, and discard it."""
        end = os.fstat(self.fd).st_size
        text = os.pread(self.fd, STACKS_MAX, max(self.taken, end - STACKS_MAX))
        if end > self.taken:
            _libc.fallocate(
                self.fd, FALLOC_PUNCH_HOLE_KEEP_SIZE, ctypes.c_long(self.taken), ctypes.c_long(end - self.taken)
            )
            self.taken = end
        return text.replace(b"\0", b"").decode("utf-8", "replace")


class Report(NamedTuple):
    """A child's report about itself and the state of its lanes, at one moment, with every word checked."""

    ready: bool
    due: ExitReason | None
    leaving: ExitReason | None
    drain_asked: bool
    replace_asked: bool
    private_memory: int  # bytes; like the next two, 0 until the first sample
    open_fds: int
    fds_limit: int
    cpu_user_ns: int
    cpu_system_ns: int
    lanes: int
    busy_since_ns: tuple[int, ...]  # of each lane that holds a request or an accept
    accepted: int
    tried_ns: int  # when it last tried to accept, whether or not it got anything
    busy_at: tuple[int, ...] = ()  # for each in `busy_since_ns`, the number of the listener by which it came

    @property
    def busy(self) -> int:
        return len(self.busy_since_ns)


class SlotReader:
    """Read a slot, any number of times. Owns the last plausible value of each counter, and rejects implausible ones."""

    def __init__(self, slot: Slot, number: int = 0) -> None:
        self.slot = slot
        self.number = number  # the child's number in its pool
        self.words_rejected = 0
        self.region = Region(slot.application, str(number))
        self._counts: list[list[int]] = []  # of each lane that is open, for each listener
        self._sums = [0] * COUNT_WORDS  # as last read
        self._errors = [0] * len(AcceptError)
        self._log_dropped = [0]
        self._truncated = [0]
        self._open: list[tuple[int, int]] = []  # of each in `_counts`, the gauges of kept connections

    def look(self, now_ns: int) -> Report:
        """Return the report that the supervisor needs at each turn of its loop. Cheap."""
        return self._report(self.slot.words, self._opened(), now_ns)

    def read(self) -> tuple[list[int], Report]:
        """Return the counts and the report of one moment: a request is in flight in the one, or ended in the other."""
        words = self._copied()
        return self._summed(words), self._report(words, len(self._counts), monotonic_ns())

    def counts(self) -> list[int]:
        """Return every word of COUNTS, summed over the lanes."""
        return self._summed(self._copied())

    def _copied(self) -> list[int]:
        return self.slot.words[: HEADER_WORDS + self._opened() * LANE_WORDS].tolist()

    def _report(self, words: Sequence[int], parts: int, now_ns: int) -> Report:
        busy, busy_at, numbers = [], [], self.slot.numbers
        accepted = tried_ns = 0
        for start in range(HEADER_WORDS, HEADER_WORDS + parts * LANE_WORDS, LANE_WORDS):
            accepted += words[start + ACCEPTED]
            started_ns = words[start + STARTED_NS]
            tried_ns = max(tried_ns, started_ns)
            if words[start + STATE] in (ACCEPTING, BUSY) and started_ns <= now_ns:
                busy.append(started_ns)
                busy_at.append(numbers[(start - HEADER_WORDS) // LANE_WORDS % len(numbers)])
        return Report(
            words[READY] == YES, _REASONS.get(words[DUE]), _REASONS.get(words[LEAVING]), words[DRAIN_ASKED] == YES,
            words[REPLACE_ASKED] == YES, words[PRIVATE_MEMORY], words[OPEN_FDS], words[FDS_LIMIT],
            words[CPU_USER_NS], words[CPU_SYSTEM_NS], parts // len(numbers), tuple(busy), accepted,
            tried_ns, tuple(busy_at),
        )  # fmt: skip

    def _opened(self) -> int:
        """Return how many lanes have been in use, or may have been, times the listeners. A number that is impossible is
        not believed."""
        said = self.slot.words[LANES_OPEN] or self.slot.lanes
        if said <= self.slot.lanes:
            parts = said * len(self.slot.numbers)
            self._counts += ([0] * COUNT_WORDS for _ in range(parts - len(self._counts)))
        return len(self._counts)

    def by_listener(self) -> Iterator[tuple[int, list[int]]]:
        """Yield the number of each listener, and the sums over its words that `counts()` has read last."""
        numbers = self.slot.numbers
        if len(numbers) == 1:
            yield numbers[0], self._sums
            return
        for rank, number in enumerate(numbers):
            if found := self._counts[rank :: len(numbers)]:
                yield number, [sum(column) for column in zip(*found, strict=True)]

    def connections(self) -> Iterator[tuple[int, int, int]]:
        """Yield the number of each listener, how many kept connections that came by it are in hand here, and how many
        wait here, of the moment that `counts()` has read last."""
        for rank, number in enumerate(self.slot.numbers):
            found = self._open[rank :: len(self.slot.numbers)]
            yield number, sum(each[0] for each in found), sum(each[1] for each in found)

    def _summed(self, words: list[int]) -> list[int]:
        self._open = []
        for index, last in enumerate(self._counts):
            start = HEADER_WORDS + index * LANE_WORDS
            self._counts[index] = self._checked(last, words[start : start + LANE_WORDS][COUNTS])
            self._open.append(self._gauges(words[start + IN_HAND], words[start + IDLE_HERE]))
        self._sums = [sum(column) for column in zip(*self._counts, strict=True)] or [0] * COUNT_WORDS
        return self._sums

    def accept_errors(self) -> list[int]:
        seen = self.slot.words[ACCEPT_ERRORS : ACCEPT_ERRORS + len(AcceptError)].tolist()
        self._errors = self._checked(self._errors, seen)
        return self._errors

    def log_dropped(self) -> int:
        self._log_dropped = self._checked(self._log_dropped, [self.slot.words[LOG_DROPPED]])
        return self._log_dropped[0]

    def held_most(self) -> int:
        """Return how many connections this holder may have; 0 if it has not said."""
        said = self.slot.words[HELD_MOST]
        return said if said <= MOST_IDLE_HERE else 0

    def truncated(self) -> int:
        words = self.slot.words[HEADER_WORDS + TRUNCATED : HEADER_WORDS + self._opened() * LANE_WORDS : LANE_WORDS]
        self._truncated = self._checked(self._truncated, [sum(words.tolist())])
        return self._truncated[0]

    def outstanding(self) -> list[tuple[int, int]]:
        """Return `started_ns`, and the listener's number, of each request that was accepted but whose end was not
        counted.

        For a child that is gone; call `counts()` first.
        """
        left, numbers = [], self.slot.numbers
        for index, counts in enumerate(self._counts):
            if counts[0] > sum(counts[ENDS.start - ACCEPTED : ENDS.stop - ACCEPTED]):
                started_ns = self.slot.words[HEADER_WORDS + index * LANE_WORDS + STARTED_NS]
                left.append((started_ns, numbers[index % len(numbers)]))
        return left

    def _gauges(self, in_hand: int, idle_here: int) -> tuple[int, int]:
        """Return the gauges, with 0 in place of each that is impossible."""
        away, idle_here = divmod(idle_here, AWAY)
        good = in_hand <= 1, idle_here <= MOST_IDLE_HERE
        self.words_rejected += good.count(False)
        return in_hand * good[0] + away * good[1], idle_here * good[1]

    def left_open(self) -> list[tuple[int, int]]:
        """Return the listener's number, and how many, of the kept connections that this process has. For a child that
        is gone."""
        left, numbers = [], self.slot.numbers
        for index in range(self._opened()):
            start = HEADER_WORDS + index * LANE_WORDS
            mine = sum(self._gauges(self.slot.words[start + IN_HAND], self.slot.words[start + IDLE_HERE]))
            if mine:
                left.append((numbers[index % len(numbers)], mine))
        return left

    def _checked(self, last: list[int], seen: list[int]) -> list[int]:
        """Return the words seen, with the last plausible value in place of each impossible one."""
        if all(old <= new <= old + most for old, new, most in zip(last, seen, _MOST, strict=False)):
            return seen
        believed = [new if old <= new <= old + most else old for old, new, most in zip(last, seen, _MOST, strict=False)]
        self.words_rejected += sum(1 for mine, its in zip(believed, seen, strict=True) if mine != its)
        return believed
