"""Kept connections under kills, reloads and load: one is lost only with the worker that had it, and nobody waits behind
another one's request."""

import contextlib
import os
import random
import resource
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

import pytest

from tests.support.clients.keeping import (
    KINDS,
    THREADED,
    Crowd,
    heard_of,
    holder,
    keeping,
    quiet,
    releasing,
    stay,
    staying,
    wait_counted,
)
from tests.support.clients.scraping import Scraper
from tests.support.programs.releases import AFTERWARDS, numbered
from tests.support.programs.service import HUNG, Service, Watch
from tests.support.programs.storm import Storm
from tests.support.tools.figures import figure, ms

SECONDS = float(os.environ.get("TEST_PREFORK_LEDGER_S", "8")) / 2
WORKERS, CONNECTIONS = 4, 100
RELOADS = 5
MANY = 10_000
SOON = 1.0  # seconds, in which who is free answers


def reload(service: Any, number: int) -> None:
    service.release(numbered(number + 1))
    service.signal(signal.SIGHUP)
    service.wait_reloads(ok=number)


@pytest.mark.parametrize("bases", ["PreForkingTCPServer", THREADED])
def test_ledger_of_connections(bases: str, tmp_path: Path, rng: random.Random) -> None:
    """Workers killed at random, and a reload in the midst: what the clients saw is in the books. A connection is lost
    only with a worker that had it; no message comes twice or is left out; no total falls between two scrapes."""
    with releasing(tmp_path, bases=bases, max_children=WORKERS, max_threads=3) as service:
        service.expect(r"killed \(killed by SIGKILL\)")
        service.wait_ready(WORKERS)
        storm = Storm(service, rng)
        with Scraper(os.path.relpath(tmp_path / "m")) as scraper:
            with Crowd(service.address, CONNECTIONS, rng) as crowd:
                crowd.wait_answered(CONNECTIONS)
                storm.rage(SECONDS / 2)
                reload(service, 1)
                storm.rage(SECONDS / 2)
                service.wait_ready(WORKERS, killed=storm.kills)
                crowd.wait_answered(CONNECTIONS)
            ledger = crowd.ledger
            found = wait_counted(service, active=0, lingering=0, held=0)
            statistics = service.settled()
    unsaid = ledger.cut - found.get("lost", 0)
    figure(f"{bases}: kills, connections, messages", f"{storm.kills}, {ledger.opened}, {ledger.answered}")
    figure(f"{bases}: cut at the clients, lost by the books", f"{ledger.cut}, {found.get('lost', 0)}")
    figure(f"{bases}: the slowest answer", ms(ledger.slowest))
    assert ledger.wrong == {}
    # A death hides one that its worker had just received, or was about to park; it is among `queued` then.
    hidden = 5 + storm.kills // 3
    assert -5 <= unsaid <= hidden
    assert abs(found["client"] + found.get("lost", 0) - ledger.opened) <= hidden
    assert 0 < ledger.cut <= storm.kills * (3 if bases == THREADED else 2)  # in hand, and one that lingered
    assert 0 <= ledger.answered - statistics["completed"] <= min(storm.kills * 3, statistics["lost"])
    assert statistics["accepted"] == statistics["completed"] + statistics["lost"]
    assert statistics["lost"] <= ledger.cut + 5
    assert set(found) <= {"client", "lost", "moves", "queued"}
    assert scraper.falls == []
    assert scraper.failed == []


