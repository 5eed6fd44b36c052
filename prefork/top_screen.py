"""What `prefork top` shows, as lines of text. Pure: from two looks at a service to lines that fit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .answered import COLUMNS, duration, printable, table, worker_cells

SORTS = ("slot", "request", "requests", "cpu", "memory")
KEYS = "s sort  j/k select  d replace the worker  q quit"
_KEY: dict[str, Callable[[dict[str, Any]], Any]] = {
    "slot": lambda w: w["slot"],
    "request": lambda w: -(w["request_age_s"] or 0),
    "requests": lambda w: -w["requests"],
    "cpu": lambda w: -(w["cpu_s"] or 0),
    "memory": lambda w: -(w["private_memory_bytes"] or w["rss_bytes"] or 0),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Look:
    """What the service said at one moment (seconds, of any clock that only goes forward)."""

    at: float
    status: dict[str, Any]
    workers: list[dict[str, Any]]


def quantile(bounds: Sequence[float], counts: Sequence[int], share: float) -> float | None:
    """Where this share of the observations is below, as near as the buckets tell; None without any."""
    wanted, below, low = share * sum(counts), 0, 0.0
    for bound, count in zip(bounds, counts, strict=False):
        if count and below + count >= wanted:
            return low + (bound - low) * (wanted - below) / count
        below, low = below + count, bound
    return bounds[-1] if sum(counts) else None


def ordered(look: Look, sort: str) -> list[dict[str, Any]]:
    return sorted(look.workers, key=lambda worker: (_KEY[sort](worker), worker["slot"], worker["pid"]))


def lines(before: Look | None, look: Look, *, width: int, height: int | None, sort: str = "slot") -> list[str]:
    """The header, then a row a worker; no line is wider and no more lines are than fit."""
    rows = table([COLUMNS, *map(worker_cells, ordered(look, sort))], left=frozenset({3, 10}))
    found = [*header(before, look), "", *rows]
    return [printable(line)[:width] for line in found[:height]]


def header(before: Look | None, look: Look) -> list[str]:
    status = look.status
    reload = "reloading" if status["reloading"] else f"DEGRADED: {status['degraded']}" if status["degraded"] else ""
    queue = "-" if status["queue_length"] is None else f"{status['queue_length']} of {status['queue_limit']}"
    share = 100 * status["lanes_busy"] / max(1, status["lanes"])
    low, high = _latencies(before, look)
    return [
        f"{status['name']}  {status['phase']}  generation {status['generation']}  up {duration(status['uptime_s'])}"
        f"  pid {status['pid']}  {reload}".rstrip(),
        f"rate {_rate(before, look)}  p50 {duration(low)}  p99 {duration(high)}  "
        f"lanes {status['lanes_busy']} of {status['lanes']} ({share:.0f}%)  queue {queue}",
    ]


def _rate(before: Look | None, look: Look) -> str:
    """Since the look before, or since the service began."""
    now = look.status["requests"]["accepted"]
    seconds = look.status["uptime_s"] if before is None else look.at - before.at
    then = 0 if before is None else before.status["requests"]["accepted"]
    return f"{max(0, now - then) / max(seconds, 0.001):.1f}/s"


def _latencies(before: Look | None, look: Look) -> tuple[float | None, float | None]:
    """Of the requests that ended since the look before; where none did, of all."""
    found = look.status["duration"]
    counts = found["counts"]
    if before is not None:
        since = [now - then for now, then in zip(counts, before.status["duration"]["counts"], strict=True)]
        counts = since if sum(since) and min(since) >= 0 else counts
    return quantile(found["at_most_s"], counts, 0.5), quantile(found["at_most_s"], counts, 0.99)
