"""The control socket in one process: what goes wrong in an answer is that client's alone, and so is what is slow."""

import contextlib
import json
import logging
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefork.commands import BY_VERB, Command
from prefork.control.access import ControlTerms, bind_control
from prefork.control.client import Client, Refused
from prefork.control.connection import Peer
from prefork.control.protocol import Request
from prefork.control.server import ControlServer
from prefork.control.verbs import Answer, PlaceInQueue, Work
from prefork.errors import PreforkError
from prefork.metrics.board import Board


class Faulty:
    """A verbs that makes a mistake: at once, in what it says, or after a while."""

    def answer(self, request: Request, peer: Peer, place: PlaceInQueue) -> Answer | Work:
        match request.row.command:
            case Command.STATUS:
                raise ZeroDivisionError
            case Command.WORKERS:
                return {"ok": True, "result": {"peers": [b"no JSON"]}}
            case Command.STACKS:
                return self._after_a_while()
        return {"ok": True, "result": {}}

    def _after_a_while(self) -> Work:
        yield None
        raise KeyError("slot")


class Wordy:
    """A verbs whose answer to `scale` is as many kilobytes as were asked for, and to `drain` never comes."""

    def __init__(self) -> None:
        self.asked = 0

    def answer(self, request: Request, peer: Peer, place: PlaceInQueue) -> Answer | Work:
        self.asked += 1
        if request.row.command is Command.DRAIN:
            return self._for_ever()
        return {"ok": True, "result": "x" * 1000 * int(request.argument or 0)}

    def _for_ever(self) -> Work:
        while True:
            yield None


@contextlib.contextmanager
def listening(verbs: Any) -> Iterator[ControlServer]:
    """At "c" in the current folder."""
    board = Board()
    terms = ControlTerms.read("c", 0o600, None, None, None)
    control = ControlServer(terms, bind_control(terms), verbs, board)
    try:
        yield control
    finally:
        control.close()
        board.forget()


@pytest.fixture
def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ControlServer]:
    monkeypatch.chdir(tmp_path)
    with listening(Faulty()) as control:
        yield control


@pytest.fixture
def wordy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ControlServer, Wordy]]:
    monkeypatch.chdir(tmp_path)
    verbs = Wordy()
    with listening(verbs) as control:
        yield control, verbs


def said(control: ControlServer, *verbs: str) -> list[bytes]:
    """What clients that ask for these, all at the same time, are told."""
    clients = []
    for verb in verbs:
        clients.append(socket.socket(socket.AF_UNIX))
        clients[-1].connect("c")
        clients[-1].sendall(json.dumps({"verb": verb}).encode() + b"\n")
    for now in range(4):
        control.turn(now / 1000)
    answers = []
    for client in clients:
        with client:
            client.settimeout(1)
            answers.append(client.recv(1000))
    return answers


