"""The master's accounts of the companions: what each has done over all its processes, and when it may start again.

Runs in the master, in its turns. Owns the table in shared memory, which outlives the processes and goes over to the
next image, and the back-off, which does not: a death of the old code says nothing about the new. Must not decide when a
companion starts or leaves: policy does; nor fork, which is the spawner's business.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from prefork.metrics.companions import (
    RESTARTS,
    RUN_LATE_NS,
    RUN_STARTED_NS,
    RUNS_LOST,
    RUNS_TIMED_OUT,
    UP,
    CompanionTable,
)
from prefork.metrics.facts import ChildKind, ExitReason, Outcome
from prefork.metrics.histogram import NS
from prefork.metrics.log_events import LogEvent, event

from .children import Child
from .clock import Clock
from .policy import FORK_RETRY_S, CompanionView, Limits, restart_delay
from .service import CompanionSpec

log = logging.getLogger("prefork.supervisor")

UNASKED = (None, ExitReason.BOOT_FAILED, ExitReason.EXITED, ExitReason.CRASHED)  # the last three, where it was killed
WELL_S = 10.0  # a companion that ran for longer is well: its back-off begins anew


class BackOff:
    """The moment at which a companion may start. Times are in seconds of the supervisor's clock."""

    ends: int = 0  # that nobody asked for, in a row
    next_start: float = 0.0


class Companions:
    """The companions of a service. `table`: None while there has never been one."""

    def __init__(self, specs: Iterable[CompanionSpec] | None, before: Mapping[str, Any] | None) -> None:
        """`specs`: None in a master without its program, which keeps those that run. `before`: what `pack()` returned
        in an earlier image. Raises OSError when descriptors are short."""
        self.specs = {spec.name: spec for spec in specs or ()}
        self.back_off = {name: BackOff() for name in self.specs}
        self.table = _table(before) if self.specs or before is not None else None
        self._intervals: Mapping[str, float | None] = {}
        if self.table is not None:
            intervals = {name: spec.interval for name, spec in self.specs.items()}
            if specs is None and before is not None:
                intervals = before["intervals"]
            self._intervals = intervals

    def enter(self, living: Iterable[Child]) -> None:
        """Give each companion its row. `living`: the children that there are already; the row of one that is no longer
        declared stays its own until it has ended."""
        if self.table is not None:
            names = {child.name for child in living if child.name}
            for name in set(self.table.rows) - set(self._intervals) - names:
                self.table.drop(name)
            for name, interval in self._intervals.items():
                self.table.enter(name, interval)

    def pack(self) -> tuple[dict[str, Any] | None, list[int]]:
        if self.table is None:
            return None, []
        table = self.table
        return {"fd": table.fd, "rows": table.rows, "intervals": table.intervals}, [table.fd]

    def views(self) -> tuple[CompanionView, ...]:
        """Return what policy plans by."""
        return tuple(CompanionView(name, self.back_off[name].next_start) for name in self.specs)

    def run_late_at(self, child: Child, clock: Clock) -> float | None:
        """Return the moment at which the run that is on in this companion is over its time; None: never."""
        words = self._words(child)
        if words is None or not (started_ns := words[RUN_STARTED_NS]) or not (late_ns := words[RUN_LATE_NS]):
            return None
        return clock.at(started_ns) + max(0, late_ns - started_ns) / NS

    def note_exit(self, child: Child, limits: Limits, clock: Clock) -> None:
        """Note that one was reaped, and has to wait before it starts again unless it was told to leave."""
        self._note_run(child, clock.stamp_ns())
        now = clock.now()
        back_off = self.back_off.setdefault(child.name, BackOff())
        if child.reason not in UNASKED:
            back_off.ends, back_off.next_start = 0, 0.0
            return
        back_off.ends = 1 if now - child.started >= WELL_S else back_off.ends + 1
        back_off.next_start = now + restart_delay(back_off.ends, limits)
        if (words := self._words(child)) is not None:
            words[RESTARTS] += 1

    def _note_run(self, child: Child, now_ns: int) -> None:
        """Count a run that ended with its process."""
        words = self._words(child)
        if self.table is None or words is None or not words[RUN_STARTED_NS]:
            return
        outcome = Outcome.TIMEOUT if child.reason is ExitReason.TIMEOUT else Outcome.LOST
        self.table.end_run(child.name, RUNS_TIMED_OUT if outcome is Outcome.TIMEOUT else RUNS_LOST, now_ns)
        log.warning(
            "%s: a run ended with it: %s",
            child,
            outcome.label,
            extra=event(LogEvent.RUN_DIED, **child.fields, outcome=outcome.label),
        )

    def _words(self, child: Child) -> memoryview | None:
        known = self.table is not None and child.name in self.table.rows
        return self.table.words(child.name) if self.table is not None and known else None

    def publish(self, children: Iterable[Child]) -> None:
        """Write which of them run."""
        if self.table is not None:
            up = {child.name for child in children if child.kind is ChildKind.COMPANION and child.booted}
            for name in self.table.intervals:
                self.table.words(name)[UP] = name in up

    def start_now(self, name: str) -> None:
        """End the back-off of one that has no process."""
        self.back_off[name] = BackOff()

    def not_started(self, name: str, now: float) -> None:
        """Note that the kernel refused a fork: try again soon, for that is cheap and the shortage may pass."""
        self.back_off[name].next_start = now + FORK_RETRY_S

    def keep_only(self, name: str) -> memoryview:
        """Called in a companion: return its own row, and let go of the table."""
        assert self.table is not None, "it has a row for each that is declared"
        table, self.table = self.table, None
        return table.keep_only(name)

    def close(self) -> None:
        """Close the table: at the end of the service, and in a child that is no exporter."""
        if self.table is not None:
            self.table.close()
            self.table = None


def _table(before: Mapping[str, Any] | None) -> CompanionTable:
    """Return the table of the previous image; a new one if there is none, or that is of another version."""
    if before is not None:
        try:
            return CompanionTable(before["fd"], before["rows"])
        except ValueError:
            pass  # its descriptor stays open: it is one, and closes with this image
    return CompanionTable()
