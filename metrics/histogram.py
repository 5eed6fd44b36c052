"""Histograms in words of shared memory: counts per bucket, then the sum.

Pure arithmetic on a view of words; runs in the process that owns the view. Counts are per bucket, not cumulative, so
that an observation writes only two words; the collector adds them up.
"""

from bisect import bisect_left
from dataclasses import dataclass, field

NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Histogram:
    """The place of a histogram of durations in its view, and its upper bounds in nanoseconds."""

    start: int
    bounds_ns: tuple[int, ...]
    end: int = field(init=False)  # computed once: every request needs it

    def __post_init__(self) -> None:
        object.__setattr__(self, "end", self.start + self.words)

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
