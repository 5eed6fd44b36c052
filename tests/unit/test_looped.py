"""A connection in its handler's loop: its requests are counted one by one, and at a drain it is over once it rests."""

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from prefork import KeepAliveMixIn, StreamRequestHandler, TCPServer
from prefork.metrics.facts import CloseReason
from prefork.metrics.scoreboard import (
    ACCEPTED,
    CLOSED,
    COMPLETED,
    FAILED,
    IDLE,
    IN_HAND,
    OPENED,
    STARTED_NS,
    STATE,
    Slot,
)
from prefork.workers import idle_waits, looped
from prefork.workers.accepting import Accepted
from prefork.workers.lanes import Lanes
from prefork.workers.looped import LoopTerms, of_this_thread
from prefork.workers.straight import way_of
from tests.support.clients.connections import HUNG

NAMES = {"accepted": ACCEPTED, "completed": COMPLETED, "failed": FAILED, "opened": OPENED, "in_hand": IN_HAND}
NAMES |= {reason.name.lower(): CLOSED + reason for reason in CloseReason}


class Line(KeepAliveMixIn, StreamRequestHandler):
    """Notes what its lane says in each request."""

    def handle_one_request(self) -> None:
        line = self.rfile.readline()
        self.server.seen.append(self.server.words())
        self.wfile.write(line)
        self.close_connection = line == b"quit\n"
        if line == b"raise\n":
            raise KeyError(line)


class Served(TCPServer):
    """A server of one lane, whose connections nobody keeps."""

    handler: type = Line

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), self.handler)
        self.keepalive_timeout: float | None = HUNG
        self.seen: list[dict[str, int]] = []
        self.errors: list[Any] = []
        self.slot = Slot(1)
        self.lane = self.slot.lane(0)
        self.lanes = Lanes(self.slot, elsewhere=False, on_free=lambda: None)
        self.lanes.bind(self)

    def words(self) -> dict[str, int]:
        return {name: self.lane[word] for name, word in NAMES.items() if self.lane[word]}

    def handle_error(self, request: Any, client_address: Any) -> None:
        self.errors.append(request)

    def serve(self, *sent: bytes, ends: bool = True) -> bytes:
        """What a client gets that has sent this before it is accepted."""
        with socket.create_connection(self.server_address, HUNG) as client:
            for each in sent:
                client.sendall(each)
            if ends:
                client.shutdown(socket.SHUT_WR)
            assert way_of(self.lanes, self)(self, self.lane, 1) is Accepted.REQUEST
            assert of_this_thread() is None
            assert self.lane[STATE] == IDLE
            with client.makefile("rb") as file, contextlib.suppress(ConnectionResetError):
                return file.read()
        return b""


@pytest.fixture
def server() -> Iterator[Served]:
    with Served() as made:
        yield made
        made.lanes.unbind(made)
        made.lane.release()
        del made.lanes, made.lane
        made.slot.close()


def test_each_request_is_counted(server: Served) -> None:
    """When it begins and when it ends, with its own duration; the connection beside them."""
    assert server.serve(b"one\ntwo\n") == b"one\ntwo\n"
    assert server.seen == [
        {"accepted": 1, "opened": 1, "in_hand": 1},
        {"accepted": 2, "opened": 1, "in_hand": 1, "completed": 1},
    ]
    assert server.words() == {"accepted": 2, "completed": 2, "opened": 1, "client": 1}
    assert server.errors == []


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"one\nquit\nmore\n", {"accepted": 2, "completed": 2, "opened": 1, "handler": 1}),
        (b"one\nraise\nmore\n", {"accepted": 2, "completed": 1, "failed": 1, "opened": 1, "handler": 1}),
        (b"raise\n", {"accepted": 1, "failed": 1, "opened": 1, "handler": 1}),
        (b"", {"accepted": 1, "completed": 1, "opened": 1, "client": 1}),
    ],
)
def test_how_it_ends(server: Served, sent: bytes, words: dict[str, int]) -> None:
    """By the handler, by an error, or without a word, which is one request that was accepted."""
    server.serve(sent)
    assert server.words() == words
    assert len(server.errors) == words.get("failed", 0)


def test_an_idle_client(server: Served) -> None:
    """Is counted as such, not as a longer request."""
    server.keepalive_timeout = 0.05
    server.serve(b"one\n", ends=False)
    assert server.words() == {"accepted": 1, "completed": 1, "opened": 1, "idle_timeout": 1}


def test_an_error_while_it_rests(server: Served) -> None:
    """Is no request's; the server handles it."""

    class Failing(Line):
        def connection_closed(self) -> None:
            raise KeyError("closed")

    server.RequestHandlerClass = Failing
    server.serve(b"one\n")
    assert server.words() == {"accepted": 1, "completed": 1, "opened": 1, "client": 1}
    assert len(server.errors) == 1


def test_a_drain(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in hand and what is there is answered; then the connection is over, though its client waits."""
    monkeypatch.setattr(idle_waits, "LOOK_S", 0.01)
    server.lanes.loops = LoopTerms(lambda: True)
    assert server.serve(b"one\ntwo\n", ends=False) == b"one\ntwo\n"
    assert server.words() == {"accepted": 2, "completed": 2, "opened": 1, "drained": 1}


def test_that_it_is_alive(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is written while it rests, so that nobody takes that for a long request; and the limits are told each request."""
    monkeypatch.setattr(idle_waits, "LOOK_S", 0.01)
    seen: list[int] = []
    told: list[None] = []

    def draining() -> bool:
        seen.append(server.lane[STARTED_NS])
        return len(seen) == 3

    server.lanes.loops = LoopTerms(draining, lambda: told.append(None))
    server.serve(b"one\ntwo\n", ends=False)
    assert seen == sorted(set(seen))
    assert len(told) == 1


def test_a_class_that_keeps_nothing(server: Served) -> None:
    """Is counted as ever."""
    server.lanes.unbind(server)
    server.RequestHandlerClass = StreamRequestHandler
    server.lanes.bind(server)
    server.serve(b"one\n")
    assert server.words() == {"accepted": 1, "completed": 1}


def test_in_another_thread() -> None:
    """There is nothing that counts."""
    assert looped.of_this_thread() is None


def test_a_drain_and_a_client_that_has_said_nothing(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is waited for a moment, for its bytes may be on their way."""
    monkeypatch.setattr(idle_waits, "LOOK_S", 0.01)
    server.lanes.loops = LoopTerms(lambda: True)
    assert server.serve(ends=False) == b""
    assert server.words() == {"accepted": 1, "completed": 1, "opened": 1, "drained": 1}
