"""Reloads under load and in a hurry: nothing is lost, two generations at most, and a stop wins over everything."""

import contextlib
import os
import random
import signal
import socket
import threading
from pathlib import Path
from time import monotonic
from typing import Any

import psutil
import pytest

from tests.support.clients.connections import Load
from tests.support.clients.scraping import Scraper, get, total
from tests.support.programs.releases import AFTERWARDS, Released, numbered
from tests.support.programs.service import HUNG, Watch, script
from tests.support.tools.figures import figure, ms
from tests.support.tools.proc import nothing_for

WORKERS = 4
CLIENTS, PROCESSES = 8, 2
UNDER_LOAD: dict[str, tuple[int, dict[str, Any]]] = {  # how many reloads of what
    "processes": (10, {}),
    "threads": (4, {"bases": "PreForkingMixIn, ThreadingTCPServer", "max_threads": 4}),
    "a Unix path": (4, {"bases": "PreForkingUnixStreamServer", "address": "s.sock"}),
}  # fmt: skip
MANY = int(os.environ.get("TEST_PREFORK_RELOADS") or 30)  # 200 where there is time
UDP_RELOADS = 3


def reload(service: Released, number: int, results: dict[str, int]) -> float:
    """Release this and ask for it; how long from its first worker's READY until a new connection is answered by it."""
    service.release(numbered(number))
    mark = service.mark()
    began = service.signal(signal.SIGHUP)
    while service.answering() != f"r{number}":
        assert monotonic() < began + HUNG, "hung: the new code does not answer"
    answered = monotonic()
    listening = service.wait("listening", after=mark)  # of the new image
    ready = service.wait("worker_started", after=service.facts.index(listening))
    results["ok"] = results.get("ok", 0) + 1
    service.wait_reloads(**results)
    return float(answered - ready["at"])


@pytest.mark.parametrize("what", ["processes", "threads", pytest.param("a Unix path", marks=pytest.mark.quick_faults)])
def test_reloads_under_load_lose_nothing(what: str, tmp_path: Path) -> None:
    """Reload after reload, with clients from several processes: no connection fails, none takes longer than a second,
    the pid stays, new code answers within 2 s of its first READY; also with threads, and on a Unix path."""
    reloads, settings = UNDER_LOAD[what]
    with Released(tmp_path, max_children=WORKERS, **settings) as service:
        service.wait_ready(WORKERS)
        with Load(service.address, CLIENTS, processes=PROCESSES) as load:
            load.wait_answered()
            results: dict[str, int] = {}
            took = [reload(service, number, results) for number in range(2, reloads + 2)]
        figure("failed connections", f"{load.tally.failures} of {load.tally.opened} over {reloads} reloads, {what}", 0)
        figure("from the first READY to an answer of the new code", ms(max(took)), "2 s")
        figure("longest latency", ms(load.tally.max_latency), "1 s")
        assert load.tally.failures == 0, load.tally.failed
        assert max(took) < 2
        assert load.tally.max_latency < 1
        assert service.settled()["generation"] == reloads + 1


@pytest.mark.parametrize("bases", ["PreForkingTCPServer", "PreForkingMixIn, ThreadingTCPServer"])
def test_scrapes_over_reloads(bases: str, tmp_path: Path) -> None:
    """A scraper that never stops, over reloads under load: every scrape is answered, and no total falls."""
    with Released(tmp_path, max_children=2, bases=bases, metrics_address="m") as service:
        service.wait_ready(2)
        with Load(service.address, 4, processes=1) as load, Scraper(os.path.relpath(tmp_path / "m")) as scraper:
            load.wait_answered()
            results: dict[str, int] = {}
            for number in range(2, 5):
                reload(service, number, results)
        accepted = service.settled()["accepted"]
        last = scraper.look()
    figure(f"{bases}: scrapes over 3 reloads, the slowest", f"{scraper.scrapes}, {ms(scraper.slowest)}")
    figure(f"{bases}: scrapes that failed, totals that fell", f"{len(scraper.failed)}, {len(scraper.falls)}", "0, 0")
    assert scraper.failed == []
    assert scraper.falls == []
    assert total(last, "prefork_connections_accepted_total") == accepted


