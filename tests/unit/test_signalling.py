"""What is done to a child, by which signal, and what is noted of it; what comes back, and when it is logged."""

import logging
import signal
from collections.abc import Iterator
from functools import partial

import pytest

from prefork.master import signalling
from prefork.master.children import Child, ChildState, ChildTable
from prefork.master.policy import Phase, Plan, Pool
from prefork.master.processes import Processes
from prefork.metrics.board import Board
from prefork.metrics.facts import ChildKind, ExitReason
from prefork.metrics.scoreboard import LEAVING, Slot, SlotReader, Stacks
from prefork.workers.signals import STACKS_SIGNAL


@pytest.fixture
def child() -> Iterator[Child]:
    """A record of a process that there is not."""
    slot = Slot(1)
    yield Child(7, 2, ChildKind.WORKER, 3, 4711, -1, slot, Stacks(slot), SlotReader(slot, 2), started=1.0, changed=1.0)
    slot.close()


def looked_at_twice(child: Child) -> None:
    """As in two turns: text is complete when nothing was added between them."""
    for _ in range(2):
        child.report = child.reader.look(0)
        signalling.note_stacks(child, NOW)


def test_stacks_are_logged_when_complete(child: Child, caplog: pytest.LogCaptureFixture) -> None:
    """Stacks that nobody asked for are logged once, and taken."""
    child.stacks.write("Thread 0x1\n")
    with caplog.at_level(logging.WARNING, "prefork.supervisor"):
        looked_at_twice(child)
        looked_at_twice(child)
    assert [record.getMessage().count("Thread 0x1") for record in caplog.records] == [1]
    assert child.stacks.size() == 0


def test_last_words_are_for_the_end(child: Child, caplog: pytest.LogCaptureFixture) -> None:
    """The traceback of a child that fails is no stack of a living one, however long it takes to be gone: its exit is
    logged with it."""
    child.slot.words[LEAVING] = ExitReason.CRASHED
    child.stacks.write("RuntimeError: no database\n")
    with caplog.at_level(logging.WARNING, "prefork.supervisor"):
        looked_at_twice(child)
    assert caplog.records == []
    assert child.stacks.take() == "RuntimeError: no database\n"


class Signalled(Processes):
    """Notes which signals were sent, and sends none."""

    def __init__(self) -> None:
        self.sent: list[int] = []

    def signal(self, pidfd: int, signum: int) -> None:
        self.sent.append(signum)


def test_stacks_that_were_cut_short_are_asked_for_again(child: Child, caplog: pytest.LogCaptureFixture) -> None:
    """Where faulthandler met a thread that had just ended, the next answer is the one that is logged; after three more
    that are no better, the last one."""
    child.processes, child.pidfd = signalled, _ = Signalled(), 0
    with caplog.at_level(logging.WARNING, "prefork.supervisor"):
        child.stacks.write("<freed thread state>\n")
        looked_at_twice(child)
        assert (signalled.sent, caplog.records) == ([signal.SIGUSR1], [])
        child.stacks.write("Thread 0x1\n")
        looked_at_twice(child)
        assert [record.getMessage().count("Thread 0x1") for record in caplog.records] == [1]
        for _ in range(4):
            child.stacks.write("<freed thread state>\n")
            looked_at_twice(child)
    assert signalled.sent == [signal.SIGUSR1] * 4
    assert len(caplog.records) == 2


# What is done to a child. Its marks are what policy plans by in the next turn.

NOW, LEAVE_BY = 50.0, 80.0
S, R = ChildState, ExitReason
DRAIN, QUIT, KILL, HUP, USR1, CONT = (
    signal.SIGURG, signal.SIGQUIT, signal.SIGKILL, signal.SIGHUP, signal.SIGUSR1, signal.SIGCONT,
)  # fmt: skip


@pytest.fixture
def sent(child: Child) -> list[int]:
    """The signals that the child is sent."""
    child.processes, child.pidfd = signalled, _ = Signalled(), 0
    return signalled.sent


@pytest.fixture
def table(child: Child, sent: list[int]) -> Iterator[ChildTable]:
    """A table that has this child and no other."""
    board = Board()
    table = ChildTable(board, child.processes)
    assert board.enter(child.kind, child.reader) == 1
    child.serial = 1
    table.adopt(child)
    yield table
    board.forget()


ordered = partial(Plan, Phase.RUNNING, Pool())


