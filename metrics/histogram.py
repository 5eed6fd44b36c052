"""Histograms in words of shared memory: counts per bucket, then the sum.

Pure arithmetic on a view of words; runs in the process that owns the view. Counts are per bucket, not cumulative, so
that an observation writes only two words; the collector adds them up.
"""

from bisect import bisect_left

NS = 1_000_000_000


class Histogram:
    """The place of a histogram of durations in its view, and its upper bounds in nanoseconds."""

    __slots__ = ("bounds_ns", "end", "start")

    def __init__(self, start: int, bounds_ns: tuple[int, ...]) -> None:
        self.start = start
        self.bounds_ns = bounds_ns
        self.end = start + self.words  # computed once: every request needs it

    @property
    def words(self) -> int:
        return len(self.bounds_ns) + 2  # one bucket above the last bound, and the sum

    def observe(self, window: memoryview, value_ns: int) -> None:
        bounds_ns = self.bounds_ns
        bucket = bisect_left(bounds_ns, value_ns) if value_ns > bounds_ns[0] else 0  # most are short
        window[self.start + bucket] += 1
        window[self.end - 1] += value_ns


def bounds(*seconds: float) -> tuple[int, ...]:
    return tuple(round(value * NS) for value in seconds)