def test_a_mistake_in_an_answer_is_that_clients_alone(control: ControlServer, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever asked is cut off, the mistake is in the log with its traceback, and all others are answered."""
    with caplog.at_level(logging.ERROR, "prefork.supervisor"):
        assert said(control, "status", "version", "workers", "stacks", "version") == [
            b"", b'{"ok":true,"result":{}}\n', b"", b"", b'{"ok":true,"result":{}}\n',
        ]  # fmt: skip
    assert [record.exc_info[0].__name__ for record in caplog.records if record.exc_info and record.exc_info[0]] == [
        "ZeroDivisionError", "TypeError", "KeyError",
    ]  # fmt: skip
    assert said(control, "version") == [b'{"ok":true,"result":{}}\n']


# Who is slow. The clock is the tests'.

VERSION = b'{"verb":"version"}\n'
SCALE = b'{"verb":"scale","workers":1000}\n'  # the answer is longer than what the kernel holds


@contextlib.contextmanager
def clients(count: int, control: ControlServer, now: float = 0.0) -> Iterator[list[socket.socket]]:
    """So many clients, each heard at `now`, one after the other."""
    with contextlib.ExitStack() as stack:
        found = []
        for number in range(count):
            found.append(stack.enter_context(socket.socket(socket.AF_UNIX)))
            found[-1].settimeout(1)
            found[-1].connect("c")
            control.turn(now + number / 1000)
        yield found


def answered_in_turn(control: ControlServer, client: socket.socket, now: float, line: bytes = VERSION) -> bytes:
    """Send a line, and return what is answered in the same turn."""
    client.sendall(line)
    control.turn(now)
    return client.recv(1000)


def cut(client: socket.socket) -> bool:
    """Say if the other end has been closed, whatever is still to be read."""
    poll = select.poll()
    poll.register(client, 0)
    return bool(poll.poll(0))


@pytest.mark.parametrize(
    ("says", "cut_at"), [(b"", 5.0), (VERSION[:9], 5.0), (VERSION, 7.0), (SCALE, 7.0), (b"nonsense\n", 7.0)]
)
def test_five_seconds(says: bytes, cut_at: float, wordy: tuple[ControlServer, Wordy]) -> None:
    """Who says nothing, or half a request, or does not take its answer, is cut five seconds later and not before; after
    an answer they begin anew."""
    control, _ = wordy
    with clients(1, control) as (client,):
        client.sendall(says)
        control.turn(2.0)
        assert control.turn(cut_at - 0.1) == cut_at  # when to come again
        assert not cut(client)
        control.turn(cut_at)
        assert cut(client)


@pytest.mark.parametrize(("takes", "cut_at"), [(300_000, 5.0), (1_000_000, 8.0)])
def test_an_answer_that_is_taken_slowly(takes: int, cut_at: float, wordy: tuple[ControlServer, Wordy]) -> None:
    """A part of an answer taken is no more time for the rest; only with the whole of it out five seconds begin anew."""
    control, _ = wordy
    with clients(1, control) as (client,):
        client.sendall(SCALE)
        control.turn(0.0)
        while takes > 0:
            takes -= len(client.recv(takes))
            control.turn(3.0)
        control.turn(cut_at - 0.1)
        assert not cut(client)
        control.turn(cut_at)
        assert cut(client)


def test_a_deaf_client(wordy: tuple[ControlServer, Wordy]) -> None:
    """Who asks on and on and never reads is read no more until its answer is out; others are answered in every turn,
    and nothing is to be done for it before its time is up."""
    control, verbs = wordy
    with clients(2, control) as (deaf, other):
        deaf.sendall(SCALE * 1000)
        for now in (1.0, 1.5, 2.0, 2.5):
            assert answered_in_turn(control, other, now) == b'{"ok":true,"result":""}\n'
            assert control.turn(now) > now
        assert verbs.asked == 1 + 4
        control.turn(6.0)
        assert cut(deaf)
        assert not cut(other)


def test_a_flood_of_requests(wordy: tuple[ControlServer, Wordy]) -> None:
    """Of one client at most seventeen requests are answered in a turn, and the next turn is at once."""
    control, verbs = wordy
    with clients(2, control) as (flood, other):
        flood.sendall(VERSION * 1000)
        assert answered_in_turn(control, other, 1.0)
        assert verbs.asked <= 17 + 1
        assert control.turn(1.0) == 1.0


def test_the_seventeenth_client(wordy: tuple[ControlServer, Wordy]) -> None:
    """Sixteen are heard; for one more whoever has been silent for longest goes, which is not who was answered since."""
    control, _ = wordy
    with clients(16, control) as sixteen:
        assert answered_in_turn(control, sixteen[0], 1.0)
        with clients(1, control, 2.0) as (new,):
            assert answered_in_turn(control, new, 2.0)
            assert [number for number, client in enumerate(sixteen) if cut(client)] == [1]
            assert all(answered_in_turn(control, client, 3.0) for client in sixteen if client is not sixteen[1])


def test_sixteen_that_wait(wordy: tuple[ControlServer, Wordy]) -> None:
    """Who waits for an answer is not silent: one more is told that there are sixteen, and nobody goes."""
    control, _ = wordy
    with clients(16, control) as sixteen:
        for client in sixteen:
            client.sendall(b'{"verb":"drain"}\n')
        control.turn(1.0)
        with clients(1, control, 60.0) as (new,):
            assert b'"there are 16 clients already"' in new.recv(1000)
        assert not any(map(cut, sixteen))


def test_who_is_turned_away_hears_why(wordy: tuple[ControlServer, Wordy]) -> None:
    """A client that is turned away before its request is out, while that is on its way, or after, says why."""
    control, _ = wordy
    with clients(16, control) as sixteen:
        for client in sixteen:
            client.sendall(b'{"verb":"drain"}\n')
        control.turn(1.0)
        with Client("c", 1.0) as early:
            control.turn(2.0)
            with pytest.raises(Refused, match="there are 16 clients already"):
                early.result(BY_VERB["status"])
        for _ in range(40):
            assert _refused_meanwhile(control) == "there are 16 clients already"


def _refused_meanwhile(control: ControlServer) -> str:
    """What a client is told that asks in a thread of its own, while the control socket takes its turns here."""
    said = []

    def ask_for_status() -> None:
        with Client("c", 1.0) as late:
            try:
                late.result(BY_VERB["status"])
            except PreforkError as exc:
                said.append(str(exc))

    thread = threading.Thread(target=ask_for_status)
    thread.start()
    while not said and thread.is_alive():
        control.turn(2.0)
    thread.join()
    return "".join(said)


def test_a_listener_that_cannot_be_heard_again(
    wordy: tuple[ControlServer, Wordy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried once a second, not in every turn."""
    control, _ = wordy
    epoll, control._accept_again_at = control._epoll, 5.0
    monkeypatch.setattr(control, "_epoll", select.epoll())
    control._epoll.close()
    control._listen_again(6.0)
    assert control._accept_again_at == 7.0
    control._epoll = epoll
