"""Lanes: what one request writes, in which order, whatever becomes of it; and that each lane comes back once."""

import contextlib
import errno
import os
import socket
from collections import deque
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork import BaseServer, ThreadingMixIn
from prefork.metrics.facts import AcceptError
from prefork.metrics.scoreboard import (
    ACCEPT_ERRORS,
    ACCEPTED,
    ACCEPTING,
    BUSY,
    COMPLETED,
    DURATION,
    FAILED,
    HANDED_OVER,
    IDLE,
    QUEUE_WAIT,
    REJECTED,
    STARTED_NS,
    STATE,
    Slot,
)
from prefork.workers import accepting, user_forks
from prefork.workers import lanes as module
from prefork.workers.accepting import IN_VAIN, Accepted
from prefork.workers.lanes import Lanes
from prefork.workers.thread_body import ThreadBody
from tests.support.programs.inside import Stray

COUNTS = {"completed": COMPLETED, "failed": FAILED, "rejected": REJECTED, "handed_over": HANDED_OVER}
NOW_NS = 5_000


class Server(BaseServer):
    """Serves what the test says, from no socket."""

    look: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self) -> None:
        super().__init__("nowhere", lambda request, client_address, server: None)
        self.will: str | Exception = "completed"
        self.request: Any = object()
        self.shut: list[Any] = []
        self.errors: list[Any] = []
        self.listener: socket.socket | None = None

    def fileno(self) -> int:
        return -1 if self.listener is None else self.listener.fileno()

    def get_request(self) -> Any:
        self.look()
        if isinstance(self.will, Exception):
            raise self.will
        return self.request, "somebody"

    def verify_request(self, request: Any, client_address: Any) -> bool:
        self.look()
        if self.will in ("verify raises", "verify exits"):
            raise SystemExit if self.will == "verify exits" else RuntimeError(self.will)
        return self.will != "rejected"

    def process_request(self, request: Any, client_address: Any) -> None:
        if self.will == "handed_over":
            return
        if self.will == "process raises":
            raise RuntimeError(self.will)
        super().process_request(request, client_address)

    def finish_request(self, request: Any, client_address: Any) -> None:
        self.look()
        if self.will in ("failed", "exits"):
            raise SystemExit(3) if self.will == "exits" else RuntimeError(self.will)

    def shutdown_request(self, request: Any) -> None:
        self.look()
        self.shut.append(request)
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        self.errors.append(request)


class Harness:
    """A server with lanes bound to it, and its slot."""

    def __init__(self, lanes: int = 1, **values: Any) -> None:
        self.slot = Slot(lanes)
        self.freed = 0
        self.server = Server()
        self.lanes = Lanes(self.slot, **{"elsewhere": False, "on_free": self._free, **values})
        self.lanes.bind(self.server)

    def _free(self) -> None:
        self.freed += 1

    def close(self) -> None:
        """Let go of every lane: the memory goes with the last."""
        self.lanes.unbind(self.server)
        self.slot.close()
        del self.server, self.lanes, self.slot

    def serve(self, will: Any) -> Accepted:
        self.server.will = will
        lane = self.lanes.take()
        assert lane is not None
        outcome = None
        try:
            outcome = self.lanes.serve_one(self.server, lane, NOW_NS)
        finally:
            if not self.lanes.elsewhere or outcome is not Accepted.REQUEST:
                self.lanes.give_back(lane)
        return outcome

    def counts(self, lane: int = 0) -> dict[str, int]:
        return {name: self.slot.lane(lane)[word] for name, word in COUNTS.items() if self.slot.lane(lane)[word]}


@pytest.fixture
def make() -> Iterator[Callable[..., Any]]:
    """Makes harnesses, and slots; at the end their memory is given back."""
    made: list[Harness] = []

    def make(lanes: int = 1, **values: Any) -> Harness:
        harness = Harness(lanes, **values)
        made.append(harness)
        return harness

    yield make
    for harness in made:
        harness.close()


@pytest.fixture
def harness(make: Callable[..., Harness]) -> Harness:
    return make()


