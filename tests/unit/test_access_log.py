"""What a record of a request says, of real connections and by a clock of the test's."""

import logging
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from prefork.metrics.log_events import LogEvent
from prefork.metrics.scoreboard import COMPLETED, FAILED, HANDED_OVER, REJECTED, Slot
from prefork.workers import access_log
from prefork.workers.access_log import FIELDS, AccessLog, LogContext
from prefork.workers.kept import Kept
from prefork.workers.stay import KeptSocket, Stay
from tests.support.programs.serving import HUNG

US, MS = 1000, 1_000_000
Pair = tuple[socket.socket, socket.socket]


class Written:
    """An access log whose values are kept in place of being written; `by_template`: nothing else would see them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, keeps: bool = False, in_order: bool = False) -> None:
        self.values: list[dict[str, Any]] = []
        self.by_template = True
        self.now_ns = 7 * 10**9
        self.waited_ns: int | None = 3_000_000
        self.asked = 0
        monkeypatch.setattr(access_log, "monotonic_ns", lambda: self.now_ns)
        monkeypatch.setattr(access_log, "queue_wait_ns", self._ask)
        self.log = AccessLog(LogContext("here", 3, "at {}".format, keeps, in_order))
        monkeypatch.setattr(self.log._template, "write", self._write)

    def _ask(self, request: Any) -> int | None:
        self.asked += 1
        return self.waited_ns

    def _write(self, values: tuple[Any, ...]) -> bool:
        self.values.append(dict(zip(self.log.varying, values, strict=True)))
        return self.by_template


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[Written]:
    level = access_log.log.level
    yield Written(monkeypatch)
    access_log.log.setLevel(level)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[Written]:
    level = access_log.log.level
    yield Written(monkeypatch, keeps=True)
    access_log.log.setLevel(level)


@pytest.fixture
def ordered(monkeypatch: pytest.MonkeyPatch) -> Iterator[Written]:
    level = access_log.log.level
    yield Written(monkeypatch, in_order=True)
    access_log.log.setLevel(level)


@pytest.fixture
def pair() -> Iterator[Pair]:
    """The service's end of a TCP connection, with five bytes received and three sent, and the client's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname(), HUNG)
        request, _ = listener.accept()
    with request, client:
        client.sendall(b"hello")
        assert request.recv(5, socket.MSG_WAITALL) == b"hello"
        request.sendall(b"bye")
        yield request, client


@pytest.fixture
def slot() -> Iterator[Slot]:
    slot = Slot(2)
    yield slot
    slot.close()


@pytest.fixture
def lane(slot: Slot) -> memoryview:
    return slot.lane(0)


def test_the_values(written: Written, pair: Pair, lane: memoryview) -> None:
    """Peer, outcome, duration to the microsecond, the kernel's bytes, and the wait in whole milliseconds."""
    written.log.begin(lane, pair[0], "a client")
    written.now_ns += 1234 * US + 999
    written.log.end(lane, COMPLETED, pair[0])
    wanted = ("at a client", "ok", 1.234, 5, 3, 3)
    assert written.values == [dict(zip(written.log.varying, wanted, strict=True))]


@pytest.mark.parametrize(
    ("outcome", "word"), [(COMPLETED, "ok"), (FAILED, "error"), (REJECTED, "rejected"), (HANDED_OVER, "handed_over")]
)
def test_outcomes(written: Written, pair: Pair, lane: memoryview, outcome: int, word: str) -> None:
    """Each has its word; a request of which nobody knows at its end is the one that was accepted."""
    written.log.begin(lane, pair[0], "a client")
    written.log.end(lane, outcome)
    (values,) = written.values
    assert (values["outcome"], values["received"], values["sent"]) == (word, 5, 3)


def test_the_request_that_the_handler_was_given(written: Written, pair: Pair, lane: memoryview) -> None:
    """Its bytes are told, where the program has made another of what was accepted."""
    ours, peer = socket.socketpair()
    with ours, peer:
        written.log.begin(lane, ours, "a client")
        written.log.end(lane, COMPLETED, pair[0])
    assert written.values[0]["received"] == 5


