"""What has a turn beside the pool: none costs another its turn, and each is taken up and let go in its order."""

import logging
import os
from collections.abc import Iterator
from typing import Any

import pytest

from prefork.master import guard
from prefork.master.children import Child, ChildTable
from prefork.master.tasks import Tasks
from prefork.master.waiting import Waiting
from prefork.metrics.board import Board
from prefork.metrics.facts import ChildKind, ExitReason
from prefork.metrics.scoreboard import Slot
from prefork.workers.wakeup import Wakeup
from tests.support.programs.simulation import FakeProcesses

NOW = 50.0
TASK_AGAIN_S = 1.0  # as documented


class Part:
    """Any of the tasks: it notes what it is called for, and fails when it is told to."""

    def __init__(self, next_at: float = float("inf")) -> None:
        self.next_at = next_at
        self.fails = False
        self.calls: list[Any] = []
        self.fd = os.eventfd(0, os.EFD_CLOEXEC)

    def _note(self, *call: Any) -> None:
        self.calls.append(call[0] if len(call) == 1 else call)
        if self.fails:
            raise ValueError("a mistake")

    def turn(self, now: float) -> float:
        self._note("turn", now)
        return self.next_at

    def fileno(self) -> int:
        if "close" in self.calls:
            raise ValueError("closed")
        return self.fd

    def forget(self) -> None:
        self._note("forget")

    def close(self) -> None:
        self._note("close")

    def succeed(self, before: list[Child]) -> None:
        self._note("succeed", before)

    def ended(self, child: Child | None, now: float) -> None:
        self._note("ended", child, now)

    def pack(self) -> Any:
        self._note("pack")


class Beside:
    """The tasks of a service, with a table and a wait that are real."""

    def __init__(self) -> None:
        self.board, self.wakeup = Board(), Wakeup()
        self.processes = FakeProcesses()
        self.table = ChildTable(self.board, self.processes)
        self.waiting = Waiting(self.wakeup, lambda: 0.0)
        self.drops, self.notifier, self.control, self.exporter, self.changes = self.parts = [Part() for _ in range(5)]
        self.tasks = Tasks(self.table, self.waiting, self.drops, self.notifier)

    def all(self) -> None:
        """Have every task."""
        self.tasks.control(self.control)
        self.tasks.export(self.exporter)
        self.tasks.changes = self.changes
        for part in self.parts:
            part.calls.clear()

    def child(self, kind: ChildKind) -> Child:
        def forget() -> None:
            raise AssertionError("nothing is forked here")

        return self.table.fork(kind, Slot(0), generation=1, now=1.0, forget=forget, body=lambda *_: 0)

    def close(self) -> None:
        for child in self.table:
            os.close(child.pidfd)
            child.slot.close()
        for part in self.parts:
            os.close(part.fd)
        self.waiting.close()
        self.board.forget()


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> Iterator[Beside]:
    monkeypatch.setattr(guard, "_said", {})
    beside = Beside()
    yield beside
    beside.close()


def test_each_has_its_turn(beside: Beside) -> None:
    """With the same moment; whoever must be called again first says when."""
    beside.all()
    for number, part in enumerate(beside.parts):
        part.next_at = NOW + 5 - number
    assert beside.tasks.turn(NOW) == NOW + 1
    assert [part.calls for part in beside.parts] == [[("turn", NOW)]] * 5


def test_what_is_not_there_has_none(beside: Beside) -> None:
    """A service without exporter and control socket waits for neither."""
    beside.drops.next_at = NOW + 9
    assert beside.tasks.turn(NOW) == NOW + 9
    assert (beside.control.calls, beside.exporter.calls, beside.changes.calls) == ([], [], [])


@pytest.mark.parametrize("which", range(5))
def test_a_mistake_costs_its_own_turn_only(which: int, beside: Beside, caplog: pytest.LogCaptureFixture) -> None:
    """The others have theirs, the log says which it was, and it is called again a second later."""
    beside.all()
    beside.parts[which].fails = True
    assert beside.tasks.turn(NOW) == NOW + TASK_AGAIN_S
    assert [part.calls for part in beside.parts] == [[("turn", NOW)]] * 5
    step = ["tell of dropped log lines", "tell the service manager", "serve the control socket",
            "look after the exporter", "watch the program's files"][which]  # fmt: skip
    assert [record.__dict__["fields"] for record in caplog.records] == [{"step": step}]
    assert caplog.records[0].levelno == logging.ERROR


