"""The gate of CI: what pytest reported, against the tests that are in the tree and the skips that are allowed.

    python .ci/gate.py run.xml "not deploy and not once"    one run, by its JUnit report and its -m
    python .ci/gate.py --tree run.xml run.xml ...           what is in the tree ran in one of these

It fails closed: what cannot be read, is not there or says nothing is a failure, never a pass.
"""

import ast
import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]


class Unreadable(Exception):
    """What the gate decides by is not there, or is not what it should be."""


@dataclass
class Ran:
    """A report: the tests it tells of, without their parameters, and what became of them."""

    names: set[str] = field(default_factory=set)
    failed: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)  # test, reason
    seconds: float = 0.0
    count: int = 0


def report(path: Path) -> Ran:
    """pytest writes it when it ends: one that was killed, or ended in the middle, has left none."""
    try:
        suites = list(ET.parse(path).getroot().iter("testsuite"))
    except (OSError, ET.ParseError) as error:
        raise Unreadable(f"could not read the report {path.name}: {error}") from None
    ran = Ran()
    for case in (case for suite in suites for case in suite.iter("testcase")):
        name = f"{case.get('classname')}.{case.get('name')}"
        ran.count += 1
        ran.names.add(name.partition("[")[0])
        if any(case.find(kind) is not None for kind in ("failure", "error")):
            ran.failed.append(name)
        if (skip := case.find("skipped")) is not None:  # an expected failure is one too
            ran.skipped.append((name, skip.get("message") or ""))
    ran.seconds = sum(float(suite.get("time") or 0) for suite in suites)
    if not ran.count:
        raise Unreadable(f"the report {path.name} has no test in it")
    return ran


def allowed(path: Path) -> set[str]:
    """The reasons for which a test may be skipped, one a line, word for word."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeError) as error:
        raise Unreadable(f"could not read the list of allowed skips: {error}") from None
    if not all(line.strip() for line in lines):
        raise Unreadable(f"{path.name} has an empty line")
    return set(lines)


def _marks(decorators: list[ast.expr]) -> set[str]:
    found = (re.fullmatch(r"pytest\.mark\.(\w+)(\(.*\))?", ast.unparse(node), re.DOTALL) for node in decorators)
    return {match[1] for match in found if match}


def _module_marks(module: ast.Module) -> set[str]:
    for node in module.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
            return _marks(node.value.elts if isinstance(node.value, ast.List | ast.Tuple) else [node.value])
    return set()


def tree(tests: Path) -> Iterator[tuple[str, set[str]]]:
    """Every test function by name, whatever its file is called, with the marks it bears; its folder is one of them.

    What stands in a folder `programs` is what tests run, and may have test functions of its own.
    """
    for path in sorted(path for path in tests.rglob("*.py") if path.parent.name != "programs"):
        module = ast.parse(path.read_bytes(), str(path))
        parts = path.relative_to(tests.parent).with_suffix("").parts
        yield from _functions(module.body, ".".join(parts), _module_marks(module) | set(parts[1:-1]))


def _functions(body: list[ast.stmt], where: str, marks: set[str]) -> Iterator[tuple[str, set[str]]]:
    for node in body:
        if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            yield from _functions(node.body, f"{where}.{node.name}", marks | _marks(node.decorator_list))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield f"{where}.{node.name}", marks | _marks(node.decorator_list)


def wanted(tests: Path, expression: str) -> set[str]:
    """The tests that `-m` with this expression takes, as far as the source tells."""
    words = re.findall(r"\w+", expression)
    found = {
        name
        for name, marks in tree(tests)
        if not expression or eval(expression, {"__builtins__": {}}, {word: word in marks for word in words})
    }
    if not found:
        raise Unreadable(f"no test in {tests} is marked {expression!r}")
    return found


def faults_of_a_run(path: Path, expression: str, tests: Path, list_of_skips: Path) -> list[str]:
    """What is wrong with a run, a sentence each."""
    try:
        ran, reasons, expected = report(path), allowed(list_of_skips), wanted(tests, expression)
    except Unreadable as error:
        return [str(error)]
    faults = [f"failed: {name}" for name in ran.failed]
    faults += [f"skipped: {name}: {reason}" for name, reason in ran.skipped if reason not in reasons]
    return faults + [f"did not run: {name}" for name in sorted(expected - ran.names)]


def summary(path: Path) -> str:
    """A run in a line."""
    try:
        ran = report(path)
    except Unreadable:
        return "no report"
    return f"{ran.count} tests, {len(ran.failed)} failed, {len(ran.skipped)} skipped, {ran.seconds:.0f} s"


def faults_of_the_tree(paths: list[Path], tests: Path) -> list[str]:
    """The tests that ran in none of these."""
    try:
        ran: set[str] = set().union(*(report(path).names for path in paths))
        return [f"no run has it: {name}" for name in sorted(wanted(tests, "") - ran)]
    except Unreadable as error:
        return [str(error)]


def main(argv: list[str]) -> int:
    """Print how many faults there are, and each; the exit status."""
    if argv[:1] == ["--tree"]:
        faults = faults_of_the_tree([Path(name) for name in argv[1:]], ROOT / "tests")
        print(f"{len(faults)} tests did not run")
    else:
        path, expression = Path(argv[0]), argv[1]
        faults = faults_of_a_run(path, expression, ROOT / "tests", ROOT / ".ci" / "allowed-skips")
        print(summary(path))
    for fault in faults:
        print(fault)
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
