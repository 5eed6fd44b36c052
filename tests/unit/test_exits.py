"""How children end: the reason that is found, what is folded into the totals, and how loudly the log says it."""

import errno
import logging
import os
import signal
from collections.abc import Callable, Iterator

import pytest

from prefork.master import exits
from prefork.master.children import Child, Exit
from prefork.master.exits import WITH_REASON, Death, Exits, exit_reason
from prefork.metrics.board import EXIT_WORDS, EXITS, SIGNAL_DEATHS, Board, Word, exit_word, listener_word
from prefork.metrics.facts import ChildKind, CloseReason, ExitReason
from prefork.metrics.log_events import LogEvent
from prefork.metrics.scoreboard import (
    ACCEPTED,
    BUSY,
    CLOSED,
    COMPLETED,
    COUNTS,
    IDLE_HERE,
    IN_HAND,
    LEAVING,
    READY,
    STARTED_NS,
    STATE,
    YES,
    Slot,
    SlotReader,
    Stacks,
)

NOW_NS = 100_000_000_000
INFO, WARNING, ERROR, DEBUG = logging.INFO, logging.WARNING, logging.ERROR, logging.DEBUG
KILL, SEGV, TERM = signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM
R = ExitReason
ENDS: list[tuple[ExitReason | None, bool, int | None, int | None, ExitReason | None, ExitReason]] = [
    # told          booted status signum hint            reason
    (None,          True,  None,  KILL,  None,           R.KILLED),
    (None,          False, None,  KILL,  None,           R.KILLED),
    (R.REPLACED,    True,  None,  KILL,  None,           R.KILLED),  # past its deadline
    (R.DRAINED,     False, None,  KILL,  None,           R.KILLED),
    (R.TIMEOUT,     True,  None,  KILL,  None,           R.TIMEOUT),
    (R.BOOT_FAILED, False, None,  KILL,  None,           R.BOOT_FAILED),
    (R.STOPPED,     True,  None,  KILL,  None,           R.STOPPED),
    (R.REPLACED,    True,  0,     None,  R.DRAINED,      R.REPLACED),
    (R.MAX_MEMORY,  True,  0,     None,  R.DRAINED,      R.MAX_MEMORY),
    (R.STOPPED,     True,  0,     None,  R.STOPPED,      R.STOPPED),
    (R.TIMEOUT,     True,  0,     None,  R.DRAINED,      R.TIMEOUT),
    (None,          True,  0,     None,  R.DRAINED,      R.DRAINED),  # a TERM from elsewhere
    (None,          True,  0,     None,  R.MAX_REQUESTS, R.MAX_REQUESTS),  # ForkingMixIn: served its one
    (None,          True,  0,     None,  R.MASTER_DIED,  R.MASTER_DIED),
    (None,          False, 0,     None,  R.STOPPED,      R.STOPPED),
    (None,          True,  0,     None,  R.KILLED,       R.EXITED),  # not a child's to say
    (None,          True,  0,     None,  None,           R.EXITED),
    (None,          True,  5,     None,  R.EXITED,       R.EXITED),  # SystemExit of a handler
    (R.REPLACED,    True,  5,     None,  R.EXITED,       R.EXITED),
    (None,          False, 5,     None,  R.EXITED,       R.BOOT_FAILED),
    (None,          True,  1,     None,  None,           R.CRASHED),
    (R.REPLACED,    True,  1,     None,  None,           R.CRASHED),
    (None,          True,  None,  SEGV,  None,           R.CRASHED),
    (None,          True,  None,  TERM,  R.DRAINED,      R.CRASHED),
    (None,          False, 1,     None,  None,           R.BOOT_FAILED),
    (None,          False, 0,     None,  None,           R.BOOT_FAILED),
    (None,          False, None,  SEGV,  None,           R.BOOT_FAILED),
    (R.DRAINED,     False, 0,     None,  None,           R.DRAINED),
    # Nobody knows its status: the program waits for any child.
    (None,          True,  None,  None,  None,           R.CRASHED),
    (R.REPLACED,    True,  None,  None,  None,           R.CRASHED),
    (R.TIMEOUT,     True,  None,  None,  None,           R.TIMEOUT),
    (R.BOOT_FAILED, False, None,  None,  None,           R.BOOT_FAILED),
    (R.REPLACED,    True,  None,  None,  R.DRAINED,      R.REPLACED),
    (R.STOPPED,     True,  None,  None,  R.STOPPED,      R.STOPPED),
    (None,          True,  None,  None,  R.MAX_REQUESTS, R.MAX_REQUESTS),
    (R.REPLACED,    True,  None,  None,  R.CRASHED,      R.CRASHED),
    (None,          True,  None,  None,  R.EXITED,       R.EXITED),
    (None,          False, None,  None,  None,           R.BOOT_FAILED),
]  # fmt: skip