BROKEN = {
    "raises at import": "raise RuntimeError\n",
    "exits": "import sys; sys.exit(1)\n",
    "hangs at boot": "import time\nwhile True: time.sleep(60)\n",
    "fails in worker_started": "class Hooks:\n    def worker_started(self): raise RuntimeError\n",
}


def test_broken_releases_under_load_lose_nothing(tmp_path: Path) -> None:
    """Releases that break in every way: the same workers serve on, and no connection fails."""
    with Released(tmp_path, max_children=WORKERS, boot_timeout=5) as service:
        service.expect(
            "reload failed: the rehearsal", "reload failed: a worker could not start", "(?s)boot_failed.*RuntimeError"
        )
        service.wait_ready(WORKERS)
        before = sorted(service.workers())
        with Load(service.address, CLIENTS, processes=PROCESSES) as load:
            load.wait_answered()
            for number, text in enumerate(BROKEN.values(), 1):
                service.release(text)
                service.signal(signal.SIGHUP)
                service.wait_reloads(failed=number)
        figure("failed connections", f"{load.tally.failures} of {load.tally.opened} over {len(BROKEN)} broken ones", 0)
        assert load.tally.failures == 0, load.tally.failed
        assert sorted(service.workers()) == before


def test_a_release_that_breaks_after_the_exec_under_load_loses_nothing(tmp_path: Path) -> None:
    """The degraded master keeps the old generation serving, until the next reload mends it."""
    with Released(tmp_path, "class Hooks: pass\n" + numbered(1), max_children=WORKERS) as service:
        service.expect("raise RuntimeError", "reload failed: the program failed: RuntimeError")
        service.wait_ready(WORKERS)
        with Load(service.address, CLIENTS, processes=PROCESSES) as load:
            load.wait_answered()
            service.release(AFTERWARDS + "raise RuntimeError\nclass Hooks: pass\n")
            service.signal(signal.SIGHUP)
            title = Path(f"/proc/{service.pid}/cmdline")
            deadline = monotonic() + HUNG
            while not title.read_bytes().rstrip(b"\0").endswith(b"degraded"):
                assert monotonic() < deadline, "hung: it is not degraded"
            assert service.answering() == "r1"
            reload(service, 3, {})
        figure("failed connections", f"{load.tally.failures} of {load.tally.opened}", 0)
        assert load.tally.failures == 0, load.tally.failed


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def generations(log: str) -> tuple[int, int]:
    """How many generations of workers there were, and how many lived at once at most, by the log's order of events."""
    alive: dict[str, str] = {}
    seen, most = set(), 0
    for line in log.splitlines():
        words = line.split()
        at = words.index("worker") if "worker" in words[:-4] else None
        if at is None or not words[at + 1].startswith("slot="):
            continue
        generation, pid = words[at + 2], words[at + 3].rstrip(":")
        if words[at + 4] == "ready":
            alive[pid] = generation
            seen.add(generation)
        elif words[at + 4] in ("replaced", "drained", "stopped", "killed"):
            alive.pop(pid, None)
        most = max(most, len(set(alive.values())))
    return len(seen), most


