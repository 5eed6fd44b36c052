"""`prefork ctl VERB`: query or command a running master over its control socket, and print the answer.

Runs in its own process. The verbs are in commands.py; control/render.py formats the answers for a terminal.
"""

import argparse
import contextlib
import json
import os
import sys
import textwrap
from typing import Any

from prefork.metrics.loggers import HeldUp
from prefork.workers.signals import interrupted_after

from ..commands import BY_VERB, COMMAND_TABLE, Argument, Row
from ..control import protocol, render
from ..control.client import GONE_S, Client
from ..control.protocol import BadRequest
from ..errors import PreforkError, nearest
from ..logs import complain
from ..settings.fields import Field, Setting, parse
from ..settings.sources import CTL_VARIABLE
from ..sockets.addresses import control_path
from .pages import Parser, Section, Subcommand, columns, unusable

__all__ = ["CTL", "Client", "add_control", "path_of", "term", "told"]

VARIABLE = "PREFORK_CONTROL"  # the service's own setting, as it stands in a container's environment

_DESCRIPTION = f"""\
Ask or command the service whose control socket is at --control, or at what {CTL_VARIABLE} says; without both, at what
{VARIABLE} says, which is the service's own setting. It has one when it runs with --control, or with the setting
control_socket.

A reload (also reload-tls), a restart and stacks are waited for; whatever could not be done is said in one sentence,
with exit status 1. So are drain and stop, until the process of the service is gone; a program that goes on after its
service is waited for no longer than {GONE_S:g} seconds. With --timeout nothing is waited for any longer than that.
"""
_TIMEOUT = Field("timeout", float, True, None, Setting("give up what is not done after this time", unit="s", above=0))
_EXIT_STATUS = (
    ("0", "done"),
    ("1", "the service could not be reached, may not be asked, or could not do it"),
    ("2", "wrong usage"),
    ("130", "interrupted before it was done"),
)


def path_of(text: str | None) -> str:
    """Return the path given by `--control` or the environment. Raises ConfigError."""
    text = text or told()
    if not text:
        raise unusable(f"no control socket is given; say --control PATH, or set {CTL_VARIABLE}")
    return control_path(text)


def told() -> str | None:
    """Return what the environment says about the service to ask."""
    return os.environ.get(CTL_VARIABLE) or os.environ.get(VARIABLE)


# The command.


def _add_arguments(parser: Parser) -> None:
    parser.add_argument("verb", metavar="VERB", help="what to ask or to do, see below")
    parser.add_argument("argument", metavar="ARGUMENT", nargs="?", help="what the verb takes")
    add_control(parser)
    parser.add_argument("--no-wait", action="store_true", help="drain and stop: do not wait until the service is gone")
    help = f"{_TIMEOUT.setting.help} (default {_TIMEOUT.default_text})"
    parser.add_argument("--timeout", metavar=_TIMEOUT.metavar, help=help)
    parser.add_argument("--json", action="store_true", help="print the answer as JSON, one object a line")


def add_control(parser: Parser) -> None:
    help = f"the service's control socket: /PATH or unix:/PATH (default: {CTL_VARIABLE}, then {VARIABLE})"
    parser.add_argument("--control", metavar="PATH", help=help)


def _run(args: argparse.Namespace) -> int:
    row, argument = _request(args.verb, args.argument)
    if args.no_wait and not row.ends:
        raise unusable(f"--no-wait is not for {row.verb}")
    timeout = None if args.timeout is None else parse(_TIMEOUT, args.timeout, "--timeout")
    try:
        with contextlib.nullcontext() if timeout is None else interrupted_after(timeout):
            return _ask(args, row, argument)
    except HeldUp:
        goes_on = "" if row.looks else "; the service goes on with it"
        raise PreforkError(f"could not {row.verb}: not done within {timeout:g} s (--timeout){goes_on}") from None


def _ask(args: argparse.Namespace, row: Row, argument: int | str | None) -> int:
    with Client(path_of(args.control)) as client:
        for message in client.ask(row, argument):
            _print(row, message, as_json=args.json)
            if args.no_wait and "progress" in message:
                return 0
        if row.ends and message["ok"]:
            client.wait_gone()
    return 0 if message["ok"] else 1


def _request(verb: str, text: str | None) -> tuple[Row, int | str | None]:
    row = BY_VERB.get(verb)
    if row is None:
        raise unusable(f"there is no verb {verb}{nearest(verb, BY_VERB)}")
    wanted = row.argument
    if wanted is None:
        if text is not None:
            raise unusable(f"{verb} takes no argument, and {text} was given")
        return row, None
    value: int | str | None = text
    if text is not None and not wanted.choices and text.isascii() and text.isdigit():
        value = int(text)
    check = protocol.named if wanted.or_name and isinstance(value, str) else protocol.checked
    try:
        return row, check(row, wanted, value)
    except BadRequest as exc:
        raise unusable(str(exc).removeprefix(f"could not {verb}: ")) from None


def _print(row: Row, message: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(message) + "\n")
    elif "progress" in message:
        sys.stderr.write(f"{message['progress']}\n")
    elif message["ok"]:
        sys.stdout.write(render.text(row, message["result"]))
    else:
        if message.get("output"):
            complain(message["output"])
        complain(f"prefork: {message['error']}")
    sys.stdout.flush()


def term(row: Row) -> str:
    """Return a verb and its argument as they are typed."""
    return f"{row.verb} {_shown(row.argument)}" if row.argument is not None else row.verb


def page(args: argparse.Namespace) -> str:
    """Return the page of one verb: `prefork ctl VERB --help`. Empty if none is named."""
    row = BY_VERB.get(args.verb or "")
    if row is None:
        return ""
    options = ["--control PATH", *(["--no-wait"] if row.ends else []), "--timeout TIME", "--json"]
    usage = f"usage: prefork ctl {term(row)} " + " ".join(f"[{each}]" for each in options)
    parts = [textwrap.fill(line, columns()) for line in (f"prefork ctl {row.verb} - {row.help}", usage)]
    if (wanted := row.argument) is not None:
        values = ", ".join(wanted.choices) or f"{wanted.at_least} to {wanted.at_most}"
        parts.append(Section("argument", [(_shown(wanted), f"{wanted.help}: {values}")]).formatted(columns()))
    if signals := [signum.name.removeprefix("SIG") for signum in row.signals]:
        parts.append(f"The signal {' or '.join(signals)} does the same.")
    if row.looks:
        parts.append("It changes nothing, and is open to those in control_allow_read.")
    return "\n\n".join([*parts, "prefork ctl --help has the options, and all verbs."]) + "\n"


def _shown(argument: Argument) -> str:
    name = "/".join(filter(None, (argument.name, argument.or_name))).upper()
    return f"[{name}]" if argument.optional else name


CTL = Subcommand(
    "VERB [ARGUMENT] [--control PATH] [--no-wait] [--timeout TIME]\n                   [--json]",
    _DESCRIPTION,
    _add_arguments,
    _run,
    (
        Section("verbs", [(term(row), row.help) for row in COMMAND_TABLE if row.verb]),
        Section("exit status", _EXIT_STATUS),
    ),
    page,
)
