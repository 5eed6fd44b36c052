"""Programs that process requests in ways of their own: a threaded server goes on to hear, and its counts are right."""

import socket
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from prefork import BaseRequestHandler, ForkingTCPServer, PreForkingMixIn, ThreadingTCPServer
from tests.support.clients.connections import ask, dial
from tests.support.programs.service import Service, script
from tests.support.programs.serving import serving

THREADS = 2
TIMES = 2 * THREADS + 1
COUNTED = {
    "wrapped": "completed", "shed": "handed_over", "dropped": "handed_over", "thread": "completed",
    "body": "handed_over", "executor": "completed",
}  # fmt: skip


@pytest.mark.parametrize("bases", ["PreForkingMixIn, ThreadingTCPServer", "ThreadingTCPServer"])
def test_every_way(bases: str, tmp_path: Path) -> None:
    """More requests of each way than there are threads: each is answered or dropped as the program has it, counted
    once, none as lost; no descriptor is left, and no closed one goes over its time."""
    pool = "PreFork" in bases
    settings = {"max_children": 1, "request_timeout": 20} if pool else {}
    definitions = f"from tests.process.programs.own_ways import Handler, {'Hooks' if pool else 'Plain as Hooks'}"
    with Service(tmp_path, script(definitions, bases=bases, max_threads=THREADS, **settings)) as service:
        if pool:
            service.wait_ready(1)
        pid = service.workers()[0] if pool else service.pid
        before = 0
        for way, counted in COUNTED.items():
            answers = [ask(service.address, way.encode()) for _ in range(TIMES)]
            assert answers == [b"served" if counted == "completed" or way == "body" else b""] * TIMES
            before = before or psutil.Process(pid).num_fds()
        assert psutil.Process(pid).num_fds() <= before
    ended = service.wait("ended")
    assert {name: ended[name] for name in ("accepted", "completed", "handed_over", "lost")} == {
        "accepted": 6 * TIMES, "completed": 3 * TIMES, "handed_over": 3 * TIMES, "lost": 0
    }  # fmt: skip


def test_the_first_request_of_a_thread() -> None:
    """A worker that leaves as soon as it has given its only request to a thread of the program's waits for that to
    begin, and to end."""

    class Later(PreForkingMixIn, ForkingTCPServer):
        max_children = 2

        def process_request(self, request: Any, client_address: Any) -> None:
            def finish() -> None:
                self.finish_request(request, client_address)
                self.shutdown_request(request)

            thread = threading.Timer(0.1, finish)
            thread.daemon = True
            thread.start()

    class Answer(BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(self.request.recv(100))

    server = Later(("127.0.0.1", 0), Answer)
    with serving(server):
        assert [ask(server.server_address, b"word") for _ in range(3)] == [b"word"] * 3


def test_closed_while_the_program_has_a_connection() -> None:
    """A server that is closed looks no longer after what the program has kept: it is counted, and nothing is left."""
    kept: list[socket.socket] = []

    class Keeps(ThreadingTCPServer):
        def process_request(self, request: Any, client_address: Any) -> None:
            kept.append(request)

    with Keeps(("127.0.0.1", 0), BaseRequestHandler) as server, dial(server.server_address):
        server.handle_request()
    statistics = server.statistics()
    assert (statistics.accepted, statistics.handed_over) == (1, 1)
    kept.pop().close()
