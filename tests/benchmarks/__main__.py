"""All benchmarks by one command: tables on stdout, figures as JSON and pictures where they are asked for.

    python -m tests.benchmarks                                  everything, a quarter of an hour
    python -m tests.benchmarks --quick                          the ratios of a short run, a minute; with a brief `kept`
    python -m tests.benchmarks kept --quick                     of kept connections only
    python -m tests.benchmarks recv udp --seconds 60            of these traffics only
    python -m tests.benchmarks recv --contender 'pool*' --beside ../main    and the same of another checkout
    python -m tests.benchmarks latency idle                     these sections only

README.md has the method. Nothing is asserted: what is printed is to be read.
"""

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from . import edge, growth, idle, kept, latency, lifecycle, memory, ratios, reload, scrape
from .contenders import BARE, CONTENDERS, POOL, STANDARD, Contender, beside
from .meter import Meter
from .plot import plot
from .servers.others import missing
from .traffic import TRAFFIC

LAUNCH_S = 8  # of rounds for each start, so that starting does not take the time
Section = tuple[list[Any], Iterable[str]]  # figures, each a dataclass, and what is printed


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*TRAFFIC, *SECTIONS]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; default all")
    parser.add_argument(
        "--quick", action="store_true", help="the traffics and kept, briefly: shows a tenth, not a hundredth"
    )
    parser.add_argument("--seconds", type=float, help="of the traffics, in all; default 300, with --quick 40")
    parser.add_argument("--launches", type=int, help="how often each is started; default 2 to 10, by the time")
    parser.add_argument("--burst", type=float, default=0.03, help="seconds of one measurement; default 0.03")
    parser.add_argument("--workers", type=int, default=4, help="default 4")
    parser.add_argument("--contender", action="append", metavar="PATTERN", help="these, as 'pool*', and the bare loop")
    parser.add_argument("--beside", type=Path, metavar="DIR", help="a checkout whose prefork runs in each round too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, each round's included")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="draw the growth, an SVG each")
    options = parser.parse_args(argv)
    if unknown := set(options.names) - set(names):
        parser.error(f"no such name: {', '.join(sorted(unknown))}")
    return options


def chosen(options: argparse.Namespace) -> list[Contender]:
    """The contenders that match, the bare loop always, and what those of ours are compared with."""
    patterns = options.contender or ["*"]
    found = [
        each for each in CONTENDERS
        if any(fnmatchcase(each.name, one) for one in patterns) and (each.quick or not options.quick)
    ]  # fmt: skip
    names = {BARE, *(each.name for each in found), *(each.standard for each in found)}
    contenders = [each for each in CONTENDERS if each.name in names and not missing(each.needs)]
    return list(beside(contenders, options.beside)) if options.beside else contenders


def some(options: argparse.Namespace, *names: str) -> list[Contender]:
    return [each for name in names for each in CONTENDERS if each.name == name and not missing(each.needs)]


def about(options: argparse.Namespace) -> dict[str, object]:
    with Meter(f"prefork-tests-benchmark-{os.getpid()}-about") as meter:
        kind = meter.kind
    return {
        "python": platform.python_version(), "kernel": platform.release(), "cpus": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1), "workers": options.workers, "cpu_time": kind,
        "not_installed": [each.name for each in CONTENDERS if missing(each.needs)],
    }  # fmt: skip


# The sections.


def of_traffics(options: argparse.Namespace) -> Section:
    traffic = [name for name in options.names if name in TRAFFIC] or list(TRAFFIC)
    seconds = options.seconds or (40 if options.quick else 300)
    launches = options.launches or max(2, min(10, int(seconds / len(traffic) / LAUNCH_S)))
    contenders = chosen(options)
    costs = ratios.measure(contenders, traffic, ratios.Plan(seconds, launches, options.burst, options.workers))
    rows = list(ratios.rows(costs, contenders))
    return [*rows, *costs], ratios.report(rows)


def of_growth(options: argparse.Namespace) -> Section:
    plan = ratios.Plan(60, 1, options.burst, options.workers)
    found = growth.measure(some(options, BARE, POOL), plan)
    return found, growth.report(found)


def of_latency(options: argparse.Namespace) -> Section:
    found = latency.measure(some(options, *latency.WANTED), options.workers, 6.0)
    return found, latency.report(found)


