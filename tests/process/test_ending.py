"""What the end of a server waits for: block_on_close and daemon_threads of a plain one, busy lanes of a pool."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import psutil
import pytest

from prefork import (
    BaseRequestHandler,
    ForkingTCPServer,
    ForkingUDPServer,
    SupervisedMixIn,
    TCPServer,
    ThreadingTCPServer,
    ThreadingUnixStreamServer,
    UDPServer,
    UnixDatagramServer,
    UnixStreamServer,
)
from tests.support.clients.connections import Connection, ask, connect
from tests.support.clients.scraping import get
from tests.support.programs.service import Service, script
from tests.support.programs.serving import HUNG, serving, threads_end
from tests.support.tools.figures import figure, ms
from tests.support.tools.proc import nothing_for, switches

LOOPBACK = ("127.0.0.1", 0)
ROOT = Path(__file__).parents[2]
PLAIN = [
    TCPServer, UDPServer, UnixStreamServer, UnixDatagramServer, ForkingTCPServer, ForkingUDPServer,
    ThreadingTCPServer, ThreadingUnixStreamServer,
]  # fmt: skip
A_WHILE = 0.2  # seconds, in which what does not wait has ended
GRACE = 0.5
SLACK = 0.6


class Holds(BaseRequestHandler):
    """Says that it has begun, and ends when the client does."""

    def handle(self) -> None:
        self.request.sendall(b"begun\n")
        self.request.recv(1)


def wait_until(true: Callable[[], object]) -> None:
    deadline = monotonic() + HUNG
    while not true():
        assert monotonic() < deadline, "hung"
        os.sched_yield()


class Thrower(threading.Thread):
    """Keeps what its function raises."""

    raised: BaseException | None = None

    def __init__(self, function: Callable[[], object]) -> None:
        super().__init__()
        self._function = function

    def run(self) -> None:
        try:
            self._function()
        except Exception as exc:
            self.raised = exc


def held(server: Any) -> Connection:
    connection = connect(server.server_address)
    assert connection.answer() == b"begun"
    return connection


@pytest.mark.parametrize("base", [ThreadingTCPServer, ForkingTCPServer])
@pytest.mark.parametrize("waits", [True, False])
def test_block_on_close(base: Any, waits: bool) -> None:
    """shutdown() waits for no request that runs elsewhere; server_close() does, unless block_on_close is off."""
    server = type("Server", (base,), {"block_on_close": waits})(LOOPBACK, Holds)
    ends = contextlib.nullcontext() if waits else threads_end()
    with ends, serving(server) as thread, held(server) as connection:
        server.shutdown()
        thread.join(HUNG)
        closing = threading.Thread(target=server.server_close)
        closing.start()
        closing.join(A_WHILE if waits else HUNG)
        assert closing.is_alive() is waits
        connection.send(b"x")
        connection.wait_end()  # its end: nobody cut it before
        closing.join(HUNG)
    if base is ForkingTCPServer:
        server.collect_children(blocking=True)


@pytest.mark.parametrize("base", PLAIN)
def test_the_exporter_has_ended_with_the_loop(base: Any, tmp_path: Path) -> None:
    """When shutdown() returns: what another thread does next, as to close the server, finds nobody who reaps."""
    metrics = {"metrics_address": LOOPBACK}
    server_class = type("Server", (base,) if issubclass(base, SupervisedMixIn) else (SupervisedMixIn, base), metrics)
    for turn in range(5):
        unix = issubclass(base, (UnixStreamServer, UnixDatagramServer))
        server = server_class(str(tmp_path / f"{turn}") if unix else LOOPBACK, Holds)
        with serving(server) as thread:
            wait_until(partial(getattr, server, "metrics_server_address"))
            assert get(server.metrics_server_address, "/-/healthy").status == 200
            server.shutdown()
            with pytest.raises(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)
            server.server_close()
            thread.join(HUNG)


@pytest.mark.parametrize("settings", [{}, {"metrics_address": LOOPBACK}] * 4)
def test_several_threads_close_the_server(settings: dict[str, Any]) -> None:
    """Each waits for its requests; one of them reaps, and one ends the counting."""
    server = type("Server", (ForkingTCPServer,), settings)(LOOPBACK, Holds)
    closing = [Thrower(server.server_close) for _ in range(5)]
    with serving(server) as thread, held(server) as connection:
        server.shutdown()
        thread.join(HUNG)
        for each in closing:
            each.start()
        closing[0].join(A_WHILE)  # all of them wait by now
        connection.send(b"x")
        for each in closing:
            each.join(HUNG)
    assert [each.raised for each in closing] == [None] * len(closing)
    assert (server.statistics().completed, server.active_children) == (1, set())


@pytest.mark.parametrize("base", ["TCPServer", "ForkingTCPServer", "ThreadingTCPServer"])
def test_the_end_of_a_process_that_the_program_forks(base: str, tmp_path: Path) -> None:
    """It ends and closes its copy of the server: nothing of the one that serves, whose children go on."""
    program = [sys.executable, "-m", "tests.process.programs.forking_hooks", base]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(program, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = ("127.0.0.1", int(process.stdout.readline()))
            assert ask(address, b"x").split() == [b"begun", b"ends"]  # it serves
            assert get(str(tmp_path / "m"), "/-/healthy").status == 200
            serves = psutil.Process(process.pid)
            wait_until(lambda: len(serves.children()) == 1)  # who has answered may not be reaped yet
            (exporter,) = serves.children()
            with connect(address) as first:
                assert first.answer() == b"begun"
                if base != "TCPServer":
                    with connect(address) as second:
                        assert second.answer() == b"begun"
                first.send(b"x")
                assert first.answer() == b"ends"
            assert exporter.is_running()
            assert get(str(tmp_path / "m"), "/-/healthy").status == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(HUNG) == 0
        finally:
            process.kill()


@pytest.mark.timed
def test_shutdown_at_the_cap_of_children() -> None:
    """A loop that accepts nothing, because there are max_children, hears shutdown() all the same."""
    server = type("Server", (ForkingTCPServer,), {"max_children": 1})(LOOPBACK, Holds)
    with serving(server), held(server) as first, connect(server.server_address) as second:
        nothing_for(A_WHILE, second.sock)
        before = monotonic()
        server.shutdown()
        took = monotonic() - before
        first.send(b"x")
    figure("shutdown() at max_children", ms(took), "250 ms")
    assert took < 0.25


@pytest.mark.parametrize("settings", [{"daemon_threads": True}, {"block_on_close": False}])
def test_a_drain_waits_for_busy_lanes(settings: dict[str, Any], tmp_path: Path) -> None:
    """Whatever daemon_threads and block_on_close say of a plain server: a pool's drain loses no request in hand."""
    source = script(bases="PreForkingMixIn, ThreadingTCPServer", max_children=1, max_threads=3, **settings)
    with Service(tmp_path, source) as service:
        service.wait_ready(1)
        busy = [service.hold() for _ in range(3)]
        service.signal(signal.SIGTERM)
        service.wait_pool(lambda pool: pool["draining"] == 1)
        nothing_for(A_WHILE, *(connection.sock for connection in busy))
        for connection in busy:
            assert int(connection.ask(b"pid")) == connection.pid
            connection.close()
        assert service.wait_exit() == 0
        ended = service.wait("ended")
    assert ended["exits"] == {"drained": 1}
    assert (ended["completed"], ended["lost"]) == (3, 0)


