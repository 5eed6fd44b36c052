"""Starting children: what is there after a start, and that nothing is after one that failed."""

import errno
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from prefork.master.children import ChildState, ChildTable
from prefork.master.companions import Companions
from prefork.master.service import Service
from prefork.master.spawner import Spawner
from prefork.master.waiting import Waiting
from prefork.metrics.board import FORK_FAILURES, Board, Word
from prefork.metrics.facts import ChildKind, ForkFailure
from prefork.metrics.log_events import LogEvent
from prefork.metrics.scoreboard import Slot, Stacks
from prefork.workers import descriptor_limit, sinks
from prefork.workers.bootstrap import Birth, Master
from prefork.workers.wakeup import Wakeup
from tests.support.programs.simulation import FakeProcesses

FORK_LOG_EVERY_S = 10.0  # as documented
LIFETIME_S = 100.0
LANES = 3


class Watched(FakeProcesses):
    """Processes some of which cannot be watched: epoll takes no descriptor of a file (EPERM, epoll_ctl(2))."""

    def __init__(self) -> None:
        super().__init__()
        self.watchable = True
        self.pidfds: list[int] = []
        self.bodies: list[Callable[[Birth, Master], int]] = []
        self.abandoned: list[int] = []

    def start(self, slot: Slot, stacks: Stacks, forget: Any, body: Any) -> tuple[int, int]:
        pid, pidfd = super().start(slot, stacks, forget, body)
        self.bodies.append(body)
        if not self.watchable:
            file = os.memfd_create("no pidfd")
            os.dup2(file, pidfd, inheritable=False)
            os.close(file)
        self.pidfds.append(pidfd)
        return pid, pidfd

    def abandon(self, pid: int) -> None:  # type: ignore[override]  # a static method there
        self.abandoned.append(pid)


def body(birth: Birth, master: Master, number: int) -> int:
    raise AssertionError("nothing is forked here")


class Nursery:
    """A spawner with all that it stands on."""

    def __init__(self, max_lifetime: float | None = None) -> None:
        self.processes = Watched()
        self.board, self.wakeup = Board(), Wakeup()
        self.table = ChildTable(self.board, self.processes)
        self.waiting = Waiting(self.wakeup, lambda: 0.0)
        service = Service("nursery", forget=lambda: None, work=body, lanes=LANES, max_lifetime=max_lifetime)
        self.spawner = Spawner(service, self.table, self.board, self.waiting, Companions(None, None))

    def start(self, kind: ChildKind) -> None:
        self.spawner.start(kind, Slot(0), body, 1, 5.0)

    def close(self) -> None:
        for child in self.table:
            self.waiting.remove(child.pidfd)
            child.slot.close()
        self.waiting.close()
        self.board.forget()


@pytest.fixture
def nursery(request: pytest.FixtureRequest) -> Iterator[Nursery]:
    nursery = Nursery(getattr(request, "param", None))
    yield nursery
    nursery.close()


def test_a_worker_stands_in_the_table_on_the_board_and_in_the_wait(nursery: Nursery) -> None:
    """Of its generation, with the lanes of the service; and its end is heard."""
    child = nursery.spawner.worker(4, 5.0)
    assert [*nursery.table] == [child]
    assert (child.kind, child.generation, child.started, child.slot.lanes) == (ChildKind.WORKER, 4, 5.0, LANES)
    assert [*nursery.board.readers()] == [child.serial]
    nursery.processes.all[child.pid].exit()
    assert nursery.waiting.wait(0) == {child.pidfd}


def leaves_nothing(nursery: Nursery, error: type[OSError]) -> None:
    """Try to start a worker, which fails by this error."""
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(error):
        nursery.spawner.worker(1, 5.0)
    assert set(os.listdir("/proc/self/fd")) == before
    assert len(nursery.table) == 0
    assert nursery.board.readers() == {}
    assert nursery.board.snapshot().serials == frozenset()
    assert nursery.board.words[Word.SPAWNED] == 0
    assert not nursery.spawner.any_served


def test_a_fork_that_fails_leaves_nothing(nursery: Nursery) -> None:
    """No child, no row, no memory, and nobody counts it as started. (Descriptors: the fixture of every test.)"""
    nursery.processes.refuse = True
    leaves_nothing(nursery, BlockingIOError)


def test_a_child_that_cannot_be_watched_is_killed_and_withdrawn(nursery: Nursery) -> None:
    """Nobody would hear its end: it is killed by its pid, and all that was made for it is given back."""
    nursery.processes.watchable = False
    leaves_nothing(nursery, PermissionError)
    assert nursery.processes.abandoned == [*nursery.processes.all]
    assert len(nursery.processes.abandoned) == 1


def test_the_place_of_one_that_did_not_come_is_free_again(nursery: Nursery) -> None:
    """The next worker has the number that it would have had, and a serial of its own."""
    first = nursery.spawner.worker(1, 5.0)
    nursery.processes.watchable = False
    with pytest.raises(PermissionError):
        nursery.spawner.worker(1, 5.0)
    nursery.processes.watchable = True
    second = nursery.spawner.worker(1, 5.0)
    assert (first.number, second.number) == (1, 2)
    assert second.serial > first.serial + 1