@pytest.mark.parametrize(("told", "booted", "status", "signum", "hint", "reason"), ENDS)
def test_exit_reason(
    told: ExitReason | None, booted: bool, status: int | None, signum: int | None, hint: ExitReason | None,
    reason: ExitReason,
) -> None:  # fmt: skip
    """What it was told, whether it was ever READY, how it ended, and its own word, in this order of trust."""
    assert exit_reason(told, booted=booted, status=status, signum=signum, hint=hint) is reason


# What is made of it.


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board()
    yield board
    board.forget()


Ended = Callable[..., Exit]


@pytest.fixture
def ended(board: Board) -> Ended:
    """A child that has just been reaped; its slot is closed by whoever settles its account."""

    def make(
        status: int | None = 0, signum: int | None = None, *, kind: ChildKind = ChildKind.WORKER,
        told: ExitReason | None = None, ready: bool = True, hint: ExitReason | None = None, text: str = "",
        user_s: float = 0.0, system_s: float = 0.0,
    ) -> Exit:  # fmt: skip
        slot = Slot(2)
        reader = SlotReader(slot, 1)
        serial = board.enter(kind, reader)
        child = Child(serial, 1, kind, 1, 4711, -1, slot, Stacks(slot), reader, started=1.0, reason=told)
        slot.words[READY] = YES if ready else 0
        slot.words[LEAVING] = hint or 0
        if text:
            child.stacks.write(text)
        return Exit(child, status, signum, user_s, system_s)

    return make


def settle(board: Board, exit: Exit, request_timeout: float | None = None) -> Death:
    return Exits(board).settle(exit, request_timeout, NOW_NS)


