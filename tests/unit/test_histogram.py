"""Histograms in words: every observation in one bucket, and in the sum."""

from bisect import bisect_left

from hypothesis import given
from hypothesis import strategies as st

from prefork.metrics.histogram import Histogram, bounds
from prefork.metrics.scoreboard import DURATION, QUEUE_WAIT

SMALL = Histogram(3, bounds(0.001, 0.01, 1))


def window(histogram: Histogram) -> memoryview:
    return memoryview(bytearray((histogram.end + 2) * 8)).cast("Q")


@given(st.lists(st.integers(0, 100 * 10**9), max_size=50))
def test_observations(values: list[int]) -> None:
    """Each value is in the first bucket whose bound is not below it, and in the sum; nothing beside is touched."""
    words = window(SMALL)
    for value in values:
        SMALL.observe(words, value)
    found = words.tolist()
    assert found[: SMALL.start] == [0, 0, 0]
    assert found[SMALL.end :] == [0, 0]
    buckets = [0] * (len(SMALL.bounds_ns) + 1)
    for value in values:
        buckets[bisect_left(SMALL.bounds_ns, value)] += 1
    assert found[SMALL.start : SMALL.end - 1] == buckets
    assert found[SMALL.end - 1] == sum(values)


def test_a_bound_belongs_to_its_bucket() -> None:
    """Prometheus' `le` is less or equal: a value at the bound is in the bucket, one above it in the next."""
    words = window(SMALL)
    for value in (1_000_000, 1_000_001, 10_000_000, 1_000_000_001):
        SMALL.observe(words, value)
    assert words[SMALL.start : SMALL.end - 1].tolist() == [1, 2, 0, 1]


def test_bounds_are_those_of_the_documentation() -> None:
    """Durations go from 0.5 ms to 60 s; waits begin at a jiffy of 10 ms, below which the kernel does not tell."""
    assert (DURATION.bounds_ns[0], DURATION.bounds_ns[-1]) == (500_000, 60_000_000_000)
    assert QUEUE_WAIT.bounds_ns[0] == 10_000_000
    for histogram in (DURATION, QUEUE_WAIT):
        assert list(histogram.bounds_ns) == sorted(set(histogram.bounds_ns))
        assert histogram.words == len(histogram.bounds_ns) + 2
