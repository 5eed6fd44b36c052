"""The sums over all regions: learnt once, and made again only where something has changed.

Runs in the exporter. Ten thousand series in each of 64 workers are 30 MB, of which little changes between two scrapes:
each block of a region is hashed, and only series of which some process has a value in a block that is not what it was,
or that came or went with a process, are added up. Nothing is ever taken off a sum: it is made anew from all its parts.
"""

from array import array
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from operator import itemgetter
from typing import Any

from .region import MOST, Glance, Region, dropped, plausible
from .series import Family, Rule, Series, prevails, total

AT_ONCE = 4096  # series
BLOCK_WORDS = 512  # of a region; with less hashing takes longer, with more one change costs more sums
_NOTHING: "memoryview[Any]" = memoryview(b"").cast("d")


@dataclass(frozen=True, slots=True)
class Merged:
    """The user's metrics over all processes, dead and live."""

    values: dict[Series, float]
    dropped: int
    rejected: int


def merge(looks: Iterable[Glance]) -> Merged:
    """Add up what is seen once; see `Sums.merge`."""
    return Sums().merge(looks)


class Sums:
    """The sums of one scrape after another. Not for two threads at once, and the looks in the order they were taken:
    what a later one has shown must not be shown as less by an earlier one."""

    def __init__(self) -> None:
        self._numbers = _Numbers()
        self._known: dict[Region, _Known] = {}
        self._found: dict[Family, dict[Series, float]] = {}

    def merge(self, looks: Iterable[Glance]) -> Merged:
        """Add up the values of the live processes, the youngest first, and finally the totals of the dead.

        Where two disagree about a metric's definition, as two generations of a program may, the first prevails.
        """
        try:
            return self._merge(list(looks))
        except BaseException:
            self.__init__()  # type: ignore[misc]  # half of the changes are in: the next scrape begins anew
            raise

    def _merge(self, looks: list[Glance]) -> Merged:
        before, self._known = self._known, {}
        changed: set[int] = set()
        for look in looks:
            if look.region not in before:
                before[look.region] = _Known(look.region, self._numbers)
            known = self._known[look.region] = before.pop(look.region)
            known.take(look, changed)
        for gone in before.values():
            changed.update(gone.numbers)
        self._add_up(changed)
        families = dict.fromkeys(family for known in self._known.values() for family in known.families)
        values = {series: value for family in families for series, value in self._found.get(family, {}).items()}
        rejected = sum(look.region.rejected(look, self._known[look.region].let_go()) for look in looks)
        return Merged(values, sum(map(dropped, looks)), rejected)

    def _add_up(self, changed: set[int]) -> None:
        series = self._numbers.series
        sums = [number for number in changed if series[number].family.rule is Rule.SUM]
        for start in range(0, len(sums), AT_ONCE):
            self._sum(sums[start : start + AT_ONCE])
        self._choose({number: series[number].family.rule for number in changed.difference(sums)})

    def _sum(self, numbers: list[int]) -> None:
        """Add up series by columns, where every value of a process is there and beyond doubt; the others one by one."""
        columns = []
        apart: dict[int, list[float]] = {}
        layout = _Layout(numbers, array("I"))
        for known in self._known.values():
            layout = known.layout(layout)
            column = known.column(layout)
            if column is not None:
                columns.append(column)
                continue
            for number, value, second in known.cells(numbers):
                apart.setdefault(number, []).extend((value, second) if second else (value,))
        rows = zip(*columns, strict=True) if columns else repeat(())
        for number, row in zip(numbers, rows, strict=False):
            parts = (*row, *apart[number]) if number in apart else row
            self._show(number, total(parts) if parts else None)

    def _choose(self, rules: dict[int, Rule]) -> None:
        chosen: dict[int, tuple[float, float]] = {}
        for known in self._known.values():
            for number, value, second in known.cells(rules):
                found = chosen.get(number)
                if found is None or prevails(rules[number], value, second, *found):
                    chosen[number] = value, second
        for number, rule in rules.items():
            value, second = chosen.get(number, (0.0, 0.0))
            self._show(number, value if second or (number in chosen and rule is not Rule.EACH) else None)

    def _show(self, number: int, value: float | None) -> None:
        """Keep a sum; None: there is none, since no process has set it, or none has it any more."""
        series = self._numbers.series[number]
        if value is not None:
            self._found.setdefault(series.family, {})[series] = value
            return
        shown = self._found.get(series.family, {})
        shown.pop(series, None)
        if not shown:
            self._found.pop(series.family, None)
        if not any(known.places[number] for known in self._known.values()):
            self._numbers.forget(number)


class _Numbers:
    """A number for each series that some region has: what is kept of it by region is eight bytes then."""

    def __init__(self) -> None:
        self.series: list[Series] = []
        self._of: dict[Series, int] = {}
        self._free: list[int] = []

    def of(self, series: Series) -> int:
        number = self._of.get(series)
        if number is None:
            number = self._of[series] = self._free.pop() if self._free else len(self.series)
            self.series[number : number + 1] = [series]
        return number

    def forget(self, number: int) -> None:
        del self._of[self.series[number]]
        self._free.append(number)


