"""prefork/master/signalling.py: what comes back from a child, and when it is logged."""

import logging
from collections.abc import Iterator

import pytest

from prefork.master import signalling
from prefork.master.children import Child
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
