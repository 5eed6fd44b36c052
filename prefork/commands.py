"""Everything the master can be asked to do: one table with the command, its signals, and the sentence for help.

A signal handler only notes; the supervisor looks the note up here. A row added here is the only way to add a command.
"""

import signal
from dataclasses import dataclass
from enum import Enum, auto


class Command(Enum):
    DRAIN = auto()
    STOP = auto()
    RELOAD = auto()
    RESTART = auto()
    REOPEN = auto()
    MORE = auto()
    FEWER = auto()


@dataclass(frozen=True, slots=True)
class Row:
    command: Command
    signals: tuple[signal.Signals, ...]
    help: str


TABLE = (
    Row(Command.DRAIN, (signal.SIGTERM,), "finish what is queued and in hand, then exit"),
    Row(Command.STOP, (signal.SIGINT, signal.SIGQUIT), "stop now: requests in hand are cut"),
    Row(Command.RELOAD, (signal.SIGHUP,), "put new code and settings in service, with the same pid"),
    Row(Command.REOPEN, (signal.SIGUSR1,), "reopen the log file, in the master and all its children"),
    Row(Command.RESTART, (signal.SIGUSR2,), "replace every worker, one by one, with the same code"),
    Row(Command.MORE, (signal.SIGTTIN,), "one more worker: min_children and max_children plus one"),
    Row(Command.FEWER, (signal.SIGTTOU,), "one worker fewer: min_children and max_children minus one"),
)

BY_SIGNAL: dict[int, Command] = {signum: row.command for row in TABLE for signum in row.signals}
