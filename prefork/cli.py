"""The command line: `prefork run TARGET --bind ADDRESS [--NAME VALUE ...]`, `prefork --version`.

Owns options, help, and what is said and returned when something is wrong; decides nothing about servers. The options
are made from the fields of `config`; a value is read by `config.parse`. Runs in the process that becomes the master.
"""

import argparse
import logging
import shutil
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from .addresses import parse_address
from .config import Field, parse, settings
from .errors import ConfigError, PreforkError
from .pool import PreForkingTCPServer
from .targets import UserCodeError, build, load, nearest
from .version import __version__

__all__ = ["main"]

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
LOG_LEVELS = ("debug", "info", "warning", "error")

_RUN_DESCRIPTION = """\
Serve TARGET from a pool of worker processes until TERM (finish what is in hand) or INT (stop now).

TARGET is module:attribute; the current directory is importable. The attribute is a handler class (served with
threads if --max-threads is given), a server class, a server instance (bound by its own module: no --bind), or a
function that takes the address and returns an instance.
"""
_RUN_EPILOG = """\
TIME is in seconds, or 500ms, 30s, 2m, 1h. SIZE is in bytes, or 512MiB, 2GiB. "off" switches off what is off by
default.

exit status: 0 asked to end, 1 internal error, 2 wrong usage or configuration, 3 no worker could start, 4 could not
bind.
"""
_BIND_HELP = "HOST:PORT, :PORT, [::]:PORT, udp://HOST:PORT, unix:/PATH, unixgram:/PATH, or fd://N (inherited)"

_METRICS_HELP = "HOST:PORT or unix:/PATH: serve Prometheus metrics there (default: nowhere)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status. What is wrong is said in one sentence on stderr."""
    try:
        return _command(sys.argv[1:] if argv is None else argv)
    except PreforkError as exc:
        _complain(exc)
        return exc.exit_code
    except KeyboardInterrupt:
        return 0  # before it served; while it serves, INT is the supervisor's


def _complain(error: PreforkError) -> None:
    if isinstance(error, UserCodeError) and error.__cause__ is not None:
        traceback.print_exception(type(error.__cause__), error.__cause__, error.traceback())
    lines = (f"prefork: {error}", *getattr(error, "__notes__", ()))
    sys.stderr.write("\n".join(lines) + "\n")


def _command(argv: Sequence[str]) -> int:
    fields = settings(PreForkingTCPServer)
    parser, run = _parsers(fields)
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        options = [option for action in run._actions for option in action.option_strings]
        raise _unusable(f"there is no option or argument {unknown[0]}{nearest(unknown[0].partition('=')[0], options)}")
    if args.command is None:
        raise _unusable("no command is given; prefork --help lists them")
    return _run(args, fields)


def _run(args: argparse.Namespace, fields: Mapping[str, Field]) -> int:
    logging.basicConfig(level=args.log_level.upper(), format=LOG_FORMAT)
    values = {name: parse(field, text) for name, field in fields.items() if (text := getattr(args, name)) is not None}
    address = parse_address(args.bind) if args.bind is not None else None
    metrics = _metrics_address(args.metrics) if args.metrics is not None else None
    with build(load(args.target), address, values) as server:
        if metrics is not None:
            server.metrics_address = metrics
        server.serve_forever()
    return 0


def _metrics_address(text: str) -> tuple[str, int] | str:
    address = parse_address(text)
    if address.kind not in ("tcp", "unix") or address.fd is not None:
        raise ConfigError(f"could not serve metrics at {text}: give HOST:PORT or unix:/PATH")
    return address.address


# --- the parser ------------------------------------------------------------------------------------


def _unusable(reason: str) -> ConfigError:
    return ConfigError(f"could not read the command line: {reason}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _unusable(message)


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help that fits 80 columns, or fewer."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=31, width=min(shutil.get_terminal_size().columns, 80) - 2)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.split("\n\n")
        return "\n\n".join(argparse.HelpFormatter._fill_text(self, p, width, indent) for p in paragraphs)


def _parsers(fields: Mapping[str, Field]) -> tuple[_Parser, _Parser]:
    shared: dict[str, Any] = {"allow_abbrev": False, "formatter_class": _Help}
    parser = _Parser("prefork", description="Run socketserver programs in production.", **shared)
    parser.add_argument("--version", action="version", version=f"prefork {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    run = commands.add_parser(
        "run",
        help="serve a target from a pool of workers",
        usage="prefork run TARGET --bind ADDRESS [--NAME VALUE ...]",
        description=_RUN_DESCRIPTION,
        epilog=_RUN_EPILOG,
        **shared,
    )
    run.add_argument("target", metavar="TARGET", help="what to serve, as in app:Server")
    run.add_argument("--bind", metavar="ADDRESS", help=_BIND_HELP)
    run.add_argument("--metrics", metavar="ADDRESS", help=_METRICS_HELP)
    level_help = f"what is logged to stderr: {', '.join(LOG_LEVELS)} (default info)"
    run.add_argument("--log-level", metavar="LEVEL", choices=LOG_LEVELS, default="info", help=level_help)
    _add_settings(run, fields)
    return parser, run


def _add_settings(run: _Parser, fields: Mapping[str, Field]) -> None:
    groups: dict[str, argparse._ArgumentGroup] = {}
    for field in fields.values():
        title = field.setting.group
        if title not in groups:
            groups[title] = run.add_argument_group(title)
        text = f"{field.setting.help} (default {field.default_text})".replace("%", "%%")
        groups[title].add_argument(field.option, metavar=_metavar(field), dest=field.name, help=text)


def _metavar(field: Field) -> str:
    if field.setting.unit:
        return {"s": "TIME", "bytes": "SIZE"}[field.setting.unit]
    return {bool: "YES|NO", int: "N", float: "X"}.get(field.type, "TEXT")