@pytest.mark.parametrize(
    ("will", "counted"),
    [
        ("completed", "completed"), ("failed", "failed"), ("rejected", "rejected"), ("handed_over", "handed_over"),
        ("verify raises", "failed"), ("process raises", "failed"),
    ],
)  # fmt: skip
def test_every_outcome_is_counted_once(will: str, counted: str, harness: Harness) -> None:
    """A request is completed, failed, rejected, or handed over: one of them, and its lane is free again."""
    assert harness.serve(will) is Accepted.REQUEST
    assert harness.counts() == {counted: 1}
    assert harness.slot.lane(0)[ACCEPTED] == 1
    assert harness.slot.lane(0)[STATE] == IDLE
    assert harness.lanes.all_free()
    assert len(harness.server.shut) == (will != "handed_over")
    assert len(harness.server.errors) == (counted == "failed")


def test_exit_of_a_handler_is_counted_and_goes_on(harness: Harness) -> None:
    """SystemExit counts as failed, its request is shut down, and it is not swallowed."""
    with pytest.raises(SystemExit):
        harness.serve("exits")
    assert harness.counts() == {"failed": 1}
    assert len(harness.server.shut) == 1
    assert harness.lanes.all_free()


def test_order_of_what_is_written(harness: Harness) -> None:
    """started_ns and ACCEPTING before the accept; accepted and BUSY before any hook; the outcome before the end; then
    IDLE."""
    seen = []
    lane = harness.slot.lane(0)
    harness.server.look = lambda: seen.append((lane[STARTED_NS], lane[STATE], lane[ACCEPTED], lane[COMPLETED]))
    harness.serve("completed")
    assert seen == [
        (NOW_NS, ACCEPTING, 0, 0),  # get_request
        (NOW_NS, BUSY, 1, 0),  # verify_request
        (NOW_NS, BUSY, 1, 0),  # finish_request
        (NOW_NS, BUSY, 1, 1),  # shutdown_request
    ]
    assert (lane[STATE], lane[STARTED_NS]) == (IDLE, NOW_NS)


class Written(dict[int, int]):
    """A lane that remembers what was written to it, in its order."""

    def __init__(self) -> None:
        super().__init__(dict.fromkeys(range(64), 0))
        self.order: list[int] = []

    def __setitem__(self, word: int, value: int) -> None:
        self.order.append(word)
        super().__setitem__(word, value)


def test_a_reader_finds_no_request_before_its_count(harness: Harness) -> None:
    """Nor an accept without its moment, nor an end that is not counted; the master may look between any two."""
    lane: Any = Written()
    harness.server.will = "completed"
    harness.lanes.serve_one(harness.server, lane, NOW_NS)
    order = [word for word in lane.order if word in (STARTED_NS, STATE, ACCEPTED, COMPLETED)]
    assert order == [STARTED_NS, STATE, ACCEPTED, STATE, COMPLETED, STATE]


def test_duration_of_what_was_served(harness: Harness) -> None:
    """Completed and failed requests are observed once each; a rejected one has no duration."""
    for will in ("completed", "failed", "rejected"):
        harness.serve(will)
    assert sum(harness.slot.lane(0)[DURATION.start : DURATION.end].tolist()[:-1]) == 2


@pytest.mark.parametrize(
    ("number", "outcome", "fact"),
    [
        (errno.EAGAIN, Accepted.NOTHING, None),
        (errno.ECONNABORTED, Accepted.NOTHING, AcceptError.ABORTED),
        (errno.EPROTO, Accepted.NOTHING, AcceptError.OTHER),
        (errno.EMFILE, Accepted.NO_RESOURCES, AcceptError.EMFILE),
        (errno.ENFILE, Accepted.NO_RESOURCES, AcceptError.ENFILE),
        (errno.ENOMEM, Accepted.NO_RESOURCES, AcceptError.NOMEM),
    ],
)
def test_nothing_accepted(number: int, outcome: Accepted, fact: AcceptError | None, harness: Harness) -> None:
    """An accept that finds nothing leaves the lane as it was; an error is counted by its kind."""
    assert harness.serve(OSError(number, os.strerror(number))) is outcome
    assert harness.slot.lane(0)[ACCEPTED] == 0
    assert harness.slot.lane(0)[STATE] == IDLE
    errors = harness.slot.words[ACCEPT_ERRORS : ACCEPT_ERRORS + len(AcceptError)].tolist()
    assert errors == [int(each is fact) for each in AcceptError]


def test_not_ours_is_not_counted(harness: Harness) -> None:
    """A finish_request that no accept of ours caused is served and not counted."""
    harness.server.will = "completed"
    harness.server.finish_request(object(), "elsewhere")
    assert harness.counts() == {}


