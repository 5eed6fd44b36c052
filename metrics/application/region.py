"""The user's own metrics in shared memory: written by each process, added up by others, kept when a process is gone.

A region is part of a process's shared memory. Only that process may write it (`Writer`); others read it while it is
being written, or after its writer was killed at any instruction (`Region`). Records are appended and never moved; the
length in use is published once they are complete. A value is one 8-byte word, written by assignment. The reader checks
every length, key and value; it rejects and counts what is impossible, so a corrupt region spoils only its own numbers.

    word 0   version; zero: not written yet
         1   words in use, these included; published last
         2   series for which there was no room
         3   spare
    then     family   check | 0xFFF | length    key
             series   check | family | length   value   second   key

`check` (32 bits) is the crc32 of the key and the family's number (12 bits); `length` (20 bits): bytes of the key.
Where values are added, `second` is the part of the sum that a float cannot hold. Elsewhere it is the time at which the
value was written (`mostrecent`) or 1, and zero until then.

                   creates   writes                       reads
    region         master    its process (values.py)      master at the reap, exporter
    folded totals  master    master                       exporter
"""

import threading
from array import array
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from math import isfinite
from typing import NamedTuple

from .series import Family, Rule, Series, added, family_of, prevails, series_of

FORMAT = 0x7072_6566_6F72_0001
VERSION, USED, DROPPED = range(3)
REGION_HEADER_WORDS = 4
FAMILY = 0xFFF
LENGTH_BITS = 20
LENGTH_MASK = (1 << LENGTH_BITS) - 1

MOST = 2.0**63  # no count is this large
LEAST = 2.0**-52  # epsilon of a float: the part that it cannot hold is smaller, relative to the value

# Only pages that were written use memory.
REGION_BYTES = 1 << 20
FOLDED_BYTES = 4 << 20


class RegionRecord(NamedTuple):
    """A record of a region: its place, and its contents as written there."""

    at: int
    family: int
    key: bytes
    whole: bool  # its check is right
    end: int


def _size(family: int, length: int) -> int:
    """Return the number of words of a record."""
    return (1 if family == FAMILY else 3) + (length + 7) // 8


