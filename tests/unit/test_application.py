"""The user's own metrics: what a region holds, what a reader believes, and what comes out as the sum."""

import json
import logging
import math
import random
import struct
from binascii import crc32
from collections.abc import Iterator
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prefork.metrics.application import values as user_values
from prefork.metrics.application.region import (
    DROPPED,
    FAMILY,
    LENGTH_BITS,
    REGION_BYTES,
    REGION_HEADER_WORDS,
    Folded,
    Region,
    Writer,
)
from prefork.metrics.application.series import RULES, Rule, encode
from prefork.metrics.application.sums import Merged, merge
from prefork.metrics.application.values import Value

pytestmark = pytest.mark.once  # nothing of it is the interpreter's

HITS = encode(("counter", "", "hits", "Hits.", "path"))


def memory(size: int = 1 << 16) -> memoryview:
    return memoryview(bytearray(size))


def totals(merged: Merged) -> dict[str, float]:
    """What was merged, by the name of each sample and its labels."""
    return {
        "".join((series.family.name, series.suffix, *(f" {value}" for value in series.labelvalues))): value
        for series, value in merged.values.items()
    }


def add(writer: Writer, path: str, amount: float) -> bool:
    place = writer.place(HITS, [encode(("_total", path))])
    if place is not None:
        writer.cells[place[0]] += amount
    return place is not None


class Process:
    """A process as far as its metrics go: a region and its writer."""

    def __init__(self, slot: str, size: int = 1 << 16) -> None:
        self.memory = memory(size)
        self.writer = Writer(self.memory)
        self.region = Region(self.memory, slot)

    def gauge(self, mode: str, value: float, written: float = 1.0) -> None:
        family = encode(("gauge", mode, "level", "Level."))
        place = (self.writer.place(family, [encode(("",))]) or [0])[0]
        self.writer.cells[place] = value
        if RULES["gauge", mode] is not Rule.SUM:
            self.writer.cells[place + 1] = written


# Sums.


# Sums that lie next to the middle between two floats, by less than a second float could say.
HARD = st.sampled_from([1.0, 2.0**-53, 2.0**-52, 2.0**-107, 5e-324])


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from("ab"), st.floats(0, 1e9) | HARD | st.just(None)), max_size=60)
)
@example([(0, "a", 1.0), (1, "a", 2.0**-53), (2, "a", 5e-324), (0, "a", None), (1, "a", None), (2, "a", None)])
def test_sum_is_exact_and_never_falls(steps: list[tuple[int, str, float | None]]) -> None:
    """Whatever is counted, and whoever dies in between (None): each total is the exact sum rounded once, or one digit
    more where two floats could not hold it; none falls."""
    folded_memory = memory()
    folded, totals_region = Folded(folded_memory), Region(folded_memory, None)
    processes = [Process(str(number)) for number in range(4)]
    cells: dict[tuple[Region, str], float] = {}
    before: dict[str, float] = {}
    for number, path, amount in steps:
        process = processes[number]
        if amount is None:
            assert folded.fold(process.region) == 0
            processes[number] = Process(str(number))
        else:
            add(process.writer, path, amount)
            cells[process.region, path] = cells.get((process.region, path), 0.0) + amount
        now = totals(merge([*(process.region.copy() for process in processes), totals_region.copy()]))
        for name, value in before.items():
            assert now[name] >= value
        for path in "ab":
            exact = sum(Fraction(value) for (_, at), value in cells.items() if at == path)
            assert now.get(f"hits_total {path}", 0.0) in (float(exact), math.nextafter(float(exact), math.inf))
        before = now


def test_sum_does_not_lose_small_ones() -> None:
    """Ten thousand workers that each counted 0.1 and died count exactly what they counted."""
    folded_memory = memory()
    folded, region = Folded(folded_memory), Region(folded_memory, None)
    process = Process("1")
    add(process.writer, "a", 0.1)
    for _ in range(10_000):
        folded.fold(process.region)
    assert totals(merge([region.copy()])) == {"hits_total a": float(10_000 * Fraction(0.1))}


