"""Draining for good: what goes red first, what is still served, what is hung up, and who may ask for it."""

import errno
import http.client
import os
import signal
import socket
import struct
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from tests.support.clients.connections import ask
from tests.support.programs.releases import AFTERWARDS, Released, numbered
from tests.support.programs.service import Service, Watch, readable, script
from tests.support.tools.figures import figure
from tests.support.tools.proc import nothing_for

POOLS = ["PreForkingTCPServer", "PreForkingMixIn, ThreadingTCPServer"]
DELAY = 2.0

EXPORTED = "from tests.process.programs.draining import Exporting as Hooks"
SLOW = "from tests.process.programs.draining import Slow as Handler"
IN_THE_LOOP = """
class Hooks:
    def service_actions(self):
        super().service_actions()
        if os.path.exists("now"):
            self.server_close()
            self.server_close()
"""


def ready(address: tuple[str, int]) -> int:
    """The status of /-/ready."""
    connection = http.client.HTTPConnection(*address, timeout=30)
    try:
        connection.request("GET", "/-/ready")
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.timed
def test_drain_delay(tmp_path: Path) -> None:
    """With drain_delay TERM first turns /-/ready red and goes on serving, with a whole pool; then it drains."""
    settings: dict[str, Any] = {"max_children": 2, "metrics_address": ("127.0.0.1", 0), "drain_delay": DELAY}
    with Service(tmp_path, script(EXPORTED, **settings)) as service:
        service.wait_ready(2)
        exporter = tuple(service.wait("exporting", lambda fact: fact["address"][1])["address"])
        assert ready(exporter) == 200
        sent_at = service.signal(signal.SIGTERM)
        service.wait("draining")
        assert ready(exporter) == 503
        assert int(ask(service.address, b"pid\n"))
        service.signal(signal.SIGKILL, service.workers()[0])
        service.wait_ready(2, killed=1)
        assert int(ask(service.address, b"pid\n"))
        assert service.wait_exit() == 0
        ended = service.wait("ended")
    assert DELAY < ended["at"] - sent_at < DELAY + 5
    assert ended["exits"] == {"killed": 1, "drained": 2}
    assert ended["completed"] == 2


def test_stop_during_drain_delay(tmp_path: Path) -> None:
    """INT does not wait for drain_delay."""
    with Service(tmp_path, script(EXPORTED, max_children=2, drain_delay=60)) as service:
        service.wait_ready(2)
        service.signal(signal.SIGTERM)
        service.wait("draining")
        service.signal(signal.SIGINT)
        assert service.wait_exit() == 0
        assert service.wait("ended")["exits"] == {"stopped": 2}


@pytest.mark.timed
def test_an_idle_pool_stops_at_once(tmp_path: Path) -> None:
    """Nothing is waited for when nothing is in hand: `serve_forever()` returns as soon as its workers are gone."""
    with Service(tmp_path, script(max_children=2)) as service:
        service.wait_ready(2)
        sent_at = service.signal(signal.SIGINT)
        took = service.wait("ended")["at"] - sent_at
        assert service.wait_exit() == 0
    figure("an idle pool stopped in", f"{took * 1000:.0f} ms", "500 ms")
    assert took < 0.5


def test_drain_before_ready_does_not_delay(tmp_path: Path) -> None:
    """A service that has never served has nobody to wait for: drain_delay is skipped."""
    boots = "class Hooks:\n    def worker_started(self):\n        tell('booting')\n        signal.pause()\n"
    settings: dict[str, Any] = {"max_children": 1, "drain_delay": 60, "graceful_timeout": 0.3}
    with Service(tmp_path, script(boots, **settings)) as service:
        service.wait("booting")
        service.signal(signal.SIGTERM)
        assert service.wait_exit() == 0


@pytest.mark.parametrize("bases", POOLS)
def test_draining_is_seen_in_the_worker(bases: str, tmp_path: Path) -> None:
    """server.draining gets true under a handler that runs while its worker drains."""
    with Service(tmp_path, script(SLOW, bases=bases, max_children=1)) as service:
        service.wait_ready(1)
        with service.connect() as held:
            held.send(b"draining")
            service.wait("told")
            service.signal(signal.SIGTERM)
            assert held.answer() == b"True"
        assert service.wait_exit() == 0


@pytest.mark.parametrize("bases", POOLS)
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGUSR2])
def test_eof_ends_idle_connections(how: int, bases: str, tmp_path: Path) -> None:
    """With eof a connection that idles in `for line in rfile` ends when its worker drains, for good or replaced; what
    was sent by then is answered."""
    settings: dict[str, Any] = {"max_children": 1, "drain_connections": "eof"}
    with Service(tmp_path, script(bases=bases, **settings)) as service:
        service.wait_ready(1)
        with service.hold() as held:
            nothing_for(0.3, held.sock)  # an input: it is no newcomer
            for _ in range(3):
                held.send(b"pid")
            service.signal(how)
            assert [int(held.answer()) for _ in range(3)] == [held.pid] * 3
            held.wait_end()
            if how == signal.SIGUSR2:
                service.wait_ready(1, replaced=1)
        assert service.settled()["completed"] == 1 if how == signal.SIGUSR2 else service.wait_exit() == 0