def _record(memory: bytes | memoryview, words: memoryview, at: int) -> RegionRecord | None:
    """Return the record at this word; None at the end, or at an impossible length, after which nothing can be read."""
    if at >= len(words):
        return None
    head = words[at]
    family, length = head >> LENGTH_BITS & FAMILY, head & LENGTH_MASK
    end = at + _size(family, length)
    if not length or end > len(words):
        return None
    start = (end - (length + 7) // 8) * 8
    from binascii import crc32

    key = bytes(memory[start : start + length])
    return RegionRecord(at, family, key, crc32(key, family) == head >> 32, end)


class Writer:
    """Append series to a region and tell where their values go. For one process; callers must hold a lock."""

    def __init__(self, memory: memoryview) -> None:
        """Begin a region, or continue one. Raises ValueError if it has another version."""
        self._memory = memory[: len(memory) // 8 * 8]
        self._words = self._memory.cast("Q")
        self.cells = self._memory.cast("d")
        self._families: dict[bytes, int] = {}
        self._places: dict[tuple[int, bytes], int] = {}
        if len(self._words) < REGION_HEADER_WORDS or self._words[VERSION] not in (0, FORMAT):
            raise ValueError("this memory is no region of this version")
        if self._words[VERSION] == 0:
            self._words[USED] = REGION_HEADER_WORDS
            self._words[VERSION] = FORMAT
        self._end = REGION_HEADER_WORDS
        used = self._words[: self._words[USED]]
        while (record := _record(self._memory, used, self._end)) is not None:
            self._end = record.end
            self._know(record.family, record.key, record.at + 1)

    def place(self, family: bytes, keys: Sequence[bytes]) -> list[int] | None:
        """Return the indexes in `cells` of the values of these series, or None if there is no room for all of them.

        New series start at zero and become visible together.
        """
        number = self._families.get(family)
        new = [key for key in keys if number is None or (number, key) not in self._places]
        if new and not self._append(family, number, new):
            self.drop(len(new))
            return None
        number = self._families[family]
        return [self._places[number, key] for key in keys]

    def drop(self, count: int) -> None:
        """Count series for which there was no room."""
        self._words[DROPPED] += count

    def release(self) -> None:
        """Release the views of the memory, so that it can be unmapped."""
        for view in (self.cells, self._words, self._memory):
            view.release()

    def _append(self, family: bytes, number: int | None, keys: Sequence[bytes]) -> bool:
        records = [] if number is not None else [(FAMILY, family)]
        number = len(self._families) if number is None else number
        records += [(number, key) for key in keys]
        end = self._end + sum(_size(number, len(key)) for number, key in records)
        if number >= FAMILY or end > len(self._words) or any(len(key) > LENGTH_MASK for _, key in records):
            return False
        starts, at = [], self._end
        for record in records:
            starts.append(at)
            at = self._write(at, *record)
        self._words[USED] = self._end = end
        for start, record in zip(starts, records, strict=True):
            self._know(*record, start + 1)
        return True

    def _write(self, at: int, number: int, key: bytes) -> int:
        from binascii import crc32

        end = at + _size(number, len(key))
        key_at = end - (len(key) + 7) // 8
        self._memory[key_at * 8 : end * 8] = key.ljust((end - key_at) * 8, b"\0")
        for word in range(at + 1, key_at):
            self._words[word] = 0
        self._words[at] = crc32(key, number) << 32 | number << LENGTH_BITS | len(key)
        return end

    def _know(self, number: int, key: bytes, value_at: int) -> None:
        if number == FAMILY:
            self._families[key] = len(self._families)
        else:
            self._places[number, key] = value_at


class Reading(NamedTuple):
    """The contents of a region at one moment, with every word checked."""

    cells: list[tuple[Series, float, float]]  # value and second
    dropped: int
    rejected: int  # impossible words


class Region:
    """Read a region, any number of times. Remembers the keys, so that another look costs only the values.

    `slot` is the label value for series that each slot has for itself. None: the region holds the totals of the dead,
    whose names have that label already.
    """

    def __init__(self, memory: memoryview, slot: str | None) -> None:
        self._memory = memory  # kept without a view of our own, so that the caller may release it
        self._slot = slot
        self._lock = threading.Lock()
        self._parsed = REGION_HEADER_WORDS
        self._families: list[Family | None] = []
        self.series: list[Series] = []  # what it has learnt, and
        self.places = array("I")  # the word of the value of each
        self.in_order = True  # of their places
        self._doubtful: dict[int, int] = {}  # records incomplete when last seen: the number of families before each
        self._refused = self._rejected = 0

    def copy(self) -> "Glance":
        """Copy the region as it is now."""
        return self._look(lambda part: part.tobytes())

    def view(self) -> "Glance":
        """Look at the region of a process, whose values may go on while they are read. It stays mapped meanwhile."""
        return self._look(lambda part: part)

    def _look(self, take: Callable[[memoryview], bytes | memoryview]) -> "Glance":
        if len(self._memory) < REGION_HEADER_WORDS * 8:
            return Glance(self, b"", True)
        version, used, *_ = self._memory[: REGION_HEADER_WORDS * 8].cast("Q").tolist()
        if version == 0 and self._parsed == REGION_HEADER_WORDS:
            return Glance(self, b"", True)
        sound = version == FORMAT and self._parsed <= used <= len(self._memory) // 8
        return Glance(self, take(self._memory[: 8 * (used if sound else self._parsed)]), sound)

    def learn(self, look: "Glance") -> None:
        """Learn the records that are new in this look, and those whose time has come."""
        with self._lock:
            memory, words = look.memory, memoryview(look.memory).cast("Q")
            doubtful, self._doubtful = self._doubtful, {}
            for at, families in doubtful.items():
                self.in_order = False
                if (record := _record(memory, words, at)) is not None:
                    self._take(record, families)
                else:
                    self._doubtful[at] = families
            if self._parsed < len(words):
                self._parsed += self._learn(bytes(memory[self._parsed * 8 :]), self._parsed)

    def rejected(self, look: "Glance", implausible: int) -> int:
        """Return how many words of it were refused, never fewer than before; `implausible`: values of this look."""
        with self._lock:
            stuck = self._parsed < len(look.memory) // 8
            rejected = self._refused + len(self._doubtful) + implausible + stuck + (not look.sound)
            self._rejected = max(self._rejected, rejected)
            return self._rejected

    def _read(self, look: "Glance") -> Reading:
        self.learn(look)
        floats = memoryview(look.memory).cast("d")
        cells, implausible = [], 0
        for series, at in zip(self.series, self.places, strict=False):
            if at + 1 >= len(floats):
                continue  # learnt from a later look
            value, second = floats[at], floats[at + 1]
            if (second == 0.0 and 0.0 <= value < MOST) or plausible(series, value, second):
                cells.append((series, value, second))
            else:
                implausible += 1
        return Reading(cells, dropped(look), self.rejected(look, implausible))

    def _learn(self, memory: bytes, base: int) -> int:
        """Learn the records of `memory`, whose first word is this one of the region; return how many words they take.
        What is known already costs little: with 10,000 series in each of 64 workers this is the first scrape."""
        from binascii import crc32

        words, at = memoryview(memory).cast("Q"), 0
        known = [_names(family) for family in self._families]
        while at < len(words):
            head = words[at]
            number, length = head >> LENGTH_BITS & FAMILY, head & LENGTH_MASK
            if number < len(known) and length:
                key = memory[8 * (at + 3) : 8 * (at + 3) + length]
                series, end = known[number].get(key), at + 3 + (length + 7) // 8
                if series is not None and crc32(key, number) == head >> 32 and end <= len(words):
                    self.series.append(series)
                    self.places.append(base + at + 1)
                    at = end
                    continue
            if (record := _record(memory, words, at)) is None:
                break
            families, at = len(self._families), record.end
            if record.family == FAMILY:
                self._families.append(None)
            self._take(record._replace(at=base + record.at), families)
            known += map(_names, self._families[families:])
        return at

    def _take(self, record: RegionRecord, families: int) -> None:
        """Learn a record that comes after `families` families, or put it off if incomplete: it may yet become whole."""
        is_family = record.family == FAMILY
        family = None if is_family or record.family >= families else self._families[record.family]
        if not record.whole or (family is None and not is_family):
            self._doubtful[record.at] = families
            return
        try:
            if family is None:
                self._families[families] = family_of(record.key)
                return
            series = series_of(family, record.key)
        except ValueError:
            self._refused += 1
            return
        if family.rule is Rule.EACH and self._slot is not None:
            series = series.at_slot(self._slot)
        self.series.append(series)
        self.places.append(record.at + 1)


class Glance(NamedTuple):
    """A region at one moment. Taking it is quick; the slower reading can follow later."""

    region: Region
    memory: bytes | memoryview
    sound: bool  # the header made sense

    def read(self) -> Reading:
        return self.region._read(self)


def _names(family: Family | None) -> Mapping[bytes, Series]:
    """Return the series of a family that are known, where a record of it says all there is to say."""
    return {} if family is None or family.rule is Rule.EACH else family.known


def dropped(look: Glance) -> int:
    """Return how many series the process had no room for; a number that cannot be is none."""
    count: int = memoryview(look.memory).cast("Q")[DROPPED] if len(look.memory) else 0
    return count if count < MOST else 0


def plausible(series: Series, value: float, second: float) -> bool:
    family = series.family
    if family.rule is not Rule.SUM:
        return 0 <= second < MOST
    if second and not abs(second) <= abs(value) * LEAST:
        return False
    if family.kind == "gauge":
        return True
    return isfinite(value) if series.suffix == "_sum" else 0 <= value < MOST


class Folded:
    """The totals of dead processes: a region of the master, to which each region is added once its process is gone."""

    def __init__(self, memory: memoryview) -> None:
        """Begin, or continue the totals of before a reload. Raises ValueError if they have another version."""
        self._writer = Writer(memory)

    def fold(self, region: Region) -> int:
        """Add the region of a dead process, except its `live*` gauges. Return the number of words rejected.

        Series for which there is no room are dropped and counted.
        """
        reading = region.copy().read()
        self._writer.drop(reading.dropped)
        kept = [
            (series, value, second) for series, value, second in reading.cells
            if not series.family.live and (second or series.family.rule is Rule.SUM)
        ]  # fmt: skip
        for (family, _), group in groupby(kept, key=lambda cell: (cell[0].family, cell[0].labels)):
            cells = list(group)
            places = self._writer.place(family.key, [series.key for series, _, _ in cells])
            for place, (_, value, second) in zip(places or (), cells, strict=False):
                self._add(family.rule, place, value, second)
        return reading.rejected

    def release(self) -> None:
        self._writer.release()

    def _add(self, rule: Rule, place: int, value: float, second: float) -> None:
        cells = self._writer.cells
        if rule is Rule.SUM:
            cells[place], cells[place + 1] = added(cells[place], cells[place + 1], value, second)
        elif rule is Rule.EACH or prevails(rule, value, second, cells[place], cells[place + 1]):
            cells[place], cells[place + 1] = value, second
