"""The parts of a `prefork` command, and its help page: `prefork COMMAND --help`, in 80 columns or fewer.

Owns the structure of a command and of its help; must not contain a particular command's text. A command's module
(run.py, …) has one `Subcommand` of its name, and the table in main.py lists the module. Runs in the process of the
command line.
"""

import argparse
import os
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

from ..errors import ConfigError
from ..settings.other_servers import called_here

__all__ = ["Parser", "Section", "Subcommand", "columns", "unusable"]

TERM_COLUMNS = 24  # in a two-column section, including the indent


class Section(NamedTuple):
    """A section of a page after the options: rows of (term, meaning), or paragraphs of text."""

    title: str
    body: Sequence[tuple[str, str]] | str

    def formatted(self, width: int) -> str:
        if isinstance(self.body, str):
            lines = [_filled(part, width, "  ") for part in self.body.strip("\n").split("\n\n")]
            return f"{self.title}:\n" + "\n\n".join(lines)
        return f"{self.title}:\n" + "\n".join(_row(term, meaning, width) for term, meaning in self.body)


class Subcommand(NamedTuple):
    """One command: its arguments, its function, and the text of its page.

    `run` gets the parsed arguments and returns the exit status. A PreforkError that it raises is printed by main.py.
    """

    usage: str  # without "prefork NAME"
    description: str  # paragraphs
    add_arguments: Callable[["Parser"], None]
    run: Callable[[argparse.Namespace], int]
    sections: tuple[Section, ...] = ()
    narrower: Callable[[argparse.Namespace], str] = lambda args: ""  # the page of what was named before --help, if any


def columns() -> int:
    """Return the width of a page."""
    try:  # as shutil does it, which loads every format of archives
        found = int(os.environ.get("COLUMNS", 0)) or os.get_terminal_size(1).columns
    except (ValueError, OSError):
        found = 0
    return min(found or 80, 80) - 2


def unusable(reason: str) -> ConfigError:
    return ConfigError(f"could not read the command line: {reason}")


class Parser(argparse.ArgumentParser):
    """The argument parser of one command. Errors are ConfigErrors, which suggest the nearest known name."""

    def __init__(self, name: str, help: str, command: Subcommand) -> None:
        sections = "\n\n".join(section.formatted(columns()) for section in command.sections)
        super().__init__(
            f"prefork {name}",
            usage=f"prefork {name} {command.usage}",
            description=command.description,
            epilog=sections,
            allow_abbrev=False,
            formatter_class=_Help,
            add_help=False,
        )
        self.command = command
        self.add_argument("-h", "--help", action=_Page, help="show this page and exit")
        if sys.version_info >= (3, 14):
            self.color = False  # like the page of `prefork --help`, which argparse does not make
        self._headline = f"prefork {name} - {help}\n\n"
        command.add_arguments(self)

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        args, unknown = self.parse_known_args(argv)
        if unknown:
            options = [option for action in self._actions for option in action.option_strings]
            near = called_here(unknown[0].partition("=")[0], options)
            raise unusable(f"there is no option or argument {unknown[0]}{near}")
        return args

    def error(self, message: str) -> NoReturn:
        raise unusable(_in_our_words(message))

    def format_help(self) -> str:
        return self._headline + super().format_help()


_OUR_WORDS = (
    (r"the following arguments are required: (.*)", r"\1 is missing; --help says what it may be"),
    (r"argument (\S+): expected .*argument.*", r"\1 needs a value"),
    (r"argument (\S+): ignored explicit argument (.*)", r"\1 takes no value, and \2 was given"),
)


def _in_our_words(message: str) -> str:
    """Return a message of argparse's, which calls an option and its value an argument each, as it is said here."""
    for theirs, ours in _OUR_WORDS:
        if found := re.fullmatch(theirs, message):
            return found.expand(ours)
    return message


class _Page(argparse.Action):
    """--help: print the page and exit."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, **kwargs)

    def __call__(self, parser: Any, namespace: argparse.Namespace, *args: Any) -> NoReturn:
        sys.stdout.write(parser.command.narrower(namespace) or parser.format_help())
        sys.exit(0)


class _Help(argparse.RawDescriptionHelpFormatter):
    """Fill the description paragraph by paragraph; print sections as they are."""

    def __init__(self, prog: str, **kwargs: Any) -> None:
        super().__init__(prog, max_help_position=31, width=columns())

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if ":\n  " in text:  # sections, formatted already
            return text
        return "\n\n".join(_filled(part, width, indent) for part in text.strip().split("\n\n"))


def _filled(paragraph: str, width: int, indent: str) -> str:
    """Fill one paragraph. One with indented lines is a terminal example and kept as it is."""
    if paragraph.startswith("  "):
        return textwrap.indent(textwrap.dedent(paragraph), indent)
    return textwrap.fill(" ".join(paragraph.split()), width, initial_indent=indent, subsequent_indent=indent)


def _row(term: str, meaning: str, width: int) -> str:
    text = textwrap.fill(meaning, width, initial_indent=" " * TERM_COLUMNS, subsequent_indent=" " * TERM_COLUMNS)
    if len(term) + 4 > TERM_COLUMNS:
        return f"  {term}\n{text}"
    return f"  {term:{TERM_COLUMNS - 2}}{text[TERM_COLUMNS:]}"
