"""Reaping the children of the table: those whose pidfd became readable, and those that the caller waits for.

Runs in the process that serves. Owns nothing. Must not decide what an exit means: it is handed to a callback. The reap
itself is in processes.py.
"""

import logging
import select
import signal
import time
from collections.abc import Callable
from time import monotonic

from prefork.metrics.facts import ChildKind
from prefork.metrics.log_events import LogEvent, event
from prefork.metrics.loggers import known_levels

from .children import BriefChild, Child, ChildTable, Exit
from .exits import settle_briefly
from .guard import say_failed
from .waiting import REFUSED_S, Waiting

log = logging.getLogger("prefork.supervisor")
_LEVELS = known_levels(log)

KILLED_WITHIN_S = 5.0  # from SIGKILL until a child that still lives is left behind


class Reaper:
    """Reaps children, and passes each exit to `note`, once."""

    def __init__(self, table: ChildTable, waiting: Waiting, note: Callable[[Exit], None]) -> None:
        self._table = table
        self._waiting = waiting
        self._note = note

    def reap(self, child: Child) -> None:
        """Reap the child if it has ended, and end what a rehearsal has started.

        One without a slot of its own is settled here: what a plain server does between two forks costs it the pages
        that each function writes.
        """
        if isinstance(child, BriefChild):
            status = child.processes.status_of(child.pid, child.pidfd)
            if status is None:
                return
            del self._table.children[child.serial]
            self._waiting.remove(child.pidfd)
            child.pidfd = -1
            lost, text = child.settle(child, status)
            says_all = _LEVELS.get(logging.DEBUG) is not False and log.isEnabledFor(logging.DEBUG)
            if lost or text or status < 0 or says_all:
                settle_briefly(child, status, lost=lost, text=text)
            return
        if child.kind is ChildKind.REHEARSAL:
            child.processes.end_group(child.pid)  # before it is reaped: its pid may be reused from then on
        exit = self._table.reap(child)
        if exit is not None:
            self._waiting.remove(child.pidfd)
            child.pidfd = -1  # the number may be reused from now on
            self._note(exit)

    def wait_for(self, *kinds: ChildKind, within: float | None = None) -> list[Child]:
        """Wait until every child of these kinds is reaped, at most `within` seconds; return those that still live."""
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
        """Kill and reap every child of these kinds, within KILLED_WITHIN_S.

        Bounded because a child that has changed its user may be out of our reach, and one in an uninterruptible sleep
        dies only when the kernel is done with it. Those are logged and left behind.
        """
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
    while True:
        left = None if until is None else max(0.0, until - monotonic())
        try:
            return bool(poll.poll(None if left is None else left * 1000))
        except OSError as exc:
            say_failed("wait for the end of a child", exc, "trying again")
            if left == 0.0:
                return False
            time.sleep(REFUSED_S)
