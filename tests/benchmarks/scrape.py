"""What a scrape costs: of a pool, of 10,000 series of the program's own in each worker, after 1,000 dead workers.

A scrape is one GET over a Unix socket from connect to EOF, in wall time, and the exporter's own CPU time for it; the
first one learns every name. `memory` is what the exporter shares with nobody, after the scrapes. Where all series have
changed, each worker has a connection to here, by which it is told to count.
"""

import contextlib
import io
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import monotonic

import psutil

from tests.support.clients.scraping import get
from tests.support.programs.service import Service, script

from .figures import table
from .meter import cpu_clock_ns, private_mb

HUNG_S = 60.0
SERIES = 10_000
COUNTING = f"from tests.benchmarks.programs.many_series import Hooks, make\nmake({SERIES})\n"


@dataclass(frozen=True)
class Scrapes:
    what: str
    workers: int
    first_ms: float
    ms: float
    worst_ms: float
    cpu_ms: float
    kb: float
    memory_mb: float


class Told:
    """The workers' connections, by which they are told to count."""

    def __init__(self, listener: socket.socket, workers: int) -> None:
        self._connections = [listener.accept()[0] for _ in range(workers)]
        for each in self._connections:
            each.settimeout(HUNG_S)

    def count(self) -> None:
        """Have every worker change each of its series, and wait until they have."""
        for each in self._connections:
            each.sendall(b"x")
        for each in self._connections:
            each.recv(1)

    def close(self) -> None:
        for each in self._connections:
            each.close()


@contextmanager
def pool(workers: int, definitions: str = "") -> Iterator[tuple[Service, str, socket.socket]]:
    with (
        tempfile.TemporaryDirectory() as folder,
        redirect_stderr(io.StringIO()),  # the service's log
        socket.socket(socket.AF_UNIX) as listener,
    ):
        listener.settimeout(HUNG_S)
        listener.bind(f"{folder}/told")
        listener.listen(1024)
        address = f"{folder}/m"
        source = script(definitions, max_children=workers, metrics_address=address)
        with Service(Path(folder), source, accounts=False) as service:
            service.wait_ready(workers)
            yield service, address, listener


def exporter(master: int) -> int:
    return next(c.pid for c in psutil.Process(master).children() if c.cmdline()[:1] == ["prefork: exporter"])


def measure(
    what: str, service: Service, address: str, scrapes: int, change: Callable[[], object] = lambda: None
) -> Scrapes:
    began = monotonic()
    get(address)
    first = (monotonic() - began) * 1000
    pid, times, size = exporter(service.pid), [], 0  # it has its name by now
    before = cpu_clock_ns(pid)
    for _ in range(scrapes):
        change()
        began = monotonic()
        size = len(get(address).body)
        times.append((monotonic() - began) * 1000)
    cpu = (cpu_clock_ns(pid) - before) / 1e6 / scrapes
    workers = len(service.workers())
    return Scrapes(what, workers, first, median(times), max(times), cpu, size / 1000, private_mb(pid))


def kill(service: Service, count: int, workers: int) -> None:
    for done in range(0, count, workers):
        for pid in service.workers():
            with contextlib.suppress(ProcessLookupError):
                service.signal(signal.SIGKILL, pid)
        service.wait_ready(workers, killed=done + workers)


def run(scrapes: int = 100, dead: int = 1000, most: int = 64) -> Iterator[Scrapes]:
    for workers in (4, most):
        with pool(workers) as (service, address, _):
            yield measure("no series of its own", service, address, scrapes)
    for workers in (4, most):
        with pool(workers, COUNTING) as (service, address, listener), closing(Told(listener, workers)) as told:
            yield measure(f"{SERIES} series in each", service, address, scrapes)
            yield measure(f"{SERIES} series in each, all changed", service, address, scrapes // 4, told.count)
            if workers == 4:
                kill(service, dead, workers)
                yield measure(f"{SERIES} series in each, {dead} dead", service, address, scrapes)


def report(found: list[Scrapes]) -> Iterator[str]:
    head = ("scrape", "workers", "first, ms", "ms", "worst", "CPU ms", "kB", "memory, MB")
    figures = ([each.first_ms, each.ms, each.worst_ms, each.cpu_ms, each.kb, each.memory_mb] for each in found)
    rows = zip(found, figures, strict=True)
    yield table(head, [[each.what, str(each.workers), *(f"{figure:.1f}" for figure in row)] for each, row in rows])
