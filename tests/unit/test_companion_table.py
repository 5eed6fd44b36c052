"""The table of the companions and the master's accounts in it: rows, who has which, and what goes to the next image."""

import os
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from prefork.master.companions import Companions
from prefork.master.service import CompanionSpec
from prefork.metrics.companions import (
    NEXT_RUN_NS,
    RESTARTS,
    RUN_ENDED_AT_NS,
    RUN_LATE_NS,
    RUN_STARTED_NS,
    RUN_TOOK_NS,
    RUNS_FAILED,
    RUNS_LOST,
    RUNS_OK,
    RUNS_TIMED_OUT,
    UP,
    CompanionCounts,
    CompanionTable,
)
from prefork.metrics.facts import ChildKind, ExitReason
from prefork.metrics.histogram import NS
from tests.support.programs.simulation import LIMITS


def counted(first: int) -> list[int]:
    """All but the first word."""
    return [first + word for word in range(1, 11)]


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def tables() -> Iterator[list[Any]]:
    """Closed at the end; nothing of them is left open."""
    before = open_descriptors()
    tables: list[Any] = []
    yield tables
    for table in tables:
        table.close()
    assert open_descriptors() == before


def specs(**intervals: float | None) -> list[CompanionSpec]:
    return [CompanionSpec(name, interval, lambda birth, master, row: 0) for name, interval in intervals.items()]


@pytest.fixture
def make(tables: list[Any]) -> Callable[..., Companions]:
    def make(declared: list[CompanionSpec] | None, before: Any = None, living: Iterable[Any] = ()) -> Companions:
        companions = Companions(declared, before)
        companions.enter(living)
        tables.append(companions)
        return companions

    return make


def next_image(companions: Companions, **changes: Any) -> dict[str, Any]:
    """What the next one is given, with a descriptor of its own."""
    record, fds = companions.pack()
    assert record is not None
    assert fds == [record["fd"]]
    return {**record, "fd": os.dup(record["fd"]), **changes}


# The table.


def test_a_row_is_its_own(tables: list[Any]) -> None:
    """Eleven words, which no other has; a new row is empty, an old one is kept."""
    table = CompanionTable()
    tables.append(table)
    for name, interval in (("a", None), ("b", 60.0), ("c", None)):
        table.enter(name, interval)
        assert table.words(name).tolist() == [0] * 11
        for word in range(11):
            table.words(name)[word] = 100 * len(table.rows) + word
    table.enter("b", 30.0)
    words = (
        UP, RESTARTS, RUNS_OK, RUNS_FAILED, RUN_ENDED_AT_NS, RUN_TOOK_NS, NEXT_RUN_NS, RUN_STARTED_NS, RUN_LATE_NS,
        RUNS_TIMED_OUT, RUNS_LOST,
    )  # fmt: skip
    assert [table.words("b")[word] for word in words] == list(range(200, 211))
    assert table.read() == (
        CompanionCounts("a", None, True, *counted(100)),
        CompanionCounts("b", 30.0, True, *counted(200)),
        CompanionCounts("c", None, True, *counted(300)),
    )
    assert table.counts("b").runs_bad == 203 + 209 + 210
    table.drop("a")
    table.drop("a")
    assert [counts.name for counts in table.read()] == ["b", "c"]
    table.enter("d", None)
    assert table.words("d").tolist() == [0] * 11
    assert len(set(table.rows.values())) == 3


def test_room_for_as_many_as_may_be_declared(tables: list[Any]) -> None:
    """Those of four images, each a page of its own, and not one more."""
    table = CompanionTable()
    tables.append(table)
    for number in range(256):
        table.enter(str(number), None)
        table.words(str(number))[NEXT_RUN_NS] = number
    assert [counts.next_run_ns for counts in table.read()] == list(range(256))
    assert sorted(table.rows.values()) == list(range(256))
    with pytest.raises(StopIteration):
        table.enter("one more", None)


def test_a_companion_has_its_row_and_no_other(tables: list[Any]) -> None:
    """What it writes there the master sees; the table is closed in it."""
    table = CompanionTable()
    tables.append(table)
    table.enter("a", None)
    table.enter("b", None)
    mine = CompanionTable(os.dup(table.fd), table.rows)
    row = mine.keep_only("b")
    row[RUNS_OK] = 7
    assert (table.counts("a").runs_ok, table.counts("b").runs_ok) == (0, 7)
    assert row.nbytes == os.sysconf("SC_PAGESIZE")
    with pytest.raises(ValueError, match="released"):
        mine.words("b")
    row.release()


