"""The kernel's processes and the fake ones of the simulation keep one contract; the child table stands on either."""

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from prefork.master.children import Child, ChildState, ChildTable
from prefork.master.processes import KERNEL, End, Processes
from prefork.metrics.board import Board
from prefork.metrics.facts import ChildKind
from prefork.metrics.scoreboard import READY, YES, Slot
from prefork.workers.bootstrap import Birth, Master
from prefork.workers.signals import set_mask
from tests.support.programs.simulation import FakeProcesses
from tests.support.tools.proc import no_descriptor_left

HUNG = 30.0


class Real:
    """Processes of the kernel: each waits on a pipe for what it is to do."""

    processes: Processes = KERNEL

    def __init__(self) -> None:
        self._pipes: dict[int, int] = {}
        self._next: tuple[int, int] | None = None

    def body(self) -> Callable[[Birth, Master, int], int]:
        read, write = self._next = os.pipe()

        def body(birth: Birth, master: Master, number: int) -> int:
            os.close(write)
            set_mask(birth.mask)
            birth.slot.words[READY] = YES
            word = os.read(read, 100).decode()
            if word == "raise":
                raise RuntimeError("no database")
            return int(word or 0)

        return body

    def begun(self, pid: int) -> None:
        """The process was started with the last body."""
        assert self._next is not None
        read, self._pipes[pid] = self._next
        os.close(read)

    def wait_ready(self, slot: Slot) -> None:
        deadline = time.monotonic() + HUNG
        while slot.words[READY] != YES:
            assert time.monotonic() < deadline, "hung"
            os.sched_yield()

    def end(self, pid: int, how: str) -> None:
        os.write(self._pipes[pid], how.encode())

    def refusing(self) -> contextlib.AbstractContextManager[None]:
        """Inside nothing can be started: no descriptor is left for it."""
        return no_descriptor_left(os.getpid())

    def close(self) -> None:
        for write in self._pipes.values():
            os.close(write)


class Fake:
    """The simulation's."""

    def __init__(self) -> None:
        self.processes = self._fakes = FakeProcesses()

    def body(self) -> Callable[[Birth, Master, int], int]:
        return lambda birth, master, number: 0

    def begun(self, pid: int) -> None:
        pass

    def wait_ready(self, slot: Slot) -> None:
        next(process for process in self._fakes.all.values() if process.slot is slot).boot()

    def end(self, pid: int, how: str) -> None:
        process = self._fakes.all[pid]
        if how == "raise":
            process.fail_to_boot()
        else:
            process.exit(int(how))

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        self._fakes.refuse = True
        yield
        self._fakes.refuse = False

    def close(self) -> None:
        pass


@pytest.fixture(params=[Real, Fake])
def machine(request: pytest.FixtureRequest) -> Iterator[Real | Fake]:
    machine = request.param()
    yield machine
    machine.close()


@pytest.fixture
def table(machine: Real | Fake) -> Iterator[ChildTable]:
    """An empty table; what is left in it at the end is killed and reaped."""
    board = Board()
    table = ChildTable(board, machine.processes)
    yield table
    for child in table:
        child.signal(signal.SIGKILL)
        child.signal(signal.SIGCONT)
        reaped(table, child)
    board.forget()


def start(table: ChildTable, machine: Real | Fake, kind: ChildKind = ChildKind.WORKER) -> Child:
    child = table.fork(kind, Slot(1), generation=1, now=1.0, forget=lambda: None, body=machine.body())
    machine.begun(child.pid)
    machine.wait_ready(child.slot)
    return child


def ended(child: Child, seconds: float = HUNG) -> bool:
    return bool(select.select([child.pidfd], [], [], seconds)[0])


def reaped(table: ChildTable, child: Child) -> End:
    """How it ended, once it has; its memory and descriptors are given back."""
    assert ended(child)
    exit = table.reap(child)
    assert exit is not None
    table._board.fold(child.serial)
    child.slot.close()
    os.close(child.pidfd)
    return End(exit.status, exit.signum, exit.user_s, exit.system_s)


def test_one_that_lives(machine: Real | Fake, table: ChildTable) -> None:
    """A child that lives has a pid and a silent pidfd, there is nothing to reap, and it stands in the table."""
    child = start(table, machine)
    assert child.pid > 1
    assert not ended(child, 0)
    assert table.reap(child) is None
    assert [*table] == [child]
    assert table[child.serial] is child
    assert (len(table), table.count(ChildKind.WORKER), table.count(ChildKind.EXPORTER)) == (1, 1, 0)


