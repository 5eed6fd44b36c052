"""How many connections a pool serves, in all and of one client, whichever of its processes has them."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from prefork.workers.connection_table import MEMORY_BYTES, ConnectionTable
from tests.process.programs import entering
from tests.support.clients.connections import HUNG, Connection, dial
from tests.support.programs.releases import AFTERWARDS, Released, numbered
from tests.support.programs.service import ROOT, Service, script
from tests.support.tools.figures import figure

pytestmark = pytest.mark.once  # nothing of it is the interpreter's

KINDS = {
    "processes": {"bases": "PreForkingTCPServer", "max_children": 4},
    "threads": {"bases": "PreForkingMixIn, ThreadingTCPServer", "max_children": 2, "max_threads": 4},
    "the standard threads": {"bases": "PreForkingMixIn, socketserver.ThreadingTCPServer", "max_children": 2},
    "forked ahead": {"bases": "PreForkingMixIn, ForkingTCPServer", "max_children": 4},
    "threads and a hook": {
        "bases": "PreForkingMixIn, ThreadingTCPServer", "max_children": 2,
        "definitions": "class Hooks(Told):\n    def verify_request(self, *args): return True\n",
    },
}  # fmt: skip
V1 = b"PROXY TCP4 %s 198.51.100.1 4242 443\r\n"


def service_of(tmp_path: Path, kind: str, **settings: Any) -> Service:
    return Service(tmp_path, script(**{**KINDS[kind], **settings}))


def holding(service: Service, source: str = "127.0.0.1", before: bytes = b"") -> Connection:
    """A connection that is served, and stays."""
    client = Connection(dial(service.address, HUNG, source))
    client.sock.sendall(before)
    client.pid = int(client.ask(b"pid"))
    return client


def end(client: Connection) -> None:
    """Have it come to its end, until the server has closed it."""
    client.sock.shutdown(socket.SHUT_WR)
    client.wait_end()


def turned_away(service: Service, source: str = "127.0.0.1", before: bytes = b"") -> None:
    with Connection(dial(service.address, HUNG, source)) as client:
        with contextlib.suppress(ConnectionError):  # it may be closed before anything is sent
            client.sock.sendall(before)
            client.wait_end()


@pytest.mark.parametrize("kind", KINDS)
def test_of_one_client(kind: str, tmp_path: Path) -> None:
    """The third of two is closed at once, another client is served, and a place that is free is had at once."""
    with service_of(tmp_path, kind, max_connections_per_client=2) as service:
        service.wait_ready(int(str(KINDS[kind]["max_children"])))
        with holding(service), holding(service) as second, holding(service, "127.0.0.2"):
            for _ in range(3):
                turned_away(service)
            end(second)
            for _ in range(20):
                with holding(service) as client:
                    end(client)
            with holding(service):
                turned_away(service)
        found = service.settled()
        assert (found["completed"], found["rejected"], found["failed"]) == (24, 4, 0)
        assert "closed: its client has max_connections_per_client already" in service.log


@pytest.mark.parametrize("kind", KINDS)
def test_of_the_pool(kind: str, tmp_path: Path) -> None:
    with service_of(tmp_path, kind, max_connections=3) as service:
        service.wait_ready(int(str(KINDS[kind]["max_children"])))
        with holding(service), holding(service, "127.0.0.2"), holding(service, "127.0.0.3") as third:
            turned_away(service, "127.0.0.4")
            end(third)
            with holding(service, "127.0.0.4"):
                turned_away(service)
        assert service.settled()["rejected"] == 2
        assert "closed: max_connections are served already" in service.log


def test_client_is_the_one_behind_the_proxy(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"proxy_trusted": "127.0.0.1", "max_connections_per_client": 1, "max_connections": 3}
    with service_of(tmp_path, "processes", **settings) as service:
        service.wait_ready(4)
        one, other = V1 % b"192.0.2.7", V1 % b"192.0.2.8"
        with holding(service, before=one), holding(service, before=other):
            turned_away(service, before=one)
            service.settled(in_flight=2)
            with dial(service.address):  # no header yet, and it counts
                service.settled(in_flight=3)
                turned_away(service, before=V1 % b"192.0.2.9")


def test_lanes_that_are_opened_as_they_are_needed(tmp_path: Path) -> None:
    """Without max_threads: the 70 connections of one client in two workers, and not one more."""
    with service_of(tmp_path, "threads", max_threads=None, max_connections_per_client=70) as service:
        service.wait_ready(2)
        with contextlib.ExitStack() as stack:
            held = [stack.enter_context(holding(service)) for _ in range(70)]
            assert len({client.pid for client in held}) == 2
            turned_away(service)
            stack.enter_context(holding(service, "127.0.0.2"))


@pytest.mark.parametrize("kind", ["processes", "threads"])
def test_worker_that_is_killed_frees_its_places(kind: str, tmp_path: Path) -> None:
    with service_of(tmp_path, kind, max_connections_per_client=2, max_connections=2) as service:
        workers = int(str(KINDS[kind]["max_children"]))
        service.wait_ready(workers)
        for kills in range(1, 4):
            with holding(service) as first, holding(service) as second:
                turned_away(service)
                for pid in {first.pid, second.pid}:
                    service.signal(signal.SIGKILL, pid)
            while service.statistics()["lost"] < 2 * kills:
                pass
            service.wait_ready(workers)


def test_two_generations_count_together(tmp_path: Path) -> None:
    """Over reloads: what the old one holds is seen by the new one, until it ends."""
    with Released(tmp_path, max_children=2, max_connections_per_client=2) as service:
        service.wait_ready(2)
        for generation in (2, 3):
            with service.hold() as first:
                service.release(numbered(generation))
                service.signal(signal.SIGHUP)
                service.wait_reloads(ok=generation - 1)
                with service.hold() as second:
                    turned_away(service)
                    end(first)
                    with service.hold() as third:
                        end(third)
                    end(second)
            service.wait_ready(2, replaced=2 * (generation - 1))  # one that leaves may take one last


def test_master_without_its_program_frees_the_places_of_the_dead(tmp_path: Path) -> None:
    with Released(tmp_path, max_children=4, max_connections_per_client=2) as service:
        service.wait_ready(4)
        with service.hold() as first:
            service.expect("reload failed: the program")
            service.allow("RuntimeError: not here")
            service.release(AFTERWARDS + "raise RuntimeError('not here')\n")
            service.signal(signal.SIGHUP)
            service.wait_degraded()
            with service.hold():
                turned_away(service)
                service.signal(signal.SIGKILL, first.pid)
                assert first.answer_or_end() is None
                answered, deadline = False, monotonic() + HUNG
                while not answered and monotonic() < deadline:  # the place is free when the dead one is reaped
                    with service.connect() as again, contextlib.suppress(BrokenPipeError):
                        again.send(b"pid")
                        if answered := again.answer_or_end() is not None:
                            turned_away(service)
                assert answered


@pytest.mark.parametrize("limit", ["most", "most_of_client"])
@pytest.mark.parametrize("most", [1, 3, 9])
def test_never_too_many_and_none_turned_away_in_vain(limit: str, most: int) -> None:
    """Three processes of three threads come and go as fast as they can: never more than `most` are in, and where there
    is room for all nobody is turned away."""
    table = ConnectionTable()
    table.expect({1, 2})
    take, put = os.pipe()
    os.set_blocking(take, False)
    os.write(put, b"x" * most)
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", entering.__name__, *map(str, (table.fd, row, most, take, put)), limit],
            pass_fds=[table.fd, take, put], stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )
        for row in (1, 2, 3)
    ]  # fmt: skip
    told = [worker.communicate(timeout=4 * HUNG)[0].split() for worker in workers]
    entered, away, too_many = (sum(int(words[place]) for words in told) for place in range(3))
    table.close()
    os.close(take)
    os.close(put)
    figure(f"let in and turned away, of {most}", f"{entered}, {away}")
    assert entered + away == 3 * entering.THREADS * entering.ROUNDS
    assert too_many == 0
    assert entered > 0
    if most == 9:
        assert away == 0


def test_processes_that_a_handler_forks_free_nothing(tmp_path: Path) -> None:
    """They end by the same code that ends a request, and it is still served."""
    definitions = """
