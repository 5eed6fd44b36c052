"""The command line, `prefork COMMAND …`: the table of commands, the dispatch, and error messages.

Must not know any command's details: each command has its own module, imported only when it is used. Runs in the process
that, for `prefork run`, becomes the master.
"""

import contextlib
import importlib
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..errors import PreforkError, UserCodeError, nearest
from ..logs import complain
from ..version import __version__
from .pages import Parser, Section, Subcommand, columns, unusable

__all__ = ["SUBCOMMAND_TABLE", "SubcommandRow", "main"]


class SubcommandRow(NamedTuple):
    """A command. Its module in this package has a `Subcommand` of the same name in capitals."""

    name: str
    help: str  # one line
    group: str
    room: str
    interrupted: int = 130  # status after Ctrl-C: the command is incomplete; a serving `run` handles SIGINT itself

    def command(self) -> Subcommand:
        found = getattr(importlib.import_module(f".{self.room}", __package__), self.name.upper())
        assert isinstance(found, Subcommand)
        return found


# Adding a row here is the only way to add a command.
SUBCOMMAND_TABLE = (
    SubcommandRow("run", "serve a target from a pool of workers", "serving", "run", interrupted=0),
    SubcommandRow("check", "load a target and boot one worker, beside a running service", "serving", "check"),
    SubcommandRow("config", "print every setting in force, and who set it", "serving", "config"),
    SubcommandRow("ctl", "ask or command a running service", "operating", "ctl"),
    SubcommandRow("top", "a running service on a live screen", "operating", "top", interrupted=0),
)


SECTIONS = (
    Section(
        "options",
        (
            ("-h, --help", "this page; prefork COMMAND --help has one for each command"),
            ("--version", "the versions of prefork, of Python and of the kernel"),
        ),
    ),
    Section(
        "exit status",
        (
            ("0", "done"),
            ("2", "wrong usage or configuration; each command's page has the others"),
            ("130", "interrupted before it was done"),
        ),
    ),
    Section(
        "examples",
        """\
  prefork run prefork.examples:Upper --bind :9999 --metrics 127.0.0.1:9465

  prefork check app:Server --config service.toml
""",
    ),
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status. Errors are printed to stderr, in one sentence."""
    try:
        return _dispatch(sys.argv[1:] if argv is None else argv)
    except PreforkError as exc:
        _complain(exc)
        return exc.exit_code


def _dispatch(argv: Sequence[str]) -> int:
    if not argv:
        raise unusable("no command is given; prefork --help lists them")
    word = argv[0]
    if word in ("-h", "--help", "--version"):
        with _printing():
            sys.stdout.write(version() + "\n" if word == "--version" else page())
        return 0
    for row in SUBCOMMAND_TABLE:
        if row.name == word:
            try:
                return _run(row, argv[1:])
            except KeyboardInterrupt:
                return row.interrupted
    kind, known = ("command", [row.name for row in SUBCOMMAND_TABLE])
    if word.startswith("-"):
        kind, known = ("option", ["--help", "--version"])
    raise unusable(f"there is no {kind} {word}{nearest(word, known)}")


def _run(row: SubcommandRow, argv: Sequence[str]) -> int:
    command = row.command()
    with _printing():  # may print the help page
        args = Parser(row.name, row.help, command).parse(argv)
    with contextlib.nullcontext() if row.name == "run" else _printing():
        return command.run(args)


@contextlib.contextmanager
def _printing() -> Iterator[None]:
    """Guard code that prints and exits: a reader that closes early (`prefork ctl workers | head`) is no error."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for the flush at exit
        raise SystemExit(1) from None


def _complain(error: PreforkError) -> None:
    if isinstance(error, UserCodeError) and error.__cause__ is not None:
        complain("".join(traceback.format_exception(type(error.__cause__), error.__cause__, error.traceback())))
    complain("\n".join((f"prefork: {error}", *getattr(error, "__notes__", ()))))


def version() -> str:
    """Return the version, with what a bug report needs besides."""
    implementation, python = sys.implementation.name, ".".join(map(str, sys.version_info[:3]))
    system = os.uname()
    return f"prefork {__version__} ({implementation} {python}, {system.sysname} {system.release} {system.machine})"


def page() -> str:
    """Return the text of `prefork --help`."""
    parts = ["prefork - run socketserver programs in production", "usage: prefork COMMAND [ARGUMENT ...]"]
    for group in dict.fromkeys(row.group for row in SUBCOMMAND_TABLE):
        rows = [(row.name, row.help) for row in SUBCOMMAND_TABLE if row.group == group]
        parts.append(Section(f"{group} commands", rows).formatted(columns()))
    parts += [section.formatted(columns()) for section in SECTIONS]
    return "\n\n".join(parts) + "\n"