def test_sum_of_what_is_not_finite() -> None:
    """Gauges may be infinite or no number: sums of them are as IEEE 754 has them, and nothing is raised."""
    folded_memory = memory()
    folded, region = Folded(folded_memory), Region(folded_memory, None)
    for value in (math.inf, 1.0, -math.inf, 1e308, 1e308):
        process = Process("1")
        process.gauge("sum", value)
        folded.fold(process.region)
    assert math.isnan(totals(merge([region.copy()]))["level"])


@pytest.mark.parametrize(
    ("mode", "living", "with_dead"),
    [
        ("sum", {"level": 5.0}, {"level": 12.0}),
        ("livesum", {"level": 5.0}, {"level": 5.0}),
        ("min", {"level": 2.0}, {"level": 1.0}),
        ("livemin", {"level": 2.0}, {"level": 2.0}),
        ("max", {"level": 3.0}, {"level": 6.0}),
        ("livemax", {"level": 3.0}, {"level": 3.0}),
        ("mostrecent", {"level": 3.0}, {"level": 6.0}),
        ("livemostrecent", {"level": 3.0}, {"level": 3.0}),
        ("all", {"level 1": 2.0, "level 2": 3.0}, {"level 1": 2.0, "level 2": 3.0, "level 3": 6.0}),
        ("liveall", {"level 1": 2.0, "level 2": 3.0}, {"level 1": 2.0, "level 2": 3.0}),
    ],
)
def test_gauge_modes(mode: str, living: dict[str, float], with_dead: dict[str, float]) -> None:
    """Every mode is what prometheus_client says it is; of `all`, a slot shows its latest process."""
    folded_memory = memory()
    folded, region = Folded(folded_memory), Region(folded_memory, None)
    first, second, silent = Process("1"), Process("2"), Process("4")
    first.gauge(mode, 2.0, written=10.0)
    second.gauge(mode, 3.0, written=20.0)
    silent.gauge(mode, 0.0, written=0.0)
    copies = [process.region.copy() for process in (silent, first, second)]
    assert totals(merge(copies)) == living
    for slot, value, written in (("3", 6.0, 30.0), ("1", 1.0, 5.0)):
        dead = Process(slot)
        dead.gauge(mode, value, written)
        folded.fold(dead.region)
    folded.fold(silent.region)
    assert totals(merge([*copies, region.copy()])) == with_dead


@pytest.mark.parametrize("mode", [mode for kind, mode in RULES if kind == "gauge"])
def test_gauge_that_nobody_set(mode: str) -> None:
    """A gauge that no process has set is zero; but for `all`: then there is no slot to speak of."""
    process = Process("1")
    process.gauge(mode, 0.0, written=0.0)
    assert totals(merge([process.region.copy()])) == ({} if mode.endswith("all") else {"level": 0.0})


def test_slot_label_does_not_collide() -> None:
    """A metric that has a label `slot` of its own keeps it."""
    process = Process("7")
    place = process.writer.place(encode(("gauge", "all", "level", "", "slot")), [encode(("", "mine"))])
    assert place is not None
    process.writer.cells[place[0] + 1] = 1.0
    (series,) = merge([process.region.copy()]).values
    assert dict(zip(series.family.labelnames, series.labelvalues, strict=True)) == {"slot": "mine", "prefork_slot": "7"}


# Regions.


def test_nobody_has_written() -> None:
    """A region that its process has not begun, or that has no size, holds nothing and is no fault."""
    for size in (0, 8, 1 << 12):
        assert merge([Region(memory(size), "1").copy()]) == Merged({}, 0, 0)


def test_full_region_drops_new_series() -> None:
    """What finds no room is dropped and counted, whole groups at a time; what is there goes on counting."""
    process = Process("1", 1024)
    kept = 0
    while add(process.writer, str(kept), 1.0):
        kept += 1
    assert kept > 10
    assert not add(process.writer, "one more", 1.0)
    assert process.writer.place(HITS, [encode(("_total", "0")), encode(("_total", "new"))]) is None
    assert add(process.writer, "0", 1.0)
    merged = merge([process.region.copy()])
    assert totals(merged)["hits_total 0"] == 2.0
    assert (len(merged.values), merged.dropped, merged.rejected) == (kept, 3, 0)


