"""A pool of each kind, alone and composed: real clients, and statistics that equal what the clients saw."""

import os
import re
import select
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients.connections import Load, ask, ask_datagram
from tests.support.clients.controlling import answer, connected
from tests.support.clients.scraping import get
from tests.support.hosts.manager import Manager
from tests.support.programs.service import ENDED_BY_TERM, HUNG, Service, readable, script
from tests.support.tools.proc import held

DATAGRAM = """
class Handler(DatagramRequestHandler):
    def handle(self):
        word = self.rfile.read()
        if word == b"raise":
            raise RuntimeError("asked to raise")
        self.wfile.write(b"%d" % os.getpid())
"""
ASKING = """
class Handler(Who):
    def do_statistics(self):
        self.server.statistics()
"""
REFUSING = """
class Hooks:
    def verify_request(self, request, client_address):
        return client_address[0] != "127.0.0.1"
"""
BARRIER = """
class Handler(Who):
    barrier = threading.Barrier(3, timeout=30)
    def do_meet(self):
        self.barrier.wait()
"""
UNSEEN = "from tests.process.programs.unseen import Handler, Hooks"
TCP = ("127.0.0.1", 0)
STREAMS: dict[str, Any] = {
    "PreForkingTCPServer": TCP,
    "PreForkingUnixStreamServer": "s",
    "PreForkingMixIn, ThreadingMixIn, TCPServer": TCP,
    "PreForkingMixIn, ThreadingUnixStreamServer": "s",
    "PreForkingMixIn, ForkingMixIn, TCPServer": TCP,
}
DATAGRAMS: dict[str, Any] = {
    "PreForkingUDPServer": TCP,
    "PreForkingUnixDatagramServer": "d",
    "PreForkingMixIn, ThreadingUDPServer": TCP,
    "PreForkingMixIn, ForkingUDPServer": TCP,
}


@pytest.mark.parametrize("bases", STREAMS)
def test_streams(bases: str, tmp_path: Path) -> None:
    """Every stream pool answers from its workers, and counts completed and failed as the clients saw them."""
    with Service(tmp_path, script(bases=bases, address=STREAMS[bases], max_children=2)) as service:
        service.expect("RuntimeError: asked to raise")
        service.wait_ready(2)
        pids = {int(ask(service.address, b"pid\n")) for _ in range(20)}
        failed = [ask(service.address, b"raise\n") for _ in range(5)]
        assert service.pid not in pids
        assert failed == [b""] * 5
        service.signal(signal.SIGTERM)
        assert service.wait_exit() == 0
        ended = service.wait("ended")
    assert (ended["accepted"], ended["completed"], ended["failed"]) == (25, 20, 5)
    assert "asked to raise" in service.log
    if STREAMS[bases] == "s":
        assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("bases", DATAGRAMS)
def test_datagrams(bases: str, tmp_path: Path) -> None:
    """Every datagram pool answers from its workers, and counts what the clients saw."""
    with Service(tmp_path, script(DATAGRAM, bases=bases, address=DATAGRAMS[bases], max_children=2)) as service:
        service.wait_ready(2)
        mine = [str(tmp_path / f"c{number}") if "Unix" in bases else "" for number in range(20)]
        pids = {int(ask_datagram(service.address, b"x", mine=path)) for path in mine}
        assert service.pid not in pids
        service.signal(signal.SIGTERM)
        assert service.wait_exit() == 0
        ended = service.wait("ended")
    assert (ended["accepted"], ended["completed"]) == (20, 20)


@pytest.mark.parametrize("bases", ["PreForkingTCPServer", "PreForkingMixIn, ThreadingTCPServer"])
def test_statistics_under_load(bases: str, tmp_path: Path) -> None:
    """With many clients at once the totals are, to the unit, what the clients counted."""
    with Service(tmp_path, script(bases=bases, max_children=3)) as service:
        with Load(service.address, 8) as load:
            load.wait_answered(500)
        service.signal(signal.SIGTERM)
        assert service.wait_exit() == 0
        ended = service.wait("ended")
    assert load.tally.failures == 0
    assert ended["accepted"] == ended["completed"] == load.tally.opened == load.tally.answered


