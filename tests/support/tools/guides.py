"""The pages of the project, README.md and the guides: what they are, and the parts of them that tests look at."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
FRONT = ROOT / "README.md"
FOLDERS = ("prefork", "workers", "metrics", "tests", "deploy")
PAGES = [FRONT, *(page for folder in FOLDERS for page in sorted((ROOT / folder).rglob("*.md")))]
IDS = [str(page.relative_to(ROOT)) for page in PAGES]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """An example between two fences: its language, its text, and the line of the page on which the text begins."""

    page: Path
    language: str
    text: str
    line: int

    @property
    def file(self) -> str:
        """The name that the example gives itself in its first line, `# app.py`; else nothing."""
        named = re.match(r"# ([\w./@-]+\.\w+)\n", self.text)
        return named[1] if named else ""


def blocks(page: Path) -> Iterator[Block]:
    """The examples of a page, in its order."""
    text = page.read_text()
    for found in _FENCE.finditer(text):
        yield Block(page, found[1], found[2], text.count("\n", 0, found.start(2)) + 1)


def prose(page: Path) -> str:
    """A page without its examples."""
    return _FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """The names of its headings, as a link has them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def table(page: Path, heading: str) -> list[str]:
    """The rows, without their head, of the first table below a heading."""
    section = prose(page).partition(f"# {heading}\n")[2].partition("\n#")[0]
    return [line for line in section.splitlines() if line.startswith("| ")][2:]