def test_a_burst_of_hups(tmp_path: Path, rng: random.Random) -> None:
    """HUPs 0 to 25 ms apart: the master lives, one generation remains, two at most, no descriptor more."""
    with Released(tmp_path, max_children=2) as service:
        service.allow("reload failed: the service is about to end")
        service.wait_ready(2)
        results: dict[str, int] = {}
        reload(service, 2, results)
        service.wait_pool(lambda pool: pool["ready"] == 2 and not pool["draining"])
        before = descriptors(service.pid)
        hurry = threading.Event()
        for _ in range(MANY):
            service.signal(signal.SIGHUP)
            hurry.wait(rng.uniform(0, 0.025))  # swept, not a synchronisation
        reload(service, 3, {"ok": 1})
        service.wait_ready(2)
        last = service.settled()
        deadline = monotonic() + HUNG
        while (more := descriptors(service.pid) - before) and monotonic() < deadline:
            pass  # the last of the reloads is under way
        figure("reloads that came of it", last["reloads"], f"at most {MANY + 2}")
        seen, most = generations(service.log)
        figure("generations at once", most, 2)
        figure("descriptors more", more, 0)
        assert last["reloads"]["failed"] == 0
        assert most == 2
        assert seen > last["reloads"]["ok"]  # the log has them all; the last may have come since
        assert 2 <= last["reloads"]["ok"] <= MANY + 2
        assert more == 0


@pytest.mark.parametrize("delay_ms", [0, 5, 20, 60, 120, 160, 200, 240])
def test_term_during_a_reload_ends_it(delay_ms: int, tmp_path: Path) -> None:
    """TERM at any moment of a reload: the service ends with status 0, within graceful_timeout."""
    with Released(tmp_path, max_children=2, graceful_timeout=10) as service:
        service.allow("reload failed: the service is about to end")
        service.wait_ready(2)
        service.release(numbered(2))
        service.signal(signal.SIGHUP)
        threading.Event().wait(delay_ms / 1000)
        began = service.signal(signal.SIGTERM)
        assert service.wait_exit() == 0
        figure(f"gone after TERM {delay_ms} ms after HUP", ms(monotonic() - began), "graceful_timeout + 1 s")
        assert monotonic() - began < 11


def test_hup_during_a_drain_changes_nothing(tmp_path: Path) -> None:
    """A reload that is asked for while the service drains is not begun; the drain goes on to its end."""
    with Released(tmp_path, max_children=2) as service:
        service.wait_ready(2)
        held = service.hold()
        service.signal(signal.SIGTERM)
        service.wait_pool(lambda pool: pool["draining"] == 1)
        service.signal(signal.SIGHUP)
        service.signal(signal.SIGTTIN)
        assert held.ask(b"release") == b"r1"
        held.close()
        assert service.wait_exit() == 0


def test_ttin_during_a_reload(tmp_path: Path) -> None:
    """One worker more, asked for at any time of a reload: no state is stuck."""
    with Released(tmp_path, max_children=2) as service:
        service.wait_ready(2)
        for number, delay_ms in enumerate((0, 40, 120, 180), 2):
            service.release(numbered(number))
            service.signal(signal.SIGHUP)
            threading.Event().wait(delay_ms / 1000)
            service.signal(signal.SIGTTIN)
            service.wait_reloads(ok=number - 1)
            service.wait_pool(lambda pool: not pool["starting"] and not pool["draining"] and pool["ready"] in (2, 3))


def held(service: Released) -> dict[str, list[int]]:
    """Of the master, of each worker and of the exporter: how many descriptors, memfds among them, mappings of ours."""
    found: dict[str, list[int]] = {}
    for process in [psutil.Process(service.pid), *psutil.Process(service.pid).children()]:
        with contextlib.suppress(psutil.Error, OSError, IndexError):
            pid, links = process.pid, [os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in
                                       sorted(os.listdir(f"/proc/{process.pid}/fd"))]  # fmt: skip
            mapped = Path(f"/proc/{pid}/maps").read_text().count("memfd:prefork")
            kind = process.cmdline()[0].removeprefix("prefork: ").split()[0]
            number = sum(name.startswith(kind) for name in found)
            found[f"{kind} {number}"] = [len(links), sum("memfd" in link for link in links), mapped]
    return found


EVERYBODY = {"master 0", "worker 0", "worker 1", "exporter 0"}