def test_a_request_is_not_kept(written: Written, lane: memoryview) -> None:
    """What the program has dropped closes, and its bytes are unknown."""
    ours, peer = socket.socketpair()
    with peer:
        written.log.begin(lane, ours, "a client")
        fd = ours.fileno()
        with pytest.warns(ResourceWarning, match="unclosed"):
            del ours
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
        written.log.end(lane, HANDED_OVER)
    assert (written.values[0]["received"], written.values[0]["sent"]) == (None, None)


@pytest.mark.parametrize(
    ("waited_ns", "after_ns", "asked"),
    [(0, 0, 1), (0, 999_999, 1), (0, 1_000_000, 2), (600_000, 399_999, 1), (600_000, 400_000, 2), (MS, 0, 2),
     (80 * MS, 0, 2), (None, 0, 2)],
)  # fmt: skip
def test_a_wait_that_cannot_have_been_long(
    waited_ns: int | None, after_ns: int, asked: int, ordered: Written, pair: Pair, lane: memoryview
) -> None:
    """Connections are accepted in the order in which they have come: for one that is accepted within a millisecond
    after the one before it came, nobody asks."""
    ordered.waited_ns = waited_ns
    ordered.log.begin(lane, pair[0], "a client")
    ordered.log.end(lane, COMPLETED, pair[0])
    ordered.now_ns += after_ns
    ordered.waited_ns = 4 * MS
    for number in range(3):
        ordered.log.begin(lane, pair[0], "a client")
        ordered.log.end(lane, COMPLETED, pair[0])
        assert ordered.values[-1]["queue_wait_ms"] == (0 if asked == 1 else 4)
        assert ordered.asked == (1 if asked == 1 else 2 + number)


def test_a_wait_where_the_order_is_not_known(written: Written, pair: Pair, lane: memoryview) -> None:
    """Where threads accept, each is asked about: another one may have accepted an earlier connection, and tell of it
    later."""
    for waited_ms in (0, 4):
        written.waited_ns = waited_ms * MS
        written.log.begin(lane, pair[0], "a client")
        written.log.end(lane, COMPLETED, pair[0])
    assert [each["queue_wait_ms"] for each in written.values] == [0, 4]


def test_a_datagram(written: Written, lane: memoryview) -> None:
    """Its length is what was received; no wait is known, and nobody asks for it."""
    written.log.begin(lane, (b"1234567", None), "a client")
    written.log.end(lane, COMPLETED)
    (values,) = written.values
    assert (values["received"], values["sent"], values["queue_wait_ms"]) == (7, None, None)
    assert written.asked == 0


def test_a_client_without_an_address(written: Written, lane: memoryview) -> None:
    """It is its process."""
    ours, peer = socket.socketpair()
    with ours, peer:
        written.log.begin(lane, ours, "")
        written.log.end(lane, COMPLETED)
    assert written.values[0]["peer"] == f"pid={os.getpid()} uid={os.getuid()}"


def test_each_lane_has_its_own(written: Written, pair: Pair, slot: Slot) -> None:
    """Requests in hand do not meet, and none is told twice."""
    first, second = slot.lane(0), slot.lane(1)
    written.log.begin(first, pair[0], "first")
    written.now_ns += 5 * US
    written.log.begin(second, pair[0], "second")
    for lane in (second, first, first, second):
        written.log.end(lane, COMPLETED)
    assert [(each["peer"], each["duration_ms"]) for each in written.values] == [("at second", 0.0), ("at first", 0.005)]