def test_override_of_the_instance_and_unbind(harness: Harness) -> None:
    """Counting sits on the instance, over whatever the class defines; unbound, the class's own is back."""
    assert "finish_request" in vars(harness.server)
    harness.lanes.unbind(harness.server)
    assert vars(harness.server).keys() & {"finish_request", "close_request", "process_request_thread"} == set()


@pytest.mark.parametrize("before", [False, True])
def test_a_wrapper_of_the_instance_that_is_deleted_again(before: bool, harness: Harness) -> None:
    """Requests are counted on, and finished as the class does it, whatever the instance had before it served."""
    called: list[str] = []
    finish = harness.server.finish_request
    if before:
        harness.lanes.unbind(harness.server)
        finish = harness.server.finish_request
        setattr(harness.server, "finish_request", lambda *arguments: called.append("before"))  # noqa: B010
        harness.lanes.bind(harness.server)

    def wrapper(*arguments: Any) -> None:
        called.append("wrapper")
        finish(*arguments)

    setattr(harness.server, "finish_request", wrapper)  # noqa: B010
    harness.serve("completed")
    del harness.server.finish_request
    with pytest.raises(SystemExit):
        harness.serve("exits")
    harness.serve("completed")
    assert called == ["wrapper"]
    assert harness.counts() == {"failed": 1} | ({"completed": 1, "handed_over": 1} if before else {"completed": 2})
    harness.lanes.unbind(harness.server)
    assert "finish_request" not in vars(harness.server)


def test_cap_and_the_one_that_waits(make: Callable[..., Harness]) -> None:
    """With every lane taken there is none, and who found none is told when one comes back; once."""
    harness = make(lanes=2)
    first, second = harness.lanes.take(), harness.lanes.take()
    assert first is not None
    assert second is not None
    assert harness.freed == 0
    assert harness.lanes.take() is None
    harness.lanes.give_back(first)
    harness.lanes.give_back(second)
    assert harness.freed == 1


def test_more_lanes_where_there_is_no_cap(make: Callable[..., Harness]) -> None:
    """Without a cap another slot's lanes are used when all are taken."""
    slots = [make(lanes=2).slot, make(lanes=1).slot]
    harness = make(lanes=1, more=lambda: slots.pop() if slots else None)
    taken = [harness.lanes.take() for _ in range(5)]
    assert [lane is not None for lane in taken] == [True] * 4 + [False]
    assert not harness.lanes.all_free()
    for lane in taken[:4]:
        assert lane is not None
        harness.lanes.give_back(lane)
    assert harness.lanes.all_free()


def test_all_free_with_one_in_hand(make: Callable[..., Harness]) -> None:
    """The lane that the accepting loop holds is no request."""
    harness = make(lanes=2)
    held = harness.lanes.take()
    assert not harness.lanes.all_free()
    assert harness.lanes.all_free(held=held)


def test_a_child_takes_request_and_lane(make: Callable[..., Harness]) -> None:
    """After `pass_on` neither is ours: nothing is counted here, and no lane is missed."""
    harness = make(elsewhere=True)
    harness.server.process_request = lambda request, address: harness.lanes.pass_on()  # type: ignore[assignment]
    lane = harness.lanes.take()
    assert lane is not None
    assert harness.lanes.serve_one(harness.server, lane, NOW_NS) is Accepted.REQUEST
    assert harness.counts() == {}
    assert harness.lanes.all_free()


def test_a_request_that_the_program_has_now(harness: Harness) -> None:
    """In a program that finishes any in a thread of its own, one that was handed over may still get there until it is
    closed, and is not finished; in one that never has, nobody waits for it. A datagram is waited for while it runs."""
    server, handed_over = harness.server, harness.lanes.handed_over
    seen: list[bool] = []
    with contextlib.ExitStack() as stack:
        first, second = (stack.enter_context(each) for each in socket.socketpair())
        for server.request in (first, second):
            harness.serve("handed_over")
            assert handed_over.all_finished()
            assert not handed_over.all_finished(first_may_come=True)
        server.will = "completed"
        server.look = lambda: seen.append(handed_over.all_finished())
        server.finish_request(first, "somebody")
        assert seen == [False]
        first.close()
        assert not handed_over.all_finished()
    assert handed_over.all_finished()
    server.finish_request((b"a datagram", None), "somebody")
    assert seen == [False, False]
    assert handed_over.all_finished()
    assert harness.counts() == {"handed_over": 2}


