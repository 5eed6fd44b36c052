"""What the benchmarks make of their samples: medians, ratios within a round, tables and pictures."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.benchmarks.contenders import CONTENDERS, beside
from tests.benchmarks.figures import ratio, spread, table
from tests.benchmarks.plot import HEIGHT, WIDTH, plot, ticks
from tests.benchmarks.ratios import Costs, report, rows

SAMPLES = st.lists(st.floats(0.1, 1e6), min_size=1, max_size=30)


@given(SAMPLES)
def test_spread_is_in_order(samples: list[float]) -> None:
    """Quartiles lie about the median, within what was measured; the lowest tenth is no more than the lower one."""
    found = spread(samples)
    assert min(samples) <= found.least * 1.000001
    assert found.least <= found.low * 1.000001
    assert found.low <= found.median <= found.high <= max(samples) * 1.000001


@given(SAMPLES, st.floats(0.5, 20))
def test_ratio_is_within_the_round(samples: list[float], times: float) -> None:
    """What hits both in a round alike does not show: twice as much is twice as much, however the rounds differ."""
    found = ratio([each * times for each in samples], samples)
    for each in (found.median, found.low, found.high, found.least):
        assert abs(each / times - 1) < 1e-9


def test_table_is_markdown() -> None:
    """Every line has as many columns, as wide as the widest cell."""
    lines = table(("what", "µs"), [["a", "1.00"], ["longer", "10000.00"]]).split("\n")
    assert {len(line) for line in lines} == {len(lines[0])}
    assert lines[1] == "| ------ | -------: |"


def test_rows_compare_with_what_there_is() -> None:
    """A ratio is there where both were measured: the bare loop, the standard library's class, the other checkout."""
    ours = [each for each in CONTENDERS if each.name in ("bare loop", "pool", "standard")]
    contenders = list(beside(ours, Path(__file__).parent))
    names = [each.name for each in contenders]
    costs = Costs("recv", "sequential", {name: [10.0, 20.0] for name in names}, {name: [0.0, 0.0] for name in names})
    found = {row.contender: row for row in rows([costs], contenders)}
    assert len(found) == 4
    assert found["pool"].to_beside is not None
    assert found["bare loop"].to_standard is None
    assert "÷ beside" in "\n".join(report(list(found.values())))
    alone = Costs("recv", "sequential", {"pool": [10.0]}, {"pool": [0.0]})
    (row,) = rows([alone], ours)
    assert (row.to_bare, row.to_standard, row.to_beside) == (None, None, None)


GROWING = st.lists(st.floats(0.001, 1e6), min_size=2, max_size=7)


@given(st.dictionaries(st.text("abc<&", min_size=1, max_size=5), GROWING, min_size=1, max_size=6))
def test_picture_holds_every_point(lines: dict[str, list[float]]) -> None:
    """A picture is well-formed, and has each point of each line inside its frame."""
    points = {name: [(2.0**at, value) for at, value in enumerate(values)] for name, values in lines.items()}
    picture = ET.fromstring(plot("growth", "workers", "µs", points))
    drawn = [each for each in picture.iter() if each.tag.endswith("polyline")]
    assert len(drawn) == len(points)
    for each in drawn:
        for x, y in re.findall(r"([-\d.]+),([-\d.]+)", each.attrib["points"]):
            assert 0 <= float(x) <= WIDTH
            assert 0 <= float(y) <= HEIGHT


@given(st.lists(st.floats(1e-3, 1e9), min_size=1, max_size=5))
def test_ticks_cover_the_values(values: list[float]) -> None:
    """The lowest tick is at most the lowest value, the highest at least the highest, and there are two."""
    found = ticks(values)
    assert found[0] <= min(values) * 1.000001
    assert found[-1] >= max(values) * 0.999999
    assert len(found) >= 2
