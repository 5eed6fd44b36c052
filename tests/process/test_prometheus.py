"""A real Prometheus scrapes a pool whose workers come and go, and is asked what it saw."""

import random
import re
import socket
import subprocess
import threading
from pathlib import Path
from time import monotonic

import pytest

from prefork.metrics.collector import METRIC_TABLE, Spec
from tests.support.clients.connections import Load, ask, free_port
from tests.support.hosts.prometheus import Prometheus, needs_prometheus, prometheus, scraping
from tests.support.programs.service import HUNG, Service, script
from tests.support.programs.storm import Storm
from tests.support.tools.figures import figure

pytestmark = [needs_prometheus, pytest.mark.once]

TURNOVER = 1000  # workers
LOAD_S = 25.0  # of load at most, however few workers that takes
STORM_S = 5.0
COUNTED = """
import prometheus_client
LINES = prometheus_client.Counter("told_lines", "lines answered")

class Handler(Who):
    def do_pid(self):
        LINES.inc()
"""


def turn_over(service: Service, server: Prometheus) -> int:
    """Connections from two clients, until enough workers have come and gone; how many there were."""
    counts = [0] * 2
    enough = threading.Event()

    def client(index: int) -> None:
        while not enough.is_set():
            assert int(ask(service.address, b"pid\n"))
            counts[index] += 1

    threads = [threading.Thread(target=client, args=(index,)) for index in range(len(counts))]
    for thread in threads:
        thread.start()
    deadline = monotonic() + LOAD_S
    try:
        while monotonic() < deadline and not server.query(f"prefork_worker_spawns_total > {TURNOVER}"):
            enough.wait(0.5)
    finally:
        enough.set()
        for thread in threads:
            thread.join()
    return sum(counts)


@pytest.mark.timed
def test_a_turnover_of_workers_is_scraped_without_a_fault(tmp_path: Path) -> None:
    """Prometheus sees `up` at every scrape, no counter reset, and rates and quantiles that can be."""
    port = free_port()
    source = script(COUNTED, max_children=4, max_requests=1, metrics_address=("127.0.0.1", port))
    config = scraping({"targets": [f"127.0.0.1:{port}"]})
    with Service(tmp_path, source) as service, prometheus(tmp_path, config) as server:
        service.wait_ready(4)
        server.wait_for("up == 1")
        asked = turn_over(service, server)
        server.wait_for(f'prefork_requests_total{{outcome="ok"}} >= {asked}')
        # Whatever these expressions give is a fault; `[5m]` is the whole of this test.
        counters = [row.name + "_total" for row in METRIC_TABLE if row.kind == "counter"] + ["told_lines_total"]
        counters += [
            row.name + suffix for row in METRIC_TABLE if row.kind == "histogram" for suffix in ("_count", "_bucket")
        ]
        falls = [f"resets({name}[5m]) > 0" for name in counters]
        for fault in ("min_over_time(up[5m]) < 1", 'prefork_requests_total{outcome!="ok"} > 0', *falls):
            assert server.query(fault) == [], fault
        (rate,) = server.query('sum(rate(prefork_requests_total{outcome="ok"}[1m]))')
        buckets = "sum by (le) (rate(prefork_request_duration_seconds_bucket[1m]))"
        (p99,) = server.query(f"histogram_quantile(0.99, {buckets})")
        (lines,) = server.query("told_lines_total")
        (spawned,) = server.query("prefork_worker_spawns_total")
        (target,) = server.get("/api/v1/targets")["activeTargets"]
        statistics = service.statistics()
    figure("workers that came and went", f"{spawned:.0f}", f"{TURNOVER}")
    figure("requests a second, as Prometheus has it; p99", f"{rate:.0f}; {p99 * 1000:.2f} ms", "")
    assert target["lastError"] == ""
    assert rate > 0
    assert 0 < p99 < 60
    assert lines == asked == statistics["completed"]


@pytest.mark.timed
def test_a_kill_storm_is_scraped_without_a_fault(tmp_path: Path, rng: random.Random) -> None:
    """While workers are killed under load every scrape succeeds and no counter is reset; what Prometheus has in the
    end is what the master counted."""
    port = free_port()
    source = script(COUNTED, max_children=4, metrics_address=("127.0.0.1", port))
    config = scraping({"targets": [f"127.0.0.1:{port}"]})
    with Service(tmp_path, source) as service, prometheus(tmp_path, config) as server:
        service.wait_ready(4)
        server.wait_for("up == 1")
        storm = Storm(service, rng)
        with Load(service.address, 4, processes=1):
            storm.rage(STORM_S)
            storm.wait_full(4)
        statistics = service.settled()
        counted = {outcome: statistics[field] for outcome, field in (("ok", "completed"), ("lost", "lost"))}
        for outcome, number in counted.items():
            server.wait_for(f'prefork_requests_total{{outcome="{outcome}"}} == {number}')
        server.wait_for(f'prefork_worker_exits_total{{reason="killed"}} == {storm.kills}')
        counters = [row.name + "_total" for row in METRIC_TABLE if row.kind == "counter"] + ["told_lines_total"]
        for fault in ("min_over_time(up[5m]) < 1", *(f"resets({name}[5m]) > 0" for name in counters)):
            assert server.query(fault) == [], fault
        (target,) = server.get("/api/v1/targets")["activeTargets"]
    figure("kills under Prometheus' eyes; requests ok, lost", f"{storm.kills}; {counted['ok']}, {counted['lost']}")
    assert target["lastError"] == ""
    assert storm.kills > STORM_S


def unsaid(row: Spec) -> str:
    """A family with one sample, as a scrape has it."""
    assert row.kind in ("counter", "gauge")
    name = row.name + ("_total" if row.kind == "counter" else "")
    labels = ",".join(f'{label}="x"' for label in row.labels)
    return f"# HELP {name} {row.help}\n# TYPE {name} {row.kind}\n{name}{{{labels}}} 0\n"


def test_promtool_has_nothing_to_say(tmp_path: Path) -> None:
    """`promtool check metrics` finds no fault in a scrape, nor in families that this service has nothing of."""
    with Service(tmp_path, script(COUNTED, max_children=1, metrics_address=str(tmp_path / "m"))) as service:
        service.wait_ready(1)
        assert int(ask(service.address, b"pid\n"))
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(HUNG)
            client.connect(str(tmp_path / "m"))
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            with client.makefile("rb") as answer:
                head, _, body = answer.read().partition(b"\r\n\r\n")
    assert b" 200 " in head.splitlines()[0]
    page = body.decode()
    said = re.findall(r"^# TYPE (\w+?)(?:_total)? ", page, re.MULTILINE)
    page += "".join(unsaid(row) for row in METRIC_TABLE if row.name not in said)
    checked = subprocess.run(["promtool", "check", "metrics"], input=page.encode(), capture_output=True, timeout=HUNG)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