ORDERS: list[tuple[Plan, ChildState, list[int], ChildState, ExitReason | None, float | None, float]] = [
    # plan                          in          signals       then        why            deadline      told
    (ordered(stop=(1,)),               S.STARTING, [QUIT, CONT], S.STOPPING, R.STOPPED,     NOW + 1.0,    NOW),
    (ordered(stop=(1,)),               S.READY,    [QUIT, CONT], S.STOPPING, R.STOPPED,     NOW + 1.0,    NOW),
    (ordered(stop=(1,)),               S.DRAINING, [QUIT, CONT], S.STOPPING, R.STOPPED,     NOW + 1.0,    NOW),
    (ordered(stop=(1,)),               S.STOPPING, [QUIT, CONT], S.STOPPING, R.STOPPED,     NOW + 1.0,    NOW),
    (ordered(stop=(1,)),               S.KILLING,  [QUIT, CONT], S.KILLING,  R.STOPPED,     NOW + 1.0,    NOW),
    (ordered(drain=((1, R.REPLACED),)), S.READY,   [DRAIN, CONT], S.DRAINING, R.REPLACED,    LEAVE_BY,     NOW),
    (ordered(remind=(1,)),             S.DRAINING, [DRAIN, CONT], S.DRAINING, None,         None,         NOW),
    (ordered(rouse=(1,)),              S.DRAINING, [CONT],       S.DRAINING, None,          None,         NOW),
    (ordered(poke=(1,)),               S.DRAINING, [HUP],        S.DRAINING, None,          None,         0.0),
    (ordered(drain=((1, R.REPLACED),)), S.STOPPING, [DRAIN, CONT], S.STOPPING, R.REPLACED,    LEAVE_BY,     NOW),
    (ordered(kill=(1,)),               S.STARTING, [KILL],       S.KILLING,  R.BOOT_FAILED, None,         0.0),
    (ordered(dump=(1,)),               S.READY,    [USR1, CONT], S.READY,    None,          None,         0.0),
    (ordered(slow=(1,)),               S.READY,    [],           S.READY,    None,          None,         0.0),
    (ordered(),                        S.READY,    [],           S.READY,    None,          None,         0.0),
]  # fmt: skip


@pytest.mark.parametrize(("plan", "before", "signals", "after", "why", "deadline", "told"), ORDERS)
def test_each_part_of_a_plan(
    plan: Plan, before: ChildState, signals: list[int], after: ChildState, why: ExitReason | None,
    deadline: float | None, told: float, child: Child, table: ChildTable, sent: list[int],
) -> None:  # fmt: skip
    """Its signal, and what is noted of it."""
    child.state = before
    signalling.carry_out(plan, table, NOW, LEAVE_BY, slow_before_ns=0)
    assert sent == signals
    assert (child.state, child.reason, child.deadline, child.told) == (after, why, deadline, told)
    assert child.changed == (1.0 if before is after else NOW)


def test_a_kill_comes_before_what_is_gentler(child: Child, table: ChildTable, sent: list[int]) -> None:
    """In the order of how much it matters."""
    child.state = S.DRAINING
    plan = ordered(kill=(1,), dump=(1,), stop=(1,), drain=((1, R.DRAINED),), remind=(1,), poke=(1,))
    signalling.carry_out(plan, table, NOW, LEAVE_BY, slow_before_ns=0)
    assert sent == [KILL, USR1, CONT, QUIT, CONT, DRAIN, CONT, DRAIN, CONT, HUP]


@pytest.mark.parametrize(("has", "gets"), [(None, 80.0), (70.0, 70.0), (90.0, 80.0)])
def test_a_deadline_is_never_put_off(
    has: float | None, gets: float, child: Child, table: ChildTable, sent: list[int]
) -> None:
    """The earlier of two holds."""
    child.state, child.deadline = S.READY, has
    signalling.leave(table, child, R.DRAINED, DRAIN, NOW, LEAVE_BY)
    assert child.deadline == gets


