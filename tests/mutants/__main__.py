"""python -m tests.mutants [MODULE ...] [--each N | --sample N] [--seed S]: how many small mistakes the tests notice.

Works in copies of the tree, never in the checkout: mutates one module after the other there, runs the unit tests
chosen for it, and the process and fault tests on what survives them, the quickest file first. Prints what became of
each mutant, and a figure for each module. Same seed, same code: same mutants.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from .choose import Chosen, so_many_of_all, so_many_of_each
from .modules import MODULES
from .mutate import Mutant, mutants
from .tree import ROOT, Tree, make

STAGES = ("unit", "further")
Tests = tuple[str, ...]
Run = tuple[Tests, float | None]  # with the seconds that it usually takes

_tree: Tree  # of this process: a copy for each of those that judge


@dataclass
class Figures:
    """What became of the mutants of a module, or of all."""

    made: int = 0
    killed: dict[str, int] = field(default_factory=dict)  # by the stage that did

    @property
    def dead(self) -> int:
        return sum(self.killed.values())

    def add(self, other: "Figures") -> None:
        self.made += other.made
        for stage, count in other.killed.items():
            self.killed[stage] = self.killed.get(stage, 0) + count

    def __str__(self) -> str:
        by_stage = ", ".join(f"{self.killed.get(stage, 0)} by {stage}" for stage in STAGES)
        return f"{self.dead:4} of {self.made:3}  {self.dead / (self.made or 1):4.0%}  ({by_stage})"


def _begin(folder: str, seed: int) -> None:
    """The first thing in each process that judges."""
    global _tree
    _tree = Tree(Path(folder, "tree"), Path(tempfile.mkdtemp(dir=folder)), seed)


def _usual(tests: Tests) -> float | None:
    return _tree.usual(tests)


def _noticed(path: str, text: str, runs: Sequence[Run]) -> str | None:
    return next(filter(None, (_tree.noticed(path, text, tests, usual) for tests, usual in runs)), None)


def _runs(pool: ProcessPoolExecutor, todo: Chosen, stage: str, *, trust: bool) -> dict[str, list[Run]]:
    """The test runs of this stage for each module that has mutants left, the quickest first."""
    wanted = {name: MODULES[name].stages[stage] for name in todo if todo[name]}
    if trust:
        return {name: [(tests, None) for tests in runs] for name, runs in wanted.items()}
    every = sorted({tests for runs in wanted.values() for tests in runs})
    usual = dict(zip(every, pool.map(_usual, every), strict=True))
    for tests in every:
        if usual[tests] is None:
            print(f"left out, for it fails without any mistake: {' '.join(tests)}", flush=True)
    timed = [(tests, time) for tests, time in usual.items() if time is not None]
    timed.sort(key=lambda run: run[1])
    return {name: [run for run in timed if run[0] in runs] for name, runs in wanted.items()}


def judge(
    pool: ProcessPoolExecutor, todo: Chosen, stage: str, *, trust: bool
) -> Iterator[tuple[str, Mutant, str | None]]:
    """Each of these with the test that notices it in this stage, if one does."""
    runs = _runs(pool, todo, stage, trust=trust)
    asked = [
        (name, mutant, pool.submit(_noticed, MODULES[name].path, mutant.text, runs[name]))
        for name, mutants in todo.items()
        for mutant in mutants
    ]
    for name, mutant, answer in asked:
        by = answer.result()
        print(f"{name} {mutant}: " + (f"noticed by {by}" if by else f"survived {stage}"), flush=True)
        yield name, mutant, by


def figures_of(pool: ProcessPoolExecutor, todo: Chosen, stages: Sequence[str], *, trust: bool) -> dict[str, Figures]:
    figures = {name: Figures(len(mutants)) for name, mutants in todo.items() if mutants}
    for stage in stages:
        left: Chosen = {name: [] for name in todo}
        for name, mutant, by in judge(pool, todo, stage, trust=trust):
            if by is None:
                left[name].append(mutant)
            else:
                figures[name].add(Figures(0, {stage: 1}))
        todo = left
    return figures


def chosen(options: argparse.Namespace) -> Chosen:
    found = {
        name: [each for each in mutants((ROOT / MODULES[name].path).read_text()) if options.only in str(each)]
        for name in options.modules or [name for name in MODULES if MODULES[name].unit or not options.unit]
    }  # fmt: skip
    if options.again is not None:
        said = {" ".join(line.split()[:1] + line.split()[2:]) for line in options.again.read_text().splitlines()}
        return {name: [each for each in mutants if _survived(name, each) & said] for name, mutants in found.items()}
    if options.each is not None:
        return so_many_of_each(found, options.each, options.seed)
    if options.sample is not None:
        return so_many_of_all(found, options.sample, options.seed)
    return found


def _survived(name: str, mutant: Mutant) -> set[str]:
    """What is said of one that survives, but for its line, which other changes move."""
    what = " ".join(str(mutant).split()[1:])
    return {f"{name} {what}: survived {stage}" for stage in STAGES}


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=(__doc__ or "").partition("\n")[2])
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=", ".join(MODULES))
    parser.add_argument("--each", type=int, metavar="N", help="so many of each module, at random")
    parser.add_argument("--sample", type=int, metavar="N", help="so many in all, at random, evenly over the modules")
    parser.add_argument(
        "--again", type=Path, metavar="FILE", help="those that survived, as FILE says: what this printed"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the sample, and of Hypothesis")
    parser.add_argument("--unit", action="store_true", help="only the unit tests: a second for a mutant")
    parser.add_argument("--trust", action="store_true", help="that all tests pass where there is no mistake")
    parser.add_argument("--only", default="", metavar="TEXT", help="those whose line in the list has this in it")
    parser.add_argument("--list", action="store_true", help="show them, and run nothing")
    parser.add_argument("--at-once", type=int, default=2, metavar="N", help="so many at a time (2)")
    parser.add_argument("--at-least", type=int, default=0, metavar="N", help="exit with 1 when fewer are killed")
    options = parser.parse_args(argv)
    if unknown := set(options.modules) - set(MODULES):
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    options = parsed(argv)
    todo = chosen(options)
    if options.list:
        for name, each in todo.items():
            for mutant in each:
                print(name, mutant)
        return 0
    total, stages = Figures(), STAGES[:1] if options.unit else STAGES
    runs = [tests for name in todo if todo[name] for stage in stages for tests in MODULES[name].stages[stage]]
    with (
        tempfile.TemporaryDirectory(prefix="pf.") as folder,  # short: Unix socket paths are made below it
        ProcessPoolExecutor(options.at_once, initializer=_begin, initargs=(folder, options.seed)) as pool,
    ):
        make(
            Path(folder, "tree"), sorted({file for tests in runs for file in tests})
        )  # the pool begins when it is first asked
        figures = figures_of(pool, todo, stages, trust=options.trust)
    for name, figure in figures.items():
        print(f"{name:14} {figure}")
        total.add(figure)
    print(f"{'all':14} {total}")
    return 0 if total.dead >= options.at_least else 1


if __name__ == "__main__":
    sys.exit(main())
