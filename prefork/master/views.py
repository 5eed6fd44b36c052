"""Views of the children: for policy to plan by, and for the service manager to be told. Pure.

Used in the master, in its turns. Owns nothing.
"""

from prefork.metrics.facts import ChildKind, ExitReason

from .children import Child, ChildState, ChildTable
from .clock import Clock
from .notify import NotifyFacts
from .policy import ChildView, Limits, Phase


def view_of(child: Child, clock: Clock, run_late_at: float | None = None, place: int | None = None) -> ChildView:
    """Return the view of a child by which policy plans. `run_late_at`: see `Companions`."""
    report = child.report or child.reader.look(clock.stamp_ns())
    due: ExitReason | None = ExitReason.MAX_LIFETIME
    if child.lifetime is None or clock.now() < child.started + child.lifetime:
        due = child.due
    if child.replace:
        due = ExitReason.REPLACED
    return ChildView(
        child.serial, child.kind, child.state, child.generation, child.started, child.told, child.deadline, due,
        report.lanes, tuple(clock.at(since) for since in report.busy_since_ns), report.accepted, report.tried_ns,
        child.cut_at, child.cut_for, report.tried_ns != child.cut_tried_ns, child.reason, child.name,
        run_late_at, place,
    )  # fmt: skip


def facts_of(table: ChildTable, phase: Phase, limits: Limits, *, reloading: bool, degraded: str) -> NotifyFacts:
    """Return the facts that the service manager is told."""
    states = [child.state for child in table if child.kind is ChildKind.WORKER]
    ready, starting = states.count(ChildState.READY), states.count(ChildState.STARTING)
    return NotifyFacts(
        phase, ready, starting, len(states) - ready - starting, min(limits.min_children, limits.max_children),
        limits.boot_timeout, reloading, degraded,
    )  # fmt: skip


def wants_more(table: ChildTable, phase: Phase, limits: Limits) -> bool:
    """Return whether the pool may still answer saturation with another worker."""
    workers = [child for child in table if child.kind is ChildKind.WORKER]
    serving = sum(child.state in (ChildState.STARTING, ChildState.READY) for child in workers)
    running = phase in (Phase.STARTING, Phase.RUNNING)
    return running and limits.min_children < limits.max_children and serving < limits.max_children
