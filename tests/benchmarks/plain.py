"""CPU time per request of servers without a pool, whole process tree, as times the standard library's class.

    python -m tests.benchmarks.plain [--quick] [--only NAME] [--json FILE]    from the checkout; 3 minutes, --quick 30 s

Each class runs twice, `prefork`'s and `socketserver`'s, every server a process of its own, all at the same time; a
measurement is a burst of requests to one of them from one client in a closed loop, and a round measures each, in an
order drawn anew. Ratios are taken within a round; printed are the median, the quartiles, and the ratio of the lowest
tenths, which is the one to read on a busy machine. *idle* servers have a thousand connections that say nothing, each
with its thread. `faults` are page faults per request, of the server and its reaped children.
"""

import argparse
import contextlib
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from .meter import Meter

PROGRAM = "tests.benchmarks.programs.plain"
ROOT = Path(__file__).parents[2]
MODULES = ("prefork", "socketserver")
LINE = b"the quick brown fox jumps over the lazy dog\n"
IDLE = 1000


@dataclass(frozen=True)
class Case:
    """A class of both modules. `most`: requests of one burst; `at_most`: the ratio that is wanted."""

    name: str
    most: int
    at_most: float
    idle: int = 0

    @property
    def class_name(self) -> str:
        return self.name.partition(",")[0]

    @property
    def unix(self) -> bool:
        return "Unix" in self.name

    @property
    def datagrams(self) -> bool:
        return "UDP" in self.name or "Datagram" in self.name


CASES = (
    Case("TCPServer", 600, 1.0),
    Case("UDPServer", 1200, 1.0),
    Case("UnixStreamServer", 600, 1.0),
    Case("UnixDatagramServer", 1200, 1.0),
    Case("ThreadingTCPServer", 400, 1.05),
    Case(f"ThreadingTCPServer, {IDLE} idle", 200, 1.0, idle=IDLE),
    Case("ForkingTCPServer", 80, 1.5),
)  # fmt: skip


@dataclass(frozen=True)
class Server:
    case: Case
    module: str
    pid: int
    address: Any
    meter: Meter
    own: str  # address of the client's datagram socket

    def faults(self) -> int:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[7]) + int(fields[8])  # minflt, cminflt

    def settled(self) -> int:
        """The usage once the last request has been put away: two looks 5 ms apart that hardly differ."""
        last = self.meter.usage_ns(self.pid)
        for _ in range(20):
            time.sleep(0.005)
            now = self.meter.usage_ns(self.pid)
            if now - last < 20_000:
                break
            last = now
        return now


@contextlib.contextmanager
def started(case: Case, module: str, directory: str) -> Iterator[Server]:
    with Meter(f"plain-{os.getpid()}-{CASES.index(case)}-{module}") as meter, contextlib.ExitStack() as stack:
        read, write = os.pipe()
        lines = stack.enter_context(open(read))
        path = f"{directory}/{module}-{case.name}"
        command = [sys.executable, "-m", PROGRAM, module, case.class_name, path, str(write), meter.procs]
        process = subprocess.Popen(command, cwd=ROOT, pass_fds=[write], start_new_session=True)
        stack.callback(process.wait)
        stack.callback(os.killpg, process.pid, signal.SIGKILL)
        os.close(write)
        address = json.loads(lines.readline())
        address = address if case.unix else tuple(address)
        server = Server(case, module, process.pid, address, meter, f"{path}-client")
        for _ in range(case.idle):
            stack.enter_context(connected(server))
        yield server


def connected(server: Server) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX if server.case.unix else socket.AF_INET)
    sock.settimeout(10)
    sock.connect(server.address)
    return sock


def ask_streams(server: Server, most: int) -> None:
    for _ in range(most):
        with connected(server) as sock:
            sock.sendall(LINE)
            answer = b""
            while more := sock.recv(1024):
                answer += more
            assert answer == LINE.upper(), answer


def ask_datagrams(server: Server, most: int) -> None:
    with socket.socket(socket.AF_UNIX if server.case.unix else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        if server.case.unix:
            Path(server.own).unlink(missing_ok=True)
            sock.bind(server.own)
        for _ in range(most):
            sock.sendto(LINE, server.address)
            assert sock.recv(1024) == LINE.upper()


def burst(server: Server, most: int) -> tuple[float, float]:
    """One measurement: µs of CPU time, and page faults, per request."""
    ask: Callable[[Server, int], None] = ask_datagrams if server.case.datagrams else ask_streams
    before, faults = server.settled(), server.faults()
    ask(server, most)
    return (server.settled() - before) / most / 1000, (server.faults() - faults) / most


Samples = dict[tuple[str, str], list[tuple[float, float]]]


def measure(cases: tuple[Case, ...], launches: int, rounds: int) -> Samples:
    samples: Samples = {(case.name, module): [] for case in cases for module in MODULES}
    draw = random.Random(1)
    for launch in range(launches):
        with contextlib.ExitStack() as stack:
            directory = stack.enter_context(tempfile.TemporaryDirectory())
            servers = [stack.enter_context(started(case, each, directory)) for case in cases for each in MODULES]
            for server in servers:
                burst(server, 40)
            for number in range(rounds):
                print(f"\rlaunch {launch + 1} round {number + 1}", end="", file=sys.stderr, flush=True)
                for server in draw.sample(servers, len(servers)):
                    samples[server.case.name, server.module].append(burst(server, server.case.most))
    print(file=sys.stderr)
    return samples


def evaluate(cases: tuple[Case, ...], samples: Samples) -> list[dict[str, Any]]:
    rows = []
    for case in cases:
        ours, theirs = (samples[case.name, module] for module in MODULES)
        ratios = [a[0] / b[0] for a, b in zip(ours, theirs, strict=True)]
        low, middle, high = quantiles(ratios, n=4)
        least = [quantiles((each[0] for each in those), n=10)[0] for those in (ours, theirs)]
        rows.append({
            "class": case.name,
            "us": median(each[0] for each in ours), "standard_us": median(each[0] for each in theirs),
            "ratio": middle, "least": least[0] / least[1], "q1": low, "q3": high, "at_most": case.at_most,
            "faults": median(each[1] for each in ours), "standard_faults": median(each[1] for each in theirs),
        })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="30 seconds: shows a factor, not a tenth")
    parser.add_argument("--only", metavar="NAME", default="", help="the classes whose name begins so")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # for the idle connections, here and in the servers
    cases = tuple(each for each in CASES if each.name.startswith(options.only))
    rows = evaluate(cases, measure(cases, *((1, 7) if options.quick else (4, 12))))
    print(
        f"{'class':32}{'µs':>8}{'standard':>10}{'ratio':>8}{'quartiles':>16}{'lowest':>8}{'wanted':>8}{'faults':>8}{'standard':>10}"
    )
    for row in rows:
        spread = f"{row['q1']:.2f} – {row['q3']:.2f}"
        print(f"{row['class']:32}{row['us']:8.1f}{row['standard_us']:10.1f}{row['ratio']:8.2f}{spread:>16}{row['least']:8.2f}"
              f"{row['at_most']:8.2f}{row['faults']:8.0f}{row['standard_faults']:10.0f}")  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
