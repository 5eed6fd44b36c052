"""The rules that tests themselves keep."""

import ast
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from textwrap import dedent, indent

import pytest

pytestmark = pytest.mark.once

TESTS = Path(__file__).parents[1]
FEW = 7  # lines of a program that may stand in a string
STATEMENTS = (
    ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.If, ast.For, ast.While,
    ast.With, ast.Try,
)  # fmt: skip


def strings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The line and the text of every string that is a value; what f-strings put in is a name."""
    apart = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "x" for part in node.values]
            apart |= {id(part) for part in node.values}
            yield node.lineno, "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in apart:
            yield node.lineno, node.value


def is_program(text: str) -> bool:
    """Say if this is Python that does something, as it is or when it has been formatted."""
    formatted = re.sub(r"\{\{|\}\}", lambda found: found[0][0], re.sub(r"(?<!\{)\{[^{}]*\}(?!\})", "x", text))
    for each in (text, formatted, re.sub(r"%(\(\w+\))?[sdr]", "x", text)):
        try:
            nodes = ast.walk(ast.parse(dedent(each)))
        except (SyntaxError, ValueError):
            continue
        return any(isinstance(node, STATEMENTS) for node in nodes)
    return False


@cache
def every_string() -> list[tuple[Path, int, str]]:
    """Those of all files of ours."""
    return [(path, *found) for path in sorted(TESTS.rglob("*.py")) for found in strings(ast.parse(path.read_text()))]


def is_long(text: str) -> bool:
    return sum(bool(line.strip()) for line in text.splitlines()) > FEW


def long_programs(source: str) -> list[int]:
    """The lines at which programs of more than a few lines begin that stand in strings."""
    return [line for line, text in strings(ast.parse(source)) if is_long(text) and is_program(text)]


LONG = "import os\n" + "while a:\n    b(1)\n" * 4


@pytest.mark.parametrize("source", [
    f"APP = {LONG!r}",
    f"run([python, '-c', {LONG!r}])",
    f"APP = {LONG.replace('1', '{{}}, {1}')!r}.format(1)",
    f"APP = f{LONG.replace('1', '{1}')!r}",
    f"APP = {LONG.replace('1', '%s')!r} % 1",
    f"APP = dedent({indent(LONG, '    ')!r})",
])  # fmt: skip
def test_a_long_program_is_found(source: str) -> None:
    """However it is written: as it is, to be formatted, in an f-string, indented."""
    assert long_programs(source) == [1]


@pytest.mark.parametrize("source", [
    f"def a():\n    {LONG!r}",
    f"APP = {LONG.rpartition('while')[0]!r}",
    "LIST = " + repr("a = 1\n" * 20),
    "TEXT = " + repr("Every line of this is no Python\n" * 20),
])  # fmt: skip
def test_what_is_none(source: str) -> None:
    """Documentation, a program of a few lines, settings and texts are strings still."""
    assert long_programs(source) == []


def test_programs_are_files() -> None:
    """What a test runs is a file, in `programs/` beside it or in support, where ruff and mypy read it."""
    found = [
        f"{path.relative_to(TESTS)}:{line}" for path, line, text in every_string() if is_long(text) and is_program(text)
    ]
    assert found == [], 'each belongs into a file: see tests/README.md, "A program that a test runs"'


def test_every_program_is_used() -> None:
    """Each file in a folder `programs` is named by what runs it."""
    texts = {path: path.read_text() for path in TESTS.rglob("*.py")}
    by = r"programs[./]{0}\b|\b{0}\.py|programs import [^\n]*\b{0}\b|-m tests[\w.]*\.{0}\b"
    unused = [
        str(path.relative_to(TESTS))
        for path in texts
        if path.parent.name == "programs"
        if not any(re.search(by.format(path.stem), text) for other, text in texts.items() if other != path)
    ]
    assert unused == []


def defined(path: Path) -> set[str]:
    """The names that a module defines."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def test_what_scripts_import_is_there() -> None:
    """A program that is named in a string is a file, and has what is imported from it: no tool reads strings."""
    wrong = []
    for path, line, text in every_string():
        for module, names in re.findall(r"\btests\.([\w.]*programs\.\w+)(?: import ([\w, ]+))?", text):
            program = TESTS / (module.replace(".", "/") + ".py")
            wanted = {each.split()[0] for each in names.split(",") if each.strip()}
            if not program.exists() or not wanted <= {*defined(program), "x"}:  # x: put in by an f-string
                wrong.append(f"{path.relative_to(TESTS)}:{line}: {module} {names}")
    assert wrong == []


CLOCKS = {f"{clock}{unit}()" for clock in ("monotonic", "perf_counter", "time") for unit in ("", "_ns")}
TIMES = CLOCKS | {"signal()", "wait_dead()", "wait_one_dead()", "at"}  # the last is what facts tell
SPANS = {"nothing_for()", "took"}


def named(node: ast.AST) -> str:
    """The name of a variable, of what is called, or of what is told."""
    if isinstance(node, ast.Call):
        return f"{named(node.func)}()"
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        return str(node.slice.value)
    return getattr(node, "id", getattr(node, "attr", ""))


