"""`prefork run`: serve a target from a pool of workers.

Runs in the process that becomes the master. Decides nothing about servers: targets.py makes one, and it serves.
"""

import argparse

from . import logs
from .addresses import parse_address
from .config import settings
from .options import add_settings, given
from .pages import Parser, Section, Subcommand
from .pool import PreForkingTCPServer
from .targets import build, load

__all__ = ["COMMAND"]

DESCRIPTION = """\
Serve TARGET from a pool of worker processes until TERM (finish what is in hand) or INT (stop now).

TARGET is module:attribute; the current directory is importable. The attribute is a handler class (served with
threads if --max-threads is given), a server class, a server instance (bound by its own module: no --bind), or a
function that takes the address and returns an instance.
"""
VALUES = """\
TIME is in seconds, or 500ms, 30s, 2m, 1h. SIZE is in bytes, or 512MiB, 2GiB. "off" switches off what is off by
default.
"""
EXIT_STATUS = (
    ("0", "asked to end"),
    ("1", "internal error"),
    ("2", "wrong usage or configuration"),
    ("3", "no worker could start"),
    ("4", "could not bind"),
)
_BIND_HELP = "HOST:PORT, :PORT, [::]:PORT, udp://HOST:PORT, unix:/PATH, unixgram:/PATH, or fd://N (inherited)"


def _add_arguments(parser: Parser) -> None:
    parser.add_argument("target", metavar="TARGET", help="what to serve, as in app:Server")
    parser.add_argument("--bind", metavar="ADDRESS", help=_BIND_HELP)
    logs.add_arguments(parser)
    add_settings(parser, settings(PreForkingTCPServer))


def _run(args: argparse.Namespace) -> int:
    logs.set_up(args.log_level, args.log_format, args.log_file)
    values = given(args, settings(PreForkingTCPServer))
    address = parse_address(args.bind) if args.bind is not None else None
    with build(load(args.target), address, values) as server:
        server.serve_forever()
    return 0


COMMAND = Subcommand(
    "TARGET --bind ADDRESS [--NAME VALUE ...]",
    DESCRIPTION,
    _add_arguments,
    _run,
    (Section("values", VALUES), Section("exit status", EXIT_STATUS)),
)