def test_a_datagram_cannot_be_remembered(harness: Harness) -> None:
    """It is handed over all the same."""
    harness.server.request = b"a datagram", None
    harness.serve("handed_over")
    assert harness.counts() == {"handed_over": 1}


class SaysNothing(Exception):
    """Of the program's get_request()."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that lanes see."""
    now = [100.0]
    monkeypatch.setattr(accepting, "monotonic", lambda: now[0])
    return now


def test_a_request_that_makes_no_sense(
    make: Callable[..., Harness], clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    """It is counted and its lane is free. It is said once in ten seconds; after each hundred in a row the listener is
    left alone for a while, once, since clients may be the cause."""
    harness = make(guarded=True)
    outcomes = [harness.serve(SaysNothing()) for _ in range(101)]
    assert outcomes == [Accepted.NOTHING] * 99 + [Accepted.NO_RESOURCES, Accepted.NOTHING]
    assert harness.slot.words[ACCEPT_ERRORS + AcceptError.OTHER] == 101
    assert sum(harness.slot.words[ACCEPT_ERRORS : ACCEPT_ERRORS + len(AcceptError)]) == 101
    assert harness.slot.lane(0)[STATE] == IDLE
    assert len(caplog.records) == 1
    for later, lines in ((9.0, 1), (1.0, 2), (9.0, 2)):
        clock[0] += later
        harness.serve(SaysNothing())
        assert len(caplog.records) == lines
    harness.serve("completed")
    assert harness.serve(SaysNothing()) is Accepted.NOTHING


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EINVAL, "the program refuses it"),
        OSError(errno.EPERM, "a filter refuses it"),
        OSError("the program refuses it"),
        ConnectionResetError(errno.ECONNRESET, "reset"),
        ConnectionAbortedError(errno.ECONNABORTED, "aborted"),
        TimeoutError(errno.ETIMEDOUT, "timed out"),
        BlockingIOError(errno.EAGAIN, "a sibling has it"),
    ],
)
def test_errors_in_a_row(error: OSError, harness: Harness) -> None:
    """No client can cause a pause, however often an accept fails."""
    assert [harness.serve(error) for _ in range(200)] == [Accepted.NOTHING] * 200


INVALID, NOTHING_NOW = OSError(errno.EINVAL, "invalid"), BlockingIOError(errno.EAGAIN, "nothing now")


@pytest.mark.parametrize("how", [socket.SHUT_RD, socket.SHUT_RDWR])
@pytest.mark.parametrize("error", [INVALID, NOTHING_NOW])
def test_a_listener_that_was_shut_down(error: OSError, how: int, make: Callable[..., Harness]) -> None:
    """It is found out, soon where it looks empty, and told once; and once more when somebody has come after all."""
    told: list[bool] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("")
        listener.listen()
        harness = make(on_shut=told.append)
        harness.server.listener = listener
        assert [harness.serve(error) for _ in range(100)] == [Accepted.NOTHING] * 100
        listener.shutdown(how)
        outcomes = [harness.serve(error) for _ in range(100)]
        first = outcomes.index(Accepted.SHUT)
        assert first < IN_VAIN
        assert outcomes[first:] == [Accepted.SHUT] * (100 - first)
        assert told == [True]
        for _ in range(2):
            harness.serve("completed")
            assert told == [True, False]