def test_statistics_in_a_worker(tmp_path: Path) -> None:
    """A worker does not know its siblings, and says so: RuntimeError, not numbers of its own."""
    with Service(tmp_path, script(ASKING, max_children=1)) as service:
        service.expect(r"RuntimeError: statistics\(\) is answered in the process that runs serve_forever\(\)")
        assert ask(service.address, b"statistics\n") == b""
        assert service.statistics()["failed"] == 1
    assert "RuntimeError: statistics() is answered in the process that runs serve_forever()" in service.log


def test_refused_is_counted_as_rejected(tmp_path: Path) -> None:
    """What verify_request() refuses in a worker is closed and counted as rejected."""
    with Service(tmp_path, script(REFUSING, max_children=1)) as service:
        assert ask(service.address, b"") == b""
        assert service.statistics()["rejected"] == 1


@pytest.mark.parametrize("mixin", ["ThreadingMixIn", "socketserver.ThreadingMixIn"])
def test_threads_in_a_worker(mixin: str, tmp_path: Path) -> None:
    """Under ThreadingMixIn, ours or the standard library's, one worker holds max_threads requests, and no more."""
    source = script(BARRIER, bases=f"PreForkingMixIn, {mixin}, TCPServer", max_children=1, max_threads=3)
    with Service(tmp_path, source) as service:
        service.wait_ready(1)
        held = [service.hold() for _ in range(3)]
        with service.connect() as fourth:
            fourth.send(b"pid")
            statistics = service.statistics()
            assert (statistics["in_flight"], statistics["lanes"], statistics["lanes_busy"]) == (3, 3, 3)
            for connection in held:
                connection.send(b"meet")
            assert {int(connection.answer()) for connection in held} == {held[0].pid}
            held[0].close()
            assert int(fourth.answer()) == held[0].pid
        for connection in held:
            connection.close()


@pytest.mark.parametrize("mixin", ["ForkingMixIn", "socketserver.ForkingMixIn"])
def test_a_process_per_request(mixin: str, tmp_path: Path) -> None:
    """Under ForkingMixIn, ours or the standard library's, every request has a process that was forked ahead of it."""
    source = script(BARRIER, bases=f"PreForkingMixIn, {mixin}, TCPServer", max_children=2)
    with Service(tmp_path, source) as service:
        service.wait_ready(2)
        pids = [int(ask(service.address, b"pid\n")) for _ in range(20)]
        assert len(set(pids)) == 20
        service.wait_ready(2, max_requests=20)
        statistics = service.statistics()
    assert statistics["exits"] == {"max_requests": 20}
    assert statistics["completed"] == 20


def test_system_exit_in_a_handler(tmp_path: Path) -> None:
    """SystemExit from a handler ends that worker, reason exited; its request counts as failed; it is replaced."""
    with Service(tmp_path, script(max_children=2)) as service:
        service.expect(r"exited \(exit status 1\)", r"exited \(exit status 0\)")
        service.wait_ready(2)
        for number in range(1, 4):
            assert ask(service.address, b"exit %d\n" % (number % 2)) == b""
            service.wait_ready(2, exited=number)
        statistics = service.statistics()
    assert statistics["failed"] == 3
    assert statistics["exits"] == {"exited": 3}
    assert "Traceback" not in service.log


@pytest.mark.parametrize("bases", ["PreForkingTCPServer", "PreForkingMixIn, ThreadingTCPServer"])
def test_shutdown_from_a_handler(bases: str, tmp_path: Path) -> None:
    """server.shutdown() in a handler drains the pool: the others finish, serve_forever() returns."""
    with Service(tmp_path, script(bases=bases, max_children=2)) as service:
        service.wait_ready(2)
        with service.hold() as held:
            assert ask(service.address, b"shutdown\n")
            service.wait_pool(lambda pool: pool["draining"] > 0 or pool["exits"].get("drained", 0) > 0)
            assert int(held.ask(b"pid")) == held.pid
        assert service.wait_exit() == 0
        ended = service.wait("ended")
    assert ended["exits"] == {"drained": 2}
    assert ended["completed"] == 2


