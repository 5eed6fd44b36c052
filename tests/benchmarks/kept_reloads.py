"""What clients of kept connections notice of reloads under load, and how long the end takes beside many idle ones.

Clients in processes of their own keep thousands of connections, send a message on one after another by chance, and
count on each of them as the service does in the connection's state: an answer with another number is wrong.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .contenders import ROOT
from .reload import tree
from .traffic import LINE, WrongAnswer, connected

HUNG_S = 60.0


@dataclass(frozen=True)
class Reloads:
    """What clients noticed of reloads, and how long the end took with connections that are idle."""

    reloads: int
    connections: int
    messages: int
    lost: int
    wrong: int
    slowest_ms: float
    idle: int
    end_ms: float


@dataclass
class Tally:
    """Of one client process."""

    messages: int = 0
    lost: int = 0
    wrong: int = 0
    slowest: float = 0.0  # seconds


class Counting:
    """A connection that counts its messages, as the service does in the connection's state."""

    def __init__(self, port: int) -> None:
        self._sock, self._count = connected(("127.0.0.1", port)), 0

    def ask(self, tally: Tally) -> None:
        if self._sock.fileno() == -1:
            return
        self._count += 1
        began = time.monotonic()
        try:
            self._sock.sendall(LINE)
            answer = self._sock.recv(100)
        except OSError:
            answer = b""
        tally.messages += 1
        tally.slowest = max(tally.slowest, time.monotonic() - began)
        tally.lost += not answer
        tally.wrong += bool(answer) and answer != b"%d\n" % self._count
        if not answer:
            self._sock.close()

    def close(self) -> None:
        self._sock.close()


def count_on(port: int, connections: int, folder: str, seed: int) -> Tally:
    """Runs in a client process, until there is a file "done"; "begun.SEED" says that all connections are there."""
    draw, tally = random.Random(seed), Tally()
    clients = [Counting(port) for _ in range(connections)]
    for client in clients:
        client.ask(tally)
    Path(folder, f"begun.{seed}").touch()
    while not os.path.exists(f"{folder}/done"):
        draw.choice(clients).ask(tally)
    for client in clients:
        client.ask(tally)
        client.close()
    return tally


@contextlib.contextmanager
def counting_service(workers: int) -> Iterator[tuple["subprocess.Popen[bytes]", int, Path]]:
    with tempfile.TemporaryDirectory() as name:
        folder, environment = Path(name), {**os.environ, "PYTHONPATH": str(ROOT)}
        argv = [sys.executable, "-m", "tests.benchmarks.programs.counted", str(workers)]
        with subprocess.Popen(argv, cwd=folder, env=environment) as server:
            try:
                wait_for(folder / "port")
                yield server, int((folder / "port").read_text()), folder
            finally:
                if server.poll() is None:
                    server.terminate()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + HUNG_S
    while not path.exists():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{path.name} does not come; see what the service printed")
        time.sleep(0.01)


def wait_replaced(server: "subprocess.Popen[bytes]", before: set[int]) -> None:
    deadline = time.monotonic() + HUNG_S
    while before & set(tree(server.pid)):
        if time.monotonic() > deadline:
            raise RuntimeError("the reload does not end; see what the service printed")
        time.sleep(0.01)


def measure(workers: int, kept: int, reloads: int, idle: int, clients: int = 2) -> Reloads:
    with counting_service(workers) as (server, port, folder), ProcessPoolExecutor(clients) as pool:
        jobs = [pool.submit(count_on, port, kept // clients, str(folder), seed) for seed in range(clients)]
        try:
            for seed in range(clients):
                wait_for(folder / f"begun.{seed}")
            for _ in range(reloads):
                before = set(tree(server.pid)[1:])
                server.send_signal(signal.SIGHUP)
                wait_replaced(server, before)
        finally:
            (folder / "done").touch()
        tallies = [job.result(HUNG_S) for job in jobs]
        with contextlib.ExitStack() as stack:
            for _ in range(idle):
                sock = stack.enter_context(connected(("127.0.0.1", port)))
            sock.sendall(LINE)
            if not sock.recv(100):
                raise WrongAnswer("the last of the idle connections is closed")
            time.sleep(0.5)
            began = time.monotonic()
            server.terminate()
            server.wait(HUNG_S)
            end = time.monotonic() - began
    messages, lost, wrong = (sum(each) for each in zip(*((t.messages, t.lost, t.wrong) for t in tallies), strict=True))
    slowest = max(tally.slowest for tally in tallies)
    return Reloads(reloads, kept, messages, lost, wrong, slowest * 1000, idle, end * 1000)


def report(found: Reloads) -> str:
    return (
        f"{found.reloads} reloads under load with {found.connections} kept connections: {found.messages} messages, "
        f"{found.lost} lost, {found.wrong} wrong, the slowest {found.slowest_ms:.0f} ms; "
        f"from TERM to the exit with {found.idle} idle ones {found.end_ms:.0f} ms"
    )
