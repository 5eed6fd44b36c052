"""The memory that a worker has for itself, and what `import prefork` costs; beside a bare loop, and gunicorn.

Memory is Private_Clean + Private_Dirty of /proc/PID/smaps_rollup (also called USS): what goes away with the process.
It is read in every worker when the pool is ready, after a thousand requests and a full collection, and of a worker that
replaced a killed one, after as much. The median of the workers is printed. A full collection is what happens by itself
sooner or later: it writes into each object that is not frozen, and so takes the page that this is in for the worker.
In the second half the program has made 200 MB of objects before the fork; gunicorn serves with `--preload` too.

An import is CPU time, of `python -S -c 'import …'` less that of `python -S -c pass`, in turn; the lowest tenth.
Without `site`: what an editable install starts there has imported a quarter of it before, and it would not be counted.
"""

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from unittest.mock import patch

from .figures import spread, table
from .meter import children
from .meter import private_mb as private

ROOT = Path(__file__).parents[2]
KEEPING = f"{__package__}.servers.keeping"
REQUESTS = 1000
HUNG = 60.0
REST_S = 1.0  # until the last worker is ready, and the master at rest
BARE, GUNICORN = "bare loop", "gunicorn, sync workers"
CONTENDERS = {
    BARE: ["-m", KEEPING, "{fd}", "{workers}"],
    "prefork run": [
        "-m", "prefork", "run", f"{KEEPING}:Handler", "--bind", "fd://{fd}", "--max-children", "{workers}",
        "--log-file", "/dev/null",
    ],
    GUNICORN: [
        "-m", "gunicorn", f"{KEEPING}:application", "--preload", "--bind", "fd://{fd}", "--workers", "{workers}",
        "--log-level", "critical",
    ],
}  # fmt: skip
IMPORTS = {
    "import prefork": ["-c", "import prefork"],
    "import prefork, and a ForkingTCPServer": [
        "-c",
        "import prefork; prefork.ForkingTCPServer(('127.0.0.1', 0), None).server_close()",
    ],
    "from prefork import PreForkingTCPServer": ["-c", "from prefork import PreForkingTCPServer"],
    "import socketserver": ["-c", "import socketserver"],
    "prefork --version": ["-m", "prefork", "--version"],
}


@dataclass(frozen=True)
class Memory:
    """Private memory in MB, the median of the workers. `replaced` is None where nobody replaces a killed worker."""

    server: str
    preloaded: int
    ready: float
    served: float
    collected: float
    replaced: float | None
    master: float


@dataclass(frozen=True)
class Import:
    """CPU time in ms beyond that of an interpreter that does nothing, to its exit."""

    what: str
    cpu_ms: float


