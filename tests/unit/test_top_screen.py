"""The lines of `prefork top`: what they say, and that they fit."""

from typing import Any

import pytest

from prefork.answered import duration
from prefork.top_screen import SORTS, Look, lines, ordered, quantile


def look(at: float, accepted: int, counts: list[int]) -> Look:
    status: dict[str, Any] = {
        "name": "app:Upper", "pid": 1, "phase": "running", "generation": 1, "uptime_s": 10.0, "reloading": False,
        "degraded": None, "queue_length": 3, "queue_limit": 128, "lanes": 4, "lanes_busy": 1,
        "requests": {"accepted": accepted}, "duration": {"at_most_s": [0.001, 0.01, 0.1], "counts": counts},
    }  # fmt: skip
    workers: list[dict[str, Any]] = [
        {"slot": slot, "pid": 100 + slot, "generation": 1, "state": "busy", "age_s": 9.0, "requests": 10 * slot,
         "lanes": 1, "lanes_busy": 1, "request_age_s": None if slot == 1 else 5.0 / slot, "peers": ["\x1b[2J"] * 3,
         "cpu_s": float(slot), "rss_bytes": 1 << 24, "private_memory_bytes": None}
        for slot in range(1, 41)
    ]  # fmt: skip
    return Look(at, status, workers)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 10), (200, 60)])
def test_fits(width: int, height: int) -> None:
    """No line is too long, no line is too many, and nothing that a client chose moves the cursor."""
    found = lines(None, look(0.0, 0, [0, 0, 0, 0]), width=width, height=height)
    assert len(found) <= height
    assert max(map(len, found)) <= width
    assert all(line.isprintable() for line in found)


def test_rate_and_latency_are_since_the_look_before() -> None:
    """Of two looks the difference counts; of one, all since the start."""
    first, second = look(0.0, 100, [90, 10, 0, 0]), look(2.0, 300, [90, 110, 0, 0])
    assert "rate 10.0/s  p50 1ms" in lines(None, first, width=80, height=24)[1]
    assert "rate 100.0/s  p50 6ms  p99 10ms  lanes 1 of 4 (25%)  queue 3 of 128" in lines(
        first, second, width=80, height=24)[1]


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [([0, 0, 0], 0.5, None), ([10, 0, 0], 0.5, 0.5), ([0, 10, 0], 1.0, 2.0), ([0, 0, 5], 0.5, 2.0)],
)
def test_quantile(counts: list[int], share: float, expected: float | None) -> None:
    """Inside a bucket it is where the share falls; beyond the last bound it is that bound; without any it is None."""
    assert quantile([1.0, 2.0], counts, share) == expected


def test_every_sort_puts_the_most_first() -> None:
    """By slot from the first; by anything else from the most."""
    firsts = {sort: ordered(look(0.0, 0, [0]), sort)[0]["slot"] for sort in SORTS}
    assert firsts == {"slot": 1, "request": 2, "requests": 40, "cpu": 40, "memory": 1}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.0123, "12ms"), (3.44, "3.4s"), (312, "5m12s"), (7380, "2h03m"), (370800, "4d7h")],
)
def test_duration(seconds: float | None, text: str) -> None:
    """A duration is as short as it can be read."""
    assert duration(seconds) == text
