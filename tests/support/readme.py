"""The parts of README.md that are made from the code, each between two markers.

    python -m tests.support.readme

writes them anew; tests/unit/test_house.py holds that they are true.
"""

import re
from pathlib import Path

from prefork import PreForkingTCPServer
from prefork.commands import TABLE
from prefork.config import reference
from prefork.ctl import term
from prefork.launch import Launch
from prefork.metrics.collector import reference as metrics

README = Path(__file__).parents[2] / "README.md"


def signals() -> str:
    """The signals of the master, as a Markdown table."""
    lines = ["| signal to the master | what it does |", "| --- | --- |"]
    for row in TABLE:
        if row.signals:
            names = ", ".join(signum.name.removeprefix("SIG") for signum in row.signals)
            lines.append(f"| {names} | {row.help} |")
    return "\n".join(lines) + "\n"


def verbs() -> str:
    """The verbs of `prefork ctl`, as a Markdown table."""
    lines = ["| `prefork ctl` | who | what it does | signal |", "| --- | --- | --- | --- |"]
    for row in TABLE:
        if row.verb:
            who = "may look" if row.looks else "may command"
            names = ", ".join(signum.name.removeprefix("SIG") for signum in row.signals)
            lines.append(f"| `{term(row)}` | {who} | {row.help} | {names} |")
    return "\n".join(lines) + "\n"


def made_anew(text: str) -> str:
    """The text of README.md with every part that is made from the code as it is now."""
    parts = {
        "settings": reference(PreForkingTCPServer),
        "launch": reference(Launch, options=True), "signals": signals(), "verbs": verbs(), "metrics": metrics() + "\n",
    }  # fmt: skip
    for name, part in parts.items():
        marked = re.compile(rf"(<!-- {name}: .* -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        assert len(marked.findall(text)) == 1, f"README.md has not one place for {name}"
        text = marked.sub(lambda match, part=part: match[1] + part + match[2], text)  # type: ignore[misc]
    return text


if __name__ == "__main__":
    README.write_text(made_anew(README.read_text()))
