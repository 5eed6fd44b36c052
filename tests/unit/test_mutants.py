"""The mutants: the table is of files that are there, and a text has the mistakes that a slip of the hand makes."""

import re
from itertools import chain
from pathlib import Path
from textwrap import dedent

import pytest

from tests.mutants.__main__ import chosen, parsed
from tests.mutants.choose import so_many_of_all, so_many_of_each
from tests.mutants.modules import MODULES
from tests.mutants.mutate import Mutant, mutants

pytestmark = pytest.mark.once  # nothing of it is the interpreter's

ROOT = Path(__file__).parents[2]
FEWEST = 10  # mutants of a module with a row


@pytest.mark.parametrize("name", MODULES)
def test_the_table(name: str) -> None:
    """Each module and each test file of the table is there, and each twentieth mutant is a program."""
    module = MODULES[name]
    runs = [*module.stages["unit"], *module.stages["further"]]
    for path in (module.path, *chain.from_iterable(runs)):
        assert (ROOT / path).is_file()
    assert runs.count(()) == 0
    found = mutants((ROOT / module.path).read_text())
    assert len(found) >= FEWEST
    for mutant in found[::20]:
        compile(mutant.text, module.path, "exec")


def test_every_module_has_a_row() -> None:
    """One that is not in the table has no mutants, and nobody would know what its tests miss."""
    known = {module.path for module in MODULES.values()}
    missing = [
        str(path.relative_to(ROOT))
        for building in ("prefork", "workers", "metrics")
        for path in sorted((ROOT / building).rglob("*.py"))  # which follows no link
        if str(path.relative_to(ROOT)) not in known and len(mutants(path.read_text())) >= FEWEST
    ]
    assert missing == []
    assert len(known) == len(MODULES)


MISTAKES = {
    "comparison": ("if a < b: pass", ["if (a <= b): pass"]),
    "constant": ("a = 3, 0.5, True", ["a = (4), 0.5, True", "a = 3, (1.0), True", "a = 3, 0.5, (False)"]),
    "boolean": ("a = not b and c", ["a = (not b or c)", "a = (c)", "a = (not b)", "a = (b) and c"]),
    "operator": ("a = min(b + c)", ["a = (max(b + c))", "a = min((b - c))"]),
    "dropped": ("f(); a.b = g; log.info(h); i = j", [
        "pass; a.b = g; log.info(h); i = j", "f(); pass; log.info(h); i = j",
    ]),
    "swapped": ("a[b] = c; d(); e = f; g.h = i(); g.j = k()", ["d(); a[b] = c; e = f; g.h = i(); g.j = k()"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", MISTAKES)
def test_each_kind(kind: str) -> None:
    """The mistakes of a kind, each alone. What goes to the log, or into a variable, is none that is dropped."""
    text, expected = MISTAKES[kind]
    assert sorted(mutant.text for mutant in mutants(text) if mutant.kind == kind) == sorted(expected)


def test_where() -> None:
    """A mutant is named by its line, and the function it is in."""
    text = dedent("""
        class A:
            def b(self):
                return 1
    """)
    (mutant,) = mutants(text)
    assert str(mutant) == "4 A.b (constant): 1  →  (2)"


def test_what_says_nothing_is_left_alone() -> None:
    """Types, documentation and what cannot happen have no mutants."""
    text = dedent('''
        """One of 3."""
        if TYPE_CHECKING: import a
        def b(c: Annotated[int, 3]) -> Literal[4]:
            if c:
                raise AssertionError(5)
            return f"{c:6}"
        d = zip(e, f, strict=True)
    ''')
    assert mutants(text) == []


BEFORE = """
def f(a):
    return a + 1 if a < 2 else a - 3
def g(a):
    return a * 4 if a > 5 else a - 6
"""
AFTER = "import what_is_new\ndef h(a):\n    return a < 7 and a > 8\n" + BEFORE.replace("> 5", "> 55")


def _what(mutant: Mutant) -> tuple[str, str, str]:
    return mutant.where, mutant.before, mutant.after


@pytest.mark.parametrize("seed", range(20))
def test_a_sample_outlives_a_change(seed: int) -> None:
    """What is not changed keeps its place: of a sample only those leave for which what is new, or is next, comes."""
    old, new = mutants(BEFORE), mutants(AFTER)
    of_old, of_new = (so_many_of_each({"a": each}, 6, seed)["a"] for each in (old, new))
    still_there = set(map(_what, new))
    kept = {_what(each) for each in of_old} & still_there
    gone = kept - {_what(each) for each in of_new}
    came_new = {_what(each) for each in of_new} - set(map(_what, old))
    assert len(gone) <= len(came_new)
    assert len(of_old) == len(of_new) == 6


def test_a_sample_is_the_same_at_each_run() -> None:
    """One seed has one sample, another seed has another."""
    found = {"a": mutants(BEFORE)}
    assert so_many_of_each(found, 4, 1) == so_many_of_each(found, 4, 1)
    assert len({str(so_many_of_each(found, 4, seed)) for seed in range(9)}) > 4


def test_a_sample_of_all_is_even() -> None:
    """Each module gives as many as any other, or all it has; those of a module are the same with others or without."""
    many = mutants(BEFORE)
    found = {"a": many, "b": many, "c": many[:2]}
    sample = so_many_of_all(found, 10, 1)
    assert {name: len(each) for name, each in sample.items()} == {"a": 4, "b": 4, "c": 2}
    assert sample["a"] == so_many_of_each({"a": many}, 4, 1)["a"]
    assert sample["a"] != sample["b"]
    assert sum(map(len, so_many_of_all(found, 2, 1).values())) == 2
    assert so_many_of_all(found, 99, 1) == found


def test_what_ci_asks_for() -> None:
    """The same mutants at each commit, by unit tests, and nearly all of them have to die."""
    (line,) = re.findall(r"-m tests\.mutants ([^&\n]*)", (ROOT / ".ci/jobs").read_text())
    options = parsed(line.split())
    assert (options.seed, options.unit, options.modules, options.only) == (0, True, [], "")
    assert sum(map(len, chosen(options).values())) == options.sample == 30
    assert 0.8 * options.sample <= options.at_least < options.sample