@pytest.mark.parametrize("error", [INVALID, NOTHING_NOW])
def test_left_alone_where_nobody_is_told(error: OSError, harness: Harness) -> None:
    """There is a pause, with the reason, at each accept that finds it shut down."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("")
        listener.listen()
        listener.shutdown(socket.SHUT_RDWR)
        harness.server.listener = listener
        outcomes = [harness.serve(error) for _ in range(IN_VAIN)]
        assert outcomes[-1] is Accepted.NO_RESOURCES
        assert harness.lanes.why_short() == "the listener was shut down"


def test_its_connection_is_closed(make: Callable[..., Harness]) -> None:
    """Only the frame of the call holds it."""
    harness = make(guarded=True)
    gone: list[None] = []

    class Connection:
        def __del__(self) -> None:
            gone.append(None)

    def get_request() -> Any:
        connection = Connection()
        raise SaysNothing(id(connection))

    error = SaysNothing()
    try:
        get_request()
    except SaysNothing as exc:
        error = exc
    assert gone == []
    assert harness.lanes._not_accepted.count_unexpected(error) is Accepted.NOTHING
    assert gone == [None]


def test_without_a_guard(harness: Harness) -> None:
    """What is no OSError ends the loop, as in the standard library; the lane is free."""
    with pytest.raises(SaysNothing):
        harness.serve(SaysNothing())
    assert harness.slot.lane(0)[STATE] == IDLE
    assert harness.lanes.all_free()


@pytest.mark.parametrize("elsewhere", [True, False])
@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), RuntimeError("of the program")])
def test_a_request_that_could_not_be_begun(error: Exception, elsewhere: bool, make: Callable[..., Harness]) -> None:
    """Where there was no thread for it the listener is left alone for a while. It has failed, its error is told before
    it is closed, and its lane comes back."""
    harness = make(elsewhere=elsewhere)
    seen: list[tuple[str, int]] = []
    failed = harness.slot.lane(0)[FAILED:REJECTED]

    def process(request: object, client_address: object) -> None:
        raise error

    server: Any = harness.server
    server.process_request = process
    server.handle_error = lambda *arguments: seen.append(("told", failed[0]))
    server.look = lambda: seen.append(("looked", failed[0]))
    lane = harness.lanes.take()
    assert lane is not None
    outcome = harness.lanes.serve_one(server, lane, NOW_NS)
    assert outcome is (Accepted.NOT_BEGUN if elsewhere and "thread" in str(error) else Accepted.REQUEST)
    assert seen[-2:] == [("told", 1), ("looked", 1)]
    assert harness.counts() == {"failed": 1}
    assert harness.lanes.all_free(held=None if elsewhere else lane)
    failed.release()
    lane.release()


def test_what_is_counted_before_the_end(harness: Harness) -> None:
    """A rejection, and the failure of one that exits, before the connection is closed."""
    seen: list[dict[str, int]] = []
    harness.server.shutdown_request = lambda request: seen.append(harness.counts())  # type: ignore[method-assign]
    harness.serve("rejected")
    with pytest.raises(SystemExit):
        harness.serve("verify exits")
    assert seen == [{"rejected": 1}, {"rejected": 1, "failed": 1}]


@pytest.mark.parametrize("will", ["completed", "failed"])
def test_the_duration_is_that_of_the_request(will: str, harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """From `started_ns` to its end, in nanoseconds; it is in the histogram after it is in the count."""
    lane, seen = harness.slot.lane(0), []

    class Durations:
        @staticmethod
        def observe(lane: Any, duration_ns: int) -> None:
            seen.append((duration_ns, lane[COMPLETED] + lane[FAILED]))

    monkeypatch.setattr(module, "DURATION", Durations)
    monkeypatch.setattr(module, "monotonic_ns", lambda: NOW_NS + 777)
    harness.lanes.unbind(harness.server)
    harness.lanes.bind(harness.server)
    harness.serve(will)
    assert seen == [(777, 1)]
    assert lane[STATE] == IDLE


def test_how_long_it_waited_is_asked_now_and_then(
    make: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the first connection, and then of one every five milliseconds; the kernel may not know."""
    known: list[int | None] = [3_000_000, None, 4_000_000]
    monkeypatch.setattr(module, "queue_wait_ns", lambda request: known.pop(0))
    harness = make(queue_waits=True)
    lane = harness.slot.lane(0)
    for now_ns, left, waited in (
        (NOW_NS, 2, 3_000_000), (NOW_NS + 4_999_999, 2, 3_000_000), (NOW_NS + 5_000_000, 1, 3_000_000),
        (NOW_NS + 9_999_999, 1, 3_000_000), (NOW_NS + 10_000_000, 0, 7_000_000),
    ):  # fmt: skip
        taken = harness.lanes.take()
        assert taken is not None
        harness.lanes.serve_one(harness.server, taken, now_ns)
        harness.lanes.give_back(taken)
        assert (len(known), lane[QUEUE_WAIT.end - 1]) == (left, waited)
    assert make().serve("completed") is Accepted.REQUEST, "nobody asks where that is not wanted"


@pytest.mark.parametrize(("will", "status"), [("completed", 0), ("exits", 3), ("failed", 1)])
def test_a_process_that_a_handler_forks(will: str, status: int, harness: Harness, stray_ends: list[int]) -> None:
    """Ends with the handler, with its status, and counts nothing: its parent does."""

    def forked() -> None:
        harness.lanes.forked = True

    harness.server.will = will
    harness.server.look = forked
    lane = harness.lanes.take()
    assert lane is not None
    with pytest.raises(Stray):
        harness.lanes.serve_one(harness.server, lane, NOW_NS)
    harness.lanes.give_back(lane)
    assert stray_ends[0] == status
    assert harness.counts() == {}


