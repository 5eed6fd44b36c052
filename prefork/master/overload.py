"""The log lines of a service that has too much to do, full or dropping datagrams: one when it begins, one at its end.

Runs in the master, in a turn; at least once a second. Owns what is remembered from one look to the next, which goes
over a reload. Full is a pool that may not grow, with no idle lane, and with clients in its queue at every look for
FULL_S: moments of it are told by the metrics only. Either state ends when it was not seen for OVER_S, so that a service
at its limit does not fill the log.
"""

import logging
from typing import Any

from prefork.metrics.log_events import LogEvent, event

log = logging.getLogger("prefork.supervisor")

FULL_S = 1.0
OVER_S = 5.0


class Overload:
    """The two states. Times are of the supervisor's clock, in seconds; None: it is not so."""

    queued_since: float | None = None  # something was queued at every look since
    full_since: float | None = None  # and that was said
    full_until: float = 0.0  # when it was last seen
    most: int = 0  # clients in the queue at once
    dropped_since: float | None = None
    dropped_until: float = 0.0
    dropped: int = 0  # datagrams, since `dropped_since`
    counted: int | None = None  # datagrams that the kernel had dropped at the last look,
    counted_at: float = 0.0  # and when that was

    @classmethod
    def resumed(cls, packed: dict[str, Any] | None) -> "Overload":
        """Go on with what the previous image has packed, which may be of another version."""
        overload = cls()
        vars(overload).update((name, value) for name, value in (packed or {}).items() if name in cls.__annotations__)
        return overload

    def pack(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in type(self).__annotations__}

    def look(self, queued: bool, waiting: int, dropped: int | None, now: float, *, saturated: bool) -> None:
        """Note a look: `waiting` clients are queued (0 for datagrams), the kernel has `dropped` so many datagrams."""
        self._look_at_queue(queued, waiting, now, saturated)
        self._look_at_drops(dropped, now)

    def _look_at_queue(self, queued: bool, waiting: int, now: float, saturated: bool) -> None:
        if queued:
            self.queued_since = now if self.queued_since is None else self.queued_since
            self.full_until, self.most = now, max(self.most, waiting)
            if saturated and self.full_since is None and now - self.queued_since >= FULL_S:
                self.full_since = self.queued_since
                log.warning(
                    "full: every lane is busy, and clients have been waiting for %.1f s%s", now - self.queued_since,
                    f", {waiting} of them now" if waiting else "",
                    extra=event(LogEvent.FULL, waited_s=round(now - self.queued_since, 1), queued=waiting),
                )  # fmt: skip
        else:
            self.queued_since = None
            if self.full_since is None:
                self.most = 0
            elif now - self.full_until >= OVER_S:
                self._end_full(self.full_since)

    def _end_full(self, since: float) -> None:
        lasted = self.full_until - since
        log.warning(
            "no longer full: clients waited for %.1f s%s", lasted,
            f", at most {self.most} at once" if self.most else "",
            extra=event(LogEvent.FULL_ENDED, lasted_s=round(lasted, 1), queued=self.most),
        )  # fmt: skip
        self.full_since, self.most = None, 0

    def _look_at_drops(self, dropped: int | None, now: float) -> None:
        before, self.counted = self.counted, dropped
        before_at, self.counted_at = self.counted_at, now
        more = 0 if dropped is None or before is None else dropped - before
        if more > 0:
            self.dropped += more
            self.dropped_until = now
            if self.dropped_since is None:
                self.dropped_since = before_at
                log.warning(
                    "the kernel drops datagrams, for which it has no room: %d", more,
                    extra=event(LogEvent.DATAGRAMS_DROPPED, dropped=more),
                )  # fmt: skip
        elif self.dropped_since is not None and now - self.dropped_until >= OVER_S:
            self._end_dropping(self.dropped_since)

    def _end_dropping(self, since: float) -> None:
        lasted = self.dropped_until - since
        log.warning(
            "the kernel drops no more datagrams: %d were dropped within %.1f s", self.dropped, lasted,
            extra=event(LogEvent.DATAGRAMS_DROPPED_ENDED, dropped=self.dropped, lasted_s=round(lasted, 1)),
        )  # fmt: skip
        self.dropped_since, self.dropped = None, 0

    def end(self) -> None:
        """Say the end of what has begun: the service ends."""
        if self.full_since is not None:
            self._end_full(self.full_since)
        if self.dropped_since is not None:
            self._end_dropping(self.dropped_since)
