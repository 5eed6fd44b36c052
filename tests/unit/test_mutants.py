"""The mutants: the table is of files that are there, and a text has the mistakes that a slip of the hand makes."""

from pathlib import Path
from textwrap import dedent

import pytest

from tests.mutants.modules import MODULES
from tests.mutants.mutate import mutants

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", MODULES)
def test_the_table(name: str) -> None:
    """Each module and each test file of the table is there, and each twentieth mutant is a program."""
    module = MODULES[name]
    for path in (module.path, *module.stages["unit"], *module.stages["further"]):
        assert (ROOT / path).is_file()
    found = mutants((ROOT / module.path).read_text())
    assert len(found) >= 30
    for mutant in found[::20]:
        compile(mutant.text, module.path, "exec")


MISTAKES = {
    "comparison": ("if a < b: pass", ["if (a <= b): pass"]),
    "constant": ("a = 3, 0.5, True", ["a = (4), 0.5, True", "a = 3, (1.0), True", "a = 3, 0.5, (False)"]),
    "boolean": ("a = not b and c", ["a = (not b or c)", "a = (c)", "a = (not b)", "a = (b) and c"]),
    "operator": ("a = min(b + c)", ["a = (max(b + c))", "a = min((b - c))"]),
    "dropped": ("f(); a.b = g; log.info(h); i = j", [
        "pass; a.b = g; log.info(h); i = j", "f(); pass; log.info(h); i = j",
    ]),
    "swapped": ("a[b] = c; d(); e = f", ["d(); a[b] = c; e = f"]),
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
        if TYPE_CHECKING:
            import a
        def b(c: Annotated[int, 3]) -> Literal[4]:
            if c:
                raise AssertionError(5)
            return f"{c:6}"
    ''')
    assert mutants(text) == []
