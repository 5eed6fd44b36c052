"""The control socket of a simulated pool: the real server and its verbs, real clients, and images that come and go."""

import contextlib
import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefork.commands import BY_VERB
from prefork.control import render
from prefork.control.access import ControlTerms, listen
from prefork.control.server import ControlServer, open_control
from prefork.master.policy import Limits, Phase
from prefork.master.service import Service
from prefork.master.supervisor import Supervisor
from prefork.metrics.board import Word, control_requests
from prefork.metrics.facts import ControlCommand, ControlResult
from prefork.metrics.log_events import LogEvent
from prefork.reload.handover import Handed
from prefork.reload.reloading import ReloadResult
from tests.support.programs.simulated_reload import Program, Reloadable
from tests.support.programs.simulation import LIMITS
from tests.support.tools.proc import no_descriptor_left

NOBODY_MAY = ControlTerms("c", 0o600, None, frozenset(), frozenset())


class Controlled(Reloadable):
    """A pool that can be asked at "c" in the current folder. `terms`: None, and the next image listens nowhere."""

    def __init__(self) -> None:
        self.terms: ControlTerms | None = NOBODY_MAY
        self.clients = contextlib.ExitStack()
        super().__init__(LIMITS)

    def image(self, service: Service, limits: Limits, handed: Handed | None = None, failed: str = "") -> Supervisor:
        if handed is not None:
            self.forget_control()
        supervisor = super().image(service, limits, handed, failed)
        packed = None if handed is None else handed.values.get("control")
        listener = None if self.terms is None else listen(self.terms, packed)
        open_control(supervisor, self.generations, self.terms, listener, packed)
        return supervisor

    @property
    def control(self) -> ControlServer:
        control = self.supervisor.tasks._control
        assert isinstance(control, ControlServer)
        return control

    def forget_control(self) -> None:
        """What an exec does to its objects: the descriptors are not theirs any more."""
        control = self.control
        control._epoll.close()
        control._listener.detach()
        for session in control._clients.values():
            session.connection.sock.detach()

    def client(self, path: str = "c") -> "Asking":
        return self.clients.enter_context(Asking(self, path))

    def counted(self, command: ControlCommand, result: ControlResult) -> int:
        return int(self.board.words[control_requests(command, result)])

    def rehearse(self) -> None:
        """The rehearsal that runs is ready, and the next image comes."""
        assert self.rehearsal is not None
        self.rehearsal.say(ready=True)
        self.rehearsal.exit()
        self.turn()

    def close(self) -> None:
        self.clients.close()
        super().close()


class Asking:
    """A client, and what it has been told."""

    def __init__(self, pool: Controlled, path: str = "c") -> None:
        self._pool = pool
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.connect(path)
        self._sock.setblocking(False)
        self._data = b""

    def __enter__(self) -> "Asking":
        return self

    def __exit__(self, *exc: object) -> None:
        self._sock.close()

    def say(self, text: bytes) -> list[dict[str, Any]]:
        self._sock.sendall(text)
        self._pool.advance(0.001)
        return self.told()

    def ask(self, verb: str, **arguments: Any) -> list[dict[str, Any]]:
        """The lines that come at once."""
        return self.say(json.dumps({"verb": verb, **arguments}).encode() + b"\n")

    def told(self) -> list[dict[str, Any]]:
        """The lines that have come since."""
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            while data := self._sock.recv(65536):
                self._data += data
        *lines, self._data = self._data.split(b"\n")
        return [json.loads(line) for line in lines]

    @property
    def cut(self) -> bool:
        try:
            return self._sock.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Controlled]:
    """Two workers, READY."""
    monkeypatch.chdir(tmp_path)
    pool = Controlled()
    pool.settle()
    yield pool
    pool.close()


OK, BAD, DENIED = ControlResult.OK, ControlResult.BAD, ControlResult.DENIED


# Who may what, and what is counted.


def test_what_is_counted(pool: Controlled) -> None:
    """Each request under its verb and its result; one that cannot be read under "other"."""
    client = pool.client()
    assert client.ask("status")[0]["ok"]
    assert client.ask("workers")[0]["ok"]
    assert client.ask("workers")[0]["ok"]
    assert not client.ask("scale", workers="many")[0]["ok"]
    assert not client.ask("nonsense")[0]["ok"]
    assert [pool.counted(command, OK) for command in (ControlCommand.STATUS, ControlCommand.WORKERS)] == [1, 2]
    assert pool.counted(ControlCommand.SCALE, BAD) == pool.counted(ControlCommand.OTHER, BAD) == 1
    assert pool.counted(ControlCommand.OTHER, DENIED) == 0


