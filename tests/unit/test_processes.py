"""The kernel's side of a child, where none is needed to see it: signals, and orphans that are nobody's."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from prefork.master import processes
from prefork.master.processes import KERNEL, STATUS_LOST, End, OrphanReaper, _zombies_of_proc
from prefork.metrics.log_events import LogEvent
from prefork.workers import signals
from prefork.workers.signals import set_mask
from prefork.workers.user_forks import NEXT

PATIENCE_S, LOOK_EVERY_S = 5.0, 1.0  # as documented


@pytest.fixture
def us() -> Iterator[int]:
    """A pidfd of this process."""
    pidfd = os.pidfd_open(os.getpid())
    yield pidfd
    os.close(pidfd)


def refuse(monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    def refuses(pidfd: int, signum: int) -> None:
        raise error

    monkeypatch.setattr(signal, "pidfd_send_signal", refuses)


def test_a_signal_is_sent(us: int) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda signum, frame: heard.append(signum))
    KERNEL.signal(us, signal.SIGUSR2)
    signal.signal(signal.SIGUSR2, before)
    assert heard == [signal.SIGUSR2]


def test_who_is_gone_needs_none(us: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of our reach is another thing, and said."""
    refuse(monkeypatch, ProcessLookupError())
    KERNEL.signal(us, signal.SIGUSR2)
    refuse(monkeypatch, PermissionError())
    with pytest.raises(PermissionError):
        KERNEL.signal(us, signal.SIGUSR2)


