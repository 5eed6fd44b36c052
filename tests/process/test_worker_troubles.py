"""What a program does in a worker, or the system refuses it there, costs what it touches, not the worker."""

import contextlib
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients.connections import connect
from tests.support.programs.service import Service, script
from tests.support.tools.proc import no_descriptor_left, nothing_for

GRACE_S = 15.0  # what is deaf is killed then
A_WHILE = 0.2

PROGRAM = "from tests.process.programs.troubles import Handler, Hooks"


def test_get_request_that_raises(tmp_path: Path) -> None:
    """An exception of the program's get_request() closes that connection, is logged and counted once each, and costs
    the worker's other requests nothing."""
    source = script(PROGRAM, bases="PreForkingMixIn, ThreadingTCPServer", max_children=1, max_threads=3)
    with Service(tmp_path, source) as service:
        service.wait_ready(1)
        service.expect("Bad: a header that is none")
        with service.hold() as held:
            for _ in range(3):
                with connect(service.address) as bad:
                    bad.send(b"!")
                    assert bad.sock.recv(1) == b""
            assert int(held.ask(b"pid")) == held.pid
        now = service.settled()
        assert now["accept_errors"] == {"other": 3}, now
        assert service.log.count("Bad: a header that is none") == 1, "once in ten seconds"
        service.signal(signal.SIGTERM)
        assert service.wait_exit() == 0
        assert service.wait("ended")["exits"] == {"drained": 1}


@pytest.mark.parametrize("what", [b"loop SIGTERM", b"loop SIGINT", b"loop SIGUSR2", b"wakeup"])
@pytest.mark.parametrize("group", [False, True])
def test_an_event_loop_in_a_handler(what: bytes, group: bool, tmp_path: Path) -> None:
    """After asyncio.run() with signals of its own, or set_wakeup_fd(-1), in a handler an idle worker hears TERM, and
    does nothing at an INT."""
    with Service(tmp_path, script(PROGRAM, max_children=1, graceful_timeout=GRACE_S)) as service:
        service.wait_ready(1)
        with service.connect() as client:
            pid = int(client.ask(what))
        service.settled()
        if group:
            service.signal(signal.SIGINT, pid)
        with service.connect() as client:
            assert int(client.ask(b"pid")) == pid
        service.signal(signal.SIGTERM)
        assert service.wait_exit() == 0
        assert service.wait("ended")["exits"] == {"drained": 1}


@pytest.mark.parametrize("bases", ["PreForkingTCPServer", "PreForkingMixIn, ThreadingTCPServer"])
@pytest.mark.parametrize("how", [b"fork", b"leave", b"child"])
def test_a_child_of_a_handler_ends_with_it(how: bytes, bases: str, tmp_path: Path) -> None:
    """A process that a handler forks, and which returns from the handler or raises in it, ends there: it serves
    nothing, and the client's connection is its parent's."""
    with Service(tmp_path, script(PROGRAM, bases=bases, max_children=1)) as service:
        service.wait_ready(1)
        with service.connect() as client:
            if how == b"fork":
                service.expect("RuntimeError: of the child")
            pid = int(client.ask(how))
            service.wait("forked")
            nothing_for(A_WHILE, client.sock)
            assert int(client.ask(b"pid")) == pid
        service.signal(signal.SIGTERM)
        assert service.wait_exit() == 0
        service.wait_gone()
        ended = service.wait("ended")
    assert (ended["completed"], ended["failed"], ended["lost"]) == (1, 0, 0)
    assert len([fact for fact in service.facts if fact["event"] == "ended"]) == 1


def test_a_worker_that_cannot_measure_itself(tmp_path: Path) -> None:
    """Without a descriptor left a worker serves what it has; no sample of its memory is none."""
    definitions = """
import prefork.workers.limits
class Hooks:
    def worker_started(self):
        super().worker_started()
        os.chroot(".")
"""
    settings: dict[str, Any] = {"max_memory": 1 << 40, "metrics_address": ("127.0.0.1", 0)}
    with Service(tmp_path, script(definitions, max_children=1, **settings)) as service:
        service.wait_ready(1)
        with service.hold() as held:
            assert int(held.ask(b"pid")) == held.pid
        assert "could not measure this process, which goes on unmeasured" in service.log
    with Service(tmp_path, script(bases="PreForkingMixIn, ThreadingTCPServer", max_children=1, max_threads=3,
                                  **settings)) as service:  # fmt: skip
        service.wait_ready(1)
        with service.hold() as held, service.hold() as other:
            with no_descriptor_left(held.pid):
                assert int(held.ask(b"pid")) == int(other.ask(b"pid")) == held.pid
        assert service.workers() == [held.pid]


@pytest.mark.parametrize(
    ("bases", "hooks"),
    [("PreForkingMixIn, ThreadingTCPServer", "NoThreads"), ("ThreadingTCPServer", "PlainNoThreads")],
    ids=["pool", "plain"],
)
def test_no_more_threads(bases: str, hooks: str, tmp_path: Path) -> None:
    """Where the system has no more threads the request that was taken fails and nothing is accepted for a moment; the
    server can be closed."""
    source = script(f"from tests.process.programs.troubles import {hooks} as Hooks", bases=bases, max_children=1)
    with Service(tmp_path, source) as service, contextlib.ExitStack() as clients:
        service.wait("listening")
        service.expect("can't start new thread")
        (tmp_path / "full").touch()
        for _ in range(5):
            clients.enter_context(service.connect())
        refused = [fact["at"] for fact in service.wait_each("refused", 4)]
        assert refused[3] - refused[0] >= 0.25, "three pauses of 0.1 s"
        (tmp_path / "full").unlink()
        with service.hold() as held:
            assert held.pid
