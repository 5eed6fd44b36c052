"""CPU time of the whole server process tree per HTTP request: the recipe wsgi_site and gunicorn's sync workers.

    python -m tests.benchmarks.wsgi [--rounds N]        from the checkout, with gunicorn installed; a minute

Both serve the same application (deploy/recipes/wsgi_site.py) with two workers, all the time; a measurement is a burst
of requests to one of them, a connection each, and a round measures each in turn, so that whatever else the machine does
hits both alike. Ratios are taken within a round; what is printed is the median over the rounds.
"""

import argparse
import contextlib
import http.client
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

from .meter import Meter

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "deploy" / "recipes"
WORKERS, CLIENTS = 2, 2
BURST = 400  # requests of a measurement
STARTED_S = 20.0
# `sh` enters the control group first; {fd} is the listener, which the harness has bound.
CONTENDERS = {
    "prefork, wsgi_site": [
        "-m", "prefork", "run", "wsgi_site:Site", "--bind", "fd://{fd}", "--max-children", str(WORKERS),
        "--log-level", "error",
    ],
    "gunicorn, sync workers": [
        "-m", "gunicorn", "wsgi_site:application", "--bind", "fd://{fd}", "--workers", str(WORKERS),
        "--log-level", "error",
    ],
}  # fmt: skip


@dataclass(frozen=True)
class Started:
    name: str
    pid: int
    port: int
    meter: Meter


@contextlib.contextmanager
def started(name: str, argv: Sequence[str]) -> Iterator[Started]:
    """One server tree, until the end of the block."""
    with (
        Meter(f"prefork-wsgi-{os.getpid()}-{name.split(',')[0]}") as meter,
        socket.create_server(("127.0.0.1", 0), backlog=128) as listener,
    ):
        command = [sys.executable, *(word.format(fd=listener.fileno()) for word in argv)]
        enter = f'[ -z "{meter.procs}" ] || echo $$ > "{meter.procs}"; exec "$@"'
        process = subprocess.Popen(
            ["sh", "-c", enter, "sh", *command], cwd=RECIPES, pass_fds=[listener.fileno()],
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        )  # fmt: skip
        try:
            yield Started(name, process.pid, listener.getsockname()[1], meter)
        finally:
            process.terminate()
            process.wait()


def drive(port: int, count: int, timeout: float = 10) -> None:
    """Runs in a client process: so many requests, one after another."""
    for _ in range(count):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
        connection.request("GET", "/hello")
        answer = connection.getresponse()
        if answer.status != 200 or not answer.read().startswith(b"GET /hello answered by process "):
            raise RuntimeError(f"port {port} answered {answer.status}")
        connection.close()


def burst(clients: ProcessPoolExecutor, server: Started) -> float:
    """One measurement: µs of CPU time per request."""
    before = server.meter.usage_ns(server.pid)
    for job in [clients.submit(drive, server.port, BURST // CLIENTS) for _ in range(CLIENTS)]:
        job.result()
    time.sleep(0.02)  # until the last connection has been put away
    return (server.meter.usage_ns(server.pid) - before) / BURST / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    options = parser.parse_args()
    samples: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    with contextlib.ExitStack() as stack:
        clients = stack.enter_context(ProcessPoolExecutor(CLIENTS))
        servers = [stack.enter_context(started(name, argv)) for name, argv in CONTENDERS.items()]
        for server in servers:
            drive(server.port, WORKERS, STARTED_S)
            burst(clients, server)
        for _ in range(options.rounds):
            for server in servers:
                samples[server.name].append(burst(clients, server))
        kind = servers[0].meter.kind
    ours, other = samples.values()
    about = {
        "python": platform.python_version(), "cpus": len(os.sched_getaffinity(0)), "workers": WORKERS,
        "clients": CLIENTS, "rounds": options.rounds, "requests": BURST, "load": f"{os.getloadavg()[0]:.1f}",
        "cpu_time": kind,
    }  # fmt: skip
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    for name, values in samples.items():
        low, _, high = quantiles(values, n=4)
        print(f"{name:26}{median(values):8.1f} µs CPU per request (quartiles {low:.1f} - {high:.1f})")
    print(f"prefork uses {median(a / b for a, b in zip(ours, other, strict=True)):.2f} of gunicorn's")


if __name__ == "__main__":
    main()