def test_eof_reaches_every_lane(tmp_path: Path) -> None:
    """With threads every request of the worker is hung up, and each gives its answers first."""
    bases = "PreForkingMixIn, ThreadingTCPServer"
    with Service(tmp_path, script(bases=bases, max_children=1, drain_connections="eof")) as service:
        service.wait_ready(1)
        held = [service.hold() for _ in range(8)]
        for connection in held:
            connection.send(b"pid")
        service.signal(signal.SIGTERM)
        for connection in held:
            assert int(connection.answer()) == connection.pid
            connection.wait_end()
            connection.close()
        assert service.wait_exit() == 0
        assert service.wait("ended")["completed"] == 8


@pytest.mark.timed
def test_eof_gives_a_newcomer_time(tmp_path: Path) -> None:
    """A connection that was accepted this very moment may still say what it came for."""
    settings: dict[str, Any] = {"max_children": 2, "drain_connections": "eof"}
    with Service(tmp_path, script(**settings)) as service:
        service.wait_ready(2)
        with service.hold(), service.connect() as new:
            service.signal(signal.SIGTERM)
            service.wait_pool(lambda pool: pool["draining"] == 2)
            assert new.ask(b"pid")
            new.wait_end()
        assert service.wait_exit() == 0


GATED = """
class Handler(BaseRequestHandler):
    def handle(self):
        tell("waiting")
        with open("gate") as gate:
            gate.read()
"""


def test_eof_and_a_client_that_is_gone(tmp_path: Path) -> None:
    """That the client has reset its connection is no error of the worker that drains, nor of the handler in it."""
    os.mkfifo(tmp_path / "gate")
    with Service(tmp_path, script(GATED, max_children=1, drain_connections="eof")) as service:
        service.wait_ready(1)
        with readable(os.open(tmp_path / "gate", os.O_RDWR)):
            with service.connect() as client:
                service.wait("waiting")
                nothing_for(0.3, client.sock)  # an input: it is no newcomer
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            service.signal(signal.SIGTERM)
            service.wait_pool(lambda pool: pool["draining"] == 1 or pool["exits"])
        assert service.wait_exit() == 0
        assert service.wait("ended")["exits"] == {"drained": 1}


def test_wait_leaves_connections_alone(tmp_path: Path) -> None:
    """By default a connection goes on while its worker drains, as long as its client likes."""
    with Service(tmp_path, script(max_children=1)) as service:
        service.wait_ready(1)
        with service.hold() as held:
            service.signal(signal.SIGTERM)
            service.wait_pool(lambda pool: pool["draining"] == 1)
            nothing_for(0.6, held.sock)
            assert int(held.ask(b"pid")) == held.pid
        assert service.wait_exit() == 0


def test_eof_under_tls_stays_under_tls(tmp_path: Path) -> None:
    """On a TLS connection the answers that follow the end of file are still encrypted."""
    pytest.importorskip("ssl")
    wrapped = "from tests.process.programs.draining import Unwrapping as Hooks"
    with Service(tmp_path, script(wrapped, max_children=1, drain_connections="eof")) as service:
        service.wait_ready(1)
        with service.hold() as held:
            service.signal(signal.SIGTERM)
            held.wait_end()
        assert service.wait_exit() == 0
        assert [fact["how"] for fact in service.facts if fact["event"] == "unwrapped"] == [socket.SHUT_WR]


@pytest.mark.parametrize("words", [["shutdown", "shutdown"], ["server_close", "server_close"], ["shutdown_nowait"]])
def test_ended_from_threads(words: list[str], tmp_path: Path) -> None:
    """shutdown() and server_close() drain, from three threads at once and twice each; what is in hand is finished. That
    a fork beside threads is warned of harms nothing, though warnings are errors."""
    argv = ["-m", "tests.process.programs.ended_by_threads", *words]
    with Service(tmp_path, argv=argv, env={"PYTHONWARNINGS": "error"}) as service:
        service.wait_ready(2)
        with service.hold() as held:
            service.signal(signal.SIGUSR1)
            service.wait_pool(lambda pool: pool["draining"] == 1)
            assert int(held.ask(b"pid")) == held.pid
        if words != ["shutdown_nowait"]:
            closed = {fact["fileno"] == -1 for fact in service.wait_each("asked", 3)}
            assert closed == {words[0] == "server_close"}
        assert service.wait_exit() == 0
        assert service.wait("ended")["exits"] == {"drained": 2}