def of_idle(options: argparse.Namespace) -> Section:
    wanted = some(options, BARE, POOL, "pool, metrics", "pool, threads", "plain", STANDARD, "asyncio, protocol")
    found = idle.measure(wanted, options.workers, 20.0)
    return found, idle.report(found)


def of_memory(options: argparse.Namespace) -> Section:
    found, imports = memory.run(options.workers)
    return [*found, *imports], memory.report(found, imports)


def of_lifecycle(options: argparse.Namespace) -> Section:
    wanted = some(options, BARE, POOL, "pool, metrics", "pool, threads", "plain", STANDARD, "gunicorn, sync")
    found = lifecycle.measure(wanted, options.workers, 5)
    return found, lifecycle.report(found)


def of_reload(options: argparse.Namespace) -> Section:
    found = reload.measure(options.workers, 20)
    return [found], reload.report(found)


def of_edge(options: argparse.Namespace) -> Section:
    found = edge.measure(ratios.Plan(options.seconds or 90, options.launches or 3, options.burst, options.workers))
    return found, edge.report(found)


def of_kept(options: argparse.Namespace) -> Section:
    plan = kept.Plan(options.workers)
    found = kept.measure(plan.brief() if options.quick else plan)
    return found, kept.report(found)


def of_scrape(options: argparse.Namespace) -> Section:
    found = list(scrape.run())
    return found, scrape.report(found)


SECTIONS: dict[str, Callable[[argparse.Namespace], Section]] = {
    "growth": of_growth,
    "latency": of_latency,
    "idle": of_idle,
    "memory": of_memory,
    "lifecycle": of_lifecycle,
    "reload": of_reload,
    "edge": of_edge,
    "kept": of_kept,
    "scrape": of_scrape,
}
QUICK = ("kept",)  # of a short run, beside the traffics


def pictures(figures: dict[str, list[Any]]) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each picture that there are figures for."""
    if grown := figures.get("growth"):
        lines = {f"{each.contender}, {each.load}": (each.contender, each.load) for each in grown}
        points = {
            name: [(one.workers, one.us) for one in grown if (one.contender, one.load) == key]
            for name, key in lines.items()
        }
        yield "growth.svg", plot("CPU time of a request", "workers", "µs", points)
    if late := figures.get("latency"):
        contenders = dict.fromkeys(each.contender for each in late)
        points = {name: [(one.rate, one.p99) for one in late if one.contender == name] for name in contenders}
        yield "latency.svg", plot("99th percentile of the latency, open loop", "requests a second", "ms", points)


def main(argv: Sequence[str]) -> None:
    options = arguments(argv)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # for idle connections, here and in the servers
    machine = about(options)
    print(", ".join(f"{key} {value}" for key, value in machine.items() if key != "not_installed"))
    print(f"not installed: {'; '.join(machine['not_installed']) or 'nothing'}\n", flush=True)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as cache:  # every process finds its byte code, whatever the checkout has
        os.environ |= {"PYTHONPYCACHEPREFIX": cache, "PYTHONDONTWRITEBYTECODE": ""}
        figures = run(options)
    if options.json:
        found = {name: [asdict(each) for each in those] for name, those in figures.items()}
        options.json.write_text(json.dumps({"about": machine, **found}, indent=1) + "\n")
    if options.pictures:
        for name, text in pictures(figures):
            (options.pictures / name).write_text(text)
    sys.exit(not all(figures.values()))


def run(options: argparse.Namespace) -> dict[str, list[Any]]:
    """Measure what is wanted, print each table when it is there, and return the figures by section."""
    figures: dict[str, list[Any]] = {}
    everything = QUICK if options.quick else SECTIONS
    wanted = [name for name in SECTIONS if name in (options.names or everything)]
    if not options.names or set(options.names) & set(TRAFFIC):
        print("Median of the rounds (quartiles), then the lowest tenth: of the rounds that nothing disturbed.\n")
        wanted.insert(0, "requests")
    for name in wanted:
        began = time.monotonic()
        try:
            figures[name], lines = {"requests": of_traffics, **SECTIONS}[name](options)
        except Exception:
            traceback.print_exc()  # the others are measured all the same, and what there is is written
            figures[name] = []
            continue
        print("\n".join(lines), f"[{name}: {time.monotonic() - began:.0f} s]", sep="\n", end="\n\n", flush=True)
    return figures


if __name__ == "__main__":
    main(sys.argv[1:])