@pytest.mark.parametrize("word", ["exit 0", "leave"])
def test_a_life_between_two_looks(word: str, tmp_path: Path) -> None:
    """What a worker has become and has asked for counts, though it ended before the master looked."""
    with Service(tmp_path, script(UNSEEN, max_children=1, metrics_address="m")) as service:
        service.expect(r"exited \(exit status 0\)")
        with readable(os.pidfd_open(service.wait("worker_started")["pid"])) as ended:
            ask(service.address, f"{word}\n".encode())
            assert select.select([ended], [], [], HUNG)[0]
        service.signal(signal.SIGCONT)
        if word == "leave":
            assert service.wait_exit() == 0
        else:
            service.wait_ready(1, exited=1)
            found = get(os.path.relpath(tmp_path / "m")).samples
            assert found["prefork_worker_spawns_total"] == found["prefork_worker_boot_seconds_count"] == 2
        assert re.search("worker slot=1 .*: ready\n.*worker slot=1 .*: exited", service.log, re.DOTALL)


def test_workers_hold_nothing_of_each_other(tmp_path: Path) -> None:
    """Whatever there is in the master when a worker is forked (siblings, an exporter, a client of the control socket, a
    service manager), it holds as much as the first worker of a bare pool: nothing of theirs."""
    with Service(tmp_path, script(max_children=1)) as service:
        service.wait_ready(1)
        alone = held(*service.workers())
    more = {"control_socket": str(tmp_path / "c"), "metrics_address": "m"}
    with Manager(tmp_path) as manager, Service(tmp_path, script(max_children=4, **more), env=manager.env()) as service:
        service.wait_ready(4)
        with connected(tmp_path / "c") as (client, answers):
            client.sendall(b'{"verb": "version"}\n')
            assert answer(answers)["ok"]
            service.signal(signal.SIGUSR2)
            service.wait_ready(4, replaced=4)
            together = [held(pid) for pid in service.workers()]
    assert together == [alone] * 4


PRINTS = """
print("by the program")

class Handler(Who):
    def do_print(self):
        print("by a child")
"""


@pytest.mark.parametrize("bases", ["PreForkingTCPServer", "PreForkingMixIn, ForkingTCPServer", "ForkingTCPServer"])
def test_what_is_printed_comes_out_once(bases: str, tmp_path: Path) -> None:
    """What the program had printed, and not brought out yet, when a child was forked is not printed by that too; what
    the child prints is."""
    ends = "" if "PreForking" in bases else ENDED_BY_TERM
    with Service(tmp_path, script(ends + PRINTS, bases=bases, max_children=3, metrics_address="m")) as service:
        for _ in range(2):
            assert ask(service.address, b"print\n")
        service.signal(signal.SIGTERM)
        assert service.wait_exit() == 0
        lines = service.log.splitlines()
    assert [lines.count(line) for line in ("by the program", "by a child")] == [1, 2]


def test_hooks_of_a_worker(tmp_path: Path) -> None:
    """worker_started() and worker_stopping() are called once in each worker that drains, in no other process."""
    with Service(tmp_path, script(max_children=3)) as service:
        service.wait_ready(3)
        first = set(service.workers())
        service.signal(signal.SIGUSR2)
        service.wait_ready(3, replaced=3)
        second = set(service.workers())
        service.signal(signal.SIGTERM)
        assert service.wait_exit() == 0
    for event in ("worker_started", "worker_stopping"):
        pids = [fact["pid"] for fact in service.facts if fact["event"] == event]
        assert sorted(pids) == sorted(first | second)
