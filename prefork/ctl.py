"""`prefork ctl VERB`: ask or command a running master over its control socket, and print what it answers.

Runs in a process of its own. The verbs are those of commands.py; how an answer looks on a terminal stands in
answered.py.
"""

import argparse
import contextlib
import json
import os
import select
import socket
import sys
from collections.abc import Iterator
from typing import Any

from prefork.metrics.kernel import unix_peer

from . import answered, frames
from .addresses import parse_address
from .commands import BY_VERB, TABLE, Argument, Row
from .errors import PreforkError
from .frames import BadRequest
from .pages import Parser, Section, Subcommand, unusable
from .spelling import nearest

__all__ = ["COMMAND", "VARIABLE", "Client", "path_of", "term"]

VARIABLE = "PREFORK_CONTROL"  # as for prefork run
GONE_S = 5.0  # from the end of the service to that of its process

DESCRIPTION = f"""\
Ask or command the service whose control socket is at --control, or at what {VARIABLE} says. The service has one when it
runs with --control, or with the setting control_socket.

A reload, a restart and stacks are waited for; whatever could not be done is said in one sentence, with exit status 1.
So are drain and stop, until the process of the service is gone; a program that goes on after its service is waited for
no longer than {GONE_S:g} seconds.
"""
EXIT_STATUS = (
    ("0", "done"),
    ("1", "the service could not be reached, may not be asked, or could not do it"),
    ("2", "wrong usage"),
)


class Refused(PreforkError):
    """The master's answer is an error; `output` is what a rehearsal printed."""

    output = ""


class Client:
    """A connection to a master. Raises PreforkError when there is none, or when it ends early.

    `timeout`: seconds of silence after which it counts as ended; None waits.
    """

    def __init__(self, path: str, timeout: float | None = None) -> None:
        self._path = path
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.settimeout(timeout)
        try:
            self._sock.connect(path)
        except OSError as exc:
            self._sock.close()
            raise PreforkError(f"could not reach the control socket {path}: {_lower(exc)}") from None
        self._file = self._sock.makefile("rb")
        self._pidfd: int | None = None

    def ask(self, row: Row, argument: int | str | None = None) -> Iterator[dict[str, Any]]:
        """Send a request; every line that answers, the last of which has `ok`."""
        if row.ends:
            self._watch()
        try:
            self._sock.sendall(frames.ask(row, argument))
            for line in self._file:
                message = json.loads(line)
                yield message
                if "ok" in message:
                    return
        except OSError as exc:
            raise PreforkError(f"could not hear from {self._path}: {_lower(exc)}") from None
        raise PreforkError(f"could not hear from {self._path}: the service closed the connection")

    def result(self, row: Row, argument: int | str | None = None) -> dict[str, Any]:
        """The result alone. Raises Refused."""
        for message in self.ask(row, argument):
            if message.get("ok"):
                return dict(message["result"])
            if "error" in message:
                refused = Refused(message["error"])
                refused.output = message.get("output", "")
                raise refused
        raise AssertionError("an answer ends with a result or an error")

    def _watch(self) -> None:
        """The process of the service: who listens there, unix(7). It may be of another pid namespace, without a pid."""
        found = unix_peer(self._sock)
        if found is not None and found[0] > 0:
            with contextlib.suppress(OSError):
                self._pidfd = os.pidfd_open(found[0])

    def wait_gone(self) -> None:
        """Once it was asked to end and has answered: until it is gone."""
        with contextlib.suppress(OSError):
            while self._file.readline():
                pass
        if self._pidfd is not None:
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            poll.poll(GONE_S * 1000)

    def close(self) -> None:
        if self._pidfd is not None:
            os.close(self._pidfd)
        self._file.close()
        self._sock.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _lower(exc: OSError) -> str:
    reason = exc.strerror or str(exc)
    return reason[:1].lower() + reason[1:]


def path_of(text: str | None) -> str:
    """The path that `--control` or the environment means. Raises ConfigError."""
    text = text or os.environ.get(VARIABLE)
    if not text:
        raise unusable(f"no control socket is given; say --control PATH, or set {VARIABLE}")
    address = parse_address(text if text.startswith("unix:") else f"unix:{text}")
    return str(address.address)


# The command.


def _add_arguments(parser: Parser) -> None:
    parser.add_argument("verb", metavar="VERB", help="what to ask or to do, see below")
    parser.add_argument("argument", metavar="ARGUMENT", nargs="?", help="what the verb takes")
    add_control(parser)
    parser.add_argument("--no-wait", action="store_true", help="drain and stop: do not wait until the service is gone")
    parser.add_argument("--json", action="store_true", help="print the answer as JSON, one object a line")


def add_control(parser: Parser) -> None:
    help = f"the service's control socket: /PATH or unix:/PATH (default: {VARIABLE})"
    parser.add_argument("--control", metavar="PATH", help=help)


def _run(args: argparse.Namespace) -> int:
    row, argument = _request(args.verb, args.argument)
    if args.no_wait and not row.ends:
        raise unusable(f"--no-wait is not for {row.verb}")
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
    try:
        return row, frames.checked(row, wanted, value)
    except BadRequest as exc:
        raise unusable(str(exc).removeprefix(f"could not {verb}: ")) from None


def _print(row: Row, message: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(message) + "\n")
    elif "progress" in message:
        sys.stderr.write(f"{message['progress']}\n")
    elif message["ok"]:
        sys.stdout.write(answered.text(row, message["result"]))
    else:
        if message.get("output"):
            sys.stderr.write(message["output"] + "\n")
        sys.stderr.write(f"prefork: {message['error']}\n")
    sys.stdout.flush()


def term(row: Row) -> str:
    """A verb and what it takes, as it is typed."""
    return f"{row.verb} {_shown(row.argument)}" if row.argument is not None else row.verb


def _shown(argument: Argument) -> str:
    name = argument.name.upper()
    return f"[{name}]" if argument.optional else name


COMMAND = Subcommand(
    "VERB [ARGUMENT] [--control PATH] [--no-wait] [--json]",
    DESCRIPTION,
    _add_arguments,
    _run,
    (
        Section("verbs", [(term(row), row.help) for row in TABLE if row.verb]),
        Section("exit status", EXIT_STATUS),
    ),
)
