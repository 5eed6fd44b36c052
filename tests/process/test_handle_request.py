"""handle_request() of a pre-forking server: one request in the process that calls it, as of any other server."""

import os
import socketserver
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from prefork import (
    BindError,
    ForkingTCPServer,
    PreForkingMixIn,
    PreForkingTCPServer,
    PreForkingUnixStreamServer,
    StreamRequestHandler,
    ThreadingTCPServer,
)
from tests.support.clients.connections import ask, dial
from tests.support.programs.serving import HUNG, serving

LOOPBACK = ("127.0.0.1", 0)
TIMEOUT = 0.05


class Family(StreamRequestHandler):
    """Who answers, and whose child it is."""

    def handle(self) -> None:
        self.wfile.write(b"%d %d" % (os.getpid(), os.getppid()))


class Pool(PreForkingMixIn):
    """A pool of two. `full` is set once both are ready, with the lanes that there are then."""

    max_children = 2
    timed_out = 0
    lanes = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.full = threading.Event()
        super().__init__(*args, **kwargs)

    def service_actions(self) -> None:
        super().service_actions()
        statistics = self.statistics()
        if statistics.workers["idle"] == self.max_children:
            self.lanes = statistics.lanes
            self.full.set()

    def handle_timeout(self) -> None:
        super().handle_timeout()
        self.timed_out += 1


ALONE: list[Any] = [PreForkingTCPServer, socketserver.TCPServer]
THREADS: list[Any] = [ThreadingTCPServer, socketserver.ThreadingTCPServer]
FORKS: list[Any] = [ForkingTCPServer, socketserver.ForkingTCPServer]
every = pytest.mark.parametrize("base", ALONE + THREADS + FORKS, ids=lambda base: f"{base.__module__}.{base.__name__}")


def pool(base: Any) -> Any:
    return type("Server", (Pool, base), {})(LOOPBACK, Family)


def answer(server: Any) -> tuple[int, int]:
    """One request, by handle_request() in this thread: the pids of who answered and of its parent."""
    with dial(server.server_address) as client, client.makefile("rb") as file:
        server.handle_request()
        pid, parent = file.read().split()
    return int(pid), int(parent)


@every
def test_it_stays_in_this_process(base: Any) -> None:
    """handle_request() serves in this process, in a thread or a child of it where the mix-in has it so; no worker is
    forked."""
    with pool(base) as server:
        for _ in range(3):
            pid, parent = answer(server)
            assert (parent if base in FORKS else pid) == os.getpid()
        statistics = server.statistics()
    assert statistics.accepted == 3
    assert sum(statistics.workers.values()) == 0
    assert statistics.spawned == (3 if base is ForkingTCPServer else 0)


@every
def test_timeout(base: Any) -> None:
    """Nobody comes for `timeout` seconds: handle_timeout() is called, once, and nothing is forked."""
    with pool(base) as server:
        server.timeout = TIMEOUT
        began = time.monotonic()
        server.handle_request()
        assert TIMEOUT <= time.monotonic() - began < HUNG / 2
        assert server.timed_out == 1
        assert psutil.Process().children() == []


@every
def test_before_and_after_the_pool(base: Any) -> None:
    """Before and after a serve_forever() as well: the pool has its workers' lanes only, and all requests are counted.

    A drained listener lets nobody in; the first handle_request() opens it again.
    """
    server = pool(base)
    answer(server)
    with serving(server) as thread:
        assert server.full.wait(HUNG)
        pid, parent = map(int, ask(server.server_address, b"").split())
        assert parent == os.getpid() != pid
        server.shutdown()
        thread.join(HUNG)
        server.timeout = 0
        server.handle_request()
        assert server.timed_out == 1
        server.timeout = HUNG
        answer(server)
    statistics = server.statistics()
    per_worker = server.max_threads if base in THREADS else 1
    if base is not socketserver.ThreadingTCPServer:  # whose thread may be at its last line still, on a lane
        assert server.lanes == 2 * per_worker
    assert statistics.accepted == 3
    assert statistics.completed + statistics.handed_over == 3
    assert statistics.handed_over == (2 if base is socketserver.ForkingTCPServer else 0)


def test_a_path_that_is_gone(tmp_path: Path) -> None:
    """A drain removed the path of a Unix socket: nobody could come, and it says so."""
    server = PreForkingUnixStreamServer(os.path.relpath(tmp_path / "s"), Family)
    server.shutdown()
    with serving(server) as thread:
        thread.join(HUNG)
        with pytest.raises(BindError, match="its path is removed"):
            server.handle_request()


def test_a_loop_of_it_is_said_to_have_no_pool(caplog: pytest.LogCaptureFixture) -> None:
    """Once, when a second request is asked for: the settings of a pool are not what such a program gets."""
    with PreForkingTCPServer(LOOPBACK, Family) as server:
        for number in range(4):
            with dial(server.server_address):
                server.handle_request()
            assert len(caplog.records) == min(number, 1)
    assert caplog.messages == [
        "PreForkingTCPServer's pool has no effect: handle_request() serves in the process that calls it; "
        "serve_forever() starts the workers"
    ]
