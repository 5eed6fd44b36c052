"""What a scrape costs: with 4 and 64 workers, with 10,000 series of the program's own, after 1,000 dead workers.

    python -m tests.benchmarks.scrape [--scrapes N] [--json FILE]        from the checkout; a minute

A scrape is one GET over a Unix socket from connect to EOF, in wall time, and the exporter's own CPU time for it. The
ratio compares one pool before and after 1,000 of its workers were killed: the same workers, the same series.
"""

import argparse
import io
import json
import os
import platform
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from statistics import median, quantiles
from time import monotonic
from typing import Any

import psutil

from tests.support.clients.connections import ask
from tests.support.clients.scraping import get
from tests.support.programs.service import Service, script

from .meter import cpu_clock_ns

DEAD = 1000
SERIES = 10_000

COUNTING = f"""
import prometheus_client
SEEN = prometheus_client.Counter("seen", "by what", ["what"])

class Handler(Who):
    def do_series(self):
        for number in range({SERIES}):
            SEEN.labels(str(number)).inc()
"""


@contextmanager
def pool(workers: int, definitions: str = "") -> Iterator[tuple[Service, str]]:
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(io.StringIO()):  # the service's log
        address = f"{folder}/m"
        source = script(definitions, max_children=workers, metrics_address=address)
        with Service(Path(folder), source, accounts=False) as service:
            service.wait_ready(workers)
            yield service, address


def exporter(master: int) -> int:
    return next(c.pid for c in psutil.Process(master).children() if c.cmdline()[:1] == ["prefork: exporter"])


def measure(name: str, service: Service, address: str, scrapes: int) -> dict[str, Any]:
    get(address)  # what is new is read once
    pid, times, size = exporter(service.pid), [], 0
    before = cpu_clock_ns(pid)
    for _ in range(scrapes):
        began = monotonic()
        size = len(get(address).body)
        times.append((monotonic() - began) * 1000)
    cpu = (cpu_clock_ns(pid) - before) / 1e6 / scrapes
    row = {"name": name, "ms": median(times), "p99": quantiles(times, n=100)[98], "cpu_ms": cpu, "kB": size / 1000}
    print(f"{name:52}{row['ms']:9.2f}{row['p99']:9.2f}{cpu:9.2f}{row['kB']:9.1f}", flush=True)
    return row


def kill(service: Service, count: int, workers: int) -> None:
    for done in range(0, count, workers):
        for pid in service.workers():
            service.signal(signal.SIGKILL, pid)
        service.wait_ready(workers, killed=done + workers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scrapes", type=int, default=100)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    about = {"python": platform.python_version(), "kernel": platform.release(), "load": round(os.getloadavg()[0], 1)}
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print(f"{'scrape':52}{'ms':>9}{'p99 ms':>9}{'CPU ms':>9}{'kB':>9}")
    rows = []
    for workers in (4, 64):
        with pool(workers) as (service, address):
            rows.append(measure(f"{workers} workers", service, address, options.scrapes))
    for definitions, what in (("", ""), (COUNTING, f", {SERIES} series")):
        with pool(4, definitions) as (service, address):
            if definitions:
                ask(service.address, b"series\n")
            before = measure(f"4 workers{what}, none dead", service, address, options.scrapes)
            kill(service, DEAD, 4)
            after = measure(f"4 workers{what}, {DEAD} dead", service, address, options.scrapes)
            ratios = [after[key] / before[key] for key in ("ms", "cpu_ms")]
            print("  after ÷ before: %.2f in time, %.2f in CPU" % tuple(ratios))
            rows += [before, after]
    if options.json:
        options.json.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
