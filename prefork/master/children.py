"""The child table: plain data about every process of the service.

Runs in the process that serves: the master of a pool, or a plain forking server. Owns pids and pidfds. Must not decide
anything: reasons and deadlines come from policy.
"""

import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterator
from enum import Enum, auto
from itertools import count
from operator import attrgetter
from typing import Any, NamedTuple, NoReturn

from prefork.metrics.board import Board
from prefork.metrics.facts import ChildKind, Condition, ExitReason
from prefork.metrics.log_events import LogEvent, event
from prefork.metrics.scoreboard import Report, Slot, SlotReader, Stacks
from prefork.workers import bootstrap
from prefork.workers.signals import DRAIN_SIGNAL

from .guard import attempt
from .processes import KERNEL, Processes

log = logging.getLogger("prefork.supervisor")


class ChildState(Enum):
    STARTING = auto()
    READY = auto()
    DRAINING = auto()
    STOPPING = auto()
    KILLING = auto()
    REAPED = auto()


# For each state, the states that it may follow.
CHILD_MAY_FOLLOW: dict[ChildState, set[ChildState]] = {
    ChildState.STARTING: set(),
    ChildState.READY: {ChildState.STARTING},
    ChildState.DRAINING: {ChildState.STARTING, ChildState.READY},
    ChildState.STOPPING: {ChildState.STARTING, ChildState.READY, ChildState.DRAINING},
    ChildState.KILLING: {ChildState.STARTING, ChildState.READY, ChildState.DRAINING, ChildState.STOPPING},
    ChildState.REAPED: set(ChildState) - {ChildState.REAPED},
}


_CONDITIONS = {
    ChildState.STARTING: Condition.STARTING,
    ChildState.READY: Condition.READY,
    ChildState.DRAINING: Condition.DRAINING,
    ChildState.STOPPING: Condition.DRAINING,
    ChildState.KILLING: Condition.DRAINING,
}


_NUMBER = attrgetter("number")


