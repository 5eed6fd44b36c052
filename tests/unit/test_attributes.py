"""What an exec keeps of a process: as it was at the start for the next image, and as it is now if there is none."""

import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from prefork.reload import attributes
from prefork.reload.attributes import FOR_AN_IMPORT, Attributes

CORE, NOFILE = resource.RLIMIT_CORE, resource.RLIMIT_NOFILE


@pytest.fixture
def start() -> Iterator[Attributes]:
    """Those of this process; at the end it has them again."""
    found = Attributes.read()
    with found.restored(0):
        yield found
    with found.restored(0):
        assert Attributes.read() == found


def test_the_start_is_restored_for_an_exec(start: Attributes) -> None:
    """Everything is inside the block as it was, and outside as the program has made it."""
    umask, mine = os.umask(0o013), min(start.cpus)
    os.sched_setaffinity(0, {mine})
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    soft, hard = resource.getrlimit(CORE)
    resource.setrlimit(CORE, (0 if soft else min(4096, hard) if hard >= 0 else 4096, hard))
    signal.signal(signal.SIGVTALRM, signal.SIG_IGN)
    try:
        changed = Attributes.read()
        assert start.newly_ignored() == {signal.SIGVTALRM}
        for _ in range(2):
            with start.restored(1):
                assert Attributes.read() == start
                assert signal.getsignal(signal.SIGVTALRM) is signal.SIG_DFL
            assert Attributes.read() == changed
    finally:
        os.umask(umask)
        os.sched_setaffinity(0, start.cpus)
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        resource.setrlimit(CORE, (soft, hard))
        signal.signal(signal.SIGVTALRM, signal.SIG_DFL)


def test_cpus_that_were_added_are_kept(start: Attributes) -> None:
    """The service may have been given them: only one of the start that is missing is put back."""
    with start._replace(cpus=frozenset()).restored(0):
        assert Attributes.read().cpus == start.cpus


@pytest.mark.parametrize(("spare", "put_back"), [(0, True), (-1, False)])
def test_room_for_what_is_handed_on(spare: int, put_back: bool, start: Attributes) -> None:
    """The soft limit of descriptors stays raised where so many are handed on that none would be left for an import."""
    soft = start.soft_limits[NOFILE]
    few = start._replace(soft_limits={NOFILE: soft - 10})
    with few.restored((soft - 10 - FOR_AN_IMPORT) // 2 - spare):
        assert (Attributes.read().soft_limits[NOFILE] == soft - 10) is put_back


INFINITY = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "then"),
    [(50, 70, 50), (90, 70, 70), (INFINITY, 70, 70), (INFINITY, INFINITY, INFINITY), (90, INFINITY, 90)],
)
def test_a_soft_limit_goes_as_far_as_the_hard_one(
    soft: int, hard: int, then: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the program may have lowered for good; a refusal is no error."""
    asked: list[tuple[int, tuple[int, int]]] = []

    def refuse(which: int, limits: tuple[int, int]) -> None:
        asked.append((which, limits))
        raise ValueError

    monkeypatch.setattr(resource, "getrlimit", lambda which: (10, hard))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    attributes._limit({CORE: soft, NOFILE: 10})
    assert asked == [(CORE, (then, hard))]


class Priorities:
    """os.umask(), os.getpriority() and os.setpriority() of a process of these."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, nice: int, umask: int) -> None:
        self.nice, self.mask = nice, umask
        self.set: list[int] = []
        monkeypatch.setattr(os, "umask", self._umask)
        monkeypatch.setattr(os, "getpriority", lambda which, who: self.nice)
        monkeypatch.setattr(os, "setpriority", self._set)

    def _umask(self, mask: int) -> int:
        before, self.mask = self.mask, mask
        return before

    def _set(self, which: int, who: int, value: int) -> None:
        assert (which, who) == (os.PRIO_PROCESS, 0)
        self.nice = value
        self.set.append(value)


@pytest.mark.parametrize(("nice", "asked"), [(7, [2, 7]), (2, [])])
def test_nice_and_umask_of_the_start(nice: int, asked: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside they are what they were at the start, and afterwards what they were before; a process that has that nice
    value does not ask for it."""
    process = Priorities(monkeypatch, nice, 0o027)
    start = Attributes.read()._replace(nice=2, umask=0o077)

    def fails() -> None:
        with start.restored(0):
            assert (process.nice, process.mask) == (2, 0o077)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert (process.nice, process.mask, process.set) == (nice, 0o027, asked)


@pytest.mark.parametrize("refused", [False, True])
def test_what_the_kernel_does_when_memory_is_short(
    refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inside it is what it was at the start, afterwards what it was before; who may not lower it goes on as it is."""
    monkeypatch.setattr(attributes, "OOM_SCORE_ADJ", adjusted := tmp_path / "oom_score_adj")
    assert Attributes.read().oom_score_adj == ""

    def unwritable(path: Path, mode: str = "r") -> IO[str]:
        if mode == "w":
            raise PermissionError
        return open(path)

    adjusted.write_text("10\n")
    start = Attributes.read()
    assert start.oom_score_adj == "10"
    adjusted.write_text("20\n")
    if refused:
        monkeypatch.setattr(attributes, "open", unwritable, raising=False)
    with start.restored(0):
        assert adjusted.read_text().strip() == ("20" if refused else "10")
    assert adjusted.read_text().strip() == "20"


def test_what_a_filter_of_system_calls_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is left as it is."""

    def refused(*args: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_getscheduler", refused)
    monkeypatch.setattr(os, "sched_setscheduler", print)
    start = Attributes.read()
    assert start.scheduling is None
    with start.restored(0):
        pass


def test_a_policy_that_may_not_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reload goes on without it."""
    asked: list[tuple[int, int]] = []

    def refused(pid: int, policy: int, param: os.sched_param) -> None:
        asked.append((policy, param.sched_priority))
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refused)
    with Attributes.read()._replace(scheduling=(os.SCHED_FIFO, 3)).restored(0):
        pass
    assert asked == [(os.SCHED_FIFO, 3)]
