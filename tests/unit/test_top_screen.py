"""The lines of `prefork top`: what they say, and that they fit."""

from typing import Any

import pytest

from prefork.control.render import duration
from prefork.top.rates import Look
from prefork.top.screen import SORTS, View, lines, ordered


def look(at: float = 0.0, accepted: int = 0, workers: int = 40, **differences: Any) -> Look:
    status: dict[str, Any] = {
        "name": "app:Upper", "pid": 1, "phase": "running", "generation": 1, "uptime_s": 10.0 + at, "reloading": False,
        "degraded": None, "queue_length": 3, "queue_limit": 128, "lanes": 4, "lanes_busy": 1, "saturated_s": at / 2,
        "requests": {"accepted": accepted, "error": accepted // 10, "timeout": 0, "lost": 0},
        "duration": {"at_most_s": [0.001, 0.01, 0.1], "counts": [accepted, accepted // 2, 0, 0]},
        "workers": {"starting": 0, "idle": 3, "busy": 1, "draining": 0}, "min_children": 1, "max_children": 4,
        "backing_off": False, "last_error": None, **differences,
    }  # fmt: skip
    return Look(at, status, [worker(slot, at) for slot in range(1, workers + 1)])


def worker(slot: int, at: float = 0.0) -> dict[str, Any]:
    """The first is idle; the others have the longer a request, and the more CPU, the lower their slot."""
    return {
        "slot": slot, "pid": 100 + slot, "generation": 1, "state": "busy", "age_s": 9.0, "requests": 10 * slot,
        "lanes": 1, "lanes_busy": 1, "request_age_s": None if slot == 1 else 5.0 / slot, "peers": ["\x1b[2J"] * 3,
        "cpu_s": slot + at / slot, "rss_bytes": 1 << 24, "private_memory_bytes": None,
    }  # fmt: skip


def text(before: Look | None, now: Look, view: View) -> list[str]:
    return [line.text for line in lines(before, now, view)]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 10), (200, 60), (1, 1), (20, 3)])
def test_fits(width: int, height: int) -> None:
    """No line is too long, no line is too many, and nothing that a client chose moves the cursor."""
    found = text(None, look(degraded="x" * 300), View(width, height, notice="y" * 300))
    assert len(found) <= height
    assert max(map(len, found)) <= width
    assert all(line.isprintable() for line in found)


def test_the_header_is_of_the_time_between_two_looks() -> None:
    """Rate, quantiles, saturation and failures of the time since the look before; the rest as it is now."""
    assert text(look(0.0, 100), look(2.0, 300), View(80))[:3] == [
        "app:Upper  running  generation 1  up 12.0s  pid 1",
        "rate 100/s  p50 0.8ms  p99 9.7ms  lanes 1 of 4 (25%)  queue 3 of 128",
        "saturated 50%  failed 10.0/s  workers 4 (1 to 4): 3 idle, 1 busy",
    ]


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"degraded": "the new code raised"}, "DEGRADED: the new code raised"),
        ({"backing_off": True, "last_error": "no such table"}, "BACK-OFF: workers die at boot: no such table"),
        ({"last_reload_ok": False, "last_reload_ago_s": 61.0}, "the last reload FAILED, 1m01s ago"),
        ({"hangs": True}, "the master does not turn"),
    ],
)
def test_what_is_wrong_has_a_line(state: dict[str, Any], said: str) -> None:
    """Trouble stands below the header, whatever else there is."""
    assert text(None, look(**state), View(80, 24))[3] == said


def test_a_long_reason_is_read_whole() -> None:
    """A long reason takes more lines, not many, and the table has what is left."""
    reason = " ".join(["could", "not"] * 12)
    found = text(None, look(degraded=reason, workers=1), View(80, 24))
    assert " ".join(found[3:5]) == f"DEGRADED: {reason}"
    assert len(text(None, look(degraded=reason * 100, workers=1), View(80, 24))) <= 3 + 3 + 1 + 2 + 1


@pytest.mark.parametrize("slot", [1, 20, 40])
def test_the_chosen_one_is_on_the_screen(slot: int) -> None:
    """Of more workers than fit those around the chosen one are shown, it among them and marked."""
    found = lines(None, look(), View(80, 24, chosen=(slot, 100 + slot)))
    (marked,) = [line.text for line in found if line.style == "reverse"]
    assert marked.split()[:2] == [str(slot), str(100 + slot)]
    assert any(line.text.endswith("of 40") for line in found)


def test_every_sort_puts_the_most_first() -> None:
    """By slot from the first; by anything else from the most."""
    firsts = {sort: ordered(None, look(), sort)[0]["slot"] for sort in SORTS}
    assert firsts == {"slot": 1, "request": 2, "requests": 40, "cpu": 40, "memory": 1}


def test_cpu_is_what_was_used_since_the_look_before() -> None:
    """Between two looks CPU is a share, and sorted by as one; of one look it is all there was."""
    before, now = look(0.0, workers=2), look(2.0, workers=2)
    assert ordered(before, now, "cpu")[0]["slot"] == 1
    assert "100%" in text(before, now, View(120))[5]
    assert "1.0s" in text(None, before, View(120))[5]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0, "0ms"), (0.00042, "0.4ms"), (0.0123, "12ms"), (3.44, "3.4s"), (312, "5m12s"), (7380, "2h03m"),
     (370800, "4d7h")],
)  # fmt: skip
def test_duration(seconds: float | None, text: str) -> None:
    """A duration is as short as it can be read."""
    assert duration(seconds) == text


def test_several_listeners_are_named() -> None:
    """With how many wait at each; one alone is not."""
    listeners = [{"address": "127.0.0.1:9", "queue_length": 7}, {"address": "s", "queue_length": 0},
                 {"address": "udp://127.0.0.1:9", "queue_length": None}]  # fmt: skip
    assert text(None, look(listeners=listeners), View(80))[3] == "at 127.0.0.1:9 7, s, udp://127.0.0.1:9"
    assert text(None, look(listeners=listeners[:1]), View(80)) == text(None, look(), View(80))