@pytest.mark.parametrize("kind", [kind for kind in ChildKind if kind is not ChildKind.SERVER])
def test_who_counts_as_started(kind: ChildKind, nursery: Nursery) -> None:
    """Children that serve requests; an exporter and a rehearsal are no news of the service."""
    serves = kind in (ChildKind.WORKER, ChildKind.REQUEST)
    nursery.start(kind)
    assert nursery.table.count(kind) == 1
    assert nursery.board.words[Word.SPAWNED] == serves
    assert nursery.spawner.any_served is serves
    assert [child.number for child in nursery.table] == [int(serves)], "who serves has a place in the pool"


@pytest.mark.parametrize("nursery", [None, LIFETIME_S], indirect=True)
def test_lifetimes_differ(nursery: Nursery, request: pytest.FixtureRequest) -> None:
    """Where there is a `max_lifetime`, each worker has up to a tenth less of it, so that they do not leave at once."""
    lifetimes = [nursery.spawner.worker(1, 5.0).lifetime for _ in range(8)]
    if request.node.callspec.params["nursery"] is None:
        assert lifetimes == [None] * 8
        return
    found = [lifetime for lifetime in lifetimes if lifetime is not None]
    assert len(set(found)) == 8
    assert all(LIFETIME_S * 0.9 <= lifetime <= LIFETIME_S for lifetime in found)


@pytest.mark.parametrize(
    ("number", "failure"),
    [
        (errno.EAGAIN, ForkFailure.EAGAIN),
        (errno.ENOMEM, ForkFailure.ENOMEM),
        (errno.EMFILE, ForkFailure.EMFILE),
        (errno.ENFILE, ForkFailure.ENFILE),
        (errno.EPERM, ForkFailure.OTHER),
        (99999, ForkFailure.OTHER),
    ],
)
def test_a_failure_is_counted_by_its_errno(number: int, failure: ForkFailure, nursery: Nursery) -> None:
    """Under the name that it has among those of the metrics, else as another."""
    nursery.spawner.note_failure(OSError(number, "no"), 5.0)
    counted = nursery.board.words[FORK_FAILURES : FORK_FAILURES + len(ForkFailure)].tolist()
    assert counted == [int(each is failure) for each in ForkFailure]


def test_failures_are_all_counted_and_seldom_said(nursery: Nursery, caplog: pytest.LogCaptureFixture) -> None:
    """The first at once, and one that goes on ten seconds after it was said last."""
    refused = OSError(errno.EAGAIN, "Resource temporarily unavailable")
    for now in (0.0, 1.0, FORK_LOG_EVERY_S - 0.1, FORK_LOG_EVERY_S):
        nursery.spawner.note_failure(refused, now)
    assert nursery.board.words[FORK_FAILURES + ForkFailure.EAGAIN] == 4
    assert len(caplog.records) == 2
    assert {(record.levelno, record.__dict__["event"]) for record in caplog.records} == {
        (logging.ERROR, LogEvent.FORK_FAILED)
    }
    assert caplog.messages[0].startswith("could not fork a worker: resource temporarily unavailable; trying again")


def test_the_board_shows_what_the_table_says(nursery: Nursery) -> None:
    """A scrape counts a worker as what it is."""
    child = nursery.spawner.worker(1, 5.0)
    for state, shown in (
        (ChildState.READY, "idle"),
        (ChildState.DRAINING, "draining"),
        (ChildState.STOPPING, "draining"),
        (ChildState.KILLING, "draining"),
    ):
        nursery.table.set_state(child, state, 6.0)
        assert nursery.board.snapshot().workers()[shown] == 1


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        (ChildKind.WORKER, "", "worker slot=1 gen=4"), (ChildKind.COMPANION, "tidy", "companion name=tidy gen=4"),
        (ChildKind.EXPORTER, "", None),
    ],
)  # fmt: skip
def test_what_a_child_lets_go_of(
    kind: ChildKind, name: str, said: str | None, nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the memory of all and of the master's soft limit, once its log knows its name; a companion keeps the table, in
    which it has a row, and an exporter keeps all, for it reads all."""
    done: list[str] = []
    spawner: Any = nursery.spawner
    monkeypatch.setattr(sinks, "name_child", lambda name, nudge: done.append(name))
    monkeypatch.setattr(descriptor_limit, "give_back", lambda: done.append("limit"))
    monkeypatch.setattr(spawner._table, "close_memory", lambda: done.append("memory"))
    monkeypatch.setattr(spawner._companions, "close", lambda: done.append("companions"))

    def runs(birth: Birth, master: Master, number: int) -> int:
        done.append("body")
        return 3

    spawner.start(kind, Slot(0), runs, 4, 5.0, name=name)
    nothing: Any = None
    assert nursery.processes.bodies[0](nothing, nothing) == 3
    pid = os.getpid()
    let_go = [] if said is None else [f"{said} pid={pid}", "memory", *["companions"] * (not name), "limit"]
    assert done == [*let_go, "body"]