@pytest.mark.parametrize("before", [False, True])
def test_a_process_that_a_thread_forks(before: bool, make: Callable[..., Harness], stray_ends: list[int]) -> None:
    """Ends where the thread would; one that was forked before, and serves by itself, goes on."""
    harness = make(elsewhere=True)
    lanes = harness.lanes
    lanes.forked = before

    def process(request: object, client_address: object) -> None:
        lanes.forked = True

    lanes._body = ThreadBody(SimpleNamespace(process_request_thread=process))
    if before:
        lanes._carry(None, object(), "somebody")
        assert stray_ends == []
    else:
        with pytest.raises(Stray):
            lanes._carry(None, object(), "somebody")
        assert stray_ends == [0]


def test_in_a_process_that_the_program_forks_requests_are_its_parents(make: Callable[..., Harness]) -> None:
    """Neither the one in hand nor those that wait for a thread are counted there."""
    harness = make(lanes=2, elsewhere=True)
    server: Any = harness.server
    request = server.request

    def process(*arguments: object) -> None:
        user_forks._after_fork()
        server.finish_request(*arguments)

    server.process_request = process
    lane = harness.lanes.take()
    assert lane is not None
    harness.lanes.serve_one(server, lane, NOW_NS)
    server.close_request(request)
    assert harness.counts() == {}
    assert not harness.lanes.all_free()


def test_the_lane_of_a_request_that_is_closed_at_once(make: Callable[..., Harness]) -> None:
    """It comes back by the close, and the request counts as handed over, unless it counts as something else."""
    harness = make(elsewhere=True)
    server: Any = harness.server
    for will, counted in (
        ("completed", "handed_over"), ("rejected", "rejected"), ("verify raises", "failed"), ("rejected", "rejected"),
    ):  # fmt: skip
        server.process_request = lambda request, address: server.close_request(request)
        before = harness.counts()
        lane = harness.lanes.take()
        assert lane is not None
        server.will = will
        harness.lanes.serve_one(server, lane, NOW_NS)
        grown = {name: count - before.get(name, 0) for name, count in harness.counts().items()}
        assert {name: count for name, count in grown.items() if count} == {counted: 1}
        assert harness.lanes.all_free()


def test_who_finds_one_left_is_told(harness: Harness) -> None:
    """A drain that asks whether all are free hears of the next that comes back, once."""
    for asked, told in ((False, 0), (True, 1), (False, 1)):
        lane = harness.lanes.take()
        assert lane is not None
        if asked:
            assert not harness.lanes.all_free()
        harness.lanes.give_back(lane)
        assert harness.freed == told


class Threaded(ThreadingMixIn, Server):
    """A thread for each."""


@given(st.lists(st.sampled_from(["completed", "failed", "rejected", "verify raises"]), max_size=12))
def test_threads_account_for_every_request(wills: list[str]) -> None:
    """However requests end in threads, every lane comes back and accepted = completed + failed + rejected."""
    slot = Slot(3)
    server = Threaded()
    server.will = ""
    lanes = Lanes(slot, elsewhere=True, on_free=lambda: None)
    lanes.bind(server)
    for will in wills:
        server.will = will
        lane = lanes.take()
        assert lane is not None
        lanes.serve_one(server, lane, NOW_NS)
        server._prefork_.threads.join()  # one at a time, so that each does what it was told
    assert lanes.all_free()
    totals = {name: sum(slot.lane(index)[word] for index in range(3)) for name, word in COUNTS.items()}
    failed = sum(will in ("failed", "verify raises") for will in wills)
    expected = {"completed": wills.count("completed"), "failed": failed, "rejected": wills.count("rejected")}
    assert totals == {**expected, "handed_over": 0}
    assert sum(slot.lane(index)[ACCEPTED] for index in range(3)) == len(wills)
    slot.close()


def test_a_lane_is_idle_before_anybody_can_have_it(harness: Harness) -> None:
    """Another thread takes it the moment that it is free."""
    lane = harness.lanes.take()
    assert lane is not None
    lane[STATE] = BUSY
    states: list[int] = []

    class Free(deque[Any]):
        def append(self, each: Any) -> None:
            states.append(each[STATE])
            super().append(each)

    harness.lanes.free = Free()
    harness.lanes.give_back(lane)
    assert states == [IDLE]