@pytest.mark.parametrize("kind", ["sync", "threads", "unix"])
def test_reloads_and_recycling_lose_nothing(kind: str, tmp_path: Path, rng: random.Random) -> None:
    """A hundred connections over reload after reload, with workers that serve no more than a few requests: not
    one is cut, no message is lost or comes twice."""
    more = {key: value for key, value in KINDS[kind].items() if key != "more"}
    with releasing(tmp_path, max_requests=20, **{**more, "max_children": WORKERS}) as service:
        service.wait_ready(WORKERS)
        with Crowd(service.address, CONNECTIONS, rng) as crowd:
            for number in range(1, RELOADS + 1):
                crowd.wait_answered(CONNECTIONS)
                reload(service, number)
            crowd.wait_answered(CONNECTIONS)
        ledger = crowd.ledger
        found = wait_counted(service, active=0, lingering=0, queued=0, held=0)
        statistics = service.settled()
    figure(f"{kind}: messages over {RELOADS} reloads, the slowest", f"{ledger.answered}, {ms(ledger.slowest)}")
    figure(f"{kind}: connections cut, of {ledger.opened}", ledger.cut, 0)
    assert (ledger.cut, dict(ledger.wrong)) == (0, {})
    assert (found["client"], "lost" in found) == (ledger.opened, False)
    assert statistics["accepted"] == statistics["completed"] == ledger.answered
    assert statistics["exits"].get("max_requests", 0) > 0


def test_a_worker_takes_with_it_what_it_has(tmp_path: Path) -> None:
    """A worker that dies in a request takes this connection along; one that dies idle takes one at most, that of its
    last answer; the others' clients notice nothing."""
    with keeping(tmp_path, max_children=3) as service, staying(service.address, 30) as clients:
        service.expect(r"killed \(killed by SIGKILL\)")
        service.wait_ready(3)
        for client in clients:
            client.say()
        wait_counted(service, held=30)
        clients[0].send(b"kill")
        clients[0].wait_end()
        wait_counted(service, held=29, lost=1)
        service.wait_ready(3, killed=1)
        for client in clients[1:]:
            client.say()
        workers = service.workers()
        with Watch(*workers) as watch:
            for pid in workers:
                service.signal(signal.SIGKILL, pid)
            watch.wait_dead()
        service.wait_ready(3, killed=4)
        lost = wait_counted(service, lingering=0)["lost"] - 1
        cut = len(heard_of(*clients[1:]))
        for client in clients[1:]:
            if quiet(client):
                client.say()
    figure("three idle workers killed: connections lost with them", lost, 3)
    assert cut == lost <= 3


def test_nobody_waits_behind_a_request(tmp_path: Path) -> None:
    """A connection that lingers in a worker is not left there when this one begins a request of somebody else,
    whichever comes first."""
    slowest = 0.0
    with keeping(tmp_path) as service, staying(service.address, 2) as (one, other):
        service.wait_ready(2)
        for number in range(10):
            with contextlib.suppress(FileNotFoundError):
                (tmp_path / "go on").unlink()
            mark = service.mark()
            if number % 2:
                other.say()
            one.say()
            other.send(b"wait")
            if number % 3:
                service.wait("waiting", after=mark)
            began = monotonic()
            one.say()
            slowest = max(slowest, monotonic() - began)
            (tmp_path / "go on").touch()
            other.heard()
    figure("beside a request that does not end: slowest answer of a connection that lingered", ms(slowest), ms(SOON))
    assert slowest < SOON


