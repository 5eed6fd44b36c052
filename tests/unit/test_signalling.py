"""prefork/master/signalling.py: what comes back from a child, and when it is logged."""

import logging
import signal
from collections.abc import Iterator

import pytest

from prefork.master import signalling
from prefork.master.children import Child
from prefork.master.processes import Processes
from prefork.metrics.facts import ChildKind, ExitReason
from prefork.metrics.scoreboard import LEAVING, Slot, SlotReader, Stacks


@pytest.fixture
def child() -> Iterator[Child]:
    """A record of a process that there is not."""
    slot = Slot(1)
    yield Child(7, 2, ChildKind.WORKER, 3, 4711, -1, slot, Stacks(slot), SlotReader(slot, 2), started=1.0, changed=1.0)
    slot.close()


def looked_at_twice(child: Child) -> None:
    """As in two turns: text is complete when nothing was added between them."""
    for _ in range(2):
        child.report = child.reader.look(0)
        signalling.note_stacks(child)


def test_stacks_are_logged_when_complete(child: Child, caplog: pytest.LogCaptureFixture) -> None:
    """Stacks that nobody asked for are logged once, and taken."""
    child.stacks.write("Thread 0x1\n")
    with caplog.at_level(logging.WARNING, "prefork.supervisor"):
        looked_at_twice(child)
        looked_at_twice(child)
    assert [record.getMessage().count("Thread 0x1") for record in caplog.records] == [1]
    assert child.stacks.size() == 0


def test_last_words_are_for_the_end(child: Child, caplog: pytest.LogCaptureFixture) -> None:
    """The traceback of a child that fails is no stack of a living one, however long it takes to be gone: its exit is
    logged with it."""
    child.slot.words[LEAVING] = ExitReason.CRASHED
    child.stacks.write("RuntimeError: no database\n")
    with caplog.at_level(logging.WARNING, "prefork.supervisor"):
        looked_at_twice(child)
    assert caplog.records == []
    assert child.stacks.take() == "RuntimeError: no database\n"


class Signalled(Processes):
    """Notes which signals were sent, and sends none."""

    def __init__(self) -> None:
        self.sent: list[int] = []

    def signal(self, pidfd: int, signum: int) -> None:
        self.sent.append(signum)


def test_stacks_that_were_cut_short_are_asked_for_again(child: Child, caplog: pytest.LogCaptureFixture) -> None:
    """Where faulthandler met a thread that had just ended, the next answer is the one that is logged; after three more
    that are no better, the last one."""
    child.processes, child.pidfd = signalled, _ = Signalled(), 0
    with caplog.at_level(logging.WARNING, "prefork.supervisor"):
        child.stacks.write("<freed thread state>\n")
        looked_at_twice(child)
        assert (signalled.sent, caplog.records) == ([signal.SIGUSR1], [])
        child.stacks.write("Thread 0x1\n")
        looked_at_twice(child)
        assert [record.getMessage().count("Thread 0x1") for record in caplog.records] == [1]
        for _ in range(4):
            child.stacks.write("<freed thread state>\n")
            looked_at_twice(child)
    assert signalled.sent == [signal.SIGUSR1] * 4
    assert len(caplog.records) == 2