@pytest.mark.parametrize(
    ("told", "ready", "status", "signum", "hint", "reason", "level"),
    [
        (R.REPLACED,    True,  0,    None, R.DRAINED,      R.REPLACED,     INFO),
        (R.STOPPED,     True,  None, KILL, None,           R.STOPPED,      INFO),
        (R.TIMEOUT,     True,  None, KILL, None,           R.TIMEOUT,      INFO),  # that it is cut was an error before
        (R.REPLACED,    True,  None, KILL, None,           R.KILLED,       INFO),
        (R.BOOT_FAILED, False, None, KILL, None,           R.BOOT_FAILED,  INFO),  # that it is killed was a warning
        (None,          True,  0,    None, R.DRAINED,      R.DRAINED,      INFO),
        (None,          True,  0,    None, R.MAX_REQUESTS, R.MAX_REQUESTS, INFO),
        (None,          True,  0,    None, R.STOPPED,      R.STOPPED,      INFO),  # a terminal's QUIT came to it first
        (None,          True,  0,    None, R.MASTER_DIED,  R.MASTER_DIED,  ERROR),
        (None,          True,  0,    None, None,           R.EXITED,       ERROR),
        (None,          True,  1,    None, None,           R.CRASHED,      ERROR),
        (None,          True,  None, SEGV, None,           R.CRASHED,      ERROR),
        (None,          True,  None, KILL, None,           R.KILLED,       ERROR),
        (None,          False, 1,    None, None,           R.BOOT_FAILED,  ERROR),
        # It had said that an exception ends it, and was killed at its deadline; or was stuck outside a request.
        (R.CRASHED,     True,  None, KILL, R.CRASHED,      R.CRASHED,      ERROR),
        (R.EXITED,      True,  None, KILL, R.EXITED,       R.EXITED,       ERROR),
        (R.STALLED,     True,  None, KILL, None,           R.STALLED,      INFO),
        (R.STALLED,     True,  0,    None, R.DRAINED,      R.STALLED,      INFO),
    ],
)  # fmt: skip
def test_a_workers_end(
    told: ExitReason | None, ready: bool, status: int | None, signum: int | None, hint: ExitReason | None,
    reason: ExitReason, level: int, board: Board, ended: Ended, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """It is counted under its reason and its signal, once, and logged once: an error where nobody had asked for it."""
    monkeypatch.setattr(exits, "oom_kills", lambda: 3)
    with caplog.at_level(DEBUG, "prefork"):
        death = settle(board, ended(status, signum, told=told, ready=ready, hint=hint))
    assert death.reason is reason
    words = board.words
    assert {each: words[exit_word(each)] for each in ExitReason if words[exit_word(each)]} == {reason: 1}
    signals = {number: words[SIGNAL_DEATHS + number] for number in range(65) if words[SIGNAL_DEATHS + number]}
    assert signals == ({} if signum is None else {signum: 1})
    (record,) = caplog.records
    assert (record.levelno, record.__dict__["event"]) == (level, LogEvent.CHILD_ENDED)
    assert record.__dict__["fields"]["reason"] == reason.label


@pytest.mark.parametrize("kind", [kind for kind in ChildKind if kind not in (*WITH_REASON, ChildKind.SERVER)])
@pytest.mark.parametrize(
    ("told", "signum", "text", "level"),
    [
        (None, None, "", DEBUG),
        (None, SEGV, "", WARNING),
        (R.REPLACED, KILL, "", DEBUG),
        (None, None, "ValueError: x", WARNING),
        (R.REPLACED, None, "ValueError: x", WARNING),
    ],
)
def test_the_end_of_another_child(
    kind: ChildKind, told: ExitReason | None, signum: int | None, text: str, level: int, board: Board, ended: Ended,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """It has no reason and is counted under none; a warning where a signal that was not ours ended it, or where it has
    something to say."""
    with caplog.at_level(DEBUG, "prefork"):
        death = settle(board, ended(None if signum else 1, signum, kind=kind, told=told, text=text))
    assert death.reason is None
    assert not death.at_boot
    assert not any(board.words[EXITS : EXITS + EXIT_WORDS])
    assert not any(board.words[SIGNAL_DEATHS : SIGNAL_DEATHS + 65])
    assert [record.levelno for record in caplog.records] == [level]


@pytest.mark.parametrize(
    ("told", "ready", "signum", "at_boot"),
    [
        (None, False, None, True),
        (None, False, KILL, True),
        (R.BOOT_FAILED, False, KILL, True),  # for its boot's sake
        (None, True, None, False),
        (None, True, KILL, False),
        (R.REPLACED, False, KILL, False),
        (R.STOPPED, False, KILL, False),
    ],
)
def test_a_death_at_boot(
    told: ExitReason | None, ready: bool, signum: int | None, at_boot: bool, board: Board, ended: Ended,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """It is one before the worker was READY, unless it had been told to leave for something else than its boot."""
    monkeypatch.setattr(exits, "oom_kills", lambda: 3)
    assert settle(board, ended(None if signum else 1, signum, told=told, ready=ready)).at_boot is at_boot


def test_ready_once_is_ready_for_good(board: Board, ended: Ended) -> None:
    """What the master has seen counts, whatever stands in the slot at the end."""
    exit = ended(1, ready=False)
    exit.child.booted = True
    death = settle(board, exit)
    assert (death.booted, death.at_boot, death.reason) == (True, False, R.CRASHED)


@pytest.mark.parametrize(
    ("told", "signum", "counts", "reason"),
    [
        (None, KILL, (3, 4), R.OOM_SUSPECTED),
        (None, KILL, (3, 3), R.KILLED),
        (None, KILL, (None, 3), R.KILLED),
        (None, KILL, (3, None), R.KILLED),
        (R.STOPPED, KILL, (3, 4), R.STOPPED),
        (None, SEGV, (3, 4), R.CRASHED),
    ],
)
def test_out_of_memory_is_suspected(
    told: ExitReason | None, signum: int, counts: tuple[int | None, ...], reason: ExitReason, board: Board,
    ended: Ended, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Of a worker that KILL has ended untold, where the kernel's count of such kills has grown."""
    monkeypatch.setattr(exits, "oom_kills", iter(counts).__next__)
    assert settle(board, ended(None, signum, told=told)).reason is reason


def test_one_kill_of_the_kernels_is_held_against_one_worker(
    board: Board, ended: Ended, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next that KILL ends is suspected only if the count has grown again."""
    monkeypatch.setattr(exits, "oom_kills", iter([3, 4, 4, 5]).__next__)
    account = Exits(board)
    found = [account.settle(ended(None, KILL), None, NOW_NS).reason for _ in range(3)]
    assert found == [R.OOM_SUSPECTED, R.KILLED, R.OOM_SUSPECTED]


@pytest.mark.parametrize(
    ("in_hand", "idle", "lost"), [(0, 0, 0), (1, 0, 1), (0, 7, 7), (1, 7, 8), (2, 7, 7), (0, 1 << 40, 0)]
)
def test_kept_connections_that_ended_with_it(
    in_hand: int, idle: int, lost: int, board: Board, ended: Ended, caplog: pytest.LogCaptureFixture
) -> None:
    """Those that it had in hand or idle are counted as lost, in all and of their listener, and logged; a number that
    cannot be is none."""
    exit = ended(None, KILL)
    lane = exit.child.slot.lane(1)
    lane[IN_HAND], lane[IDLE_HERE] = in_hand, idle
    lane[CLOSED + CloseReason.LOST] = 3  # what stands there from before
    settle(board, exit)
    word = CLOSED + CloseReason.LOST - COUNTS.start
    assert board.words[Word.LANES_DEAD + word] == board.words[listener_word(0, word)] == lost + 3
    said = [record.__dict__ for record in caplog.records if record.__dict__["event"] is LogEvent.CONNECTIONS_DIED]
    assert [record["fields"]["connections"] for record in said] == ([lost] if lost else [])


def begin(exit: Exit, lane: int, since_ns: int) -> None:
    words = exit.child.slot.lane(lane)
    words[STARTED_NS], words[ACCEPTED], words[STATE] = since_ns, words[ACCEPTED] + 1, BUSY


@pytest.mark.parametrize(
    ("told", "request_timeout", "lost", "timed_out"),
    [
        (R.TIMEOUT, 2.0, 1, 1),
        (R.TIMEOUT, None, 2, 0),  # it was taken back by a reload meanwhile
        (R.STOPPED, 2.0, 2, 0),
        (None, 2.0, 2, 0),
    ],
)
def test_requests_that_ended_with_it(
    told: ExitReason | None, request_timeout: float | None, lost: int, timed_out: int, board: Board, ended: Ended,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Timed out are those of a worker that was cut which had run for the whole of `request_timeout`; the others are
    lost. Each number is said once."""
    exit = ended(None, KILL, told=told)
    begin(exit, 0, NOW_NS - 2_000_000_000)
    begin(exit, 1, NOW_NS - 1_999_999_999)
    settle(board, exit, request_timeout)
    assert (board.words[Word.LOST], board.words[Word.TIMED_OUT]) == (lost, timed_out)
    died = [r.__dict__["fields"] for r in caplog.records if r.__dict__["event"] is LogEvent.REQUESTS_DIED]
    expected = {"lost": lost, "timeout": timed_out}
    assert {each["outcome"]: each["requests"] for each in died} == {k: n for k, n in expected.items() if n}


def test_its_account_is_settled_in_one_change(board: Board, ended: Ended) -> None:
    """Counts, CPU time and reason go over together, its row leaves the board with them, and its slot is closed."""
    exit = ended(0, told=R.REPLACED, user_s=1.5, system_s=0.25)
    begin(exit, 0, NOW_NS)
    exit.child.slot.lane(0)[COMPLETED] = 1
    sequence = board.words[Word.SEQUENCE]
    settle(board, exit)
    assert board.words[Word.SEQUENCE] == sequence + 2
    assert (board.words[Word.CPU_USER_NS], board.words[Word.CPU_SYSTEM_NS]) == (1_500_000_000, 250_000_000)
    found = board.snapshot().statistics()
    assert (found.accepted, found.completed, found.lost) == (1, 1, 0)
    assert board.readers() == {}
    with pytest.raises(OSError) as closed:
        os.fstat(exit.child.slot.fd)
    assert closed.value.errno == errno.EBADF


def test_what_it_left_to_say_stands_behind_the_reason(
    board: Board, ended: Ended, caplog: pytest.LogCaptureFixture
) -> None:
    """On lines of its own in the message, and as `detail` in the fields; where there is nothing, there is none."""
    death = settle(board, ended(1, ready=False, text="RuntimeError: no database\n"))
    settle(board, ended(1, ready=False))
    assert death.text == "RuntimeError: no database"
    said, silent = caplog.records
    assert said.message == f"worker slot=1 gen=1 pid=4711: boot_failed (exit status 1)\n{death.text}"
    assert said.__dict__["fields"]["detail"] == death.text
    assert silent.message.endswith("(exit status 1)")
    assert silent.__dict__["fields"]["detail"] is None
