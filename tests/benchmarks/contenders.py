"""Who is compared, and how one of them is run.

The table is names alone: a contender is imported in the process that is its root (launch.py), and nowhere else.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .meter import Meter
from .traffic import LOOPBACK, Address

ROOT = Path(__file__).parents[2]
BARE, POOL = "bare loop", "pool"

STREAMS = ("recv", "stream", "line", "unix", "http")
ALL = (*STREAMS, "udp")


@dataclass(frozen=True)
class Contender:
    """`run`: module and function in servers/. `processes`: how many say that they serve, None: as many as workers.

    `standard`: the contender of the standard library that it is compared with, beside the bare loop. `checkout`: where
    its prefork is imported from; `beside`: the contender that is the same of another checkout.
    """

    name: str
    run: str
    traffic: tuple[str, ...] = ALL
    processes: int | None = None
    standard: str = ""
    arguments: tuple[str, ...] = ()
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
    Contender("plain", "ours.plain", ("recv", "unix", "udp"), 1, STANDARD),
    Contender("plain threading", "ours.plain", ("recv",), 1, THREADING, ("threading",)),
    Contender("plain forking", "ours.plain", ("recv",), 1, FORKING, ("forking",)),
    Contender(STANDARD, "standard.plain", processes=1),
    Contender(THREADING, "standard.plain", ("recv", "http", "udp"), 1, arguments=("threading",)),
    Contender(FORKING, "standard.plain", ("recv",), 1, arguments=("forking",)),
)


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
        lines = stack.enter_context(open(read))
        order = {
            "run": contender.run,
            "arguments": contender.arguments,
            "checkout": contender.checkout if contender.ours else "",
            "traffic": traffic,
            "workers": workers,
            "address": path if traffic == "unix" else LOOPBACK,
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

        def serving() -> Started:
            for _ in range(contender.processes or workers):
                if not (line := lines.readline()):
                    raise RuntimeError(f"{contender.name} does not start; see what it printed")
            address = json.loads(line)
            return Started(
                contender, traffic, process.pid, address if isinstance(address, str) else tuple(address), meter
            )

        yield serving
