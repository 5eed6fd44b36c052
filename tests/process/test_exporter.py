"""The exporter with real processes: what it says, to whom, under which circumstances, and what its end changes."""

import gzip
import os
import re
import signal
import socket
from pathlib import Path
from time import monotonic
from typing import Any

import psutil
import pytest

from tests.support.clients.connections import Load, ask
from tests.support.clients.scraping import HUNG, Answer, get, labelled, total
from tests.support.programs.service import ENDED_BY_TERM, Service, Watch, script
from tests.support.tools.picture import picture

pytestmark = pytest.mark.once  # nothing of it is the interpreter's

NOBODY = 65534
SERVED = 40  # requests, each the last of its worker
KINDS = {
    "pool": ("PreForkingTCPServer", {"max_children": 2}),
    "pool with threads": ("PreForkingMixIn, ThreadingTCPServer", {"max_children": 2}),
    "ahead": ("PreForkingMixIn, ForkingTCPServer", {"max_children": 2}),
    "threads": ("ThreadingTCPServer", {}),
    "forks": ("ForkingTCPServer", {}),
    "plain": ("SupervisedMixIn, TCPServer", {}),
}


def service(tmp_path: Path, definitions: str = "", kind: str = "pool", **settings: Any) -> Service:
    """One whose metrics are at the Unix path `tmp_path/m`."""
    bases, of_kind = KINDS[kind]
    settings = {"metrics_address": str(tmp_path / "m"), **of_kind, **settings}
    return Service(tmp_path, script(("" if of_kind else ENDED_BY_TERM) + definitions, bases=bases, **settings))


def exporter(master: int) -> psutil.Process:
    """The exporter's process, as its title tells it."""
    return next(
        child for child in psutil.Process(master).children() if child.cmdline()[:1] == ["prefork: exporter"]
    )  # fmt: skip


def scrape(tmp_path: Path, **headers: str) -> Answer:
    return get(str(tmp_path / "m"), **headers)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A pool that has served one request, for the questions that change nothing."""
    folder = tmp_path_factory.mktemp("served")
    with service(folder) as running:
        running.wait_ready(2)
        assert int(ask(running.address, b"pid\n"))
        running.settled()
        yield str(folder / "m")


# What it says.


def test_text_and_openmetrics(served: str) -> None:
    """Who accepts OpenMetrics gets it; everybody else gets Prometheus text. The samples are the same."""
    text, openmetrics = get(served), get(served, accept="application/openmetrics-text; version=1.0.0")
    assert (text.status, openmetrics.status) == (200, 200)
    assert text.headers["content-type"].startswith("text/plain; version=")
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert openmetrics.body.endswith(b"# EOF\n")
    assert text.samples.keys() == openmetrics.samples.keys()
    assert total(text.samples, "prefork_connections_accepted_total") == 1
    assert b"# TYPE prefork_requests counter" in openmetrics.body
    assert b"# TYPE prefork_requests_total counter" in text.body


def test_gzip(served: str) -> None:
    """Who accepts gzip gets it, and the length that is said."""
    plain, packed = get(served), get(served, accept_encoding="gzip")
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert int(packed.headers["content-length"]) == len(packed.body) < len(plain.body) / 3
    assert b"prefork_workers_max 2.0\n" in gzip.decompress(packed.body)


def test_head(served: str) -> None:
    """HEAD answers with the head of GET and no body."""
    answer = get(served, method="HEAD")
    assert (answer.status, answer.body) == (200, b"")
    assert int(answer.headers["content-length"]) > 1000


@pytest.mark.parametrize(("method", "path", "status"), [
    ("GET", "/", 404), ("GET", "/metric", 404), ("GET", "/metrics/", 404), ("HEAD", "/x", 404),
    ("POST", "/metrics", 501), ("GET", "/metrics?name=up", 200), ("GET", "/-/healthy", 200), ("GET", "/-/ready", 200),
])  # fmt: skip
def test_paths_and_methods(served: str, method: str, path: str, status: int) -> None:
    """Three paths and two methods, and nothing else."""
    assert get(served, path, method=method).status == status


def test_only_the_program_is_described(served: str) -> None:
    """Every name is the service's or the program's: nothing describes the exporter's own process."""
    names = {name.partition("{")[0] for name in get(served).samples}
    assert {name for name in names if not name.startswith("prefork_")} == set()


