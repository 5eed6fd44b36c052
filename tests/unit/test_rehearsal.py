"""A rehearsal from inside: one worker is booted, and what the reload is told of it."""

import json
import os
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import pytest

from prefork import process
from prefork.errors import BootError, ConfigError
from prefork.master.service import Service
from prefork.master.succession import OneGeneration
from prefork.master.supervisor import Supervisor
from prefork.metrics.board import Board
from prefork.reload import rehearsal
from prefork.reload.handover import Handed
from prefork.reload.rehearsal import Rehearsal, boot_one, rehearse
from prefork.sockets.listener import Listener
from prefork.workers.wakeup import Wakeup
from tests.support.programs.simulation import LIMITS, FakeProcess, FakeProcesses

Fate = Callable[[FakeProcess], object]


class Left(BaseException):
    """The process has left, with this status."""

    def __init__(self, status: int) -> None:
        self.status = status


class Tried:
    """A service that is tried; its worker fares as the test says, at once."""

    def __init__(self, fate: Fate) -> None:
        self.board = Board()
        self.processes = FakeProcesses()
        self.processes.on_start = self._start
        self.started: list[FakeProcess] = []
        self.fate = fate
        self.done: list[Any] = []
        self.supervisors: list[Supervisor] = []
        self.listeners: list[Any] = []
        self.refusal: Exception | None = None
        self.tried = Rehearsal(
            directory="/somewhere", boot_timeout=0.001, pool=self._pool, work=lambda birth, master, number: 0,
            board=lambda: self.board, refuse=self._refuse, listeners=lambda: tuple(self.listeners),
        )  # fmt: skip

    def _start(self, process: FakeProcess) -> None:
        self.started.append(process)
        self.done.append("started")
        self.fate(process)

    def _pool(self, wakeup: Wakeup) -> Supervisor:
        service = Service("tried", forget=lambda: None, work=lambda birth, master, number: 0, lanes=3)
        supervisor = Supervisor(service, LIMITS, self.board, wakeup, OneGeneration(), processes=self.processes)
        self.supervisors.append(supervisor)
        return supervisor

    def _refuse(self, fixed: object) -> None:
        self.done.append(("fixed", fixed))
        if self.refusal is not None:
            raise self.refusal


@pytest.fixture
def service(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tried]:
    """It works, unless the test says how its worker fares."""
    service = Tried(getattr(request, "param", works))
    monkeypatch.setattr(process, "enter", lambda path: service.done.append(("entered", path)))
    yield service
    assert all(len(supervisor.table) == 0 for supervisor in service.supervisors)
    for worker in service.started:
        os.close(worker.pidfd)  # which the end of the process closes
    service.board.forget()


def works(process: FakeProcess) -> None:
    process.boot()
    process.exit(0)


def fails(process: FakeProcess) -> None:
    process.fail_to_boot(3)


def fails_silently(process: FakeProcess) -> None:
    process.exit(3)


def hangs(process: FakeProcess) -> None:
    process.hang()


# One worker.


def test_a_worker_boots_and_leaves(service: Tried) -> None:
    """In the directory where it would serve; one, with memory as it would have, and nothing is left of it."""
    boot_one(service.tried)
    assert service.done == [("entered", "/somewhere"), "started"]
    assert service.started[0].slot.lanes == 3
    assert service.processes.all == {}


def test_how_it_ends_is_no_matter_once_it_was_ready(service: Tried) -> None:
    """A worker that has booted could have served."""

    def dies(process: FakeProcess) -> None:
        process.boot()
        process.die()

    service.fate = dies
    boot_one(service.tried)


@pytest.mark.parametrize(("service", "reason", "notes"), [
    (fails, "a worker could not start: exit status 3", ["RuntimeError: no database"]),
    (fails_silently, "a worker could not start: exit status 3", []),
    (hangs, "a worker could not start: not ready within 0.001 s (boot_timeout)", []),
], indirect=["service"])  # fmt: skip
def test_why_it_could_not(service: Tried, reason: str, notes: list[str]) -> None:
    """How it ended, or that it took too long, and its last words."""
    with pytest.raises(BootError) as error:
        boot_one(service.tried)
    assert str(error.value) == reason
    assert getattr(error.value, "__notes__", []) == notes
    assert service.processes.all == {}


def test_somebody_else_reaped_it(service: Tried, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program may reap any child: whether it was ready is in its slot."""
    monkeypatch.setattr(service.processes, "reap", lambda pid, pidfd: FakeProcesses().reap(pid, pidfd))
    boot_one(service.tried)


# What is said of it.


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The end that the reload reads, of a rehearsal that can leave."""

    def leaves(status: int) -> NoReturn:
        raise Left(status)

    read, write = os.pipe2(os.O_NONBLOCK)
    monkeypatch.setattr(rehearsal, "leave", leaves)
    monkeypatch.setattr(rehearsal, "handed", lambda: Handed({"pipe": write, "fixed": {"lanes": 3}}))
    yield read
    os.close(read)
    os.close(write)


def rehearsed(service: Tried, pipe: int) -> tuple[int, dict[str, Any]]:
    """The status with which the rehearsal leaves, and what it has said."""
    with pytest.raises(Left) as left:
        rehearse(service.tried)
    return left.value.status, json.loads(os.read(pipe, 9999))


def test_it_is_ready(service: Tried, pipe: int) -> None:
    """What a reload cannot change is looked at before anything is started."""
    assert rehearsed(service, pipe) == (0, {"ready": True})
    assert service.done == [("fixed", {"lanes": 3}), ("entered", "/somewhere"), "started"]


@pytest.mark.parametrize("service", [fails], indirect=True)
def test_it_has_failed(service: Tried, pipe: int) -> None:
    """With the reason, and the worker's last words behind it."""
    reason = "a worker could not start: exit status 3\nRuntimeError: no database"
    assert rehearsed(service, pipe) == (1, {"failed": reason})


def test_a_change_that_no_reload_makes(service: Tried, pipe: int) -> None:
    """Nothing is started."""
    service.refusal = ConfigError("lanes takes a restart")
    assert rehearsed(service, pipe) == (1, {"failed": "lanes takes a restart"})
    assert service.done == [("fixed", {"lanes": 3})]


def test_a_path_that_was_bound_for_it_goes(service: Tried, pipe: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the reload hears anything; a socket of the program's own, or none at all, is left alone."""
    said_then: list[bool] = []

    class Bound(Listener):
        def unlink(self) -> None:
            try:
                os.read(pipe, 1)
            except BlockingIOError:
                said_then.append(False)

    bound = Bound()
    service.listeners = [None, bound]
    assert rehearsed(service, pipe)[0] == 0
    assert said_then == [False]
    bound.close()


def test_only_a_rehearsal_rehearses(service: Tried, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else calls it."""
    monkeypatch.setattr(rehearsal, "handed", lambda: None)
    with pytest.raises(AssertionError):
        rehearse(service.tried)