def test_who_may_ask_what_is_on_the_board(beside: Beside) -> None:
    """An exporter or a control socket; where there is neither, nobody need write it."""
    assert (beside.tasks.watched, beside.tasks.exported) == (False, False)
    beside.tasks.control(beside.control)
    assert (beside.tasks.watched, beside.tasks.exported) == (True, False)
    beside.tasks.export(beside.exporter)
    assert (beside.tasks.watched, beside.tasks.exported) == (True, True)
    beside.tasks.end_control()
    assert (beside.tasks.watched, beside.tasks.exported) == (True, True)
    beside.tasks.end_export()
    assert (beside.tasks.watched, beside.tasks.exported) == (False, False)


@pytest.mark.parametrize("fails", [False, True])
def test_the_control_socket_is_waited_for_until_its_end(fails: bool, beside: Beside) -> None:
    """A client ends the wait; after the end none does, the socket is closed once, and what that raises is no matter."""
    beside.tasks.control(beside.control)
    os.eventfd_write(beside.control.fd, 1)
    assert beside.waiting.wait(0) == {beside.control.fd}
    beside.control.fails = fails
    beside.tasks.end_control()
    beside.tasks.end_control()
    assert beside.waiting.wait(0) == set()
    assert beside.control.calls == ["close"]


def test_an_exporter_is_told_of_those_before_it(beside: Beside) -> None:
    """Of the exporters of an earlier image, and of no other child; it is closed once at its end."""
    old = beside.child(ChildKind.EXPORTER)
    beside.child(ChildKind.WORKER)
    beside.tasks.export(beside.exporter)
    beside.tasks.retire_exporters(NOW)
    assert old.reason is None, "that is its successor's to do"
    beside.tasks.end_export()
    beside.tasks.end_export()
    assert beside.exporter.calls == [("succeed", [old]), "close"]


def test_exporters_without_a_successor_are_retired(beside: Beside) -> None:
    """Where this image has none; workers stay."""
    old, worker = beside.child(ChildKind.EXPORTER), beside.child(ChildKind.WORKER)
    beside.tasks.retire_exporters(NOW)
    assert (old.reason, worker.reason) == (ExitReason.REPLACED, None)
    assert old.deadline is not None
    assert old.deadline > NOW
    told = {pid: process.draining for pid, process in beside.processes.all.items()}
    assert told == {old.pid: True, worker.pid: False}


@pytest.mark.parametrize("kind", [kind for kind in ChildKind if kind is not ChildKind.SERVER])
@pytest.mark.parametrize("fails", [False, True])
def test_the_end_of_an_exporter_is_told_to_who_looks_after_it(
    kind: ChildKind, fails: bool, beside: Beside, caplog: pytest.LogCaptureFixture
) -> None:
    """And of no other child; a mistake there is no reason not to reap the next."""
    child = beside.child(kind)
    beside.tasks.note_exit(child, NOW)  # there is none yet
    assert caplog.records == []
    beside.all()
    beside.exporter.fails = fails
    beside.tasks.note_exit(child, NOW)
    assert beside.exporter.calls == ([("ended", child, NOW)] if kind is ChildKind.EXPORTER else [])


def test_a_new_child_closes_the_copies(beside: Beside) -> None:
    """Of each that holds descriptors."""
    beside.all()
    beside.tasks.forget()
    assert [part.calls for part in (beside.control, beside.exporter, beside.notifier)] == [["forget"]] * 3
    assert [part.calls for part in (beside.drops, beside.changes)] == [[], []]


def test_the_end_of_all(beside: Beside) -> None:
    """The notifier's socket and the count of dropped lines are given back; there may be no notifier."""
    beside.tasks.close()
    assert (beside.notifier.calls, beside.drops.calls) == (["forget"], ["close"])
    Tasks(beside.table, beside.waiting, beside.drops, None).close()
    assert beside.drops.calls == ["close"] * 2


@pytest.mark.parametrize("pid", [1, 2])
def test_orphans_are_looked_for_as_process_1(pid: int, beside: Beside, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else has any."""
    monkeypatch.setattr(os, "getpid", lambda: pid)
    tasks = Tasks(beside.table, beside.waiting, beside.drops, None)
    assert (tasks._orphans is not None) == (pid == 1)
