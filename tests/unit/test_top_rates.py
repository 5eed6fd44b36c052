"""The arithmetic of `prefork top`: what happened between two looks."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.top.rates import Look, Span, grown, quantile


def look(at: float, accepted: int, counts: list[int], *, up: float, bounds: tuple[float, ...] = (1.0, 2.0)) -> Look:
    status: dict[str, Any] = {
        "uptime_s": up, "saturated_s": up / 4, "duration": {"at_most_s": list(bounds), "counts": counts},
        "requests": {"accepted": accepted, "error": accepted, "timeout": 0, "lost": 0},
    }  # fmt: skip
    return Look(at, status, None)


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [([0, 0, 0], 0.5, None), ([10, 0, 0], 0.5, 0.5), ([0, 10, 0], 1.0, 2.0), ([0, 0, 5], 0.5, 2.0),
     ([5, 5, 0], 0.75, 1.5), ([1, 0, 99], 0.01, 1.0)],
)  # fmt: skip
def test_quantile(counts: list[int], share: float, expected: float | None) -> None:
    """Inside a bucket it is where the share falls; beyond the last bound it is that bound; without any it is None."""
    assert quantile([1.0, 2.0], counts, share) == expected


@given(st.lists(st.integers(0, 1000), min_size=4, max_size=4), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_quantiles_are_in_order(counts: list[int], one: float, other: float) -> None:
    """A greater share has no smaller quantile, and none is beyond the last bound."""
    low, high = (quantile([0.1, 1.0, 10.0], counts, share) for share in sorted((one, other)))
    if low is None or high is None:
        assert sum(counts) == 0
    else:
        assert 0.0 <= low <= high <= 10.0


@pytest.mark.parametrize(("then", "now", "by"), [(None, 5, 5), (3, 5, 2), (5, 5, 0), (5, 3, 3)])
def test_a_counter_that_fell_has_started_anew(then: int | None, now: int, by: int) -> None:
    """Then all that it says has been counted since."""
    assert grown(then, now) == by


def test_between_two_looks() -> None:
    """Rates, shares and quantiles are those of the time between."""
    span = Span(look(0.0, 100, [100, 0, 0], up=100.0), look(4.0, 300, [100, 200, 0], up=104.0))
    assert span.accepted() == 50.0
    assert span.failed() == 50.0
    assert span.saturated() == 0.25
    assert span.quantiles("duration", 0.5) == [1.5]


def test_without_a_look_before_it_is_since_the_start() -> None:
    """A service that is younger than a second counts as a second old."""
    assert Span(None, look(0.0, 300, [300, 0, 0], up=100.0)).accepted() == 3.0
    assert Span(None, look(0.0, 300, [300, 0, 0], up=0.001)).accepted() == 300.0


def test_nothing_ended_in_between() -> None:
    """No quantile is made up where nothing was observed."""
    assert Span(look(0.0, 9, [9, 0, 0], up=1.0), look(1.0, 9, [9, 0, 0], up=2.0)).quantiles("duration", 0.5) == [None]


@pytest.mark.parametrize("accepted", [20, 200])
def test_a_service_that_started_anew(accepted: int) -> None:
    """All it counts is since the look before, whether it has come past what the one before it had counted or not."""
    before = look(0.0, 100, [100, 0, 0], up=50.0)
    span = Span(before, look(2.0, accepted, [0, accepted, 0], up=1.5))
    assert span.accepted() == accepted / 2
    assert span.quantiles("duration", 1.0) == [2.0]


@pytest.mark.parametrize(("counts", "bounds"), [([5, 0, 9], (1.0, 2.0)), ([9, 0], (1.0,))])
def test_a_histogram_that_cannot_be_compared(counts: list[int], bounds: tuple[float, ...]) -> None:
    """A bucket that fell, or other buckets: all that it says counts."""
    span = Span(look(0.0, 9, [9, 0, 0], up=1.0), look(1.0, 9, counts, up=2.0, bounds=bounds))
    assert span.quantiles("duration", 0.5) == [quantile(bounds, counts, 0.5)]
