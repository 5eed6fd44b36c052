"""Reaping the children of the table: those that were heard to end, and those that are waited for.

Runs in the process that serves. Owns nothing; what an end means is told to whoever is noted here. The reap itself is
processes.py's.
"""

import logging
import select
import signal
from collections.abc import Callable
from time import monotonic

from prefork.metrics.facts import ChildKind
from prefork.metrics.log_events import LogEvent, event

from .children import Child, ChildTable, Exit
from .waiting import Waiting

log = logging.getLogger("prefork.supervisor")

KILLED_WITHIN_S = 5.0  # whoever is killed is gone by then


class Reaper:
    """`note` is told of every exit, once."""

    def __init__(self, table: ChildTable, waiting: Waiting, note: Callable[[Exit], None]) -> None:
        self._table = table
        self._waiting = waiting
        self._note = note

    def reap(self, child: Child) -> None:
        """Take its status, if it has ended."""
        exit = self._table.reap(child)
        if exit is not None:
            self._waiting.remove(child.pidfd)
            child.pidfd = -1  # the number may be somebody else's from now on
            self._note(exit)

    def wait_for(self, *kinds: ChildKind, within: float | None = None) -> list[Child]:
        """Wait until every child of these kinds is reaped, at most so many seconds; return who has not ended then."""
        until = None if within is None else monotonic() + within
        left = []
        for child in self._table:
            if child.kind in kinds:
                if _wait_readable(child.pidfd, until):
                    self.reap(child)
                else:
                    left.append(child)
        return left

    def kill(self, *kinds: ChildKind) -> None:
        """Kill and reap, in a bounded time: one that has become another user's may be out of our reach, and one that is
        deep in the kernel dies when that lets it go."""
        for child in self._table:
            if child.kind in kinds:
                child.signal(signal.SIGKILL)
        for child in self.wait_for(*kinds, within=KILLED_WITHIN_S):
            log.error(
                "%s: still there %g s after it was killed; left behind",
                child,
                KILLED_WITHIN_S,
                extra=event(LogEvent.CHILD_LEFT_BEHIND, **child.fields),
            )


def _wait_readable(fd: int, until: float | None) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(None if until is None else max(0.0, until - monotonic()) * 1000))
