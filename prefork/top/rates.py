"""Compute what happened between two looks at a service: counts, shares and quantiles. Pure.

Runs in `prefork top`. A counter that fell was reset by a restart of the service, so its whole value counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Look", "Span", "grown", "quantile"]

FAILURES = ("error", "timeout", "lost")


@dataclass(frozen=True, slots=True)
class Look:
    """The service's report at one moment (`at` is in seconds of any monotonic clock).

    `status` has the form of control/report.py; unknown values are None. `workers` is None for a metrics URL.
    """

    at: float
    status: dict[str, Any]
    workers: list[dict[str, Any]] | None


def grown(then: float | None, now: float) -> float:
    """Return the growth of a counter."""
    return now if then is None or now < then else now - then


def quantile(bounds: Sequence[float], counts: Sequence[float], share: float) -> float | None:
    """Return the quantile for this share, as exactly as the buckets allow; None without observations."""
    wanted, below, low = share * sum(counts), 0.0, 0.0
    for bound, count in zip(bounds, counts, strict=False):
        if count and below + count >= wanted:
            return low + (bound - low) * (wanted - below) / count
        below, low = below + count, bound
    return bounds[-1] if sum(counts) else None


class Span:
    """The time between two looks; without an earlier one, since the start of the service."""

    def __init__(self, before: Look | None, look: Look) -> None:
        self._now = look.status
        self._then: dict[str, Any] = {}
        if before is None:
            self.seconds = max(1.0, look.status["uptime_s"] or 0.0)
        else:
            self.seconds = max(0.001, look.at - before.at)
            if (before.status["uptime_s"] or 0.0) <= (look.status["uptime_s"] or 0.0):
                self._then = before.status

    def accepted(self) -> float:
        """Return the accepted connections per second."""
        return self._requests("accepted") / self.seconds

    def failed(self) -> float:
        """Return the failed requests per second."""
        return sum(map(self._requests, FAILURES)) / self.seconds

    def saturated(self) -> float | None:
        """Return the share of the time in which no further request could be accepted; None if unknown."""
        now = self._now["saturated_s"]
        return None if now is None else min(1.0, grown(self._then.get("saturated_s"), now) / self.seconds)

    def quantiles(self, name: str, *shares: float) -> list[float | None]:
        """Return quantiles of the observations that a histogram gained in this time."""
        now, then = self._now[name], self._then.get(name)
        if now is None:
            return [None] * len(shares)
        counts = now["counts"]
        if then is not None and then["at_most_s"] == now["at_most_s"]:
            since = [after - before for before, after in zip(then["counts"], counts, strict=True)]
            counts = since if min(since) >= 0 else counts
        return [quantile(now["at_most_s"], counts, share) for share in shares]

    def _requests(self, outcome: str) -> float:
        return grown(self._then.get("requests", {}).get(outcome), self._now["requests"][outcome])
