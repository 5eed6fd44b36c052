"""The processes that the programs of earlier images have started, and that no program knows any more: they are reaped
when they end, and told to end when nobody uses them.

Runs in the master, in its turns. Owns a pidfd for each. A `multiprocessing.Manager()`, or a subprocess, that a program
starts at its import outlives the exec as a child of this process; the old workers may use it, the new program has
started its own. Must not touch what was there before the first program of this process.
"""

import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterable

from prefork.metrics.log_events import LogEvent, event

from ..master.processes import reap_unknown

log = logging.getLogger("prefork.supervisor")

REAPED_WITHIN_S = 1.0


class LeftOver:
    """The children that are nobody's: all of them are reaped; `ours`, which a program of ours has started, are told to
    end as soon as they are no longer `in_use`, and those that were never used (`unused`) at once."""

    def __init__(
        self, pids: Iterable[int] = (), ours: Iterable[int] = (), unused: Iterable[int] = (),
        in_use: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        self._pidfds: dict[int, int] = {}
        for pid in pids:
            with contextlib.suppress(OSError):  # no descriptor is free: it stays until the end, as it would without us
                self._pidfds[pid] = os.pidfd_open(pid)
        self._unused = set(unused) & self._pidfds.keys()
        self._untold = set(ours) & self._pidfds.keys()
        self._ours = self._untold | self._unused
        self._in_use = in_use
        self._next_look = 0.0

    @property
    def ours(self) -> list[int]:
        """Those that a program of ours has started and that have not been reaped."""
        return sorted(self._ours)

    def turn(self, now: float) -> float:
        """Reap who has ended, and tell the others if it is time; return when to be called again."""
        self._tell(self._unused)
        if self._untold and not self._in_use():
            self._tell(self._untold)
        if self._pidfds and now >= self._next_look:
            self._next_look = now + REAPED_WITHIN_S
            for pid in [*self._pidfds]:
                self._reap(pid)
        return self._next_look if self._pidfds else float("inf")

    def _tell(self, whom: set[int]) -> None:
        if not whom:
            return
        log.info(
            "telling processes that an earlier program of this service has started to end: pids %s",
            ", ".join(map(str, sorted(whom))),
            extra=event(LogEvent.LEFT_OVER_TOLD, pids=sorted(whom)),
        )
        while whom:
            with contextlib.suppress(OSError):  # it is gone, or another user's
                signal.pidfd_send_signal(self._pidfds[whom.pop()], signal.SIGTERM)

    def _reap(self, pid: int) -> None:
        if reap_unknown(self._pidfds[pid]):
            os.close(self._pidfds.pop(pid))
            for known in (self._ours, self._untold, self._unused):
                known.discard(pid)

    def end(self) -> None:
        """Tell all that were not told yet: the service has ended."""
        self._tell(self._unused | self._untold)
        self.forget()

    def forget(self) -> None:
        """Close the descriptors: in a new child, and at the end."""
        while self._pidfds:
            os.close(self._pidfds.popitem()[1])
        self._untold, self._unused = set(), set()