class Timing:
    """Which expressions of a function are of the clock, and which are spans between two of its times."""

    def __init__(self, function: ast.AST, spans: set[str]) -> None:
        self.times, self.spans = set(TIMES), spans | SPANS
        given = [each for node in ast.walk(function) if (each := self._given(node))]
        before = None
        while before != (before := len(self.times) + len(self.spans)):
            for targets, value in given:
                names = {named(each) for target in targets for each in ast.walk(target)} - {""}
                self.times |= names if self.is_time(value) else set()
                self.spans |= names if self.is_span(value) else set()

    @staticmethod
    def _given(node: ast.AST) -> tuple[Sequence[ast.AST], ast.AST] | None:
        """What a name is given: by an assignment, or as one of many."""
        if isinstance(node, ast.Assign):
            return node.targets, node.value
        if isinstance(node, ast.AugAssign | ast.NamedExpr):
            return [node.target], node.value
        if isinstance(node, ast.For | ast.comprehension):
            return [node.target], node.iter
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "append":
            return [node.func.value], node.args[0]
        return None

    def is_time(self, node: ast.AST) -> bool:
        return any(named(each) in self.times for each in ast.walk(node))

    def is_span(self, node: ast.AST) -> bool:
        return any(
            named(each) in self.spans
            or (isinstance(each, ast.BinOp) and isinstance(each.op, ast.Sub) and self.is_time(each))
            for each in ast.walk(node)
        )

    def is_figure(self, small: ast.AST, large: ast.AST) -> bool:
        """A span has an upper bound, or a time has one counted from another; HUNG is none, nor what is told."""
        if named(large).endswith("()") and named(large) not in {"min()", "max()"}:
            return False
        if not isinstance(large, ast.Call) and "HUNG" in map(named, ast.walk(large)):
            return False
        later = isinstance(large, ast.BinOp) and isinstance(large.op, ast.Add) and self.is_time(large)
        return self.is_span(small) or (later and self.is_time(small))


def compared(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    """What is claimed to be smaller, and than what."""
    for each in ast.walk(node):
        if isinstance(each, ast.Compare):
            for left, op, right in zip([each.left, *each.comparators], each.ops, each.comparators, strict=False):
                if isinstance(op, ast.Lt | ast.LtE):
                    yield left, right
                elif isinstance(op, ast.Gt | ast.GtE):
                    yield right, left


def figures_unmarked(source: str) -> list[int]:
    """The lines that assert a figure of time in what is not marked `timed`."""
    spans, found = set[str](), []
    for function in (node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)):
        timing = Timing(function, spans)
        for node in ast.walk(function):
            if isinstance(node, ast.Return) and node.value and timing.is_span(node.value):
                spans.add(f"{function.name}()")
            elif isinstance(node, ast.Assert) and any(timing.is_figure(*each) for each in compared(node.test)):
                found.append(node.lineno)
        if any(named(node) == "timed" for each in function.decorator_list for node in ast.walk(each)):
            found = [line for line in found if line < function.lineno]
    return found


@pytest.mark.parametrize("test", [
    "assert monotonic() - began < 5",
    "assert 1.0 > time.monotonic() - began",
    "assert 0.9 < told['at'] - began < 1.5",
    "assert service.wait('closed')['took'] < min(1.0, HUNG)",
    "took = monotonic() - began\n    assert a == b and took < bound + SLACK",
    "for each in them:\n        took.append(watched.wait_dead() - began)\n    assert max(took) < 2",
    "assert monotonic() < began + 5",
    "assert since(began) < 5",
    "for gap in spans_of(told):\n        assert 0.5 <= gap < 0.5 + SLACK",
    "assert all(each < 2 for each in spans_of(told))",
])  # fmt: skip
def test_a_figure_of_time_is_found(test: str) -> None:
    """By whatever way: directly, through a name, a list, a function of the module or what a program has told."""
    since = "def since(began):\n    return monotonic() - began\n"
    since += "def spans_of(facts):\n    return [fact['at'] - facts[0]['at'] for fact in facts]\n"
    source = f"{since}def test():\n    began = monotonic()\n    {test}\n"
    assert figures_unmarked(source) == [source.count("\n")]
    assert figures_unmarked(source.replace("def test", "@pytest.mark.timed\ndef test")) == []


@pytest.mark.parametrize("test", [
    "assert monotonic() - began >= 0.2",
    "assert began <= told['at']",
    "deadline = monotonic() + HUNG\n    assert monotonic() < deadline, 'hung'",
    "assert monotonic() - began < HUNG / 2",
    "assert monotonic() < began + HUNG",
    "took = monotonic() - began\n    assert total(samples, 'duration_sum') >= 2 * took",
    "assert time.process_time() - cpu < 0.1",
])  # fmt: skip
def test_what_no_pause_breaks(test: str) -> None:
    """A lower bound, an order, what means hung alone, and time of a processor."""
    assert figures_unmarked(f"def test():\n    began = monotonic()\n    {test}\n") == []


def test_figures_of_time_are_marked() -> None:
    """A machine that stands still for a second fails no test but these, and they are run again."""
    apart = {"faults", "benchmarks", "programs"}  # of faults everything may be run again; the others are no tests
    found = [
        f"{path.relative_to(TESTS)}:{line}"
        for path in sorted(TESTS.rglob("*.py"))
        if not apart & {*path.relative_to(TESTS).parts[:-1]}
        for line in figures_unmarked(path.read_text())
    ]
    assert found == [], "each asserts a figure of time: mark it `timed`, or wait for what it is about"