def test_picture(served: str) -> None:
    """The picture that metrics/README.md shows is drawn from a scrape."""
    drawn = picture(get(served).samples).splitlines()
    assert drawn[3] == "accepted 1 = 1 ok + 0 error + 0 timeout + 0 lost + 0 running"
    assert drawn[-1].endswith("█ 1")


# Every figure of a Statistics that has a metric, by the metric; what has labels is a dict.
SAME = {
    "accepted": "connections_accepted_total", "rejected": "connections_rejected_total",
    "in_flight": "requests_in_flight", "spawned": "worker_spawns_total", "fork_failures": "fork_failures_total",
    "lanes": "lanes", "lanes_busy": "lanes_busy", "words_rejected": "slot_words_rejected_total",
    "accept_errors": "accept_errors_total",
}  # fmt: skip
SAME_IN_A_POOL = {
    "generation": "generation", "reloads": "reloads_total", "workers": "workers", "exits": "worker_exits_total",
}  # fmt: skip
MIXED = """
logging.getLogger("prefork.server").disabled = True

class Hooks(Hooks):
    def verify_request(self, request, client_address):
        return client_address[0] != "127.0.0.2"
"""


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_server_is_measured(kind: str, tmp_path: Path) -> None:
    """Pools, threads, forks and a plain server: every figure of `statistics()` and its metric are one number, and that
    is what the clients saw of requests answered, failed, refused and lost."""
    pool = "children" in str(KINDS[kind])
    with service(tmp_path, MIXED, kind) as running:
        if pool:
            running.wait_ready(2)
        with Load(running.address, 3) as load:
            load.wait_answered(100)
        for _ in range(4):
            assert ask(running.address, b"raise\n") == b""
        for _ in range(3):
            with socket.create_connection(running.address, HUNG, ("127.0.0.2", 0)) as refused:
                assert refused.recv(1) == b""
        lost = kind not in ("threads", "plain")
        if lost:
            with running.hold() as held, Watch(held.pid) as watch:
                running.signal(signal.SIGKILL, held.pid)
                watch.wait_dead()
            if pool:
                running.wait_ready(2, killed=1)
        if kind == "ahead":  # each request was the last of its worker, whose end is counted, too
            accepted = running.settled()["accepted"]
            running.wait_pool(
                lambda pool: sum(pool["exits"].values()) == accepted and pool["ready"] == 2 and not pool["starting"]
            )
        statistics = running.settled()
        found = scrape(tmp_path).samples
        ready = get(str(tmp_path / "m"), "/-/ready").status, get(str(tmp_path / "m"), "/-/healthy").status
    assert load.tally.failures == 0
    seen = {"ok": load.tally.answered, "error": 4, **({"lost": 1} if lost else {})}
    assert labelled(found, "prefork_requests_total") == seen
    assert [statistics[name] for name in ("completed", "failed", "lost")] == [seen["ok"], 4, int(lost)]
    assert statistics["accepted"] == load.tally.opened + 4 + 3 + lost
    assert statistics["rejected"] == 3
    for field, name in {**SAME, **(SAME_IN_A_POOL if pool else {})}.items():
        told = statistics[field]
        if isinstance(told, dict):
            told = {label: number for label, number in told.items() if number}
            assert labelled(found, f"prefork_{name}") == told, field
        else:
            assert total(found, f"prefork_{name}") == told, field
    assert total(found, "prefork_request_duration_seconds_count") == seen["ok"] + 4
    assert not any(f"prefork_{name}" in found for name in ("workers_max", "generation")) or pool
    assert ready == (200, 200)


# When it answers.


def test_answers_while_every_worker_is_busy(tmp_path: Path) -> None:
    """With every lane taken a scrape comes, and says so."""
    with service(tmp_path) as running:
        running.wait_ready(2)
        with running.hold(), running.hold():
            found = scrape(tmp_path).samples
    assert found['prefork_workers{state="busy"}'] == found["prefork_lanes_busy"] == found["prefork_lanes"] == 2
    assert found["prefork_oldest_request_age_seconds"] > 0


