"""CPU time of the whole server process tree per short TCP connection: prefork, a bare loop, the standard library.

    python -m tests.benchmarks.connections [--quick] [--json FILE]        from the checkout; 3 minutes, --quick 20 s

Every contender runs all the time, in a process of its own; a measurement is a burst of connections to one of them from
two clients in a closed loop (connect, one line, read to the end), and a round measures each contender once, in an order
drawn anew for each round, so that whatever else the machine does hits all alike. All are launched several times: two
processes of the same program differ by a tenth for as long as they live, by where their memory happens to lie. Ratios
are taken within a round; what is printed is the median over the rounds. Wall time is not compared: clients and servers
share the CPUs. On a machine that is busy with other things (`load`) every figure rises; the spread says by how much.
"""

import argparse
import contextlib
import json
import os
import platform
import random
import socket
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from .contenders import CONTENDERS, STYLES, Started, started

CLIENTS = 2
WORKERS = 2
BURST_S = 2.0  # no measurement takes longer
WARM_UP = 40
LINE = b"the quick brown fox jumps over the lazy dog\n"
BASE, FORKING, POOL = "bare loop", "standard ForkingTCPServer", "PreForkingTCPServer"
# What it costs to watch the pool, as times the same pool unwatched, and how much that may be.
WATCHED = {
    "PreForkingTCPServer, metrics": 1.03,
    "PreForkingTCPServer, access log": None,
    "PreForkingTCPServer, access log as JSON": None,
}
TARGETS = {BASE: 1.3, FORKING: 1 / 40}

Samples = dict[tuple[str, str], list[float]]  # (style, contender): µs per connection, one for each round


def drive(port: int, most: int, seconds: float) -> int:
    """Runs in a client process: `most` connections one after another, fewer when time is up; how many there were."""
    deadline = time.monotonic() + seconds
    for done in range(most):
        if time.monotonic() > deadline:
            return done
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(LINE)
            answer = b""
            while more := connection.recv(1024):
                answer += more
            if answer != LINE.upper():
                raise RuntimeError(f"port {port} answered {answer!r}")
    return most


def burst(clients: ProcessPoolExecutor, server: Started, most: int) -> float:
    """One measurement: µs of CPU time per connection."""
    before = server.meter.usage_ns(server.pid)
    jobs = [clients.submit(drive, server.port, most // CLIENTS, BURST_S) for _ in range(CLIENTS)]
    connections = sum(job.result() for job in jobs)
    return (settled_usage_ns(server) - before) / connections / 1000


def settled_usage_ns(server: Started) -> int:
    """The usage once the last connection has been put away: two looks 5 ms apart that hardly differ."""
    last = server.meter.usage_ns(server.pid)
    for _ in range(20):
        time.sleep(0.005)
        now = server.meter.usage_ns(server.pid)
        if now - last < 50_000:
            return now
        last = now
    return last


def measure(launches: int, rounds: int, share: float, seconds: float) -> tuple[Samples, str]:
    """`rounds` of each launch; `share`: how much of each contender's `most` is used; `seconds`: no launch begins after
    this."""
    begin = time.monotonic()
    draw = random.Random(1)
    samples: Samples = {(style, each.name): [] for style in STYLES for each in CONTENDERS if style in each.styles}
    meter = ""
    with ProcessPoolExecutor(CLIENTS) as clients:
        for launch in range(launches):
            if time.monotonic() - begin > seconds:
                break
            with contextlib.ExitStack() as stack:
                servers = [
                    stack.enter_context(started(contender, style, WORKERS))
                    for style in STYLES for contender in CONTENDERS if style in contender.styles
                ]  # fmt: skip
                meter = servers[0].meter.kind
                for server in servers:
                    burst(clients, server, WARM_UP)
                for number in range(rounds):
                    print(f"\rlaunch {launch + 1} round {number + 1}", end="", file=sys.stderr, flush=True)
                    for server in draw.sample(servers, len(servers)):
                        value = burst(clients, server, int(server.contender.most * share))
                        samples[server.style, server.contender.name].append(value)
    print(file=sys.stderr)
    return samples, meter


def evaluate(samples: Samples) -> list[dict[str, Any]]:
    rows = []
    for (style, name), values in samples.items():
        low, _, high = quantiles(values, n=4) if len(values) > 1 else values * 3
        row = {"style": style, "contender": name, "us": median(values), "q1": low, "q3": high, "samples": values}
        for key, other in (("to_bare", BASE), ("to_forking", FORKING)):
            row[key] = median(a / b for a, b in zip(values, samples[style, other], strict=True))
        rows.append(row)
    return rows


def report(rows: list[dict[str, Any]], verdict: bool) -> None:
    print(f"{'handler':8}{'server':40}{'µs CPU per connection':>22}{'quartiles':>18}{'× bare':>9}{'of forking':>12}")
    for row in rows:
        spread = f"{row['q1']:.1f} – {row['q3']:.1f}"
        print(
            f"{row['style']:8}{row['contender']:40}{row['us']:22.1f}{spread:>18}{row['to_bare']:9.2f}"
            f"{'1/%.1f' % (1 / row['to_forking']):>12}"
        )
    for style in {row["style"]: None for row in rows}:
        samples = {row["contender"]: row["samples"] for row in rows if row["style"] == style}
        for name, at_most in WATCHED.items():
            if name in samples:
                ratios = [a / b for a, b in zip(samples[name], samples[POOL], strict=True)]
                print(f"{style}: {name} ÷ without {_ratio(ratios, at_most, verdict)}")
    for row in (row for row in rows if verdict and row["contender"] == POOL):
        met = row["to_bare"] <= TARGETS[BASE] and row["to_forking"] < TARGETS[FORKING]
        print(f"{row['style']}: at most 1.3 × bare and less than 1/40 of forking: {'met' if met else 'MISSED'}")


def _ratio(ratios: list[float], at_most: float | None, verdict: bool) -> str:
    low, middle, high = quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    text = f"{middle:.3f} ({low:.3f} – {high:.3f})"
    if at_most is None:
        return text
    met = f": {'met' if middle <= at_most else 'MISSED'}" if verdict else ""
    return f"{text}, at most {at_most}{met}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20 seconds: shows a factor, not a tenth, so no verdict")
    parser.add_argument("--launches", type=int, help="how many launches; default 12, with --quick 1")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, every sample included")
    options = parser.parse_args()
    launches = options.launches or (1 if options.quick else 12)
    load = os.getloadavg()[0]
    samples, meter = measure(launches, *((7, 0.5, 17) if options.quick else (6, 1.0, 300)))
    rows = evaluate(samples)
    about = {
        "python": platform.python_version(), "kernel": platform.release(), "cpus": len(os.sched_getaffinity(0)),
        "workers": WORKERS, "clients": CLIENTS, "launches": launches,
        "rounds": len(next(iter(samples.values()))), "load": round(load, 1),
        "cpu_time": meter,
    }  # fmt: skip
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    report(rows, verdict=not options.quick)
    if options.json:
        options.json.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
