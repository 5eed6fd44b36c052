"""`prefork top`: show a running service on a live screen, or once as plain text; the command and its page.

Runs in its own process. The sources of its data are in top/sources.py, the contents of the screen in top/screen.py.
"""

import argparse
import os
import shutil
import sys
import time

from ..errors import PreforkError
from ..settings.sources import CTL_VARIABLE, URL_VARIABLE
from ..top.http import parse_url
from ..top.screen import View, lines
from ..top.sources import ControlSource, MetricsSource, Source
from .ctl import add_control, path_of, told
from .pages import Parser, Section, Subcommand, unusable

__all__ = ["TOP"]

METRICS_VARIABLE = "PREFORK_METRICS"  # the service's own setting, as it stands in a container's environment
ONCE_S = 1.0  # between the two looks that are compared
WIDE = 200  # without a terminal
_DESCRIPTION = f"""\
Show a running service: rate, latency, saturation and queue, and what each worker does, since when and for whom.

Asked is the control socket (--control, or {CTL_VARIABLE}, or PREFORK_CONTROL); or, read-only, its metrics (--url, or
{URL_VARIABLE}, or {METRICS_VARIABLE}, where no control socket is given), which tell of all workers together and of none
alone. Rates and latencies are those of the last five seconds.
"""


def _add_arguments(parser: Parser) -> None:
    add_control(parser)
    asked = f"(default: {URL_VARIABLE}, then {METRICS_VARIABLE})"
    help = f"the service's metrics: http://HOST:PORT, HOST:PORT or unix:/PATH {asked}"
    parser.add_argument("--url", metavar="URL", help=help)
    parser.add_argument("--once", action="store_true", help="print the figures of one second, as plain text")


def _run(args: argparse.Namespace) -> int:
    source = _source(args.control, args.url)
    if args.once:
        return _once(source)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise PreforkError("could not show the screen: this is no terminal; --once prints it")
    from ..top.live import show

    return show(source)


def _source(control: str | None, url: str | None) -> Source:
    """Choose the source: options before variables, the control socket before the metrics."""
    if control and url:
        raise unusable("--control and --url are both given; say one")
    if not control and not url:
        control, url = os.environ.get(CTL_VARIABLE), os.environ.get(URL_VARIABLE)
        if not control and not url:  # then what the service itself is told
            control, url = told(), os.environ.get(METRICS_VARIABLE)
        if not control and not url:
            raise unusable(f"no service is given; say --control PATH or --url URL, or set {CTL_VARIABLE}")
    return ControlSource(path_of(control)) if control else MetricsSource(parse_url(str(url)))


def _once(source: Source) -> int:
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDE
    before = source.look()
    time.sleep(ONCE_S)
    found = lines(before, source.look(), View(width))
    sys.stdout.write("\n".join(line.text for line in found) + "\n")
    return 0


KEYS_PAGE = (
    ("s", "sort by another column"),
    ("j, k, arrows", "select a worker"),
    ("d", "replace the selected worker: it drains once another is ready"),
    ("q", "quit"),
)
READ_ONLY_PAGE = """\
With --url only q does something: what concerns a single worker needs the control socket.
"""
_EXIT_STATUS = (
    ("0", "done"),
    ("1", "the service could not be reached at the start, or what answers is no prefork service"),
    ("2", "wrong usage"),
)
_EXAMPLES = """\
  prefork top --control /run/upper.sock

  prefork top --url 127.0.0.1:9465

  prefork top --url http://app1.example.net:9465/metrics --once
"""

TOP = Subcommand(
    "[--control PATH | --url URL] [--once]",
    _DESCRIPTION,
    _add_arguments,
    _run,
    (
        Section("keys", KEYS_PAGE),
        Section("without the control socket", READ_ONLY_PAGE),
        Section("exit status", _EXIT_STATUS),
        Section("examples", _EXAMPLES),
    ),
)