def test_about_18_000_series() -> None:
    """As many as the guide says have room in one process, whose label's value is a dozen or two of letters."""
    process = Process("1", REGION_BYTES)
    kept = 0
    while add(process.writer, f"/users/{kept:05}/photos", 1.0):
        kept += 1
    assert 17_500 < kept < 19_000
    assert len(merge([process.region.copy()]).values) == kept


def test_full_totals_drop_new_series() -> None:
    """The totals of the dead are bounded too: old series go on, new ones are dropped and counted."""
    folded_memory = memory(1024)
    folded, region = Folded(folded_memory), Region(folded_memory, None)
    for number in range(40):
        process = Process("1")
        add(process.writer, "always", 1.0)
        add(process.writer, str(number), 1.0)
        folded.fold(process.region)
    merged = merge([region.copy()])
    assert totals(merged)["hits_total always"] == 40
    assert len(merged.values) + merged.dropped == 41
    assert merged.dropped > 0


def test_too_many_families() -> None:
    """One family more than a region can number is dropped like one for which there is no room."""
    process = Process("1", 1 << 20)
    for number in range(FAMILY):
        assert process.writer.place(encode(("counter", "", f"c{number}", "")), [encode(("_total",))])
    assert process.writer.place(encode(("counter", "", "more", "")), [encode(("_total",))]) is None
    assert process.writer.place(encode(("counter", "", "c0", "")), [encode(("_total",))])
    merged = merge([process.region.copy()])
    assert (len(merged.values), merged.dropped, merged.rejected) == (FAMILY, 1, 0)


def test_key_too_long() -> None:
    """A label value longer than a record may be is dropped."""
    process = Process("1", 4 << 20)
    assert not add(process.writer, "x" * (1 << LENGTH_BITS), 1.0)
    assert merge([process.region.copy()]).dropped == 1


@given(st.lists(st.text(), min_size=1, max_size=4))
def test_any_text_is_a_label(values: list[str]) -> None:
    """Label values come out as they went in; half a surrogate pair, which UTF-8 has not, as a question mark."""
    process = Process("1")
    names = [f"l{number}" for number in range(len(values))]
    process.writer.place(encode(("counter", "", "c", "help", *names)), [encode(("_total", *values))])
    (series,) = merge([process.region.copy()]).values
    assert list(series.labelvalues) == [value.encode("utf-8", "replace").decode() for value in values]


def test_totals_survive_as_bytes() -> None:
    """The totals of the dead are their memory: another image of the master maps it and goes on."""
    first = memory()
    process = Process("1")
    add(process.writer, "a", 0.1)
    process.gauge("max", 5.0)
    Folded(first).fold(process.region)
    second = memoryview(bytearray(first))
    Folded(second).fold(process.region)
    assert totals(merge([Region(second, None).copy()])) == {"hits_total a": 0.2, "level": 5.0}
    assert len(Region(second, None).copy().memory) == len(Region(first, None).copy().memory)


def test_another_version_is_refused() -> None:
    """Memory that another version has written is neither read nor written."""
    other = memory()
    other.cast("Q")[0] = 1
    with pytest.raises(ValueError, match="no region of this version"):
        Folded(other)
    assert merge([Region(other, "1").copy()]) == Merged({}, 0, 1)


def test_two_generations_disagree() -> None:
    """Of two kinds under one name both are kept apart in the totals; what is served is the matter of families.py."""
    old, new = Process("1"), Process("2")
    old.gauge("sum", 1.0)
    new.gauge("max", 2.0)
    kinds = [series.family.mode for series in merge([new.region.copy(), old.region.copy()]).values]
    assert kinds == ["max", "sum"]


# A worker that scribbles.


def filled(seed: int) -> tuple[memoryview, Region]:
    """A region with something of every kind, and a reader that may know it already."""
    process = Process("1", 1 << 13)
    for number in range(20):
        add(process.writer, f"/path/{number}", number)
    for kind, mode in RULES:
        family = encode((kind, mode, f"{kind}_{mode}", "Help.", "a"))
        process.writer.place(family, [encode(("_sum" if kind in ("histogram", "summary") else "", "x"))])
    if seed % 2:
        process.region.copy().read()
    return process.memory, process.region


def plausible(merged: Merged) -> bool:
    counts = [v for series, v in merged.values.items() if series.suffix in ("_total", "_bucket", "_count")]
    return all(math.isfinite(value) and value >= 0 for value in counts)


