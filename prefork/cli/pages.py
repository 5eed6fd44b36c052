"""What every command of `prefork` is made of, and its page: `prefork COMMAND --help`, in 80 columns or fewer.

Owns the shape of a command and of its help; says nothing itself about any of them. A command's room (run.py, …) holds
one `Subcommand` of its name, and the table in main.py names the room. Runs in the process of the command line.
"""

import argparse
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from ..errors import ConfigError, nearest

__all__ = ["Parser", "Section", "Subcommand", "columns", "unusable"]

TERM_COLUMNS = 24  # of a two-column section, its indent included


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page behind the options: rows of (term, meaning), or a text of paragraphs."""

    title: str
    body: Sequence[tuple[str, str]] | str

    def formatted(self, width: int) -> str:
        if isinstance(self.body, str):
            lines = [_filled(part, width, "  ") for part in self.body.strip("\n").split("\n\n")]
            return f"{self.title}:\n" + "\n\n".join(lines)
        return f"{self.title}:\n" + "\n".join(_row(term, meaning, width) for term, meaning in self.body)


@dataclass(frozen=True, slots=True)
class Subcommand:
    """One command: its arguments, what it does, and what its page says beside them.

    `run` gets the parsed arguments and returns the exit status; what it raises of ours is said by main.py.
    """

    usage: str  # without "prefork NAME"
    description: str  # paragraphs
    add_arguments: Callable[["Parser"], None]
    run: Callable[[argparse.Namespace], int]
    sections: tuple[Section, ...] = ()


def columns() -> int:
    """How wide a page may be."""
    return min(shutil.get_terminal_size().columns, 80) - 2


def unusable(reason: str) -> ConfigError:
    return ConfigError(f"could not read the command line: {reason}")


class Parser(argparse.ArgumentParser):
    """The arguments of one command. A mistake is a ConfigError, with the nearest name that there is."""

    def __init__(self, name: str, help: str, command: Subcommand) -> None:
        sections = "\n\n".join(section.formatted(columns()) for section in command.sections)
        super().__init__(
            f"prefork {name}",
            usage=f"prefork {name} {command.usage}",
            description=command.description,
            epilog=sections,
            allow_abbrev=False,
            formatter_class=_Help,
        )
        if sys.version_info >= (3, 14):
            self.color = False  # as the page of `prefork --help`, which is not argparse's
        self._headline = f"prefork {name} - {help}\n\n"
        command.add_arguments(self)

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        args, unknown = self.parse_known_args(argv)
        if unknown:
            options = [option for action in self._actions for option in action.option_strings]
            near = nearest(unknown[0].partition("=")[0], options)
            raise unusable(f"there is no option or argument {unknown[0]}{near}")
        return args

    def error(self, message: str) -> NoReturn:
        raise unusable(message)

    def format_help(self) -> str:
        return self._headline + super().format_help()


class _Help(argparse.RawDescriptionHelpFormatter):
    """The description is filled paragraph by paragraph; sections come as they are to be."""

    def __init__(self, prog: str, **kwargs: Any) -> None:
        super().__init__(prog, max_help_position=31, width=columns())

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if ":\n  " in text:  # sections
            return text
        return "\n\n".join(_filled(part, width, indent) for part in text.strip().split("\n\n"))


def _filled(paragraph: str, width: int, indent: str) -> str:
    """One paragraph, filled; one whose lines are indented is kept as it is, as an example of a terminal."""
    if paragraph.startswith("  "):
        return textwrap.indent(textwrap.dedent(paragraph), indent)
    return textwrap.fill(" ".join(paragraph.split()), width, initial_indent=indent, subsequent_indent=indent)


def _row(term: str, meaning: str, width: int) -> str:
    text = textwrap.fill(meaning, width, initial_indent=" " * TERM_COLUMNS, subsequent_indent=" " * TERM_COLUMNS)
    if len(term) + 4 > TERM_COLUMNS:
        return f"  {term}\n{text}"
    return f"  {term:{TERM_COLUMNS - 2}}{text[TERM_COLUMNS:]}"