@contextlib.contextmanager
def flooding(service: Service, count: int, question: bytes) -> Iterator[list[int]]:
    """So many clients that never stop asking, and never wait; what they were answered, in order."""
    stop = threading.Event()
    answered = [0] * count

    def flood(at: int) -> None:
        with stay(service.address) as client:
            client.sock.sendall(question * 200)
            ahead = 200
            while not stop.is_set():
                answered[at] += 1
                client.heard(answered[at])
                ahead -= 1
                if ahead < 100:
                    client.sock.sendall(question * 100)
                    ahead += 100

    threads = [threading.Thread(target=flood, args=(number,), name="flood") for number in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield answered
    finally:
        stop.set()
        for thread in threads:
            thread.join(HUNG)


@pytest.mark.parametrize("kind", ["sync", "threads"])
def test_flooders_starve_nobody(kind: str, tmp_path: Path) -> None:
    """More clients than places that always have another request there: the others are answered between theirs, and so
    is who comes anew."""
    took = []
    with keeping(tmp_path, **{**KINDS[kind], "max_threads": 2}) as service, staying(service.address, 5) as clients:
        flooders = 3 if kind == "sync" else 5
        with flooding(service, flooders, b"sleep 0.002\n") as answered:
            service.wait_each("sleeping", 100)
            for _ in range(5):
                for client in clients:
                    began = monotonic()
                    client.say()
                    took.append(monotonic() - began)
                began = monotonic()
                with stay(service.address) as fresh:
                    fresh.say()
                took.append(monotonic() - began)
            service.mark()
    figure(
        f"{kind}, beside {flooders} flooders: answers, median and slowest",
        f"{ms(median(took))}, {ms(max(took))}",
        ms(SOON),
    )
    figure(f"{kind}: flooders' answers", answered)
    assert max(took) < SOON
    assert min(answered) > 20


def test_idle_connections_are_no_load(tmp_path: Path) -> None:
    """TERM with ten thousand idle connections: each is closed, and the service is gone, in a second; until then the
    busy ones are answered."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with raised_limit(), keeping(tmp_path, max_children=WORKERS, request_queue_size=1024) as service:
        many = min(MANY, hard - 500)
        service.wait_ready(WORKERS)
        with Watch(service.pid) as watch, staying(service.address, many) as clients:
            found = wait_counted(service, held=many, lingering=0)
            clients[many // 2].say()
            began = service.signal(signal.SIGTERM)
            took = watch.wait_dead() - began
            for client in clients:
                client.wait_end()
        assert service.wait_exit() == 0
    figure(f"TERM with {many} idle connections: gone after", ms(took), "1 s")
    assert "evicted" not in found
    assert took < (1 if many == MANY else HUNG)


@contextlib.contextmanager
def raised_limit() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_release_that_breaks_after_the_exec(tmp_path: Path) -> None:
    """Kept connections are served on by the degraded master's workers, and by those of the good release after it."""
    with releasing(tmp_path) as service, staying(service.address, 20) as clients:
        service.expect("raise RuntimeError", "reload failed: the program failed: RuntimeError")
        service.wait_ready(2)
        for client in clients:
            client.say()
        wait_counted(service, held=20)
        service.release(AFTERWARDS + "raise RuntimeError\n")
        service.signal(signal.SIGHUP)
        service.wait_degraded()
        for _ in range(2):
            for client in clients:
                client.say()
        service.release(numbered(3))
        service.signal(signal.SIGHUP)
        service.wait_reloads(ok=1)
        for client in clients:
            client.say()
        assert "lost" not in wait_counted(service, held=20)
        assert holder(service)


def test_the_master_dies(tmp_path: Path) -> None:
    """With the master everybody goes: the workers, the holder, and every connection."""
    with keeping(tmp_path, accounts=False) as service, staying(service.address, 20) as clients:
        for client in clients:
            client.say()
        wait_counted(service, held=20)
        service.allow("master died", "the master has died")
        service.signal(signal.SIGKILL)
        for client in clients:
            client.wait_end()
        service.wait_gone()


def test_growth_from_the_ready_queue(tmp_path: Path) -> None:
    """A pool that may grow does so for messages on kept connections, without a new connection."""
    with keeping(tmp_path, min_children=1, max_children=3, max_spare_children=1) as service:
        with staying(service.address, 6) as clients:
            for client in clients:
                client.say()
            wait_counted(service, held=6)
            for client in clients[:2]:
                mark = service.mark()
                client.send(b"wait")
                service.wait("waiting", after=mark)
            assert len({fact["pid"] for fact in service.facts if fact["event"] == "waiting"}) == 2
            began = monotonic()
            for client in clients[2:]:
                client.say()
            took = monotonic() - began
            wait_counted(service, active=2)
            (tmp_path / "go on").touch()
            for client in clients[:2]:
                client.heard()
    figure("four messages while the pool grows for them", ms(took))
