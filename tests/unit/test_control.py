"""The control socket in one process: what goes wrong in an answer is that client's alone."""

import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefork.commands import Command
from prefork.connections import Peer
from prefork.control import Control, Terms, bind
from prefork.desk import Answer, Place, Work
from prefork.frames import Request
from prefork.metrics.board import Board


class Faulty:
    """A desk that makes a mistake: at once, in what it says, or after a while."""

    def answer(self, request: Request, peer: Peer, place: Place) -> Answer | Work:
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


@pytest.fixture
def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Control]:
    monkeypatch.chdir(tmp_path)
    terms, board = Terms.read("c", 0o600, None, None, None), Board()
    desk: Any = Faulty()
    control = Control(terms, bind(terms), desk, board)
    yield control
    control.close()
    board.forget()


def said(control: Control, *verbs: str) -> list[bytes]:
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


def test_a_mistake_in_an_answer_is_that_clients_alone(control: Control, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever asked is cut off, the mistake is in the log with its traceback, and all others are answered."""
    with caplog.at_level(logging.ERROR, "prefork.supervisor"):
        assert said(control, "status", "version", "workers", "stacks", "version") == [
            b"", b'{"ok":true,"result":{}}\n', b"", b"", b'{"ok":true,"result":{}}\n',
        ]  # fmt: skip
    assert [record.exc_info[0].__name__ for record in caplog.records if record.exc_info and record.exc_info[0]] == [
        "ZeroDivisionError", "TypeError", "KeyError",
    ]  # fmt: skip
    assert said(control, "version") == [b'{"ok":true,"result":{}}\n']