class _Layout:
    """The places of some series in a region, in their order."""

    def __init__(self, numbers: list[int], places: "array[int]") -> None:
        self.numbers, self.places = numbers, places[:]
        at = list(map(places.__getitem__, numbers)) if places else [0]
        self.first, self.last = min(at), max(at)  # 0: one of them is not there
        self.pick = itemgetter(*at, at[-1])  # the last one twice: of one alone it would return no tuple


class _Known:
    """A region as it was at the last scrape: which series it has, by their numbers, and the hashes of its blocks."""

    def __init__(self, region: Region, numbers: _Numbers) -> None:
        self.region = region
        self.families: dict[Family, None] = {}
        self.numbers = array("I")  # of what the region has learnt, in its order
        self.places = array("I")  # by number: the word of the value; 0: it has none
        self._all = numbers
        self._again: dict[int, list[int]] = {}  # more words of the same series, as of two that differ in their help
        self._hashes: list[int] = []
        self._implausible: dict[int, int] = {}  # of each series, how many of its values cannot be
        self._floats = self._seconds = _NOTHING

    def take(self, look: Glance, changed: set[int]) -> None:
        """Go on with this look, and add the numbers of the series that have to be added up again."""
        # Before the values are read: what they become meanwhile is seen next time.
        for first, end in self._changed(look.memory):
            if len(changed) < len(self._all.series):  # else it has them all
                changed.update(self.numbers[first:end])
        self._floats = memoryview(look.memory).cast("d")
        self._seconds = memoryview(look.memory)[8:].cast("Q")
        self.region.learn(look)
        first = len(self.numbers)
        new = self.region.series[first:]
        self.families |= dict.fromkeys(series.family for series in new)
        self.numbers.extend(map(self._all.of, new))
        self._reach(len(self._all.series))
        for number, place in zip(self.numbers[first:], self.region.places[first:], strict=True):
            if self.places[number]:
                self._again.setdefault(number, []).append(place)
            else:
                self.places[number] = place
        changed.update(self.numbers[first:])

    def let_go(self) -> int:
        """Let go of the memory that was looked at, and return how many of its values could not be."""
        self._floats = self._seconds = _NOTHING
        return sum(self._implausible.values())

    def layout(self, last: "_Layout") -> "_Layout":
        """Return where the series of that layout are here: the workers of one program have most in the same places."""
        self._reach(len(self._all.series))
        return last if self.places == last.places else _Layout(last.numbers, self.places)

    def column(self, layout: "_Layout") -> "tuple[float, ...] | None":
        """Return the values of series that are added up, None where one is missing or has to be looked at closely.

        No word of ours is run for each of them: 640,000 take 30 ms instead of 240.
        """
        if self._again or self._implausible or layout.first == 0 or layout.last + 1 >= len(self._floats):
            return None
        values: tuple[float, ...] = layout.pick(self._floats)
        sound = min(values) >= 0.0 and sum(values) < MOST  # NaN and infinity fail the one or the other
        return None if not sound or any(layout.pick(self._seconds)) else values

    def cells(self, changed: Collection[int]) -> Iterator[tuple[int, float, float]]:
        """Yield number, value and second of each cell of these series, and note which of them cannot be."""
        self._reach(len(self._all.series))
        if self._implausible:
            for number in changed:
                self._implausible.pop(number, None)
        found: Iterable[tuple[int, int]] = zip(changed, map(self.places.__getitem__, changed), strict=True)
        if self._again:
            found = chain(found, ((number, place) for number in changed for place in self._again.get(number, ())))
        floats, end = self._floats, len(self._floats) - 1
        for number, at in found:
            if 0 < at < end:  # else it has none, or it was learnt from a later look
                value, second = floats[at], floats[at + 1]
                if (second == 0.0 and 0.0 <= value < MOST) or plausible(self._all.series[number], value, second):
                    yield number, value, second
                else:
                    self._implausible[number] = self._implausible.get(number, 0) + 1

    def _reach(self, count: int) -> None:
        self.places.frombytes(bytes(self.places.itemsize * max(0, count - len(self.places))))

    def _changed(self, memory: bytes | memoryview) -> Iterator[tuple[int, int]]:
        """Yield the first and the end of each row of series with a word in a block that is not what it was."""
        step = BLOCK_WORDS * 8
        hashes = [hash(bytes(memory[at : at + step])) for at in range(0, len(memory), step)]
        before, self._hashes = self._hashes, hashes
        before += [0] * (len(hashes) - len(before))
        blocks = [block for block, (one, other) in enumerate(zip(hashes, before, strict=False)) if one != other]
        if blocks and not self.region.in_order:
            yield 0, len(self.numbers)
            return
        places = self.region.places
        end = 0
        for block in blocks:
            first = bisect_left(places, block * BLOCK_WORDS - 1, end)  # its second word may be the first of the block
            end = bisect_left(places, (block + 1) * BLOCK_WORDS, first)
            yield first, end
