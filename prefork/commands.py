"""Everything the master can be asked to do: one table of commands with their signals, verbs and help sentences.

Signal handlers and the control socket only receive; this table gives the meaning. Adding a row here is the only way to
add a command. Must not carry out anything. The verbs are those of `prefork ctl`. Read in the master and its clients.
"""

import signal
from enum import Enum, auto
from typing import NamedTuple

from .logs import LEVELS

WORKERS_MAX = 1020  # with companions: what the board has rows for, and once more for those that drain


class Command(Enum):
    DRAIN = auto()
    STOP = auto()
    RELOAD = auto()
    RESTART = auto()
    REOPEN = auto()
    MORE = auto()
    FEWER = auto()
    STATUS = auto()
    WORKERS = auto()
    SCALE = auto()
    STACKS = auto()
    LOG_LEVEL = auto()
    VERSION = auto()
    RELOAD_TLS = auto()


class Argument(NamedTuple):
    """The argument of a verb: one word of a list, a whole number, or else the name of something."""

    name: str
    help: str
    or_name: str = ""  # what else it may name, by a word that is no number: its key in a request
    optional: bool = False
    choices: tuple[str, ...] = ()
    at_least: int = 1
    at_most: int = WORKERS_MAX


class Row(NamedTuple):
    """A command, with a signal, a verb, or both."""

    command: Command
    signals: tuple[signal.Signals, ...]
    help: str
    verb: str = ""
    argument: Argument | None = None
    looks: bool = False  # changes nothing; read-only users may use it too
    ends: bool = False  # the service is gone afterwards


_SLOT = Argument("slot", "the number of one worker", optional=True, at_most=2 * WORKERS_MAX)  # in a reload
_CHILD = _SLOT._replace(help="the number of one worker, or the name of a companion", or_name="companion")

COMMAND_TABLE = (
    Row(Command.STATUS, (), "the service at a glance: phase, workers, queue, requests, exits", "status", looks=True),
    Row(Command.WORKERS, (), "every worker: what it does, since when, for whom, what it costs; of one, all its peers",
        "workers", _SLOT, looks=True),
    Row(Command.RELOAD, (signal.SIGHUP,), "put new code and settings in service, with the same pid", "reload"),
    Row(Command.RESTART, (signal.SIGUSR2,),
        "replace every worker, one by one, then every companion, with the same code", "restart", _CHILD),
    Row(Command.SCALE, (), "set max_children; min_children follows where it was equal or would be above", "scale",
        Argument("workers", "how many at most")),
    Row(Command.MORE, (signal.SIGTTIN,), "one more worker: min_children and max_children plus one"),
    Row(Command.FEWER, (signal.SIGTTOU,), "one worker fewer: min_children and max_children minus one"),
    Row(Command.DRAIN, (signal.SIGTERM,), "finish what is queued and in hand, then exit", "drain",
        ends=True),
    Row(Command.STOP, (signal.SIGINT, signal.SIGQUIT), "stop now: requests in hand are cut", "stop", ends=True),
    Row(Command.REOPEN, (signal.SIGUSR1,), "reopen the log file, in the master and all its children", "reopen"),
    Row(Command.RELOAD_TLS, (), "read the TLS certificate anew, and replace every worker if it is good", "reload-tls"),
    Row(Command.STACKS, (), "what every thread of every worker and companion is doing now", "stacks", _CHILD,
        looks=True),
    Row(Command.LOG_LEVEL, (), "log from this level on, in the master and in every worker", "log-level",
        Argument("level", "what is logged", choices=LEVELS)),
    Row(Command.VERSION, (), "the versions of prefork and Python that serve", "version", looks=True),
)  # fmt: skip

BY_SIGNAL: dict[int, Command] = {signum: row.command for row in COMMAND_TABLE for signum in row.signals}
BY_VERB = {row.verb: row for row in COMMAND_TABLE if row.verb}
