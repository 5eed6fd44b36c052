"""The one table of commands."""

import signal
from collections import Counter

import pytest

from prefork.commands import BY_SIGNAL, BY_VERB, COMMAND_TABLE, Command, Row

SIGNALS = {
    signal.SIGTERM: Command.DRAIN,
    signal.SIGINT: Command.STOP,
    signal.SIGQUIT: Command.STOP,
    signal.SIGHUP: Command.RELOAD,
    signal.SIGUSR1: Command.REOPEN,
    signal.SIGUSR2: Command.RESTART,
    signal.SIGTTIN: Command.MORE,
    signal.SIGTTOU: Command.FEWER,
}


def test_each_command_has_one_row() -> None:
    """Nothing the master can be asked is missing, or stands there twice."""
    assert Counter(row.command for row in COMMAND_TABLE) == Counter(Command)


def test_signals_mean_what_the_design_says() -> None:
    """Every signal of DESIGN.md section 5, and no other."""
    assert BY_SIGNAL == SIGNALS


def test_no_signal_and_no_verb_stands_twice() -> None:
    """A signal or a verb is one command."""
    assert sum(len(row.signals) for row in COMMAND_TABLE) == len(BY_SIGNAL)
    assert sum(bool(row.verb) for row in COMMAND_TABLE) == len(BY_VERB)


@pytest.mark.parametrize("row", COMMAND_TABLE, ids=lambda row: row.command.name)
def test_every_row_can_be_asked_for_and_explains_itself(row: Row) -> None:
    """Every row has a signal or a verb, and one sentence for help, without its full stop."""
    assert row.signals or row.verb
    assert row.help
    assert not row.help.endswith(".")
    assert row.help[0].islower()
    assert "\n" not in row.help
