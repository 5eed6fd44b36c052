"""Kept connections as `prefork ctl` and `prefork top` show them: from the board to the report, and to the text."""

from collections.abc import Iterator
from typing import Any

import pytest

from prefork.commands import BY_VERB
from prefork.control.render import connections_text, text
from prefork.control.report import HolderFacts, ListenerFacts, ServiceFacts, WorkerFacts, status_report, workers
from prefork.metrics.board import KEEPS, Board, Snapshot, listener_word
from prefork.metrics.facts import ChildKind, CloseReason, Condition
from prefork.metrics.scoreboard import CLOSED, HELD_MOST, IDLE_HERE, IN_HAND, MOVES, OPENED, Slot, SlotReader
from prefork.top.rates import Look
from prefork.top.screen import View, lines

CLIENT, IDLE_TIMEOUT = CLOSED + CloseReason.CLIENT, CLOSED + CloseReason.IDLE_TIMEOUT
OF_WORKER = {OPENED: 60, MOVES: 9, CLIENT: 3, IN_HAND: 1, IDLE_HERE: 1}
HOLDER = HolderFacts(77, 2, "running", 61.0, 42, 1000, 0.25, 9 << 20)
WORKER = WorkerFacts(1, 70, 2, "busy", 60.0, 900, 1, (1,), 0, None, connections=2)


@pytest.fixture
def board() -> Iterator[Snapshot]:
    """Of a worker and a holder; all connections came by listener 0."""
    board = Board()
    slots = []
    for kind, words in ((ChildKind.WORKER, OF_WORKER), (ChildKind.HOLDER, {IDLE_HERE: 42, IDLE_TIMEOUT: 6})):
        slot = Slot(1, listeners=0b11)
        for word, value in words.items():
            slot.lane(0)[word] = value
        slot.words[HELD_MOST] = 1000
        board.set_condition(board.enter(kind, SlotReader(slot)), Condition.READY)
        slots.append(slot)
    board.say_who_keeps({0})
    yield board.snapshot()
    board.forget()
    for slot in slots:
        slot.close()


def service(board: Snapshot, *holders: HolderFacts) -> ServiceFacts:
    listeners = ListenerFacts("127.0.0.1:9", 0), ListenerFacts("udp://127.0.0.1:9", 1)
    return ServiceFacts(
        "app:Line", 69, "1.2.3", "3.12", "running", 2, False, "", listeners, 1, 4, "", False, "", 10**18, board,
        (WORKER,), (), holders,
    )  # fmt: skip


def test_the_status(board: Snapshot) -> None:
    """Where they are, how they have ended, and by which listener; and each holder with its limit."""
    found = status_report(service(board, HOLDER))
    expected = {
        "opened": 60, "active": 1, "lingering": 1, "held": 42, "queued": 7, "moves": 9,
        "closed": {"client": 3, "handler": 0, "idle_timeout": 6, "evicted": 0, "drained": 0, "lost": 0},
    }  # fmt: skip
    assert found["connections"] == expected
    assert [each["connections"] for each in found["listeners"]] == [expected, None]
    assert found["holders"] == [{
        "pid": 77, "generation": 2, "state": "running", "age_s": 61.0, "held": 42, "held_limit": 1000, "cpu_s": 0.25,
        "rss_bytes": 9 << 20,
    }]  # fmt: skip
    shown = text(BY_VERB["status"], found).splitlines()
    assert "kept       51 open: 1 active, 1 lingering, 42 held of 1000, 7 queued" in shown
    assert "ended      3 client, 6 idle timeout" in shown


def test_nobody_holds_them(board: Snapshot) -> None:
    """Which is said, instead of a limit."""
    found = status_report(service(board))
    assert connections_text(found) == "51 open: 1 active, 1 lingering, 42 held, 7 queued; no holder runs"


def test_the_workers(board: Snapshot) -> None:
    """Each with the connections that it has; the holder after them, unless one worker was asked for."""
    found = workers(service(board, HOLDER))
    assert found["workers"][0]["connections"] == 2
    shown = text(BY_VERB["workers"], found).splitlines()
    assert shown[-3:] == [
        "",
        "holder  gen  state      age  held  most   cpu  memory",
        "    77    2  running  1m01s    42  1000  0.2s      9M",
    ]
    assert workers(service(board, HOLDER), 1)["holders"] is None
    assert "holder" not in text(BY_VERB["workers"], workers(service(board, HOLDER), 1))


def test_none_is_needed(board: Snapshot) -> None:
    """Where no connection is kept any more, that no holder runs is no news."""
    board.words[listener_word(0, KEEPS)] = 0
    found = status_report(service(board))
    assert found["holders"] is None
    assert connections_text(found) == "51 open: 1 active, 1 lingering, 42 held, 7 queued"
    assert status_report(service(board, HOLDER))["holders"] != []


def test_a_limit_that_is_not_known(board: Snapshot) -> None:
    """A holder that has not said how many it may have."""
    found = workers(service(board, HOLDER._replace(most=0, cpu_s=None)))
    assert text(BY_VERB["workers"], found).splitlines()[-1].split() == [
        "77",
        "2",
        "running",
        "1m01s",
        "42",
        "-",
        "-",
        "9M",
    ]


def test_where_none_are_kept(board: Snapshot) -> None:
    """Nothing is said of them; nor by an image of an earlier version, which does not know of any."""
    bare = board._replace(words=[0] * len(board.words), by_listener={})
    found = status_report(service(bare))
    assert (found["connections"], found["holders"]) == (None, None)
    assert [each["connections"] for each in found["listeners"]] == [None, None]
    assert workers(service(bare))["workers"][0]["connections"] is None
    shown = text(BY_VERB["status"], found)
    del found["connections"], found["holders"]
    for each in (shown, text(BY_VERB["status"], found)):
        assert "kept" not in each
        assert "ended" not in each


def screen(status: dict[str, Any], rows: list[dict[str, Any]] | None, height: int | None = None) -> list[str]:
    return [line.text for line in lines(None, Look(0.0, status, rows), View(80, height))]


def test_the_screen(board: Snapshot) -> None:
    """A line in the header, and the holder below the workers, where there is room for it."""
    status, rows = status_report(service(board, HOLDER)), workers(service(board, HOLDER))["workers"]
    found = screen(status, rows)
    assert "connections 51 open: 1 active, 1 lingering, 42 held of 1000, 7 queued" in found
    assert found[-2].split() == ["holder", "gen", "state", "age", "held", "most", "cpu", "memory"]
    assert not [line for line in screen(status, rows, 9) if "holder" in line]
    del status["connections"], status["holders"]
    assert not [line for line in screen(status, rows) if "held" in line or line.startswith("connections")]