class Handler(StreamRequestHandler):
    def handle(self):
        self.rfile.readline()
        if os.fork():
            os.wait()
            self.wfile.write(b"forked\\n")
            self.rfile.readline()
"""
    with service_of(tmp_path, "processes", definitions=definitions, max_connections_per_client=1) as service:
        service.wait_ready(4)
        with service.connect() as client:
            assert client.ask(b"fork") == b"forked"
            turned_away(service)


@pytest.mark.parametrize("name", ["max_connections", "max_connections_per_client"])
def test_datagrams_are_no_connections(name: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {name: 3}
    source = script(bases="PreForkingUDPServer", **settings)
    with Service(tmp_path, source) as service:
        service.expect(f"ConfigError: could not set {name}: it is for connections, and this server takes datagrams")
        assert service.wait_exit() != 0


def test_limit_of_file_sizes_is_named(tmp_path: Path) -> None:
    """The table is as large as the largest pool needs it, though little of it is ever memory."""
    before = ["sh", "-c", 'ulimit -f 20000; exec "$@"', "sh"]
    with Service(tmp_path, script(max_connections=3), before=before) as service:
        service.expect("could not start a pool: the kernel refuses memfd_create: file too large")
        assert service.wait_exit() == 1
    assert f"A limit of file sizes (ulimit -f) must be above {MEMORY_BYTES} bytes." in service.log


def test_clients_of_a_unix_socket_have_no_address(tmp_path: Path) -> None:
    """It is said, and the pool's own limit holds."""
    settings: dict[str, Any] = {"max_connections": 1, "max_connections_per_client": 1}
    source = script(bases="PreForkingUnixStreamServer", address="s", max_children=2, **settings)
    with Service(tmp_path, source) as service:
        service.wait_ready(2)
        with service.hold():
            turned_away(service)
        assert "max_connections_per_client has no effect: clients of a Unix socket have no address" in service.log