@pytest.mark.parametrize("seed", range(8))
def test_scribbling_harms_nobody(seed: int) -> None:
    """Random bytes in a region: its reader raises nothing, believes no impossible count, and reads the others."""
    rng = random.Random(seed)
    healthy = Process("2")
    add(healthy.writer, "healthy", 1.0)
    for _ in range(150):
        scribbled, region = filled(seed)
        for _ in range(rng.choice((1, 5, 300))):
            at = rng.randrange(rng.choice((64, 600, len(scribbled) - 8)))
            scribbled[at : at + 8] = rng.choice((rng.randbytes(8), bytes(8), b"\xff" * 8, scribbled[8:16]))
            merged = merge([region.copy(), healthy.region.copy()])
            assert plausible(merged)
            assert totals(merged)["hits_total healthy"] == 1.0
        folded_memory = memory()
        Folded(folded_memory).fold(region)
        assert plausible(merge([Region(folded_memory, None).copy()]))


@settings(deadline=None)
@given(
    st.sampled_from(range(4)),
    st.integers(0, FAMILY),
    st.binary(max_size=40)
    | st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists).map(json.dumps).map(str.encode)
    | st.lists(st.text()).map(encode)
    | st.sampled_from([b'["_bucket","x","nan"]', b'["_total","\\ud800"]', b"[" * 10_000, b'["counter","","","h"]']),
    st.binary(min_size=16, max_size=16),
)
def test_forged_records_are_refused(known: int, family: int, key: bytes, values: bytes) -> None:
    """A record of any content with a right check is a series that could be, or is refused and counted."""
    process = Process("1")
    add(process.writer, "a", 1.0)
    if known:
        process.region.copy().read()
    at = len(process.region.copy().memory)
    head = crc32(key, family) << 32 | family << LENGTH_BITS | len(key)
    record = struct.pack("=Q", head) + (b"" if family == FAMILY else values) + key + bytes(-len(key) % 8)
    process.memory[at : at + len(record)] = record
    process.memory.cast("Q")[1] = (at + len(record)) // 8
    merged = merge([process.region.copy()])
    assert totals(merged)["hits_total a"] >= 1.0
    assert plausible(merged)
    for series in merged.values:
        "".join(series.labelvalues).encode()


def test_record_that_becomes_whole() -> None:
    """A record whose key is seen late, as on a machine that reorders writes, is read at the next look."""
    process = Process("1")
    add(process.writer, "a", 1.0)
    end = len(process.region.copy().memory)
    key = bytes(process.memory[REGION_HEADER_WORDS * 8 + 8 : end])
    process.memory[REGION_HEADER_WORDS * 8 + 8 : end] = bytes(len(key))
    assert merge([process.region.copy()]).values == {}
    process.memory[REGION_HEADER_WORDS * 8 + 8 : end] = key
    assert totals(merge([process.region.copy()])) == {"hits_total a": 1.0}


def test_dropped_that_cannot_be() -> None:
    """A count of dropped series that cannot be is taken for none."""
    process = Process("1")
    process.memory.cast("Q")[DROPPED] = (1 << 64) - 1
    assert merge([process.region.copy()]).dropped == 0


# Values.


@pytest.fixture
def region() -> Iterator[Region]:
    """The region that the values of this process are in."""
    where = memory()
    assert user_values.adopt(where)
    yield Region(where, "master")
    user_values.release()


def counter(path: str = "a") -> Value:
    return Value("counter", "hits", "hits_total", ("path",), (path,), "Hits.")


def test_value_alone() -> None:
    """Without a region a value is what prometheus_client's own is, exemplar and all."""
    value, other = counter(), counter()
    value.inc(2)
    value.set_exemplar("exemplar")
    assert (value.get(), other.get(), value.get_exemplar(), other.get_exemplar()) == (2.0, 0.0, "exemplar", None)
    value.set(0)
    assert value.get() == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_cannot_be_summed_is_refused(bad: float, caplog: pytest.LogCaptureFixture) -> None:
    """NaN and infinities put into what is summed over processes change nothing, and that is said, once in a while; a
    gauge that is not summed may have them."""
    user_values._not_finite_said.clear()
    value = counter()
    gauge, most = (Value("gauge", "g", "g", (), (), "G.", multiprocess_mode=mode) for mode in ("sum", "max"))
    for each in (value, gauge):
        each.inc(2)
        each.inc(bad)
        each.inc(bad)
        each.set(bad)
        assert each.get() == 2.0
    value.inc(1)
    most.set(bad)
    assert value.get() == 3.0
    assert most.get() == bad or (math.isnan(most.get()) and math.isnan(bad))
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "refused a value of the program's metric hits", "refused a value of the program's metric g"
    ]  # fmt: skip