def test_who_may_only_look(pool: Controlled, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks are answered; whatever changes something is refused by name, counted, and not done."""
    monkeypatch.setattr("prefork.control.server.unix_peer", lambda sock: (4711, 54322))
    monkeypatch.setattr(pool.control, "_terms", ControlTerms("c", 0o600, None, frozenset(), frozenset({54322})))
    client = pool.client()
    assert client.ask("status")[0]["ok"]
    (refused,) = client.ask("scale", workers=5)
    assert refused["error"] == "could not scale: uid=54322 pid=4711 may only look"
    assert pool.counted(ControlCommand.SCALE, DENIED) == 1
    assert pool.supervisor.limits.max_children == 2
    assert client.ask("version")[0]["ok"], "the connection goes on"


def test_workers_beside_companions(pool: Controlled) -> None:
    """As many as there is room for can be asked for, and no more."""
    pool.supervisor.limits = pool.supervisor.limits._replace(room=7)
    client = pool.client()
    (refused,) = client.ask("scale", workers=8)
    assert refused["error"] == "could not scale: beside the companions there is room for 7 workers at most"
    assert client.ask("scale", workers=7)[0]["ok"]
    assert pool.supervisor.limits.max_children == 7


def test_what_became_of_the_last_reload(pool: Controlled) -> None:
    """`status` has it, with the reason where it failed; text names that only then. Requests handed over are counted."""

    def shown() -> tuple[dict[str, Any], str]:
        result = pool.client().ask("status")[0]["result"]
        return result, render.text(BY_VERB["status"], result)

    result, text = shown()
    assert [result[f"last_reload_{key}"] for key in ("ok", "ago_s", "error")] == [None, None, None]
    assert "reload" not in text
    assert ("handed over" in text, result["requests"]["handed_over"]) == (False, 0)
    generations: Any = pool.supervisor.generations
    generations._tell(ReloadResult(False, "no database"))
    result, text = shown()
    assert (result["last_reload_ok"], result["last_reload_error"]) == (False, "no database")
    assert result["last_reload_ago_s"] < 60
    assert re.search(r"^reload     failed \S+ ago: no database$", text, re.MULTILINE)
    generations.degraded = "the program failed"
    assert "ago: no database" not in shown()[1], "degraded is said, with its own reason"
    generations.degraded = ""
    generations._tell(ReloadResult(True, "generation 2 is in service"))
    result, text = shown()
    assert (result["last_reload_ok"], result["last_reload_error"]) == (True, None)
    assert "reload" not in text
    result["requests"]["handed_over"] = 3
    assert ", 0 rejected, 3 handed over\n" in render.text(BY_VERB["status"], result)


def test_a_stranger(pool: Controlled, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Is told so, counted, and cut; that is one line in the log."""
    caplog.clear()
    monkeypatch.setattr("prefork.control.server.unix_peer", lambda sock: None)
    client = pool.client()
    pool.turn()
    said = "could not ask: uid -1 may not use this socket; control_allow says who may"
    assert client.told() == [{"ok": False, "error": said}]
    assert client.cut
    assert pool.counted(ControlCommand.OTHER, DENIED) == 1
    assert [record.__dict__["event"] for record in caplog.records] == [LogEvent.CONTROL_DENIED]


# What is asked over a while.


def test_progress_and_the_end(pool: Controlled) -> None:
    """A restart says how far it is, and its answer comes when it is done; meanwhile others are answered, and the same
    client is read no more."""
    client, other = pool.client(), pool.client()
    assert client.ask("restart") == []
    assert client.ask("version") == []
    assert other.ask("version")[0]["ok"]
    pool.settle()
    pool.advance(0.5)
    *_, done, version = client.told()
    assert done == {"ok": True, "result": {"replaced": 2}}
    assert version["result"]["prefork"]


def test_who_goes_away_meanwhile(pool: Controlled) -> None:
    """What was asked for is done all the same, and nobody is told."""
    client = pool.client()
    before = pool.living()
    assert client.ask("restart") == []
    client.__exit__()
    pool.advance(0.1)
    pool.settle()
    assert not set(before) & set(pool.living())
    assert pool.control._clients == {}


def test_who_comes_and_goes(pool: Controlled) -> None:
    """Of a client that is gone nothing is kept, however it went."""
    before = len(os.listdir("/proc/self/fd"))
    for words in (b"", b'{"verb":"ver', b'{"verb":"version"}\n', b'{"verb":"stacks"}\n', b"nonsense\n"):
        client = Asking(pool)
        client.say(words)
        client.__exit__()
        pool.advance(1.0)
        assert pool.control._clients == {}
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_drain_to_its_end(pool: Controlled) -> None:
    """Who waits for it is told what is left, and that it is over, before the connection is."""
    busy = pool.living()[0]
    busy.begin()
    client = pool.client()
    told = client.ask("drain")
    pool.advance(0.5)
    told += client.told()
    assert told[-1] == {"progress": "draining: 1 worker left, 1 request in hand"}
    busy.finish()
    pool.advance(0.5)
    assert pool.supervisor.phase is Phase.STOPPED
    assert client.told()[-1] == {"ok": True, "result": {"phase": "stopped"}}


def test_nothing_is_begun_that_late(pool: Controlled) -> None:
    """While the service ends, what would begin something is refused; looks are answered."""
    pool.living()[0].begin()
    client = pool.client()
    pool.client().ask("drain")
    assert client.ask("restart")[0]["error"] == "could not restart: the service is about to end"
    assert client.ask("status")[0]["result"]["phase"] == "draining"


def test_without_a_descriptor(pool: Controlled) -> None:
    """Nobody is accepted for a second, which is counted from the failure, and then who waits is."""
    client = pool.client()
    with no_descriptor_left(os.getpid()):
        pool.turn()
    client._sock.sendall(b'{"verb":"version"}\n')
    pool.advance(0.9)
    assert client.told() == []
    pool.advance(0.2)
    assert client.told()[0]["ok"]


# Over a reload.


def test_a_reload_is_told_by_the_next_image(pool: Controlled) -> None:
    """The connection goes over: who waits for the reload is told by the image that it brought, another asks there."""
    client, other = pool.client(), pool.client()
    told = client.ask("reload")
    assert other.ask("status")[0]["result"]["generation"] == 1
    pool.rehearse()
    assert pool.images == 2
    pool.settle()
    pool.advance(1.0)
    told += client.told()
    assert told[-1] == {"ok": True, "result": {"reason": "generation 2 is in service"}}
    assert other.ask("status")[0]["result"]["generation"] == 2
    assert os.path.exists("c")
    assert pool.board.words[Word.CONTROL_OPEN] == 1


def test_half_a_request_goes_over(pool: Controlled) -> None:
    """What a client had said before the exec counts after it."""
    client, half = pool.client(), pool.client()
    half.say(b'{"verb":"ver')
    client.ask("reload")
    pool.rehearse()
    pool.settle()
    assert half.say(b'sion"}\n')[0]["ok"]


@pytest.mark.parametrize("verb", ["stop", "drain"])
def test_an_end_that_is_asked_for_at_the_exec(verb: str, pool: Controlled) -> None:
    """Between the last turn of one image and the exec nothing is obeyed: the next image reads it, and the service
    ends."""
    client, late = pool.client(), pool.client()
    client.ask("reload")
    late._sock.sendall(b'{"verb":"%b"}\n' % verb.encode())
    pool.rehearse()
    assert pool.images == 2
    pool.advance(LIMITS.graceful_timeout + 1)
    assert pool.phase is Phase.STOPPED
    assert late.told()[-1] == {"ok": True, "result": {"phase": "stopped"}}


def test_a_reload_that_fails_after_the_exec(pool: Controlled) -> None:
    """Is told by the image without the program."""
    client = pool.client()
    told = client.ask("reload")
    pool.program = Program.FAILS
    pool.rehearse()
    pool.advance(1.0)
    told += client.told()
    assert (told[-1]["ok"], told[-1]["error"]) == (False, "the program failed")


def test_the_next_image_listens_nowhere(pool: Controlled) -> None:
    """Who waits is told what came of it; the path is gone, and nobody else is heard."""
    client = pool.client()
    told = client.ask("reload")
    pool.terms = None
    pool.rehearse()
    pool.settle()
    pool.advance(1.0)
    told += client.told()
    assert told[-1] == {"ok": True, "result": {"reason": "generation 2 is in service"}}
    assert not os.path.lexists("c")
    assert pool.board.words[Word.CONTROL_OPEN] == 0


def test_the_next_image_listens_elsewhere(pool: Controlled) -> None:
    """The old path is gone, the new one answers, and so does the connection."""
    client = pool.client()
    told = client.ask("reload")
    pool.terms = ControlTerms("d", 0o600, None, frozenset(), frozenset())
    pool.rehearse()
    pool.settle()
    pool.advance(1.0)
    told += client.told()
    assert told[-1]["ok"]
    assert client.ask("version")[0]["ok"]
    assert pool.client("d").ask("version")[0]["ok"]
    assert (os.path.lexists("c"), os.path.lexists("d")) == (False, True)


def test_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path is removed, its clients are cut, and the metrics say that there is no control socket."""
    monkeypatch.chdir(tmp_path)
    pool = Controlled()
    pool.settle()
    client = pool.client()
    assert client.ask("version")[0]["ok"]
    pool.supervisor.tasks.end_control()
    assert not os.path.lexists("c")
    assert client.cut
    assert pool.board.words[Word.CONTROL_OPEN] == 0
    pool.close()