def test_reloads_leave_nothing_behind(tmp_path: Path) -> None:
    """Thirty reloads: descriptors, memfds and mappings of master, workers and exporter are what they were, and so is
    the master's memory."""
    metrics = str(tmp_path / "m")
    with Released(tmp_path, max_children=2, metrics_address=metrics, control_socket=str(tmp_path / "c")) as service:
        results: dict[str, int] = {}

        def settled(*wanted: dict[str, list[int]]) -> dict[str, list[int]]:
            """What is held when the last exporter too has made room for the next."""
            service.wait_pool(lambda pool: pool["ready"] == 2 and not pool["draining"])
            deadline = monotonic() + HUNG
            while monotonic() < deadline:
                get(metrics)  # which lets go of what has ended
                found = held(service)
                if found in wanted or (not wanted and set(found) == EVERYBODY and held(service) == found):
                    break
            return found

        settled()
        for number in range(2, 4):
            reload(service, number, results)
        before, memory = settled(), psutil.Process(service.pid).memory_info().rss
        for number in range(4, 4 + MANY):
            reload(service, number, results)
        after, grown = settled(before), psutil.Process(service.pid).memory_info().rss / memory - 1
        figure(f"held after {MANY} reloads", after, before)
        figure("RSS grown", f"{grown:.1%}", "2 %")
        assert after == before
        assert grown < 0.02


DATAGRAMS = """
RELEASE = ""
exec(open("release.py").read())

class Handler(DatagramRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.read())
"""


@pytest.mark.parametrize("affinity", [False, True])
def test_datagrams_over_reloads(affinity: bool, tmp_path: Path) -> None:
    """A stream of counted datagrams over reloads: every one that the kernel had room for is answered; so too where each
    worker has a socket of its own."""
    source = script(DATAGRAMS, bases="PreForkingUDPServer", max_children=2, peer_affinity=affinity)
    with Released(tmp_path, source=source) as service:
        service.wait_ready(2)
        done = threading.Event()
        sent = 0
        received: set[bytes] = set()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.connect(service.address)
            client.settimeout(HUNG)

            def stream() -> None:
                nonlocal sent
                while not done.is_set():
                    window = [b"%d" % number for number in range(sent, sent + 16)]
                    for data in window:
                        client.send(data)
                    sent += len(window)
                    while len(received) < sent:
                        received.add(client.recv(64))

            thread = threading.Thread(target=stream)
            thread.start()
            try:
                for number in range(UDP_RELOADS):
                    service.release(numbered(number))
                    service.signal(signal.SIGHUP)
                    service.wait_reloads(ok=number + 1)
            finally:
                done.set()
                thread.join(2 * HUNG)
            assert not thread.is_alive()
        figure("datagrams answered", f"{len(received)} of {sent} over {UDP_RELOADS} reloads", "all")
        assert len(received) == sent
        assert sent > 16


def test_the_masters_death_after_a_reload(tmp_path: Path) -> None:
    """kill -9 of a master that was reloaded: the workers of its last generation watch it as the first did."""
    with Released(tmp_path, max_children=2) as service:
        service.wait_ready(2)
        reload(service, 2, {})
        service.wait_ready(2, replaced=2)
        with Watch(*service.workers()) as workers:
            service.signal(signal.SIGKILL)
            workers.wait_dead()
        service.wait_exit()


def test_a_deadline_goes_over(tmp_path: Path) -> None:
    """A worker that was told to leave before a reload is killed when it would have been without one."""
    with Released(tmp_path, max_children=2, graceful_timeout=3) as service:
        service.wait_ready(2)
        with service.hold() as one, service.hold() as two, Watch(one.pid, two.pid) as watch:
            told_at = service.signal(signal.SIGTTOU)
            service.wait_pool(lambda pool: pool["draining"] == 1)
            nothing_for(1.0, one.sock, two.sock)  # an input: how long before the reload it was told
            service.signal(signal.SIGHUP)
            service.wait_reloads(ok=1)
            killed_at = watch.wait_one_dead()
        service.wait_ready(2, killed=1)
    took = killed_at - told_at
    figure("told to leave 1 s before a reload: killed after", ms(took), "graceful_timeout 3 s + 0.6 s")
    assert 3 <= took < 3.6