def test_values_are_adopted() -> None:
    """What was counted before there was a region counts in it, once; afterwards the values have what they had."""
    value, twin, gauge = counter(), counter(), Value("gauge", "level", "level", (), (), "", "max")
    value.inc(1)
    twin.inc(2)
    gauge.set(-3)
    for _ in range(2):
        where = memory()
        assert user_values.adopt(where)
        try:
            assert not user_values.adopt(memory())
            assert totals(merge([Region(where, "m").copy()])) == {"hits_total a": 3.0, "level": -3.0}
        finally:
            user_values.release()
        where.release()  # nobody holds it
    assert value.get() + twin.get() == 3.0


def test_labels_are_one_set_in_any_order(region: Region) -> None:
    """Two generations of a program that name the labels of a metric in another order mean the same series."""
    first = Value("counter", "c", "c_total", ("a", "b"), ("1", "2"), "")
    second = Value("counter", "c", "c_total", ("b", "a"), ("2", "1"), "")
    first.inc(1)
    second.inc(1)
    assert totals(merge([region.copy()])) == {"c_total 1 2": 2.0}


def test_counter_that_is_reset(region: Region) -> None:
    """Counter.reset() shows zero to the program; the total over all processes does not fall, and goes on."""
    value = counter()
    value.inc(5)
    value.set(0)
    assert value.get() == 0
    value.inc(2)
    assert value.get() == 2
    value.set(4)
    assert value.get() == 4
    assert totals(merge([region.copy()])) == {"hits_total a": 9.0}


def histogram(name: str, *bounds: str) -> list[Value]:
    """The values in the order in which prometheus_client's Histogram builds them."""
    values = [Value("histogram", name, f"{name}_sum", (), (), "")]
    return values + [Value("histogram", name, f"{name}_bucket", ("le",), (bound,), "") for bound in bounds]


def test_histogram_comes_whole(region: Region) -> None:
    """A histogram is not there until its last bucket is built."""
    values = histogram("h", "1.0", "2.0")
    assert merge([region.copy()]).values == {}
    values.append(Value("histogram", "h", "h_bucket", ("le",), ("+Inf",), ""))
    assert len(merge([region.copy()]).values) == 4


def test_full_region_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """Values for which there is no room count unseen, raise nothing, and are spoken of once."""
    where = memory(512)
    assert user_values.adopt(where)
    try:
        with caplog.at_level(logging.WARNING, "prefork.metrics"):
            values = [counter(str(number)) for number in range(20)]
            values += histogram("h", *map(str, range(20)), "+Inf")
            for value in values:
                value.inc(1)
        assert [value.get() for value in values] == [1.0] * len(values)
    finally:
        user_values.release()
    assert len(caplog.records) == 1
    merged = merge([Region(where, "m").copy()])
    assert merged.dropped + len(merged.values) == len(values)
    assert not any(series.family.kind == "histogram" for series in merged.values)


@pytest.mark.parametrize(
    ("kind", "mode", "name", "suffix"),
    [
        ("gauge", "median", "unsupported_mode", ""),
        ("native", "", "unsupported_kind", "_total"),
        ("counter", "", "unsupported_sample", "_rate"),
        ("counter", "", "prefork_requests", "_total"),
    ],
)
def test_unsupported_kind_says_so(
    kind: str, mode: str, name: str, suffix: str, region: Region, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be served is named once, and works in its own process."""
    for _ in range(2):
        value = Value(kind, name, name + suffix, (), (), "", mode)
    value.inc(1)
    assert value.get() == 1
    assert merge([region.copy()]).values == {}
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        f"could not serve the program's metric {name}"
    ]
