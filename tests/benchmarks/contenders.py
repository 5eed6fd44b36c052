"""Who is compared, and how one of them is run.

The table is names alone: a contender is imported in the process that is its root (launch.py), and nowhere else.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .meter import Meter
from .traffic import LOOPBACK, Address, connected

ROOT = Path(__file__).parents[2]
BARE, POOL = "bare loop", "pool"

STREAMS = ("recv", "stream", "line", "unix", "http")
ALL = (*STREAMS, "udp", "unixgram")
IDLE = 1000
HUNG_S = 60.0


@dataclass(frozen=True)
class Contender:
    """`run`: module and function in servers/. `processes`: how many say that they serve, None: as many as workers.

    `standard`: the contender of the standard library that it is compared with, beside the bare loop. `checkout`: where
    its prefork is imported from; `beside`: the contender that is the same of another checkout. `idle`: connections that
    are open all the time and say nothing. `needs`: what has to be installed (others.missing()); `quick`: it runs in a
    short run too.
    """

    name: str
    run: str
    traffic: tuple[str, ...] = ALL
    processes: int | None = None
    standard: str = ""
    arguments: tuple[str, ...] = ()
    idle: int = 0
    needs: str = ""
    quick: bool = True
    checkout: str = str(ROOT)
    beside: str = ""

    @property
    def ours(self) -> bool:
        return self.run.startswith("ours.")


STANDARD, THREADING, FORKING = "standard", "standard threading", "standard forking"
CONTENDERS = (
    Contender("bare loop, no handler", "bare.unhandled", ("recv", "unix")),
    Contender(BARE, "bare.handled"),
    Contender(POOL, "ours.pool", standard=STANDARD),
    Contender("pool, metrics", "ours.measured", ("recv",), standard=STANDARD),
    Contender("pool, access log", "ours.logged", ("recv",), standard=STANDARD, arguments=("text",)),
    Contender("pool, access log as JSON", "ours.logged", ("recv",), standard=STANDARD, arguments=("json",)),
    Contender("pool, threads", "ours.pool", ("recv", "http", "udp"), standard=THREADING, arguments=("threading",)),
    Contender("plain", "ours.plain", ("recv", "unix", "udp", "unixgram"), 1, STANDARD),
    Contender("plain threading", "ours.plain", ("recv", "unix", "udp"), 1, THREADING, ("threading",)),
    Contender(
        f"plain threading, {IDLE} idle", "ours.plain", ("recv",), 1, f"{THREADING}, {IDLE} idle", ("threading",), IDLE,
        quick=False,
    ),
    Contender("plain forking", "ours.plain", ("recv",), 1, FORKING, ("forking",)),
    Contender(STANDARD, "standard.plain", processes=1),
    Contender(THREADING, "standard.plain", ("recv", "unix", "http", "udp"), 1, arguments=("threading",)),
    Contender(
        f"{THREADING}, {IDLE} idle", "standard.plain", ("recv",), 1, "", ("threading",), IDLE, quick=False
    ),
    Contender(FORKING, "standard.plain", ("recv",), 1, arguments=("forking",)),
    Contender("bare loop in C", "others.in_c", ("recv",), 1, needs="cc", quick=False),
    Contender("asyncio, streams", "events.streams", ("recv", "line"), quick=False),
    Contender("asyncio, protocol", "events.protocol", ("recv", "line"), quick=False),
    Contender("uvloop, protocol", "events.uvloop_protocol", ("recv", "line"), needs="module:uvloop", quick=False),
    Contender("gunicorn, sync", "others.gunicorn", ("http",), 1, "", ("sync",), needs="module:gunicorn", quick=False),
    Contender(
        "gunicorn, gthread", "others.gunicorn", ("http",), 1, "", ("gthread",), needs="module:gunicorn", quick=False
    ),
    Contender("nginx, stream", "others.nginx", ("recv",), 1, needs="nginx:ngx_stream_module.so", quick=False),
    Contender("nginx, http", "others.nginx", ("http",), 1, needs="nginx", quick=False),
    Contender("Apache, mod_echo", "others.apache", ("line",), 1, needs="apache2:mod_echo.so", quick=False),
    Contender(
        "Net::Server::PreFork", "others.perl", ("recv", "line"), 1, needs="perl:Net::Server::PreFork", quick=False
    ),
)  # fmt: skip


def beside(contenders: Sequence[Contender], checkout: Path) -> Iterator[Contender]:
    """Those of ours once more, from another checkout."""
    for each in contenders:
        other = replace(each, name=f"{each.name} of {checkout.name}", checkout=str(checkout.resolve()))
        yield from (replace(each, beside=other.name), other) if each.ours else (each,)


@dataclass(frozen=True)
class Started:
    """A running contender, as the harness holds it."""

    contender: Contender
    traffic: str
    pid: int
    address: Address
    meter: Meter
    another: Callable[[], bytes]  # waits until one more process says that it serves


@contextlib.contextmanager
def started(contenders: Sequence[Contender], traffic: str, workers: int) -> Iterator[list[Started]]:
    """Run contenders with this interpreter; serving when entered, all of it killed and reaped on leaving."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        starting = [
            stack.enter_context(_starting(each, traffic, workers, f"{folder}/{number}"))
            for number, each in enumerate(contenders)
        ]
        yield [serving() for serving in starting]


@contextlib.contextmanager
def _starting(contender: Contender, traffic: str, workers: int, path: str) -> Iterator[Callable[[], Started]]:
    """What it gives waits until the contender serves."""
    with Meter(f"prefork-tests-benchmark-{os.getpid()}-{Path(path).name}") as meter, contextlib.ExitStack() as stack:
        read, write = os.pipe()
        lines = stack.enter_context(open(read, "rb", 0))
        order = {
            "run": contender.run,
            "arguments": contender.arguments,
            "checkout": contender.checkout if contender.ours else "",
            "traffic": traffic,
            "workers": workers,
            "address": path if traffic.startswith("unix") else LOOPBACK,
            "procs": meter.procs,
            "ready_fd": write,
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.launch", json.dumps(order)], cwd=ROOT, pass_fds=[write],
            start_new_session=True,
        )  # fmt: skip
        stack.callback(process.wait)
        stack.callback(os.killpg, process.pid, signal.SIGKILL)  # a group of its own: the root and all it forked
        os.close(write)

        def another() -> bytes:
            if not select.select([read], [], [], HUNG_S)[0] or not (line := lines.readline()):
                raise RuntimeError(f"{contender.name} does not serve; see what it printed")
            return line

        def serving() -> Started:
            for _ in range(contender.processes or workers):
                line = another()
            told = json.loads(line)
            address = told if isinstance(told, str) else tuple(told)
            for _ in range(contender.idle):
                stack.enter_context(connected(address))
            return Started(contender, traffic, process.pid, address, meter, another)

        yield serving
