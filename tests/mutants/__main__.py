"""python -m tests.mutants [MODULE ...] [--sample N] [--seed S]: how many small mistakes the tests notice.

Works in a copy of the tree, never in the checkout: mutates one module after the other there, runs the unit tests
chosen for it, and the process and fault tests on what survives them. One test run at a time, each with a timeout; what
it leaves behind is ended. Prints each survivor, and a figure for each module. Same seed, same tree: same mutants.
"""

import argparse
import ctypes
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import psutil

from .modules import MODULES, Module
from .mutate import Mutant, mutants

ROOT = Path(__file__).parents[2]
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis")
PR_SET_CHILD_SUBREAPER = 36
HUNG_S = 1200.0  # where nobody has looked how long it takes
SLOWEST = 3  # a mutant that takes so many times what the module takes, and a minute, has hung; which is noticed too
PYTEST = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:warnings", "-m", "not deploy", "--tb=no")


@dataclass
class Figures:
    """What became of the mutants of a module."""

    made: int = 0
    killed: dict[str, int] = field(default_factory=dict)  # by the stage that did
    survivors: list[str] = field(default_factory=list)

    @property
    def share(self) -> float:
        return sum(self.killed.values()) / self.made if self.made else 1.0

    def __str__(self) -> str:
        by_stage = ", ".join(f"{count} by {stage}" for stage, count in self.killed.items())
        return f"{sum(self.killed.values()):4} of {self.made:3}  {self.share:4.0%}  ({by_stage})"


class Tree:
    """The copy in which mistakes are made."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.root = folder / "tree"
        self._seed = seed
        shutil.copytree(ROOT, self.root, symlinks=True, ignore=LEFT_OUT)
        (folder / "t").mkdir()
        self._environ = os.environ | {"TMPDIR": str(folder / "t"), "PYTHONDONTWRITEBYTECODE": "1"}

    def passes(self, tests: Sequence[str], at_most: float | None = None) -> bool:
        """Whether these tests pass. False too when they take longer."""
        process = subprocess.Popen(
            [sys.executable, *PYTEST, f"--hypothesis-seed={self._seed}", *tests],
            cwd=self.root, env=self._environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            return process.wait(at_most) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            end_all()
            process.wait()


def end_all() -> None:
    """Kill whatever a test run has left: it all descends from us, who are asked to be its reaper."""
    while left := psutil.Process().children(recursive=True):
        for each in left:
            each.kill()
        psutil.wait_procs(left, 10)


def judge(tree: Tree, module: Module, chosen: Sequence[Mutant], stages: Sequence[str], *, trust: bool) -> Figures:
    """Make each of these mistakes and see who notices. `trust`: that the tests pass without any."""
    figures = Figures(len(chosen))
    path = tree.root / module.path
    whole = path.read_text()
    at_most: dict[str, float] = {}

    def notices(stage: str, text: str) -> bool:
        if (
            stage not in at_most and not trust
        ):  # the first time: how long it takes, and that it is the mistake that they notice
            path.write_text(whole)
            began = monotonic()
            assert tree.passes(module.stages[stage]), f"the tests of {module.path} ({stage}) fail without any mistake"
            at_most[stage] = SLOWEST * (monotonic() - began) + 60
        path.write_text(text)
        return not tree.passes(module.stages[stage], at_most.get(stage, HUNG_S))

    try:
        for mutant in chosen:
            by = next((stage for stage in stages if notices(stage, mutant.text)), None)
            if by is None:
                figures.survivors.append(str(mutant))
                print(f"  survived: {mutant}", flush=True)
            else:
                figures.killed[by] = figures.killed.get(by, 0) + 1
    finally:
        path.write_text(whole)
    return figures


def chosen(names: Sequence[str], sample: int | None, seed: int, only: str) -> dict[str, list[Mutant]]:
    """The mutants to judge, by module: all of them, or a sample over all modules together."""
    found = {
        name: [each for each in mutants((ROOT / MODULES[name].path).read_text()) if only in str(each)]
        for name in names
    }  # fmt: skip
    if sample is None:
        return found
    all_of_them = [(name, number) for name in names for number in range(len(found[name]))]
    taken = sorted(random.Random(seed).sample(all_of_them, min(sample, len(all_of_them))))
    return {name: [found[name][number] for other, number in taken if other == name] for name in names}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=(__doc__ or "").partition("\n")[2])
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=", ".join(MODULES))
    parser.add_argument("--sample", type=int, metavar="N", help="so many of all, at random")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the sample, and of Hypothesis")
    parser.add_argument("--unit", action="store_true", help="only the unit tests: seconds a mutant")
    parser.add_argument("--trust", action="store_true", help="that all tests pass where there is no mistake")
    parser.add_argument("--only", default="", metavar="TEXT", help="those whose line in the list has this in it")
    parser.add_argument("--list", action="store_true", help="show them, and run nothing")
    parser.add_argument(
        "--at-least", type=float, default=0.0, metavar="SHARE", help="exit with 1 when fewer are killed"
    )
    options = parser.parse_args(argv)
    if unknown := set(options.modules) - set(MODULES):
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    todo = chosen(options.modules or list(MODULES), options.sample, options.seed, options.only)
    if options.list:
        for name, each in todo.items():
            print("\n".join(f"{name} {mutant}" for mutant in each))
        return 0
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    total, stages = Figures(), ["unit"] if options.unit else ["unit", "further"]
    with tempfile.TemporaryDirectory(prefix="pf.") as folder:  # short: Unix socket paths are made below it
        tree = Tree(Path(folder), options.seed)
        for name in filter(todo.get, todo):
            figures = judge(tree, MODULES[name], todo[name], stages, trust=options.trust)
            print(f"{name:12} {figures}", flush=True)
            total.made += figures.made
            for stage, count in figures.killed.items():
                total.killed[stage] = total.killed.get(stage, 0) + count
    print(f"{'all':12} {total}")
    return 0 if total.share >= options.at_least else 1


if __name__ == "__main__":
    sys.exit(main())
