"""The queues of kept connections as the master has them, and which servers have any."""

import functools
import os
import select
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from prefork.master.kept_queues import KeptQueues
from prefork.metrics.board import Board, Word, listener_word
from prefork.metrics.facts import ChildKind, CloseReason
from prefork.metrics.scoreboard import CLOSED, COUNTS
from prefork.workers.keeps import KeepsConnections, keeps
from prefork.workers.kept import Kept, Queues


class Keeping(KeepsConnections):
    """A handler class whose connections may be kept."""


def server(handler: Any, kind: int = socket.SOCK_STREAM) -> Any:
    made: Any = type("Server", (), {"socket_type": kind})()
    made.RequestHandlerClass = handler
    return made


@pytest.mark.parametrize(
    ("served", "kept"),
    [
        (server(Keeping), True),
        (server(functools.partial(functools.partial(Keeping))), True),
        (server(Keeping, socket.SOCK_DGRAM), False),
        (server(lambda *args: None), False),
        (server(object), False),
        (object(), False),
    ],
)
def test_who_keeps(served: Any, kept: bool) -> None:
    """A stream server does whose handler class is of that kind, also one with arguments of its own."""
    assert keeps(served) is kept


@pytest.fixture
def made() -> Iterator[KeptQueues]:
    kept = KeptQueues(True, None)
    yield kept
    kept.close()


def queues_of(kept: KeptQueues) -> Queues:
    assert kept.queues is not None
    return kept.queues


def open_ends(kept: Queues) -> set[str]:
    return {name for name, end in zip(kept._fields, kept, strict=True) if end.fileno() != -1}


def test_none_where_nothing_is_kept() -> None:
    """No descriptor is taken, and nothing is handed on."""
    kept = KeptQueues(False, None)
    assert (kept.queues, kept.ready, kept.pack()) == (None, None, (None, []))
    kept.keep_ends_of(ChildKind.WORKER)
    kept.close()


def test_they_are_handed_on(made: KeptQueues) -> None:
    """The next image goes on with the same, whether it keeps connections or not: what is on its way arrives."""
    queues_of(made).ready_in.sock.send(b"before")
    packed, fds = made.pack()
    assert packed is not None
    assert fds == [end.fileno() for end in queues_of(made)]
    again = {"fds": [os.dup(fd) for fd in packed["fds"]]}
    resumed = KeptQueues(False, again)
    assert queues_of(resumed).ready_out.sock.recv(99) == b"before"
    resumed.close()
    assert resumed.queues is None


@pytest.mark.parametrize(
    ("kind", "left"),
    [
        (ChildKind.WORKER, {"park_in", "ready_out"}),
        (ChildKind.HOLDER, {"park_in", "park_out", "ready_in"}),
        (ChildKind.EXPORTER, set()),
        (ChildKind.COMPANION, set()),
        (ChildKind.SERVER, set()),
    ],
)
def test_the_ends_of_a_child(kind: ChildKind, left: set[str], made: KeptQueues) -> None:
    """Each kind keeps the ends that it uses; one that uses none has no queues either."""
    queues = queues_of(made)
    made.keep_ends_of(kind)
    assert open_ends(queues) == left
    assert (made.queues is None) is (not left)


def test_what_is_left_at_the_end(made: KeptQueues) -> None:
    """What is still on its way in either queue is closed, its client sees that, and it is counted for its listener, if
    there can be such a one."""
    board, queues = Board(), queues_of(made)
    clients, copies = [], []
    for end, listener in ((queues.park_in, 0), (queues.ready_in, 2), (queues.ready_in, 2), (queues.ready_in, 16)):
        client, kept = socket.socketpair()
        clients.append(client)
        assert end.send(Kept(listener, client_address=("127.0.0.1", 1)).encoded(), kept.fileno())
        copies.append(kept)  # as a process of the program's may have one
    queues.ready_in.sock.send(b"no message of ours")
    made.close_left(board)
    for client in clients:
        assert client.recv(1) == b""
    for each in (*clients, *copies):
        each.close()
    word = CLOSED + CloseReason.DRAINED - COUNTS.start
    assert board.words[Word.LANES_DEAD + word] == 4
    assert [board.words[listener_word(number, word)] for number in (0, 1, 2)] == [1, 0, 2]
    poll = select.poll()
    poll.register(queues.ready_out.fileno(), select.POLLIN)
    assert poll.poll(0) == []
    board.forget()


def test_what_the_program_has_closed(made: KeptQueues) -> None:
    """Nothing is raised where an end is closed already."""
    board = Board()
    for end in queues_of(made):
        os.close(os.dup(end.fileno()))
        end.sock.close()
    made.close_left(board)
    made.close()
    board.forget()
