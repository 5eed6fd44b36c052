"""The composition table, row by row, over our classes and the standard library's: how many requests at once, and where.

Real clients hold connections: as many as the row promises are answered at once, the next one waits in the kernel until
one of them ends.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.clients.connections import Connection
from tests.support.programs.service import ENDED_BY_TERM, Service, script
from tests.support.tools.proc import accept_queue, nothing_for

CHILDREN, THREADS = 2, 3
A_WHILE = 0.1  # seconds in which somebody with room would have answered
POOL = {"max_children": CHILDREN, "max_threads": THREADS}


@dataclass(frozen=True)
class Row:
    """What a composition promises."""

    at_once: int
    where: str  # a worker, forked ahead; a child, forked at the request; the serving process
    stays: bool = True  # the process, after its request
    settings: dict[str, Any] | None = None


ALONE = Row(CHILDREN, "worker")
THREADED = Row(CHILDREN * THREADS, "worker")
AHEAD = Row(CHILDREN, "worker", stays=False)
AT_THE_REQUEST = Row(CHILDREN, "child", stays=False, settings={"max_children": CHILDREN})
IN_THREADS = Row(THREADS, "here", settings={"max_threads": THREADS})
ONE = Row(1, "here", settings={})

ROWS = {
    "PreForkingTCPServer": ALONE,
    "PreForkingMixIn, TCPServer": ALONE,
    "PreForkingMixIn, socketserver.TCPServer": ALONE,
    "PreForkingMixIn, ThreadingMixIn, TCPServer": THREADED,
    "PreForkingMixIn, ThreadingTCPServer": THREADED,
    "PreForkingMixIn, ThreadingMixIn, socketserver.TCPServer": THREADED,
    "PreForkingMixIn, socketserver.ThreadingMixIn, TCPServer": THREADED,
    "PreForkingMixIn, socketserver.ThreadingTCPServer": THREADED,
    "PreForkingMixIn, ForkingMixIn, TCPServer": AHEAD,
    "PreForkingMixIn, ForkingTCPServer": AHEAD,
    "PreForkingMixIn, ForkingMixIn, socketserver.TCPServer": AHEAD,
    "PreForkingMixIn, socketserver.ForkingMixIn, TCPServer": AHEAD,
    "PreForkingMixIn, socketserver.ForkingTCPServer": AHEAD,
    "ForkingTCPServer": AT_THE_REQUEST,
    "ForkingMixIn, socketserver.TCPServer": AT_THE_REQUEST,
    "ThreadingTCPServer": IN_THREADS,
    "ThreadingMixIn, socketserver.TCPServer": IN_THREADS,
    "SupervisedMixIn, socketserver.ThreadingTCPServer": IN_THREADS,
    "SupervisedMixIn, TCPServer": ONE,
    "SupervisedMixIn, socketserver.TCPServer": ONE,
}


def composed(tmp_path: Path, bases: str, row: Row) -> Service:
    definitions = ENDED_BY_TERM if row.settings is not None else ""
    return Service(tmp_path, script(definitions, bases=bases, **(POOL if row.settings is None else row.settings)))


def children(service: Service) -> set[int]:
    return {child.pid for child in psutil.Process(service.pid).children()}


@pytest.mark.parametrize("bases", ROWS)
def test_row(bases: str, tmp_path: Path) -> None:
    """So many requests at once, in that process, and the next one when one of them has ended."""
    row = ROWS[bases]
    with composed(tmp_path, bases, row) as service, contextlib.ExitStack() as stack:
        if row.settings is None:
            service.wait_ready(CHILDREN)
        port, before = service.address[1], children(service)
        held = [stack.enter_context(service.hold()) for _ in range(row.at_once)]
        late = stack.enter_context(service.connect())
        late.send(b"pid")
        nothing_for(A_WHILE, late.sock)
        assert accept_queue(port) == 1
        if row is not ONE:  # whose serving thread is the one that is held
            statistics = service.statistics()
            assert (statistics["in_flight"], statistics["lanes_busy"]) == (row.at_once, row.at_once)
        assert_where(row, service, held, before)
        held[0].close()
        late.pid = int(late.answer())
        assert (late.pid == held[0].pid) is row.stays
        assert_where(row, service, [*held[1:], late], before if row.stays else children(service))
        stack.close()
        if row is AHEAD:
            service.wait_ready(CHILDREN, max_requests=row.at_once + 1)
        statistics = service.settled()
    assert statistics["accepted"] == statistics["completed"] == row.at_once + 1
    assert statistics["exits"] == ({"max_requests": row.at_once + 1} if row is AHEAD else {})


def assert_where(row: Row, service: Service, held: list[Connection], before: set[int]) -> None:
    """`before`: the children that there were before the requests came."""
    pids = [connection.pid for connection in held]
    if row.where == "here":
        assert set(pids) == {service.pid}
    elif row.where == "child":
        assert len(set(pids)) == len(pids) == row.at_once
        assert set(pids) <= children(service)
    else:
        assert set(pids) == before & set(service.workers())
        assert len(set(pids)) == CHILDREN
        assert {pids.count(pid) for pid in pids} == {row.at_once // CHILDREN}


@pytest.mark.parametrize("bases", ["ThreadingTCPServer", "SupervisedMixIn, socketserver.ThreadingTCPServer"])
def test_threads_without_a_cap(bases: str, tmp_path: Path) -> None:
    """Where max_threads is not set there is a thread for whoever comes, as in the standard library."""
    clients = 150
    with composed(tmp_path, bases, ONE) as service, contextlib.ExitStack() as stack:
        held = [stack.enter_context(service.hold()) for _ in range(clients)]
        statistics = service.statistics()
        assert {connection.pid for connection in held} == {service.pid}
        assert statistics["in_flight"] == clients <= statistics["lanes"]
        stack.close()
        assert service.settled()["completed"] == clients


def test_the_standard_librarys_children_without_a_pool(tmp_path: Path) -> None:
    """Over the standard library's ForkingMixIn alone the children are its own: a request is handed over to one, and
    what that does is counted nowhere."""
    bases = "SupervisedMixIn, socketserver.ForkingTCPServer"
    with composed(tmp_path, bases, ONE) as service:
        for _ in range(20):
            with service.hold() as held:
                assert held.pid != service.pid
                assert int(held.ask(b"pid")) == held.pid
        statistics = service.settled()
    assert (statistics["accepted"], statistics["handed_over"], statistics["completed"]) == (20, 20, 0)
