"""Lanes: what one request writes, in which order, whatever becomes of it; and that each lane comes back once."""

import errno
import os
from collections import deque
from collections.abc import Callable, Iterator
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
    REJECTED,
    STARTED_NS,
    STATE,
    Slot,
)
from prefork.workers.accepting import Accepted
from prefork.workers.lanes import Lanes

COUNTS = {"completed": COMPLETED, "failed": FAILED, "rejected": REJECTED, "handed_over": HANDED_OVER}
NOW_NS = 5_000


class Server(BaseServer):
    """Serves what the test says, from no socket."""

    look: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self) -> None:
        super().__init__("nowhere", lambda request, client_address, server: None)
        self.will: str | OSError = "completed"
        self.shut: list[Any] = []
        self.errors: list[Any] = []

    def get_request(self) -> Any:
        self.look()
        if isinstance(self.will, OSError):
            raise self.will
        return object(), "somebody"

    def verify_request(self, request: Any, client_address: Any) -> bool:
        self.look()
        if self.will == "verify raises":
            raise RuntimeError(self.will)
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

    harness.lanes._free = Free()
    harness.lanes.give_back(lane)
    assert states == [IDLE]