@pytest.mark.parametrize("status", [0, 7])
def test_one_that_exits(status: int, machine: Real | Fake, table: ChildTable) -> None:
    """Its pidfd becomes readable, its status is told, and it stands in the table no longer."""
    child = start(table, machine)
    machine.end(child.pid, str(status))
    end = reaped(table, child)
    assert (end.status, end.signum) == (status, None)
    assert len(table) == 0
    with pytest.raises(KeyError):
        table[child.serial]


@pytest.mark.parametrize("stopped", [False, True])
def test_one_that_is_killed(stopped: bool, machine: Real | Fake, table: ChildTable) -> None:
    """SIGKILL ends it, stopped or not, and that is told."""
    child = start(table, machine)
    if stopped:
        child.signal(signal.SIGSTOP)
    child.signal(signal.SIGKILL)
    end = reaped(table, child)
    assert (end.status, end.signum) == (None, signal.SIGKILL)


def test_what_it_wrote_survives_it(machine: Real | Fake, table: ChildTable) -> None:
    """An exception of its body is status 1, and the traceback stands in its stacks until it is reaped."""
    child = start(table, machine)
    machine.end(child.pid, "raise")
    assert ended(child)
    assert "RuntimeError: no database" in child.stacks.take()
    assert reaped(table, child).status == 1


def test_a_signal_to_one_that_has_ended(machine: Real | Fake, table: ChildTable) -> None:
    """A signal to a child that has ended reaches nobody, before the reap and after it."""
    child, other = start(table, machine), start(table, machine)
    machine.end(child.pid, "0")
    assert ended(child)
    child.signal(signal.SIGKILL)
    pidfd = os.dup(child.pidfd) if machine.processes is KERNEL else child.pidfd
    assert reaped(table, child).status == 0
    machine.processes.signal(pidfd, signal.SIGKILL)
    if pidfd != child.pidfd:
        os.close(pidfd)
    assert not ended(other, 0)


def test_each_is_reaped_alone(machine: Real | Fake, table: ChildTable) -> None:
    """The end of one is not the end of another, in whatever order they are asked."""
    children = [start(table, machine) for _ in range(3)]
    machine.end(children[1].pid, "5")
    assert ended(children[1])
    assert [table.reap(child) for child in (children[0], children[2])] == [None, None]
    assert reaped(table, children[1]).status == 5
    assert [*table] == [children[0], children[2]]


def test_numbers_are_given_again(machine: Real | Fake, table: ChildTable) -> None:
    """A worker gets the lowest number that is free; an exporter has none; serials are never given again."""
    first, second, exporter = start(table, machine), start(table, machine), start(table, machine, ChildKind.EXPORTER)
    assert [child.number for child in (first, second, exporter)] == [1, 2, 0]
    machine.end(first.pid, "0")
    reaped(table, first)
    third = start(table, machine)
    assert third.number == 1
    assert third.serial > exporter.serial > second.serial > first.serial


def test_the_account_is_on_the_board(machine: Real | Fake, table: ChildTable) -> None:
    """What the table holds a child to be stands on the board, for whoever reads it."""
    child = start(table, machine)
    seen = []
    for state in (ChildState.READY, ChildState.DRAINING, ChildState.KILLING):
        table.set_state(child, state, now=2.0)
        seen.append(table._board.snapshot().workers())
    assert [workers["idle"] for workers in seen] == [1, 0, 0]
    assert [workers["draining"] for workers in seen] == [0, 1, 1]
    assert (child.changed, child.booted) == (2.0, True)


def test_fork_fails(machine: Real | Fake, table: ChildTable) -> None:
    """OSError, and nothing is left behind: no process, no row, no number taken."""
    slot, body = Slot(1), machine.body()
    with machine.refusing(), pytest.raises(OSError):
        table.fork(ChildKind.WORKER, slot, generation=1, now=1.0, forget=lambda: None, body=body)
    assert len(table) == 0
    child = table.fork(ChildKind.WORKER, slot, generation=1, now=1.0, forget=lambda: None, body=body)
    machine.begun(child.pid)
    machine.wait_ready(slot)
    assert (child.number, len(table)) == (1, 1)
