"""Everything about other people's programs, as a table: `python -m tests.conformance.programs [NAME…]`.

Their own tests over the standard socketserver and over ours, and each of them served from a pool and asked by a real
client under kill, reload and drain. `--suites` and `--served` do one of the two. The exit status is 1 where something
is not as it should be, and what that is stands below the table.
"""

import argparse
import contextlib
import io
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

from .catalogue import PROGRAMS, Program
from .installed import pins
from .serving import run_served
from .suites import run_suite


def suite_cell(program: Program, folder: Path) -> str:
    """The outcomes over us. Raises AssertionError where they are not those over the original."""
    if program.suite is None:
        return f"({program.why_no_suite})"
    verdict = run_suite(program, folder)
    assert not verdict.wrong, "\n".join(verdict.wrong)
    return f"{verdict}; {verdict.stock.cpu_s:.1f} and {verdict.ours.cpu_s:.1f} s CPU"


def served_cell(program: Program, folder: Path) -> str:
    return f"ok, {run_served(program, folder)} answers"


def cell(program: Program, what: Callable[[Program, Path], str], wrong: list[str]) -> str:
    """What comes of this, in a word; what went wrong is added to the list."""
    log = io.StringIO()
    with tempfile.TemporaryDirectory(prefix="pf-") as folder, contextlib.redirect_stderr(log):
        try:
            return what(program, Path(folder))
        except Exception:
            wrong.append(f"== {program.name}: {what.__name__}\n{log.getvalue()}{traceback.format_exc()}")
            return "WRONG"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.programs", description=__doc__)
    parser.add_argument("name", nargs="*", help="programs whose name begins so; all without one")
    parser.add_argument("--suites", action="store_true", help="their own tests only")
    parser.add_argument("--served", action="store_true", help="from a pool only")
    asked = parser.parse_args()
    chosen = [each for each in PROGRAMS if not asked.name or each.name.lower().startswith(tuple(asked.name))]
    wrong: list[str] = []
    print(f"{'program':26} {'version':8} {'from a pool':22} its own tests, over prefork as over socketserver")
    for program in chosen:
        served = "-" if asked.suites else cell(program, served_cell, wrong)
        suite = "-" if asked.served else cell(program, suite_cell, wrong)
        version = pins()[program.distribution].partition("==")[2]
        print(f"{program.name:26} {version:8} {served:22} {suite}", flush=True)
    used = os.times()
    print(f"{used.children_user + used.children_system:.0f} s of CPU")
    print("\n".join(wrong))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