class Child:
    """The master's record of one process. Times are in seconds of the supervisor's clock."""

    serial: int  # unique among all children ever started
    number: int  # its place in the pool, from 1, shown in its title and in the log, reused after its end; 0: none
    kind: ChildKind
    generation: int
    pid: int
    pidfd: int
    slot: Slot
    stacks: Stacks
    reader: SlotReader
    started: float
    state: ChildState = ChildState.STARTING
    changed: float = 0.0
    booted: bool = False  # it has been READY at some time
    told: float = 0.0  # when it was last told to leave
    deadline: float | None = None  # it is killed at this time at the latest
    lifetime: float | None = None  # it is due to be replaced this long after its start
    reason: ExitReason | None = None  # why it was told to leave
    cut_at: float | None = None  # when a request over its time was first seen, or that it is stuck outside one
    cut_for: ExitReason = ExitReason.TIMEOUT  # or STALLED
    cut_tried_ns: int = 0  # `Report.tried_ns` then
    slow_seen: set[int]  # started_ns of the slow requests that were logged
    stacks_asked: float | None = None  # when they were asked for, until some have come or it was asked otherwise
    stacks_seen: int = 0
    stacks_wanted: bool = False  # a client has asked for its stacks: they go to `stacks_text` instead of the log
    stacks_text: str = ""
    stacks_asked_again: int = 0  # for want of whole ones, in a row
    replace: bool = False  # a client, or the child itself, has asked for its replacement
    due: ExitReason | None = None  # the limit that it has said it reached: it cannot take that back
    drain_signal: int = DRAIN_SIGNAL  # by which it is told to drain; TERM in an earlier version
    report: Report | None = None
    processes: Processes = KERNEL
    name: str = ""  # of a companion

    def __init__(
        self, serial: int, number: int, kind: ChildKind, generation: int, pid: int, pidfd: int, slot: Slot,
        stacks: Stacks, reader: SlotReader, started: float, **known: Any,
    ) -> None:  # fmt: skip
        """`known`: any of the attributes that have a default."""
        self.serial, self.number, self.kind, self.generation = serial, number, kind, generation
        self.pid, self.pidfd, self.slot, self.stacks, self.reader = pid, pidfd, slot, stacks, reader
        self.started, self.slow_seen = started, set()
        vars(self).update(known)

    def __str__(self) -> str:
        place = f"{'name=' + self.name if self.name else f'slot={self.number}'} gen={self.generation} "
        return f"{self.kind.label} {place if self.name or self.number else ''}pid={self.pid}"

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of a log event about this child."""
        place: dict[str, Any] = {"companion": self.name} if self.name else {"slot": self.number}
        known = {**place, "gen": self.generation} if self.name or self.number else {}
        return {"kind": self.kind.label, **known, "pid": self.pid}

    @property
    def ends_by_itself(self) -> bool:
        """True once it has said that an exception ends it."""
        return self.report is not None and self.report.leaving in (ExitReason.EXITED, ExitReason.CRASHED)

    def set_state(self, state: ChildState, now: float) -> None:
        """Set the state, and log it, except where its end is logged with why. Nothing else may assign `state`."""
        if self.state not in CHILD_MAY_FOLLOW[state]:
            raise AssertionError(f"{self}: {state.name} cannot follow {self.state.name}")
        level = logging.DEBUG if self.kind is ChildKind.REQUEST else logging.INFO
        if state not in (ChildState.KILLING, ChildState.REAPED):
            log.log(
                level,
                "%s: %s",
                self,
                state.name.lower(),
                extra=event(LogEvent[f"CHILD_{state.name}"], **self.fields, state=state.name.lower()),
            )
        self.state = state
        self.changed = now
        self.booted |= state is ChildState.READY

    def signal(self, signum: int) -> bool:
        """Send a signal to this child; return False if it could not be sent.

        A child that is gone needs none, and counts as sent. A child that has changed its user may be out of our reach
        (kill(2), CAP_KILL); that is logged.
        """
        return self.pidfd < 0 or attempt(f"signal {self}", lambda: self._send(signum))

    def _send(self, signum: int) -> None:
        if signum == self.drain_signal:
            self.slot.tell_to_drain(ends=self.reason is ExitReason.DRAINED)
        self.processes.signal(self.pidfd, signum)


class BriefChild(Child):
    """The record of a child that serves one request, on a lane of its parent's. Each attribute costs pages."""

    kind = ChildKind.REQUEST
    generation = 1
    started = 0.0
    lane: memoryview | None = None  # once the child has it

    def __init__(self, serial: int, number: int, pid: int, pidfd: int, shared: "SharedSlot", settle: "Settle") -> None:
        self.serial, self.number, self.pid, self.pidfd = serial, number, pid, pidfd
        self.slot, self.stacks, self.reader = shared
        self.settle = settle


# Called at the end of such a child, with what Processes.status_of() returns; returns whether a request was lost with
# it, and its last words.
Settle = Callable[[BriefChild, int], tuple[bool, str]]


class Exit(NamedTuple):
    """The end of a child."""

    child: Child
    status: int | None
    signum: int | None
    user_s: float
    system_s: float

    def __str__(self) -> str:
        if self.signum is not None:
            return f"killed by {_signal_name(self.signum)}"
        return "ended, its status was taken by somebody else" if self.status is None else f"exit status {self.status}"


def _signal_name(signum: int) -> str:
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"signal {signum}"


class SharedSlot(NamedTuple):
    """The slot whose lanes the children of one server have, one each, and what belongs to it."""

    slot: Slot
    stacks: Stacks
    reader: SlotReader


