"""`prefork top`: a service on a live screen, asked over its control socket once a second.

Runs in a process of its own. The screen needs rich (`pip install 'prefork[top]'`), which is imported here only;
`--once` prints the same as plain text without it.
"""

import argparse
import contextlib
import os
import select
import shutil
import sys
import termios
import time
import tty
from collections.abc import Iterator

from .commands import BY_VERB
from .ctl import Client, add_control, path_of
from .errors import PreforkError
from .frames import ask
from .pages import Parser, Section, Subcommand
from .top_screen import KEYS, SORTS, Look, lines, ordered

__all__ = ["COMMAND"]

EVERY_S = 1.0
DESCRIPTION = """\
Show a running service: rate, latency, saturation and queue, and what each worker does, since when and for whom.
"""


def _add_arguments(parser: Parser) -> None:
    add_control(parser)
    parser.add_argument("--once", action="store_true", help="print it once, as plain text")


def _run(args: argparse.Namespace) -> int:
    path = path_of(args.control)
    if args.once:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 200
        sys.stdout.write("\n".join(lines(None, look(path), width=width, height=None)) + "\n")
        return 0
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise PreforkError("could not show the screen: this is no terminal; --once prints it")
    with _keys():
        return _show(path)


def look(path: str) -> Look:
    """Ask now. Raises PreforkError."""
    with Client(path) as client:
        status = client.result(BY_VERB["status"])
        return Look(time.monotonic(), status, client.result(BY_VERB["workers"])["workers"])


@contextlib.contextmanager
def _keys() -> Iterator[None]:
    """Each key comes at once, unseen; Ctrl-C stays what it is."""
    before = termios.tcgetattr(0)
    tty.setcbreak(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def _show(path: str) -> int:
    try:
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text
    except ImportError:
        raise PreforkError("could not show the screen: rich is not installed; pip install 'prefork[top]'") from None
    before, now, sort, selected = None, look(path), 0, 0
    console = Console()
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            width, height = console.size
            shown = lines(before, now, width=width, height=height - 1, sort=SORTS[sort])
            selected = max(0, min(selected, len(now.workers) - 1))
            screen = Text(no_wrap=True, overflow="crop")
            for number, line in enumerate(shown):
                style = "reverse" if number == selected + 4 else "bold" if number in (0, 3) else ""
                screen.append(line.ljust(width) + "\n", style)
            screen.append(f"by {SORTS[sort]}  {KEYS}"[:width], "dim")
            live.update(screen, refresh=True)
            key = _key(now.at + EVERY_S - time.monotonic())
            if key == "q":
                return 0
            if key == "s":
                sort = (sort + 1) % len(SORTS)
            elif key in ("j", "k"):
                selected += 1 if key == "j" else -1
            elif key == "d" and now.workers:
                _replace(path, ordered(now, SORTS[sort])[selected]["slot"])
            elif not key:
                before, now = now, look(path)


def _key(seconds: float) -> str:
    """The key that comes within this time, or nothing."""
    if not select.select([0], [], [], max(0.0, seconds))[0]:
        return ""
    return os.read(0, 1).decode("ascii", "replace") or "q"


def _replace(path: str, slot: int) -> None:
    """Have the worker replaced; the screen shows how it goes."""
    with Client(path) as client:
        client.send(ask(BY_VERB["restart"], slot))


KEYS_PAGE = (
    ("s", "sort by another column"),
    ("j, k", "select a worker"),
    ("d", "replace the selected worker: it drains once another is ready"),
    ("q", "quit"),
)
EXIT_STATUS = (("0", "done"), ("1", "the service could not be reached, or is gone"), ("2", "wrong usage"))

COMMAND = Subcommand(
    "[--control PATH] [--once]",
    DESCRIPTION,
    _add_arguments,
    _run,
    (Section("keys", KEYS_PAGE), Section("exit status", EXIT_STATUS)),
)