def test_a_status_that_is_lost(us: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where wait4(2) knows no such child only the pidfd tells whether it lives; who is out of our reach does."""

    def nobody(pid: int, options: int) -> None:
        raise ChildProcessError

    monkeypatch.setattr(os, "wait4", nobody)
    assert KERNEL.reap(4711, us) is None
    refuse(monkeypatch, PermissionError())
    assert KERNEL.reap(4711, us) is None
    refuse(monkeypatch, ProcessLookupError())
    assert KERNEL.reap(4711, us) == End(None, None, 0.0, 0.0)


@pytest.mark.parametrize(("found", "status", "end"), [
    (0, 0, None), (4711, 0, End(0, None, 1.5, 0.5)), (4711, 7 << 8, End(7, None, 1.5, 0.5)),
    (4711, signal.SIGKILL, End(None, signal.SIGKILL, 1.5, 0.5)),
])  # fmt: skip
def test_how_it_ended(found: int, status: int, end: End | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a status or by a signal, and with the CPU time that it took; it is not waited for."""
    asked: list[Any] = []

    class Usage:
        ru_utime, ru_stime = 1.5, 0.5

    def wait4(pid: int, options: int) -> tuple[int, int, type[Usage]]:
        asked.append((pid, options))
        return found, status, Usage

    monkeypatch.setattr(os, "wait4", wait4)
    assert KERNEL.reap(4711, -1) == end
    assert asked == [(4711, os.WNOHANG)]


@pytest.mark.parametrize(("found", "status", "told"), [
    (0, 0, None), (4711, 0, 0), (4711, 7 << 8, 7), (4711, signal.SIGKILL, -signal.SIGKILL),
])  # fmt: skip
def test_its_status_alone(found: int, status: int, told: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal is below 0. It is not waited for."""
    asked: list[Any] = []

    def waitpid(pid: int, options: int) -> tuple[int, int]:
        asked.append((pid, options))
        return found, status

    monkeypatch.setattr(os, "waitpid", waitpid)
    assert KERNEL.status_of(4711, -1) == told
    assert asked == [(4711, os.WNOHANG)]


def test_a_status_alone_that_is_lost(us: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then, too, the pidfd tells whether it lives; no exit status is STATUS_LOST."""

    def nobody(pid: int, options: int) -> None:
        raise ChildProcessError

    monkeypatch.setattr(os, "waitpid", nobody)
    assert KERNEL.status_of(4711, us) is None
    refuse(monkeypatch, ProcessLookupError())
    assert KERNEL.status_of(4711, us) == STATUS_LOST
    assert STATUS_LOST > 255


@pytest.mark.parametrize("pid", [4711, OSError()])
def test_a_fork_leaves_everything_as_it_was(pid: int | OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that fails: what is done in a process that the program forks, and the mask. Inside, all is blocked."""
    seen: list[Any] = []

    def fork() -> int:
        seen.append((NEXT.undo, NEXT.ours, set_mask(signals.EVERY) >= {signal.SIGTERM, signal.SIGINT}))
        if isinstance(pid, OSError):
            raise pid
        return pid

    def undo() -> None:
        pass

    monkeypatch.setattr(processes, "FORK", fork)
    monkeypatch.setattr(os, "pidfd_open", lambda pid: -pid)
    monkeypatch.setattr(NEXT, "undo", undo)
    before = set_mask({signal.SIGUSR2})
    try:
        with contextlib.suppress(OSError):
            assert KERNEL.fork(lambda mask: os._exit(1)) == (4711, -4711)
        assert seen == [(None, True, True)]
        assert (NEXT.undo, NEXT.ours, set_mask(before)) == (undo, False, {signal.SIGUSR2})
    finally:
        set_mask(before)


def test_no_descriptor_for_a_pidfd(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be watched is killed and reaped; somebody may have been faster."""
    done: list[Any] = []

    def refused(pid: int) -> int:
        raise OSError

    def gone(pid: int, signum: int) -> None:
        raise ProcessLookupError

    monkeypatch.setattr(os, "pidfd_open", refused)
    monkeypatch.setattr(os, "kill", lambda pid, signum: done.append((pid, signum)))
    monkeypatch.setattr(os, "waitpid", lambda pid, options: done.append((pid, options)))
    monkeypatch.setattr(processes, "FORK", lambda: 4711)
    with pytest.raises(OSError):
        KERNEL.fork(lambda mask: os._exit(1))
    assert done == [(4711, signal.SIGKILL), (4711, 0)]
    monkeypatch.setattr(os, "kill", gone)
    KERNEL.abandon(4711)
    assert len(done) == 2


# Orphans.


class Init:
    """A process 1 with zombies."""

    def __init__(self) -> None:
        self.zombies: set[int] = set()
        self.known: set[int] = set()
        self.looks = 0
        self.reaped: list[int] = []
        self.reaper = OrphanReaper(lambda: self.known)

    def look(self) -> set[int]:
        self.looks += 1
        return set(self.zombies)

    def reap(self, pid: int, options: int) -> None:
        assert options == os.WNOHANG
        if pid not in self.zombies:
            raise ChildProcessError
        self.zombies.remove(pid)
        self.reaped.append(pid)


@pytest.fixture
def init(monkeypatch: pytest.MonkeyPatch) -> Init:
    init = Init()
    monkeypatch.setattr(processes, "_zombies", init.look)
    monkeypatch.setattr(os, "waitpid", init.reap)
    return init


def test_orphans_are_reaped_after_five_seconds(init: Init, caplog: pytest.LogCaptureFixture) -> None:
    """Each from when it was first seen, and said; a child of ours is not, whatever its pidfd is waited for."""
    caplog.set_level("INFO", "prefork")
    init.zombies, init.known = {7, 8}, {8}
    for now in range(5):
        assert init.reaper.turn(100.0 + now) == 100.0 + now + LOOK_EVERY_S
        if now == 2:
            init.zombies.add(9)
    assert init.reaped == []
    init.reaper.turn(100.0 + PATIENCE_S)
    assert init.reaped == [7]
    for now in range(6, 9):
        init.reaper.turn(100.0 + now)
    assert init.reaped == [7, 9]
    assert [record.__dict__["event"] for record in caplog.records] == [LogEvent.ORPHAN_REAPED] * 2


def test_a_look_is_made_once_a_second(init: Init) -> None:
    """Whoever asks in between is told when."""
    assert init.reaper.turn(100.0) == 101.0
    assert init.reaper.turn(100.5) == 101.0
    assert init.looks == 1
    init.reaper.turn(101.0)
    assert init.looks == 2


def test_who_is_waited_for_in_time_is_forgotten(
    init: Init, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pid that comes again begins anew; one that somebody reaps at the last moment is no error and not said."""
    caplog.set_level("INFO", "prefork")
    init.zombies = {7}
    init.reaper.turn(100.0)
    init.zombies = set()
    init.reaper.turn(103.0)
    init.zombies = {7}
    init.reaper.turn(106.0)
    init.reaper.turn(110.0)
    assert init.reaped == []
    monkeypatch.setattr(processes, "_zombies", lambda: {7})
    init.zombies = set()
    init.reaper.turn(111.0)
    assert (init.reaped, caplog.records) == ([], [])


@pytest.mark.parametrize("count", [0, 1])
def test_without_proc(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """waitid(2) tells of one at least; where there is no child at all nothing is asked of /proc."""

    class First:
        si_pid = 7

    asked: list[int] = []

    def waitid(kind: int, number: int, options: int) -> type[First] | None:
        asked.append(options)
        return First if count else None

    def no_proc() -> set[int]:
        asked.append(-1)
        return {8}

    monkeypatch.setattr(os, "waitid", waitid)
    monkeypatch.setattr(processes, "_zombies_of_proc", no_proc)
    assert processes._zombies() == ({7, 8} if count else set())
    assert asked == [os.WEXITED | os.WNOHANG | os.WNOWAIT] + [-1] * count


def test_without_children(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(kind: int, number: int, options: int) -> None:
        raise ChildProcessError

    monkeypatch.setattr(os, "waitid", none)
    assert processes._zombies() == set()


class Relative:
    """A child as psutil has it."""

    def __init__(self, pid: int, status: str | None) -> None:
        self.pid = pid
        self._status = status

    def status(self) -> str:
        if self._status is None:
            raise psutil.NoSuchProcess(self.pid)
        return self._status


def test_orphans_that_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those that live, nor one that is gone by now."""
    found = [Relative(7, psutil.STATUS_ZOMBIE), Relative(8, psutil.STATUS_SLEEPING), Relative(9, None)]
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(children=lambda: found))
    assert _zombies_of_proc() == {7}
