"""What is kept from one scrape to the next: it is never anything but what a first scrape would add up."""

import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prefork.metrics.application import sums
from prefork.metrics.application.region import REGION_HEADER_WORDS, Folded, Glance, Region, Writer
from prefork.metrics.application.series import RULES, Family, Rule, Series, encode, prevails, total
from prefork.metrics.application.sums import Merged, Sums, merge

MODES = [mode for kind, mode in RULES if kind == "gauge"]


class Process:
    """A process as far as its metrics go."""

    def __init__(self, slot: int) -> None:
        self.memory = memoryview(bytearray(1 << 14))
        self.writer = Writer(self.memory)
        self.region = Region(self.memory, str(slot))

    def count(self, name: str, label: str, amount: float, help: str = "") -> None:
        (place,) = self.writer.place(encode(("counter", "", name, help, "l")), [encode(("_total", label))]) or (0,)
        self.writer.cells[place] += amount

    def gauge(self, mode: str, label: str, value: float, written: float) -> None:
        place = (self.writer.place(encode(("gauge", mode, f"g{mode}", "", "l")), [encode(("", label))]) or (0,))[0]
        self.writer.cells[place] = value
        if RULES["gauge", mode] is not Rule.SUM:
            self.writer.cells[place + 1] = written


@dataclass
class Pool:
    """Living processes, the youngest first, and the totals of the dead."""

    processes: list[Process] = field(default_factory=lambda: [Process(slot) for slot in range(3)])
    dead: memoryview = field(default_factory=lambda: memoryview(bytearray(1 << 15)))

    def __post_init__(self) -> None:
        self.folded, self.totals = Folded(self.dead), Region(self.dead, None)
        self.sums = Sums()

    def looks_the_same(self) -> None:
        """A scrape by what is kept, one by nobody who has seen anything before, and one by the book."""
        looks = [*(process.region.view() for process in self.processes), self.totals.copy()]
        kept, fresh, plain = self.sums.merge(looks), merge(looks), by_the_book(looks)
        assert shown(kept) == shown(fresh) == shown(plain)
        assert families(kept) == families(fresh)
        assert kept.dropped == fresh.dropped == plain.dropped
        assert kept.rejected == fresh.rejected == plain.rejected


def by_the_book(looks: list[Glance]) -> Merged:
    """Every cell of every process, one after another."""
    cells: dict[Series, list[float]] = {}
    readings = [look.read() for look in looks]
    for series, value, second in (cell for reading in readings for cell in reading.cells):
        found, rule = cells.setdefault(series, []), series.family.rule
        if rule is Rule.SUM:
            found += (value, second)
        elif not found or prevails(rule, value, second, found[0], found[1]):
            found[:] = value, second
    values = {}
    for series, parts in cells.items():
        if series.family.rule is Rule.SUM:
            values[series] = total(parts)
        elif parts[1] or series.family.rule is not Rule.EACH:
            values[series] = parts[0]
    return Merged(values, sum(each.dropped for each in readings), sum(each.rejected for each in readings))


def shown(merged: Merged) -> list[tuple[str, str, bytes, str]]:
    return sorted((series.family.kind, series.family.name, series.key, repr(v)) for series, v in merged.values.items())


def families(merged: Merged) -> list[Family]:
    return [*dict.fromkeys(series.family for series in merged.values)]


WHO, LABEL = st.integers(0, 2), st.sampled_from(["a", "b", "c", "dd", "a longer one", "as long as this"])
NUMBER = st.sampled_from([0.0, 1.0, 0.1, 2.0**53, 1e300, -3.0, float("inf"), float("nan")])
COUNTED = st.tuples(
    st.just("count"), WHO, st.sampled_from(["c", "d"]), LABEL, st.floats(0, 1e9), st.sampled_from(["", "", "", "?"])
)
SET = st.tuples(st.just("gauge"), WHO, st.sampled_from(MODES), LABEL, NUMBER, st.sampled_from([0.0, 1.0, 2.0]))
SPOILT = st.tuples(st.just("spoils"), WHO, st.integers(0, 99), st.integers(0, 1), NUMBER)
CAME_OR_WENT = st.one_of(
    st.tuples(st.just("dies"), WHO),
    st.tuples(st.just("leaves"), WHO),
    st.tuples(st.just("comes")),
    st.tuples(st.just("late"), WHO, st.booleans()),
    st.tuples(st.just("scribbles"), WHO, st.integers(0, 400), st.sampled_from([0, 1, 1 << 62, (1 << 64) - 1])),
)
STEPS = st.lists(st.tuples(st.one_of(COUNTED, SET, SPOILT, CAME_OR_WENT), st.booleans()), min_size=10, max_size=60)


