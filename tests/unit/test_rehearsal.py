"""A rehearsal from inside: its first steps, one worker that is booted, and what the reload is told of it."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from prefork import process
from prefork.errors import BootError, ConfigError
from prefork.master.service import Service
from prefork.master.succession import OneGeneration
from prefork.master.supervisor import Supervisor
from prefork.metrics.board import Board
from prefork.reload import rehearsal, reloading
from prefork.reload.handover import Handed, Record
from prefork.reload.rehearsal import Rehearsal, boot_one, rehearse
from prefork.reload.reloading import NOT_FOR_A_REHEARSAL
from prefork.reload.start_context import ENTRY, StartContext
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


# The rehearsal's own first steps.


class Execed(BaseException):
    """It is another program now: its command line, its environment, and what it reads."""

    def __init__(self, path: str, command: list[str], environment: dict[str, str], record: dict[str, Any]) -> None:
        self.path, self.command, self.environment, self.record = path, command, environment, record


class Rehearsing:
    """A process that becomes a rehearsal. `done`: what it did first, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[Any] = []
        self.refusal: Exception | None = None
        self.read, self.write = os.pipe2(os.O_NONBLOCK)
        self.record = Record({"directory": "/release", "pipe": self.write}, [self.write])
        environment = {"PATH": "/bin", "LISTEN_PID": "1", "LISTEN_FDS": "2", **dict.fromkeys(NOT_FOR_A_REHEARSAL, "x")}
        start = StartContext("/python", ("-B",), ("app.py", "a"), environment, "/release")
        monkeypatch.setattr(reloading, "START", start)
        monkeypatch.setattr(os, "execve", self._execve)
        monkeypatch.setattr(process, "go", self._go)
        monkeypatch.setattr(reloading, "leave", self._leave)

    @staticmethod
    def _what(fd: int) -> str:
        return "null" if os.path.samestat(os.fstat(fd), os.stat(os.devnull)) else "output"

    def _go(self, path: str) -> None:
        self.done.append(path)
        if self.refusal is not None:
            raise self.refusal

    def _leave(self, status: int) -> None:
        raise SystemExit(status)

    def tell_us_when_dying(self, signum: int) -> None:
        self.done.append(signum)

    def _execve(self, path: str, command: list[str], environment: dict[str, str]) -> None:
        fd = int(command[command.index(ENTRY) + 1])
        record = json.loads(os.pread(fd, 99999, 0))
        assert os.get_inheritable(fd)
        assert os.get_inheritable(self.write)
        raise Execed(path, command, environment, record)

    def __call__(self) -> None:
        mask = {int(signal.SIGHUP), int(signal.SIGINT)}
        opened: set[int] = set()

        def dup2(source: int, target: int) -> None:
            opened.add(source)
            self.done.append((self._what(source), target))

        try:
            with pytest.MonkeyPatch.context() as patch:  # pytest itself uses it between the phases of a test
                patch.setattr(os, "dup2", dup2)
                reloading._rehearse(self.record, SimpleNamespace(mask=mask), self, self.write)  # type: ignore[arg-type]
        finally:
            for fd in opened - {self.write}:
                os.close(fd)


@pytest.fixture
def rehearsing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rehearsing]:
    rehearsing = Rehearsing(monkeypatch)
    yield rehearsing
    os.close(rehearsing.read)
    os.close(rehearsing.write)


def test_a_rehearsal_is_the_same_program(rehearsing: Rehearsing) -> None:
    """In the directory of the next image, without an input, with its output to us; it dies with the master, reads no
    signal before it holds still, and has what systemd passed as its own."""
    with pytest.raises(Execed) as execed:
        rehearsing()
    assert rehearsing.done == [("null", 0), ("output", 1), ("output", 2), "/release", signal.SIGKILL]
    found = execed.value
    assert (found.path, found.command[:3], found.command[4:]) == ("/python", ["/python", "-B", ENTRY], ["app.py", "a"])
    assert found.environment == {"PATH": "/bin", "LISTEN_FDS": "2", "LISTEN_PID": str(os.getpid())}
    assert found.record["mask"] == [int(signal.SIGHUP), int(signal.SIGINT)]
    assert (found.record["pipe"], found.record["directory"]) == (rehearsing.write, "/release")


def test_a_directory_that_is_not_there(rehearsing: Rehearsing) -> None:
    """It is said, and nothing is run."""
    rehearsing.refusal = ConfigError("could not enter /release")
    with pytest.raises(SystemExit) as left:
        rehearsing()
    assert left.value.code == 1
    assert json.loads(os.read(rehearsing.read, 999)) == {"failed": "could not enter /release"}
    assert signal.SIGKILL not in rehearsing.done