@pytest.mark.parametrize(
    ("cut", "told", "why"),
    [
        (None, None, R.BOOT_FAILED),
        (None, R.REPLACED, R.REPLACED),
        (40.0, R.REPLACED, R.TIMEOUT),
        (0.0, None, R.TIMEOUT),
    ],
)
def test_why_it_is_killed(
    cut: float | None, told: ExitReason | None, why: ExitReason, child: Child, table: ChildTable, sent: list[int],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """A request over its time is the reason before any other; who was told nothing did not boot. The log says when."""
    child.cut_at, child.reason, child.changed = cut, told, 12.5
    signalling.kill(table, child, NOW)
    assert child.reason is why
    (said,) = (each for each in caplog.records if each.levelno == logging.WARNING)
    assert said.getMessage() == "worker slot=2 gen=3 pid=4711: killed after 37.5 s in state starting"
    assert said.__dict__["fields"]["after_s"] == 37.5


@pytest.mark.parametrize(("state", "signum", "deadline"), [
    (S.STARTING, QUIT, NOW + 1.0), (S.READY, DRAIN, LEAVE_BY), (S.DRAINING, DRAIN, LEAVE_BY),
])  # fmt: skip
def test_room_is_made(
    state: ChildState, signum: int, deadline: float, child: Child, table: ChildTable, sent: list[int]
) -> None:
    """Who is not READY yet has nothing to finish."""
    child.state = state
    signalling.make_room([child], table, NOW, LEAVE_BY)
    assert (sent, child.deadline, child.reason) == ([signum, CONT], deadline, R.REPLACED)


def test_an_exporter_is_retired(child: Child, sent: list[int]) -> None:
    """It has its seconds to finish its scrapes, from now."""
    child.deadline = 3.0
    signalling.retire(child, NOW)
    assert (sent, child.deadline, child.reason) == ([DRAIN, CONT], NOW + 10.0, R.REPLACED)


@pytest.mark.parametrize(("busy", "signals"), [((), [CONT, HUP, CONT]), ((30,), [CONT, DRAIN, CONT, DRAIN])])
def test_who_has_not_left_is_roused(busy: tuple[int, ...], signals: list[int], child: Child, sent: list[int]) -> None:
    """Continued each time, for it may have been stopped; an idle one has its wait ended once, a busy one is
    told again."""
    child.state, child.changed, child.told = S.DRAINING, NOW, NOW
    busy_since(child, *busy)
    signalling.rouse(child, NOW + 1)
    signalling.rouse(child, NOW + 2)
    assert (sent, child.told) == (signals, NOW + 2)


@pytest.mark.parametrize(("signum", "told"), [(DRAIN, True), (signal.SIGTERM, False), (QUIT, False), (CONT, False)])
def test_the_word_of_the_master(signum: int, told: bool, child: Child, sent: list[int]) -> None:
    """It stands in the slot when the signal to drain is sent, and no other signal writes it."""
    assert not child.slot.told_to_drain
    child.signal(signum)
    assert (sent, child.slot.told_to_drain) == ([signum], told)


@pytest.mark.parametrize("reason", [R.DRAINED, R.REPLACED, R.MAX_REQUESTS, None])
def test_whether_the_service_ends(reason: ExitReason | None, child: Child, sent: list[int]) -> None:
    """A child that drains with the whole service is told that nobody comes after it."""
    child.reason = reason
    child.signal(DRAIN)
    assert sent == [DRAIN]
    assert (child.slot.told_to_drain, child.slot.told_to_end) == (True, reason is R.DRAINED)


def test_a_request_over_its_time_is_noted(child: Child, sent: list[int]) -> None:
    """When it was seen; it is told to leave a turn later, when its stacks are there."""
    signalling.cut(child, NOW, lambda child: ())
    assert child.cut_at == NOW


@pytest.mark.parametrize(
    ("peers", "said"),
    [
        ((), "longer than request_timeout"),
        (("10.0.0.7:5123",), "longer than request_timeout; peer 10.0.0.7:5123"),
        (tuple("abcdef"), "longer than request_timeout; of one of the peers a, b, c, d and 2 more"),
    ],
)
def test_a_cut_says_for_whom(
    peers: tuple[str, ...], said: str, child: Child, sent: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """The peer, or the first few of those that it can be, as far as they are found."""
    signalling.cut(child, NOW, lambda child: peers)
    assert caplog.messages[-1].endswith(said)
    assert caplog.records[-1].__dict__["fields"]["peers"] == list(peers)


def test_a_cut_whose_peers_cannot_be_found(child: Child, sent: list[int]) -> None:
    """The worker is cut nevertheless."""
    signalling.cut(child, NOW, lambda child: (str(1 // 0),))
    assert child.cut_at == NOW


# Requests that take long.


def busy_since(child: Child, *began_ns: int) -> None:
    child.report = child.reader.look(0)._replace(busy_since_ns=began_ns)


def test_a_slow_request_is_shown_once(child: Child, sent: list[int], caplog: pytest.LogCaptureFixture) -> None:
    """Each one, when it has run for long enough; of one that has ended nothing is kept."""
    signalling.show_slow(child, NOW, 30, lambda child: ())
    assert sent == []
    for began, signals in [((31,), 0), ((30, 31), 1), ((30, 31), 1), ((31,), 1), ((30, 20), 2), ((20, 10), 3)]:
        busy_since(child, *began)
        signalling.show_slow(child, NOW, 30, lambda child: ())
        assert sent == [USR1] * signals
    assert child.slow_seen == {20, 10}
    assert len(caplog.records) == 3


def test_old_stacks_are_not_taken_for_new(child: Child, sent: list[int]) -> None:
    """Whatever size was seen last, stacks that were asked for now are waited for."""
    child.stacks.write("Thread 0x1\n")
    child.stacks_seen = child.stacks.size()
    busy_since(child, 30)
    signalling.show_slow(child, NOW, 30, lambda child: ())
    signalling.note_stacks(child, NOW)
    assert child.stacks_seen == child.stacks.size() > 0


# Stacks for a client.


def test_a_client_gets_the_stacks(child: Child, sent: list[int], caplog: pytest.LogCaptureFixture) -> None:
    """They are asked for, and handed to the client instead of the log, once complete; the next are the log's again."""
    child.stacks_text, child.stacks_seen = "of before", 11
    child.stacks.write("Thread 0x1\n")
    signalling.show_stacks(child, NOW)
    assert (sent, child.stacks_wanted, child.stacks_text) == ([USR1], True, "")
    child.report = child.reader.look(0)
    signalling.note_stacks(child, NOW)
    assert child.stacks_wanted
    signalling.note_stacks(child, NOW)
    assert (child.stacks_wanted, child.stacks_text, caplog.records) == (False, "Thread 0x1", [])
    child.stacks_text = ""
    child.stacks.write("Thread 0x2\n")
    looked_at_twice(child)
    assert [record.getMessage().count("Thread 0x2") for record in caplog.records] == [1]


def test_stacks_of_a_request_over_its_time_are_for_the_log_too(
    child: Child, sent: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """A client that asked at that moment takes nothing away from it."""
    signalling.show_stacks(child, NOW)
    signalling.cut(child, NOW, lambda child: ())
    caplog.clear()
    child.stacks.write("Thread 0x1\n")
    looked_at_twice(child)
    assert child.stacks_text == "Thread 0x1"
    assert [record.getMessage().count("Thread 0x1") for record in caplog.records] == [1]


def test_stacks_that_grow_are_waited_for(child: Child, caplog: pytest.LogCaptureFixture) -> None:
    """A child that has no report yet is looked at as well."""
    for number in range(3):
        child.stacks.write(f"Thread {number}\n")
        signalling.note_stacks(child, NOW)
    assert caplog.records == []
    signalling.note_stacks(child, NOW)
    assert [record.getMessage().count("Thread") for record in caplog.records] == [3]
    assert child.stacks_seen == 0


@pytest.mark.parametrize(("cut", "patience"), [(False, 0.5), (True, 0.1)])
def test_where_no_python_runs(cut: bool, patience: float, child: Child, sent: list[int]) -> None:
    """Nothing comes of USR1: once, the stacks are asked for by the signal that needs no Python."""
    if cut:
        signalling.cut(child, NOW, lambda child: ())
    else:
        signalling.show_stacks(child, NOW)
    asked = [*sent]
    for after, expected in [(0.0, []), (patience - 0.01, []), (patience, [STACKS_SIGNAL]), (9.0, [STACKS_SIGNAL])]:
        signalling.note_stacks(child, NOW + after)
        assert sent == asked + expected
    assert child.stacks_seen == 0


def test_where_python_runs(child: Child, sent: list[int]) -> None:
    """It is not: the process may crash of it."""
    signalling.show_stacks(child, NOW)
    child.stacks.write("Thread 0x1\n")
    for after in (0.4, 0.6, 9.0):
        signalling.note_stacks(child, NOW + after)
    assert sent == [USR1]


def test_nothing_is_logged_where_nothing_was_written(child: Child, caplog: pytest.LogCaptureFixture) -> None:
    """Nor is a client answered by that."""
    child.stacks_wanted = True
    looked_at_twice(child)
    assert (child.stacks_wanted, child.stacks_seen, caplog.records) == (True, 0, [])


def test_one_that_is_stuck_before_anybody_has_looked_at_it(child: Child, sent: list[int]) -> None:
    """Has tried nothing so far."""
    child.report = None
    signalling.cut_stuck(child, 9.0)
    assert (child.cut_tried_ns, child.cut_at, child.cut_for) == (0, 9.0, ExitReason.STALLED)
