"""Every fault at every occurrence: python -m tests.faults.injection [--stimulus TEXT] [--call NAME] [--errno NAME] …

Prints a line for each fault after which something did not hold, and the table call × errno at the end. Without a reload
a sweep takes half an hour or so on two cores; one reload has 8,000 faults of a second each, nine of ten of them while
the interpreter starts and imports: `--but-imports`, `--one` and `--step` leave out most of those. The exit status says
whether everything held but what ended the interpreter before a line of ours ran.
"""

import argparse
import sys
from collections import Counter, defaultdict

from .injector import ALL, OTHERS
from .scene import ENDS, STIMULI
from .sweep import faults_of, sweep

KINDS = ("ok", "start", "lost", "hung", "stranger", "other")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.injection", description=(__doc__ or "").split(":")[0])
    parser.add_argument("--stimulus", help="only the one of this name, or those with this text in it")
    parser.add_argument("--call", action="append", choices=ALL, help="only this system call; may be repeated")
    parser.add_argument("--but-imports", action="store_true", help="not the calls by which an interpreter imports")
    parser.add_argument("--errno", action="append", help="only this errno; may be repeated")
    parser.add_argument("--who", choices=("master", "worker", "exporter"), default="master")
    parser.add_argument("--occurrences", type=int, default=1000, help="no more than so many of one call")
    parser.add_argument("--step", type=int, default=1, help="each so-manieth only, but for the first and last 16")
    parser.add_argument("--one", action="store_true", help="one errno for each occurrence, each of them in turn")
    parser.add_argument("--show", action="store_true", help="print the log of each scene that was spoiled")
    given = parser.parse_args()
    every = (*STIMULI, ENDS)
    named = [name for name in every if name == given.stimulus]
    stimuli = named or [name for name in every if not given.stimulus or given.stimulus in name]
    calls = given.call or (OTHERS if given.but_imports else ALL)
    table: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for stimulus in stimuli:
        faults = faults_of(stimulus, calls, given.errno, given.occurrences, given.step, given.who, given.one)
        for found in sweep(stimulus, faults, given.who):
            table[found.fault.call, found.fault.errno][found.kind] += 1
            if found.kind != "ok":
                print(f"{stimulus}: {found.fault}: {'; '.join(found.violations)}", flush=True)
                if given.show:
                    print(found.log, flush=True)
    _print(table)
    return int(any(counts[kind] for counts in table.values() for kind in KINDS if kind not in ("ok", "start")))


def _print(table: dict[tuple[str, str], Counter[str]]) -> None:
    print(f"{'call':20}{'errno':14}" + "".join(f"{kind:>10}" for kind in KINDS))
    total: Counter[str] = Counter()
    for (call, error), counts in sorted(table.items()):
        total += counts
        print(f"{call:20}{error:14}" + "".join(f"{counts[kind] or '.':>10}" for kind in KINDS))
    print(f"{'in all':20}{sum(total.values()):<14}" + "".join(f"{total[kind]:>10}" for kind in KINDS))


if __name__ == "__main__":
    sys.exit(main())
