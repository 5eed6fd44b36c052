"""The rules that tests themselves keep."""

import ast
import re
from collections.abc import Iterator
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