def test_ready_goes_red_first(tmp_path: Path) -> None:
    """While the master drains the exporter answers: not ready, but healthy, and the request in hand is counted."""
    with service(tmp_path) as running:
        running.wait_ready(2)
        with running.hold() as held:
            assert get(str(tmp_path / "m"), "/-/ready").status == 200
            running.signal(signal.SIGTERM)
            running.wait_pool(lambda pool: pool["draining"])
            answers = {path: get(str(tmp_path / "m"), f"/-/{path}") for path in ("ready", "healthy")}
            found = scrape(tmp_path).samples
            assert int(held.ask(b"pid")) == held.pid
        assert running.wait_exit() == 0
    assert (answers["ready"].status, answers["ready"].body) == (503, b"not ready\n")
    assert answers["healthy"].status == 200
    assert found['prefork_workers{state="draining"}'] >= 1
    assert found["prefork_lanes_busy"] == 1


# Where it listens, and as whom.


def test_port_0_can_be_read(tmp_path: Path) -> None:
    """With port 0 the server knows the real address once it serves, and so does every worker."""
    source = """
class Handler(Who):
    def do_where(self):
        return "%s %d" % self.server.metrics_server_address
"""
    with service(tmp_path, source, metrics_address=("127.0.0.1", 0)) as running:
        running.wait_ready(2)
        with running.connect() as connection:
            host, port = connection.ask(b"where").split()
        assert int(port) > 0
        assert get((host.decode(), int(port)), "/-/ready").status == 200


def test_unix_path_is_removed(tmp_path: Path) -> None:
    """A Unix path is there while the service is, and no longer."""
    with service(tmp_path) as running:
        running.wait_ready(2)
        assert (tmp_path / "m").is_socket()
    assert not (tmp_path / "m").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="not root")
def test_exporter_is_nobody(tmp_path: Path) -> None:
    """Where the master is root the exporter is nobody, without groups; the workers are what they were."""
    with service(tmp_path) as running:
        running.wait_ready(2)
        assert scrape(tmp_path).status == 200
        process = exporter(running.pid)
        assert set(process.uids()) == set(process.gids()) == {NOBODY}
        assert re.search(r"^Groups:\s*$", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
        assert psutil.Process(running.workers()[0]).uids().real == 0


# Its end.


def _restarted(tmp_path: Path, running: Service, before: int) -> psutil.Process:
    assert scrape(tmp_path).status == 200  # it waited in the listener, which is the master's
    process = exporter(running.pid)
    assert process.pid != before
    return process


@pytest.mark.parametrize("kind", ["pool", "threads"])
def test_killed_exporter_is_restarted(kind: str, tmp_path: Path) -> None:
    """Its death costs nobody anything: the next scrape waits for the next exporter, totals go on, workers stay."""
    with service(tmp_path, kind=kind) as running:
        assert int(ask(running.address, b"pid\n"))
        running.settled()
        first = scrape(tmp_path).samples
        process, workers = exporter(running.pid), running.workers()
        with Watch(process.pid) as watch:
            running.signal(signal.SIGKILL, process.pid)
            watch.wait_dead()
        assert int(ask(running.address, b"pid\n"))
        running.settled()
        _restarted(tmp_path, running, process.pid)
        second = scrape(tmp_path).samples
        assert running.workers() == workers
    assert total(first, "prefork_connections_accepted_total") == 1
    assert total(second, "prefork_connections_accepted_total") == 2


def test_exporter_ends_with_the_master(tmp_path: Path) -> None:
    """A master that is killed takes the exporter with it, and frees the address."""
    with service(tmp_path) as running:
        running.wait_ready(2)
        assert scrape(tmp_path).status == 200
        with Watch(exporter(running.pid).pid, *running.workers()) as watch:
            running.signal(signal.SIGKILL)
            watch.wait_dead()
        assert running.wait_exit() == -signal.SIGKILL
    with pytest.raises(ConnectionRefusedError), socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(tmp_path / "m"))


def test_what_has_ended_is_let_go_though_nobody_scrapes(tmp_path: Path) -> None:
    """Workers come and go and nobody asks: the exporter does not collect their memory."""
    with service(tmp_path, kind="ahead") as running:
        running.wait_ready(2)
        scrape(tmp_path)
        process = exporter(running.pid)
        before = process.num_fds()
        for _ in range(SERVED):
            assert int(ask(running.address, b"pid\n"))
        running.wait_pool(lambda pool: pool["ready"] == 2 and not pool["draining"])
        deadline = monotonic() + HUNG
        while process.num_fds() > before + SERVED / 2:
            assert monotonic() < deadline, f"hung: it holds {process.num_fds()} descriptors, before {before}"