CLOSED = "from tests.process.programs.closing import Hooks"


@pytest.mark.timed
def test_server_close_of_a_pool_is_bounded(tmp_path: Path) -> None:
    """server_close() in another thread waits for requests in hand, at most graceful_timeout."""
    with Service(tmp_path, script(CLOSED, max_children=2, graceful_timeout=GRACE)) as service:
        service.wait_ready(2)
        with service.hold() as connection:
            (tmp_path / "now").touch()
            service.statistics()  # a turn
            took = service.wait("closed")["took"]
            connection.wait_end()
        assert service.wait_exit() == 0
        ended = service.wait("ended")
    figure("server_close() with a request in hand", ms(took), ms(GRACE + SLACK))
    assert GRACE - 0.1 < took < GRACE + SLACK
    assert ended["exits"] == {"killed": 1, "drained": 1}


def test_an_idle_pool_sleeps(tmp_path: Path) -> None:
    """Without work no worker is woken at all, and the master at most once a second."""
    with Service(tmp_path, script(max_children=4)) as service:
        service.wait_ready(4)
        with service.hold() as connection:  # the others' first waits are over when this is served
            nothing_for(A_WHILE, connection.sock)  # nor has the master anything more to do for those that got ready
            pids = [pid for pid in service.workers() if pid != connection.pid]
            began = monotonic()
            before = {pid: switches(pid) for pid in (service.pid, *pids)}
            nothing_for(3.0, connection.sock)
            woken = {pid: switches(pid) - count for pid, count in before.items()}
            passed = monotonic() - began
    master = woken.pop(service.pid)
    most = int(passed) + 1
    figure(f"an idle pool in {passed:.0f} s: master, workers wake", f"{master}, {sum(woken.values())}", f"{most}, 0")
    assert set(woken.values()) == {0}
    assert master <= most