def test_told_while_it_boots_by_a_master_in_a_thread(tmp_path: Path) -> None:
    """A worker that is told to drain while it boots drains when it has, also where the pool serves in a thread: there
    a signal does not interrupt the worker's Python code, on CPython 3.13 and later."""
    with Service(tmp_path, argv=["-m", "tests.process.programs.in_a_thread", "booting"]) as service:
        service.wait_each("booting", 2)
        service.signal(signal.SIGUSR1)
        service.wait_pool(lambda pool: pool["draining"] == 2)
        (tmp_path / "go").touch()
        assert service.wait_exit() == 0
        assert service.wait("ended")["exits"] == {"drained": 2}


@pytest.mark.parametrize("words", [["shutdown"], ["server_close", "server_close"], ["shutdown", "server_close"]])
def test_ended_before_it_began(words: list[str], tmp_path: Path) -> None:
    """Asked before serve_forever(), that returns at once, or raises ValueError where the server is closed, as the
    standard one does; no worker is forked and no path is left."""
    with Service(tmp_path, argv=["-m", "tests.process.programs.ended_before", *words]) as service:
        returned = service.wait("returned")
        assert returned["there"] is False
        assert returned["raised"] == ("Invalid file descriptor: -1" if "server_close" in words else "")
        assert service.wait_exit() == 0
        assert service.wait("ended")["spawned"] == 0


def test_closed_in_the_thread_that_serves(tmp_path: Path) -> None:
    """server_close() in service_actions() drains; the queue is served, then the port is free and serve_forever()
    returns."""
    with Service(tmp_path, script(IN_THE_LOOP, max_children=1)) as service:
        service.wait_ready(1)
        with service.hold() as held, service.connect() as queued:
            queued.send(b"pid")
            (tmp_path / "now").touch()
            service.signal(signal.SIGUSR2)
            assert int(held.ask(b"pid")) == held.pid
            held.close()
            assert int(queued.answer())
        assert service.wait_exit() == 0
        assert service.wait("ended")["lost"] == 0


def test_closed_in_a_worker(tmp_path: Path) -> None:
    """server_close() in a handler asks for the end of the service, as shutdown() does; its answer goes out."""
    closing = "class Handler(Who):\n    def do_shutdown(self):\n        self.server.server_close()\n"
    with Service(tmp_path, script(closing, max_children=2)) as service:
        service.wait_ready(2)
        assert ask(service.address, b"shutdown\n")
        assert service.wait_exit() == 0
        assert service.wait("ended")["exits"] == {"drained": 2}


def test_path_of_another_is_left(tmp_path: Path) -> None:
    """A Unix path that somebody else has bound meanwhile is not removed by our drain."""
    with Service(tmp_path, script(bases="PreForkingUnixStreamServer", address="here", max_children=1)) as service:
        service.wait_ready(1)
        service.allow("here was removed or replaced")  # seen if a look comes before the drain
        os.unlink(tmp_path / "here")
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(os.path.relpath(tmp_path / "here"))
            with Watch(service.pid) as master:
                service.signal(signal.SIGTERM)
                master.wait_dead()
            assert service.wait_exit() == 0
            assert (tmp_path / "here").is_socket()


def test_port_is_free_after_the_drain(tmp_path: Path) -> None:
    """When the service has drained nobody listens any more."""
    with Service(tmp_path, script(max_children=1)) as service:
        service.wait_ready(1)
        address = service.address
        service.signal(signal.SIGTERM)
        assert service.wait_exit() == 0
    with socket.socket() as client:
        assert client.connect_ex(address) == errno.ECONNREFUSED


def test_the_last_worker_dies_beside_a_queue(tmp_path: Path) -> None:
    """While the service drains, one more worker serves what is queued when all have died."""
    with Service(tmp_path, script(max_children=1)) as service:
        service.wait_ready(1)
        service.expect(r"killed \(killed by SIGKILL\)")
        with service.hold() as held, service.connect() as queued:
            queued.send(b"pid")
            service.signal(signal.SIGTERM)
            nothing_for(0.2, queued.sock)
            service.signal(signal.SIGKILL, held.pid)
            assert int(queued.answer()) != held.pid
            queued.close()
            assert service.wait_exit() == 0


@pytest.mark.timed
@pytest.mark.once
def test_the_last_worker_of_a_degraded_master_dies_beside_a_queue(tmp_path: Path) -> None:
    """It has no program to start another one from: it ends at once, and who is queued is told so by a reset."""
    with Released(tmp_path, max_children=1, graceful_timeout=20.0) as service:
        service.wait_ready(1)
        service.expect("RuntimeError: afterwards", "reload failed", r"killed \(killed by SIGKILL\)")
        service.release(AFTERWARDS + "raise RuntimeError('afterwards')\n" + numbered(2))
        service.signal(signal.SIGHUP)
        service.wait_degraded()
        with service.hold() as held, service.connect() as queued:
            queued.send(b"pid")
            service.signal(signal.SIGTERM)
            nothing_for(0.2, queued.sock)
            at = service.signal(signal.SIGKILL, held.pid)
            assert queued.answer_or_end() is None
            assert service.wait_exit() == 0
            assert monotonic() - at < 5.0