def test_a_table_that_is_none() -> None:
    """Of another size is of another version; its descriptor stays the caller's."""
    fd = os.memfd_create("other")
    os.truncate(fd, 4096)
    with pytest.raises(ValueError, match="no table of companions of this version"):
        CompanionTable(fd, {})
    os.close(fd)


# The master's accounts.


def test_who_has_none(make: Callable[..., Companions]) -> None:
    """Has no table, and nothing to hand over."""
    for companions in (make(None), make([])):
        assert companions.table is None
        assert companions.pack() == (None, [])
        assert companions.views() == ()
        companions.publish([])


def test_the_next_image_goes_on(make: Callable[..., Companions]) -> None:
    """With the rows of those that it still declares, at its own intervals; new ones begin empty, the others go."""
    first = make(specs(a=None, b=60.0))
    for name in ("a", "b"):
        assert first.table is not None
        first.table.words(name)[RUNS_OK] = ord(name)
    second = make(specs(b=30.0, c=None), next_image(first))
    assert second.table is not None
    found = [(each.name, each.interval, each.runs_ok) for each in second.table.read()]
    assert found == [("b", 30.0, ord("b")), ("c", None, 0)]
    assert [view.name for view in second.views()] == ["b", "c"]
    third = make([], next_image(second))
    assert third.table is not None
    assert third.table.read() == ()


def test_a_master_without_its_program(make: Callable[..., Companions]) -> None:
    """Keeps those that run, at the intervals that they have; it starts none."""
    degraded = make(None, next_image(make(specs(a=None, b=60.0))))
    assert degraded.table is not None
    assert [(each.name, each.interval) for each in degraded.table.read()] == [("a", None), ("b", 60.0)]
    assert degraded.views() == ()


def test_a_table_of_another_version(make: Callable[..., Companions]) -> None:
    """Is left, and a new one begun."""
    fd = os.memfd_create("other")
    companions = make(specs(a=None), {"fd": fd, "rows": {"a": 0}, "intervals": {"a": None}})
    assert companions.table is not None
    assert companions.table.read()[0].runs_ok == 0
    os.close(fd)


def at(now: float) -> Any:
    """The clock at this moment."""
    return SimpleNamespace(now=lambda: now, stamp_ns=lambda: round(now * NS), at=lambda ns: ns / NS + 0.25)


def child(name: str, reason: ExitReason | None = None, **values: Any) -> Any:
    return SimpleNamespace(name=name, reason=reason, kind=ChildKind.COMPANION, booted=True, fields={}, **values)


def test_who_is_up(make: Callable[..., Companions]) -> None:
    """A companion that has booted; a worker of the same name is none."""
    companions = make(specs(a=None, b=None, c=None))
    table = companions.table
    assert table is not None
    booting, worker = child("b"), child("c")
    booting.booted, worker.kind = False, ChildKind.WORKER
    companions.publish([child("a"), booting, worker])
    assert {each.name: each.up for each in table.read()} == {"a": True, "b": False, "c": False}
    companions.publish([])
    assert not any(each.up for each in table.read())


def test_let_go(make: Callable[..., Companions]) -> None:
    """In a companion of its own row only; closed once."""
    companions = make(specs(a=None))
    row = companions.keep_only("a")
    assert companions.table is None
    companions.close()
    row.release()


ENDS = [
    (None, 1.0, 2, 1.0), (ExitReason.EXITED, 1.0, 2, 1.0), (ExitReason.CRASHED, 9.9, 2, 1.0),
    (ExitReason.BOOT_FAILED, 1.0, 2, 1.0), (ExitReason.CRASHED, 10.0, 1, 0.5), (ExitReason.EXITED, 60.0, 1, 0.5),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "lived_s", "ends", "delay_s"), ENDS)
def test_an_end_that_nobody_asked_for(
    reason: ExitReason | None, lived_s: float, ends: int, delay_s: float, make: Callable[..., Companions]
) -> None:
    """Is counted, and has it wait: half a second, twice as long each time, and from the beginning after ten seconds of
    life. The others do not wait."""
    companions = make(specs(a=None, b=None))
    companions.note_exit(child("a", ExitReason.CRASHED, started=100.0), LIMITS, at(101.0))
    companions.note_exit(child("a", reason, started=200.0), LIMITS, at(200.0 + lived_s))
    assert companions.back_off["a"].ends == ends
    assert [view.next_start for view in companions.views()] == [pytest.approx(200.0 + lived_s + delay_s), 0.0]
    assert companions.table is not None
    assert [each.restarts for each in companions.table.read()] == [2, 0]