def test_where_logging_has_to_do_it(
    written: Written, pair: Pair, lane: memoryview, caplog: pytest.LogCaptureFixture
) -> None:
    """The record has the same values, as fields in their order and in its message; else there is none."""
    for by_template, client in ((True, "another"), (False, "a client")):
        written.by_template = by_template
        written.log.begin(lane, pair[0], client)
        written.log.end(lane, COMPLETED)
    (record,) = caplog.records
    found = vars(record)
    assert (record.levelno, found["event"]) == (logging.INFO, LogEvent.REQUEST)
    assert tuple(found["fields"]) == FIELDS
    assert found["fields"] == written.values[1] | {"listener": "here", "slot": 3}
    assert record.getMessage() == (
        'request listener=here peer="at a client" slot=3 outcome=ok duration_ms=0.0 received=5 sent=3 queue_wait_ms=3'
    )


# Where connections are kept.


def kept_over(request: socket.socket, requests: int = 0) -> tuple[KeptSocket, Stay]:
    """The same connection as one that is kept, which has had so many requests before this stay."""
    over = KeptSocket(fileno=request.detach())
    over.stay = Stay(Kept(requests=requests), lambda stay: None)
    return over, over.stay


def told(written: Written) -> list[tuple[Any, ...]]:
    return [
        tuple(each[name] for name in ("request_number", "received", "sent", "queue_wait_ms")) for each in written.values
    ]


def test_each_request_of_a_kept_connection(kept: Written, pair: Pair, lane: memoryview) -> None:
    """It has its number, and the bytes that were read and written for it alone: not what was there before, nor what has
    come of the next one and nobody has read. How long the connection waited in the kernel nobody can know by now."""
    request, client = pair
    kept_one, stay = kept_over(request, requests=7)
    with kept_one:
        for at in (1, 2, 3):
            client.sendall(b"x" * at + b"next")
            assert kept_one.recv(at, socket.MSG_PEEK | socket.MSG_WAITALL) == b"x" * at
            kept.log.begin(lane, kept_one, "one")
            kept_one.recv(at, socket.MSG_WAITALL)
            kept_one.sendall(b"answer" * at)
            stay.next_request()
            kept.log.end(lane, COMPLETED, kept_one)
            assert kept_one.recv(4, socket.MSG_WAITALL) == b"next"
    assert told(kept) == [(8, 1, 6, None), (9, 2, 12, None), (10, 3, 18, None)]


def test_the_first_request_of_a_connection_that_may_be_kept(kept: Written, pair: Pair, lane: memoryview) -> None:
    """Begun at the accept it has its wait too; its bytes are all that the connection has."""
    request, _ = pair
    kept.log.begin(lane, request, "one")
    kept_one, _ = kept_over(request)
    kept.log.admit(lane, kept_one, "another")
    kept.log.end(lane, FAILED, kept_one)
    kept_one.close()
    assert told(kept) == [(1, 5, 3, 3)]
    assert (kept.values[0]["peer"], kept.values[0]["outcome"]) == ("at another", "error")


def test_what_has_no_number(kept: Written, pair: Pair, lane: memoryview) -> None:
    """A connection that stays with its worker, as under TLS, and one that was closed before anybody asked."""
    kept.log.begin(lane, pair[0], "one")
    kept.log.end(lane, COMPLETED, pair[0])
    kept_one, _ = kept_over(pair[0])
    kept.log.begin(lane, kept_one, "one")
    kept_one.close()
    kept.log.end(lane, COMPLETED, kept_one)
    assert told(kept) == [(None, 5, 3, 3), (1, None, None, None)]


def test_the_number_in_the_record(
    kept: Written, pair: Pair, lane: memoryview, caplog: pytest.LogCaptureFixture
) -> None:
    """It is the last field, in the message and beside it."""
    kept.by_template = False
    kept_one, _ = kept_over(pair[0], requests=41)
    with kept_one:
        kept.log.begin(lane, kept_one, "one")
        kept.log.end(lane, COMPLETED, kept_one)
    (record,) = caplog.records
    assert tuple(vars(record)["fields"]) == (*FIELDS, "request_number")
    assert record.getMessage().endswith(" received=0 sent=0 queue_wait_ms=- request_number=42")