class ChildTable:
    """The children that have been forked and not yet reaped, by serial; each has a row on the board."""

    def __init__(self, board: Board, processes: Processes = KERNEL) -> None:
        self._board = board
        self._processes = processes
        self.children: dict[int, Child] = {}  # for others to look at
        self.places = 0  # among which the numbers of workers are shared out, if any

    def __iter__(self) -> Iterator[Child]:
        return iter(list(self.children.values()))

    def __len__(self) -> int:
        return len(self.children)

    def count(self, kind: ChildKind) -> int:
        return sum(child.kind is kind for child in self.children.values())

    def __getitem__(self, serial: int) -> Child:
        return self.children[serial]

    def fork(
        self,
        kind: ChildKind,
        slot: Slot,
        *,
        generation: int,
        now: float,
        forget: Callable[[], None],
        body: Callable[[bootstrap.Birth, bootstrap.Master, int], int],
        serial: int | None = None,
        name: str = "",
        instead_of: int | None = None,
    ) -> Child:
        """Start a child; `body(birth, master, number)` runs in it, and returns its exit status.

        The slot belongs to the child from here on. `serial` is given for a child that is already on the board. Raises
        OSError when the kernel refuses; nothing is left behind then.
        """
        number = self._free_number(instead_of) if kind in (ChildKind.WORKER, ChildKind.REQUEST) else 0
        reader = SlotReader(slot, number)
        stacks = Stacks(slot)
        # All that can fail is done before the fork: a failure after it would leave a process that is in no table.
        entered = None
        try:
            if serial is None:
                serial = entered = self._board.enter(kind, reader)
            pid, pidfd = self._processes.start(slot, stacks, forget, lambda birth, master: body(birth, master, number))
        except BaseException:
            if entered is not None:
                self._board.withdraw(entered)
            raise
        child = Child(
            serial, number, kind, generation, pid, pidfd, slot, stacks, reader, started=now, changed=now,
            processes=self._processes, name=name,
        )  # fmt: skip
        self.children[serial] = child
        return child

    def fork_briefly(self, shared: SharedSlot, enter: Callable[[set[int]], NoReturn], spare: Any, settle: Settle,
                     watch: Callable[[int], object]) -> BriefChild:  # fmt: skip
        """Start a child that has no slot of its own, nor a row on the board. Raises OSError as `fork()` does, and where
        its pidfd cannot be watched.

        `enter` and `spare` are what Processes.fork() takes.
        """
        taken, number = {*map(_NUMBER, self.children.values())}, 1
        while number in taken:
            number += 1
        pid, pidfd = self._processes.fork(enter, spare)
        child = BriefChild(next(self._board.serials), number, pid, pidfd, shared, settle)
        self.children[child.serial] = child
        try:
            watch(pidfd)
        except OSError:
            self.abandon(child, withdrawn=False)
            raise
        return child

    def abandon(self, child: Child, *, withdrawn: bool = True) -> None:
        """Kill and reap a child that cannot be watched, and take it off the board unless the caller has entered it; all
        of it before returning."""
        self._processes.abandon(child.pid)
        del self.children[child.serial]
        with contextlib.suppress(OSError):
            os.close(child.pidfd)
        child.pidfd = -1
        if withdrawn:
            self._board.withdraw(child.serial)

    def adopt(self, child: Child) -> None:
        """Add a child that an earlier image of this process forked; its row is already on the board."""
        child.processes = self._processes
        self.children[child.serial] = child

    def set_state(self, child: Child, state: ChildState, now: float) -> None:
        """Set a child's state, here and on the board."""
        child.set_state(state, now)
        if state is not ChildState.REAPED:
            self._board.set_condition(child.serial, _CONDITIONS[state])

    def reap(self, child: Child) -> Exit | None:
        """Reap a child if it has ended, and remove it from the table; None while it lives.

        The slot and the pidfd of a reaped child are the caller's to close.
        """
        end = self._processes.reap(child.pid, child.pidfd)
        if end is None:
            return None
        del self.children[child.serial]
        return Exit(child, *end)

    def close_copies(self) -> None:
        """Called in a new child: close the pidfds of its siblings. Their slots stay mapped."""
        for child in self.children.values():
            os.close(child.pidfd)

    def close_memory(self) -> None:
        """Called in a new child after `close_copies()`: unmap the slots of its siblings and the board.

        The child writes its own slot and nothing else.
        """
        for child in self.children.values():
            child.slot.close()
        self.children.clear()
        self._board.forget()

    def place_of(self, child: Child) -> int | None:
        """Return the place of a worker, where each has one; see sockets/affinity.py."""
        return (child.number - 1) % self.places if self.places and child.kind is ChildKind.WORKER else None

    def _free_number(self, instead_of: int | None = None) -> int:
        """Return the least number that nobody has; where there are places, one of a place in which nobody serves, else
        of the place of the worker that is to be replaced."""
        taken = {child.number for child in self.children.values()}
        if not self.places:
            number = 1
            while number in taken:
                number += 1
            return number
        serving = (child for child in self if child.state in (ChildState.STARTING, ChildState.READY))
        served = {self.place_of(child) for child in serving}
        replaced = self.children.get(instead_of) if instead_of is not None else None
        last = 0 if replaced is None else self.place_of(replaced)
        place = next((place for place in range(self.places) if place not in served), last or 0)
        return next(number for number in count(place + 1, self.places) if number not in taken)
