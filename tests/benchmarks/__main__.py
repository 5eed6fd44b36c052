"""All benchmarks by one command: tables on stdout, JSON where it is asked for.

    python -m tests.benchmarks --quick                          the ratios of a short run, a minute
    python -m tests.benchmarks recv udp --seconds 60            of these traffics only
    python -m tests.benchmarks recv --contender 'pool*' --beside ../main    and the same of another checkout

README.md has the method. Nothing is asserted: what is printed is to be read.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path

from . import ratios
from .contenders import BARE, CONTENDERS, Contender, beside
from .meter import Meter
from .traffic import TRAFFIC

LAUNCH_S = 8  # of rounds for each start, so that starting does not take the time


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TRAFFIC)}; default all")
    parser.add_argument("--quick", action="store_true", help="a short run: shows a tenth, not a hundredth")
    parser.add_argument("--seconds", type=float, help="how long is measured in all; default 600, with --quick 40")
    parser.add_argument("--launches", type=int, help="how often each is started; default 2 to 10, by the time")
    parser.add_argument("--burst", type=float, default=0.03, help="seconds of one measurement; default 0.03")
    parser.add_argument("--workers", type=int, default=4, help="default 4")
    parser.add_argument(
        "--contender", action="append", metavar="PATTERN", help="these beside the bare loop, as 'pool*'"
    )
    parser.add_argument(
        "--beside", type=Path, metavar="DIR", help="a second checkout, whose prefork runs in each round too"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, each round's included")
    options = parser.parse_args(argv)
    if unknown := set(options.names) - set(TRAFFIC):
        parser.error(f"no such name: {', '.join(sorted(unknown))}")
    return options


def chosen(patterns: Sequence[str] | None, checkout: Path | None) -> list[Contender]:
    """The contenders that match, the bare loop always, and what those of ours are compared with."""
    found = [each for each in CONTENDERS if not patterns or any(fnmatchcase(each.name, one) for one in patterns)]
    names = {BARE, *(each.name for each in found), *(each.standard for each in found)}
    contenders = [each for each in CONTENDERS if each.name in names]
    return list(beside(contenders, checkout)) if checkout else contenders


def about(options: argparse.Namespace) -> dict[str, object]:
    with Meter(f"prefork-tests-benchmark-{os.getpid()}-about") as meter:
        kind = meter.kind
    return {
        "python": platform.python_version(), "kernel": platform.release(), "cpus": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1), "workers": options.workers, "cpu_time": kind,
    }  # fmt: skip


def main(argv: Sequence[str]) -> None:
    options = arguments(argv)
    machine = about(options)
    print(", ".join(f"{key} {value}" for key, value in machine.items()), end="\n\n", flush=True)
    traffic, seconds = options.names or list(TRAFFIC), options.seconds or (40 if options.quick else 600)
    launches = options.launches or max(2, min(10, int(seconds / len(traffic) / LAUNCH_S)))
    plan = ratios.Plan(seconds, launches, options.burst, options.workers)
    contenders = chosen(options.contender, options.beside)
    costs = ratios.measure(contenders, traffic, plan)
    rows = list(ratios.rows(costs, contenders))
    print("Median of the rounds (quartiles), then the lowest tenth: of the rounds that nothing disturbed.\n")
    print("\n".join(ratios.report(rows)))
    if options.json:
        figures = {"about": machine, "rows": [asdict(row) for row in rows], "samples": [asdict(each) for each in costs]}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