@settings(deadline=None, max_examples=300)
@given(STEPS, st.sampled_from([4, 64]))
@example([(("count", 0, "c", "a", 1.0, ""), True), (("count", 0, "c", "a", 1.0, "?"), True), (("dies", 0), True)], 4)
@example([(("count", 0, "c", "a", 0.0, help), True) for help in ("", "?")]
         + [(("spoils", 0, place, 0, 1e300), True) for place in (0, 1)], 4)  # fmt: skip
@example([(("gauge", 0, "all", "a", 1.0, 1.0), True), (("leaves", 0), True), (("comes",), True)], 4)
def test_kept_is_what_a_first_scrape_sees(steps: list[tuple[tuple[Any, ...], bool]], block_words: int) -> None:
    """Whatever is counted, set, begun, folded, withdrawn or scribbled between two scrapes, and whichever series
    come late: sums that were kept equal sums made from nothing, in value, order and what was refused."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sums, "BLOCK_WORDS", block_words)
        pool = Pool()
        for step, scraped in [*steps, (("comes",), True)]:
            act(pool, *step)
            if scraped:
                pool.looks_the_same()


def act(pool: Pool, what: object, who: Any = 0, *rest: Any) -> None:
    if what == "comes":
        pool.processes.insert(0, Process(len(pool.processes)))
        return
    if not pool.processes:
        return
    process = pool.processes[who % len(pool.processes)]
    if what == "count":
        process.count(*rest)
    elif what == "gauge":
        process.gauge(*rest)
    elif what == "leaves":
        pool.processes.remove(process)
    elif what == "dies":
        pool.folded.fold(process.region)
        pool.processes[pool.processes.index(process)] = Process(who)
    elif what == "spoils":
        series, word, value = rest
        places = process.region.places
        if places:
            process.writer.cells[places[series % len(places)] + word] = value
    elif what == "late":
        late(pool, process, *rest)
    else:
        word, value = rest
        process.memory.cast("Q")[word] = value


def late(pool: Pool, process: Process, scraped: object) -> None:
    """A series whose key is seen late, as on a machine that reorders writes; beside one that comes after it."""
    before = process.memory.cast("Q")[1] * 8
    process.count("late", "first", 1.0)
    after = process.memory.cast("Q")[1] * 8
    if before < REGION_HEADER_WORDS * 8 or not before < after <= len(process.memory):
        return  # scribbled, or there already
    record = bytes(process.memory[before:after])
    process.memory[before:after] = record[:-8] + bytes(8)
    process.count("late", "second", 1.0)
    if scraped:
        pool.looks_the_same()
    process.memory[before:after] = record


def test_nothing_is_added_up_where_nothing_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a thousand series in three processes, a scrape adds up those beside one that was counted, and no others."""
    pool = Pool([Process(slot) for slot in range(3)])
    for process in pool.processes:
        process.memory = memoryview(bytearray(1 << 17))
        process.writer, process.region = Writer(process.memory), Region(process.memory, "1")
        for number in range(1000):
            process.count("c", str(number), 1.0)
    added: list[int] = []
    show = Sums._show

    def seen(self: Sums, number: int, value: float | None) -> None:
        added.append(number)
        show(self, number, value)

    monkeypatch.setattr(Sums, "_show", seen)

    def scrape() -> int:
        added.clear()
        pool.sums.merge([process.region.view() for process in pool.processes])
        return len(added)

    assert scrape() == 1000
    assert scrape() == 0
    pool.processes[1].count("c", "500", 1.0)
    assert 1 <= scrape() <= 200
    assert scrape() == 0


def test_memory_is_let_go() -> None:
    """Between scrapes no memory of a process is held: that of a dead one can be unmapped, and its series forgotten."""
    rng, kept = random.Random(1), Sums()
    for slot in range(300):
        process = Process(slot)
        process.gauge("liveall", str(rng.random()), 1.0, 1.0)
        assert len(kept.merge([process.region.view()]).values) == 1
        process.writer.release()
        process.memory.release()  # BufferError: somebody holds it
    assert len(kept._numbers.series) < 10