@contextlib.contextmanager
def started(name: str, workers: int, megabytes: int) -> Iterator[tuple[int, tuple[str, int]]]:
    """Run a contender in the block; its master's pid, and where it listens."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        argv = [word.format(fd=listener.fileno(), workers=workers) for word in CONTENDERS[name]]
        process = subprocess.Popen(
            [sys.executable, *argv], cwd=ROOT, pass_fds=[listener.fileno()], start_new_session=True,
            env={**os.environ, "KEPT_MB": str(megabytes)}, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            yield process.pid, listener.getsockname()
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # a group of its own: the master and all that it forked
            process.wait()


def ask(address: tuple[str, int]) -> None:
    with socket.create_connection(address, HUNG) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answered_by(connection)


def answered_by(connection: socket.socket) -> int:
    """Read the answer to its end, and return the pid of the worker."""
    answer = b""
    while more := connection.recv(4096):
        answer += more
    return int(answer.rpartition(b"\r\n")[2])


def collect(address: tuple[str, int], workers: Sequence[int]) -> None:
    """Have each of these workers make a full collection. They are held busy together, so that all get their turn."""
    missing, until = set(workers), time.monotonic() + HUNG
    while missing:
        with contextlib.ExitStack() as stack:
            held = [stack.enter_context(socket.create_connection(address, HUNG)) for _ in workers]
            for connection in held:
                connection.sendall(b"GET /collect HTTP/1.0\r\nX-Held: ")
            time.sleep(0.05)  # the longer, the fewer rounds
            for connection in held:
                connection.sendall(b"yes\r\n\r\n")
                missing.discard(answered_by(connection))
        if time.monotonic() > until:
            raise TimeoutError(f"no answer from the workers {missing}")


def workers_of(master: int, count: int, but: Sequence[int] = ()) -> list[int]:
    """Wait until the master has so many children, none of them of `but`, and return them."""
    until = time.monotonic() + HUNG
    while time.monotonic() < until:
        found = [pid for pid in children(master) if pid not in but]
        if len(found) == count:
            return found
        time.sleep(0.05)
    raise TimeoutError(f"no {count} workers of {master}")


def used(address: tuple[str, int], workers: Sequence[int]) -> tuple[float, float]:
    """Private memory of the workers after REQUESTS requests to all of them, and after a full collection."""
    for _ in range(REQUESTS):
        ask(address)
    served = median(map(private, workers))
    collect(address, workers)
    return served, median(map(private, workers))


def measure(name: str, workers: int, megabytes: int) -> Memory:
    with started(name, workers, megabytes) as (master, address):
        ask(address)
        first = workers_of(master, workers)
        time.sleep(REST_S)
        ready = median(map(private, first))
        served, collected = used(address, first)
        replaced = None
        if name != BARE:
            for pid in first:
                os.kill(pid, signal.SIGKILL)
                workers_of(master, workers, [pid])
            second = workers_of(master, workers, first)
            time.sleep(REST_S)
            _, replaced = used(address, second)
        return Memory(name, megabytes, ready, served, collected, replaced, private(master))


def cpu_ms(argv: Sequence[str]) -> float:
    """CPU time of a Python that is started with these arguments."""
    process = subprocess.Popen(
        [sys.executable, "-S", *argv], cwd=ROOT, stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"python {' '.join(argv)} failed")
    return (usage.ru_utime + usage.ru_stime) * 1000


@contextlib.contextmanager
def compiled(names: Sequence[str], workers: int) -> Iterator[None]:
    """Have what these contenders and the imports need in a cache of byte code, as an installed package has it: what is
    compiled at the start leaves holes in the heap."""
    with (
        tempfile.TemporaryDirectory() as cache,
        patch.dict(os.environ, PYTHONPYCACHEPREFIX=cache, PYTHONDONTWRITEBYTECODE=""),
    ):
        for argv in IMPORTS.values():
            cpu_ms(argv)
        for name in names:
            with started(name, workers, 0) as (_, address):
                ask(address)
        yield


def imports(rounds: int) -> list[Import]:
    nothing: list[float] = []
    samples: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for _ in range(rounds):
        nothing.append(cpu_ms(["-c", "pass"]))
        for name, argv in IMPORTS.items():
            samples[name].append(cpu_ms(argv))
    return [Import(name, spread(values).least - spread(nothing).least) for name, values in samples.items()]


def report(memory: Sequence[Memory], imported: Sequence[Import]) -> Iterator[str]:
    yield "Private MB of a worker, the median of the workers"
    figures = ((one.preloaded, one.ready, one.served, one.collected, one.replaced, one.master) for one in memory)
    cells = [["" if x is None else format(x, ".2f") for x in row] for row in figures]
    head = ("memory", "preloaded", "ready", "served", "collected", "replaced", "master")
    yield table(head, [[one.server, *row] for one, row in zip(memory, cells, strict=True)]) + "\n"
    yield table(("beyond `python -S -c pass`", "CPU ms"), [[one.what, f"{one.cpu_ms:.1f}"] for one in imported])


def run(workers: int, preload: int = 200, rounds: int = 30) -> tuple[list[Memory], list[Import]]:
    """`preload`: MB made before the fork; `rounds`: of imports."""
    there = [name for name in CONTENDERS if name != GUNICORN or importlib.util.find_spec("gunicorn")]
    sizes = sorted({0, preload})
    with compiled(there, workers):
        memory = [measure(name, workers, megabytes) for megabytes in sizes for name in there]
        return memory, imports(rounds)
