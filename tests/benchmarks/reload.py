"""What a reload costs: the time from HUP to the new code's first answer, what clients notice, and memory meanwhile.

Clients in processes of their own connect, ask and read to the end, each with a pause as long as its last connection
took: half of what a closed loop would make, which is half load. The pool is reloaded under them N times. Memory is the
PSS of master, workers and rehearsal together, looked at every 20 ms.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psutil

from tests.support.clients.connections import ask

from .figures import table

ROOT = Path(__file__).parents[2]
CLIENTS = 2
LOOK_EVERY_S = 0.02
LOOPBACK = "127.0.0.1"
HUNG_S = 30.0
QUIET_S = 2.0  # of load alone, for comparison


@dataclass
class Figures:
    """Times in ms, memory in MB; one entry for each reload."""

    workers: int
    first_answer: list[float] = field(default_factory=list)
    all_replaced: list[float] = field(default_factory=list)
    memory_before: list[float] = field(default_factory=list)
    memory_peak: list[float] = field(default_factory=list)
    latency_quiet: float = 0.0  # the highest, of a client while nothing was reloaded
    latency_reloads: float = 0.0
    connections: int = 0
    failed: int = 0


def drive(port: int, until: str) -> tuple[int, int, float]:
    """Runs in a client process, until that file is there: connections, failures, the highest latency in seconds."""
    connections = failed = 0
    highest = 0.0
    while not os.path.exists(until):
        began = time.monotonic()
        try:
            failed += not ask((LOOPBACK, port), b"which\n")
        except OSError:
            failed += 1
        took = time.monotonic() - began
        connections += 1
        highest = max(highest, took)
        time.sleep(took)
    return connections, failed, highest


def tree(pid: int) -> list[int]:
    with contextlib.suppress(psutil.Error):
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    return []


def memory(pid: int) -> float:
    """MB of the whole tree, what is shared counted once; a process that is just going counts as nothing."""
    total = 0
    for each in tree(pid):
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


@contextlib.contextmanager
def started(workers: int) -> Iterator[tuple[subprocess.Popen[bytes], int, Path]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "release").write_text("0")
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.programs.reloaded", str(workers)], cwd=folder, env=environment
        ) as server:
            try:
                deadline = time.monotonic() + HUNG_S
                while not (folder / "port").exists() and time.monotonic() < deadline:
                    time.sleep(0.01)
                yield server, int((folder / "port").read_text()), folder
            finally:
                server.terminate()


def load(clients: ProcessPoolExecutor, port: int, until: Path) -> list["Future[tuple[int, int, float]]"]:
    return [clients.submit(drive, port, str(until)) for _ in range(CLIENTS)]


def reload(server: "subprocess.Popen[bytes]", port: int, folder: Path, number: int, figures: Figures) -> None:
    """One reload, to the moment when none of the workers that were there is left."""
    (folder / "release.new").write_text(str(number))
    (folder / "release.new").rename(folder / "release")
    old = set(tree(server.pid)[1:])
    figures.memory_before.append(memory(server.pid))
    peak, looked, answered = 0.0, 0.0, False
    began = time.monotonic()
    server.send_signal(signal.SIGHUP)
    while not answered or old & set(tree(server.pid)):
        now = time.monotonic()
        if now > began + HUNG_S:
            raise RuntimeError("the reload does not end; see what the service printed")
        if now - looked >= LOOK_EVERY_S:
            peak, looked = max(peak, memory(server.pid)), now
        if not answered and ask((LOOPBACK, port), b"which\n") == str(number).encode():
            answered = True
            figures.first_answer.append((time.monotonic() - began) * 1000)
        time.sleep(0.001)
    figures.all_replaced.append((time.monotonic() - began) * 1000)
    figures.memory_peak.append(peak)


def measure(workers: int, reloads: int) -> Figures:
    figures = Figures(workers)
    with started(workers) as (server, port, folder), ProcessPoolExecutor(CLIENTS) as clients:
        ask((LOOPBACK, port), b"which\n")
        quiet = load(clients, port, folder / "enough")
        time.sleep(QUIET_S)
        (folder / "enough").touch()
        figures.latency_quiet = max(job.result()[2] for job in quiet) * 1000
        loaded = load(clients, port, folder / "done")
        try:
            for number in range(1, reloads + 1):
                reload(server, port, folder, number, figures)
                time.sleep(0.2)
        finally:
            (folder / "done").touch()
        for job in loaded:
            connections, failed, highest = job.result()
            figures.connections += connections
            figures.failed += failed
            figures.latency_reloads = max(figures.latency_reloads, highest * 1000)
    return figures


def report(figures: Figures) -> Iterator[str]:
    yield f"{len(figures.first_answer)} reloads of {figures.workers} workers under {CLIENTS} clients at half load"
    pairs = zip(figures.memory_before, figures.memory_peak, strict=True)
    peak = f"{max(figures.memory_peak):.1f} (× {max(after / before for before, after in pairs):.2f})"
    yield table(("reload", "median", "worst"), [
        ["from HUP to the new code's first answer, ms", *_both(figures.first_answer)],
        ["from HUP until no old worker is left, ms", *_both(figures.all_replaced)],
        ["latency of a client while nothing is reloaded, ms", "", f"{figures.latency_quiet:.1f}"],
        ["latency of a client over the reloads, ms", "", f"{figures.latency_reloads:.1f}"],
        ["memory (PSS) before, MB", *_both(figures.memory_before)],
        ["memory (PSS) at its peak, MB", f"{median(figures.memory_peak):.1f}", peak],
        ["failed, of all connections", str(figures.failed), str(figures.connections)],
    ])  # fmt: skip


def _both(values: list[float]) -> tuple[str, str]:
    return f"{median(values):.1f}", f"{max(values):.1f}"