@pytest.mark.parametrize("reason", sorted(set(ExitReason) - {*(reason for reason, *_ in ENDS)}))
def test_an_end_that_was_asked_for(reason: ExitReason, make: Callable[..., Companions]) -> None:
    """Has nobody wait, whatever was before."""
    companions = make(specs(a=None))
    companions.note_exit(child("a", ExitReason.CRASHED, started=100.0), LIMITS, at(101.0))
    companions.note_exit(child("a", reason, started=200.0), LIMITS, at(201.0))
    assert (companions.back_off["a"].ends, companions.views()[0].next_start) == (0, 0.0)
    assert companions.table is not None
    assert companions.table.read()[0].restarts == 1


def test_the_end_of_one_that_is_declared_no_more(make: Callable[..., Companions]) -> None:
    """Is nobody's."""
    companions = make(specs(a=None))
    companions.note_exit(child("gone", ExitReason.CRASHED, started=100.0), LIMITS, at(101.0))
    none = make([])
    none.note_exit(child("gone", ExitReason.CRASHED, started=100.0), LIMITS, at(101.0))
    assert companions.table is not None
    assert companions.table.read()[0].restarts == 0


def test_a_fork_that_the_kernel_refuses(make: Callable[..., Companions]) -> None:
    """Is tried again in half a second; nothing has ended."""
    companions = make(specs(a=None))
    companions.not_started("a", 100.0)
    assert companions.views()[0].next_start == pytest.approx(100.5)
    assert companions.back_off["a"].ends == 0
    companions.start_now("a")
    assert companions.views()[0].next_start == 0.0


def test_a_row_is_its_companions_until_that_has_ended(make: Callable[..., Companions]) -> None:
    """Though it is declared no more; others get other rows."""
    first = make(specs(a=None, b=None))
    assert first.table is not None
    first.table.words("a")[RUNS_OK] = 7
    second = make(specs(c=None), next_image(first), [child("a"), child("")])
    assert second.table is not None
    assert set(second.table.rows) == {"a", "c"}
    assert second.table.rows["c"] != second.table.rows["a"]
    second.publish([child("a"), child("c")])
    assert [(each.name, each.up) for each in second.table.read()] == [("c", True)]


@pytest.mark.parametrize(("reason", "timed_out", "lost"), [
    (ExitReason.TIMEOUT, 1, 0), (ExitReason.CRASHED, 0, 1), (ExitReason.DRAINED, 0, 1), (None, 0, 1),
])  # fmt: skip
def test_a_run_that_ended_with_its_process(
    reason: ExitReason | None, timed_out: int, lost: int, make: Callable[..., Companions],
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Is counted as one that took too long, or as lost, with how long it took and when it ended; one that was over
    before is not."""
    monkeypatch.setattr("prefork.metrics.companions.time_ns", lambda: 77)
    companions = make(specs(a=60.0))
    assert companions.table is not None
    companions.table.words("a")[RUN_STARTED_NS] = 150 * NS
    for _ in range(2):
        companions.note_exit(child("a", reason, started=100.0), LIMITS, at(201.0))
    (found,) = companions.table.read()
    assert (found.runs_timed_out, found.runs_lost, found.run_started_ns) == (timed_out, lost, 0)
    assert (found.run_took_ns, found.run_ended_at_ns) == (51 * NS, 77)
    assert len(caplog.records) == 1


def test_a_run_that_began_after_now(make: Callable[..., Companions]) -> None:
    """As its process says: it took no time."""
    companions = make(specs(a=60.0))
    assert companions.table is not None
    companions.table.words("a")[RUN_STARTED_NS] = 999 * NS
    companions.note_exit(child("a", ExitReason.CRASHED, started=100.0), LIMITS, at(201.0))
    assert companions.table.read()[0].run_took_ns == 0


@pytest.mark.parametrize(("started_s", "late_s", "moment"), [
    (150, 160, 160.25), (0, 160, None), (150, 0, None), (150, 140, 150.25),
])  # fmt: skip
def test_when_a_run_is_over_its_time(
    started_s: int, late_s: int, moment: float | None, make: Callable[..., Companions]
) -> None:
    """By the master's clock; never, where none is on, or may take as long as it likes."""
    companions = make(specs(a=60.0))
    assert companions.table is not None
    words = companions.table.words("a")
    words[RUN_STARTED_NS], words[RUN_LATE_NS] = started_s * NS, late_s * NS
    words.release()
    assert companions.run_late_at(child("a"), at(201.0)) == moment
    assert companions.run_late_at(child("gone"), at(201.0)) is None
