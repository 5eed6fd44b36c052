"""The tasks that have a turn beside the pool: the control socket, the exporter, dropped log lines, the service manager,
watched files, orphans.

Runs in the process that serves, in the supervisor's turns. Owns every task from the moment it is given until `close()`.
A task must not decide how many workers there are; each returns when it must have its next turn. A task that raises
loses this turn; the others are not affected.
"""

import os
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

from prefork.metrics.facts import ChildKind

from ..sockets.listener import Listener
from . import signalling
from .children import Child, ChildTable
from .guard import attempt, guarded
from .path_watch import PathWatch
from .processes import OrphanReaper
from .waiting import Waiting

TASK_AGAIN_S = 1.0  # until the next turn of a task whose turn failed


class Task(Protocol):
    """A task; its `turn(now)` never waits, and returns when it must be called again at the latest."""

    def turn(self, now: float) -> float: ...


class TaskWithDescriptors(Task, Protocol):
    """A task that holds descriptors; a new child closes its copies of them by `forget()`."""

    def forget(self) -> None: ...


class ControlTask(TaskWithDescriptors, Protocol):
    def fileno(self) -> int: ...
    def close(self) -> None: ...


class ExporterTask(TaskWithDescriptors, Protocol):
    def succeed(self, before: list[Child]) -> None: ...
    def ended(self, child: Child | None, now: float) -> None: ...
    def close(self) -> None: ...


class HolderTask(Task, Protocol):
    def succeed(self, before: list[Child]) -> None: ...
    def ended(self, child: Child | None, now: float) -> None: ...
    def drain(self) -> None: ...
    def holds_some(self) -> bool: ...
    def stop(self) -> None: ...


class OnChangeTask(Task, Protocol):
    def pack(self) -> Any: ...


class LogDropsTask(Task, Protocol):
    def close(self) -> None: ...


class Tasks:
    """The tasks of one supervisor; None for each that this service does not have."""

    def __init__(
        self, table: ChildTable, waiting: Waiting, drops: LogDropsTask, notifier: TaskWithDescriptors | None,
        origins: Sequence[Listener] = (),
    ) -> None:  # fmt: skip
        self.paths = PathWatch(origins)
        self.changes: OnChangeTask | None = None
        self._control: ControlTask | None = None
        self._exporter: ExporterTask | None = None
        self._holder: HolderTask | None = None
        self._drops = drops
        self._notifier = notifier
        self._orphans = OrphanReaper(lambda: {child.pid for child in table}) if os.getpid() == 1 else None
        self._table = table
        self._waiting = waiting
        self.watched = False  # True if anything may read the board: an exporter or a control client

    @property
    def exported(self) -> bool:
        return self._exporter is not None

    def turn(self, now: float) -> float:
        """Give each task a turn; return when to be called again. Control may obey commands in its turn, at once."""
        present: tuple[tuple[str, Task | None], ...] = (
            ("look after the holder", self._holder),
            ("serve the control socket", self._control), ("look after the exporter", self._exporter),
            ("tell of dropped log lines", self._drops), ("tell the service manager", self._notifier),
            ("watch the program's files", self.changes), ("look for orphans", self._orphans),
            ("watch the paths of the service", self.paths),
        )  # fmt: skip
        return min(
            [guarded(what, partial(each.turn, now), now + TASK_AGAIN_S) for what, each in present if each is not None]
        )

    def note_exit(self, child: Child, now: float) -> None:
        """Note that a child was reaped."""
        if child.kind is ChildKind.EXPORTER and self._exporter is not None:
            exporter = self._exporter
            attempt("look after the exporter", lambda: exporter.ended(child, now))
        if child.kind is ChildKind.HOLDER and self._holder is not None:
            holder = self._holder
            attempt("look after the holder", lambda: holder.ended(child, now))

    def control(self, control: ControlTask) -> None:
        """Have a control socket from now on."""
        self._control, self.watched = control, True
        self._waiting.add(control.fileno())

    def export(self, exporter: ExporterTask) -> None:
        """Have an exporter from now on."""
        exporter.succeed([child for child in self._table if child.kind is ChildKind.EXPORTER])
        self._exporter, self.watched = exporter, True

    def hold(self, holder: HolderTask) -> None:
        """Have a process for idle connections from now on."""
        holder.succeed([child for child in self._table if child.kind is ChildKind.HOLDER])
        self._holder = holder

    def drain_holder(self) -> bool:
        """Have the idle connections closed, for the service ends; return whether there are still some."""
        if self._holder is None:
            return False
        holder = self._holder
        attempt("tell the holder that the service ends", holder.drain)
        return guarded("look what is held", holder.holds_some, False)

    def end_holder(self) -> bool:
        """Have whatever is held closed, and every holder leave, which is the caller's to reap; return whether there is
        one."""
        if self._holder is None:
            return False
        holder, self._holder = self._holder, None
        attempt("end the holder", holder.stop)
        return True

    def retire_exporters(self, now: float) -> None:
        """Retire the exporters of an earlier image if this one has none; they finish their scrapes."""
        if self._exporter is None:
            for child in self._table:
                if child.kind is ChildKind.EXPORTER:
                    signalling.retire(child, now)

    def end_control(self) -> None:
        if self._control is not None:
            control, self._control = self._control, None
            self.watched = self._exporter is not None
            self._waiting.take_out(control.fileno())
            attempt("close the control socket", control.close)

    def end_export(self) -> None:
        """Close the exporter. Its process is the caller's to reap."""
        if self._exporter is not None:
            exporter, self._exporter = self._exporter, None
            self.watched = self._control is not None
            attempt("end the exporter", exporter.close)

    def close(self) -> None:
        """Close the rest for good; the exporter and control must have been ended."""
        if self._notifier is not None:
            self._notifier.forget()
        self._drops.close()

    def forget(self) -> None:
        """Called in a new child: close its copies of the descriptors."""
        for each in (self._control, self._exporter, self._notifier):
            if each is not None:
                each.forget()
