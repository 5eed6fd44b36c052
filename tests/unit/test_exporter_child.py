"""The exporter and the master's side of it, over a real listener, each with the other one played by the test."""

import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from prefork.exporter.child import Exported, ExporterChild, bind_metrics
from prefork.exporter.server import Exporter, Scope
from prefork.metrics.board import Board
from prefork.metrics.scoreboard import CONNECTIONS_TAKEN, Slot
from prefork.sockets.listener import Listener


@dataclass
class Played:
    """An exporter that does what the test does for it."""

    slot: Slot
    started: float = 0.0
    signals: list[int] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)  # of a log event about it
    reach: bool = True  # signals arrive
    drain_signal: int = signal.SIGTERM
    deadline: float | None = None
    reason: Any = None

    def signal(self, signum: int) -> bool:
        if self.reach:
            self.signals.append(signum)
        return self.reach

    def take_one(self) -> None:
        self.slot.words[CONNECTIONS_TAKEN] += 1


@pytest.fixture
def listener() -> Iterator[Listener]:
    with bind_metrics(("127.0.0.1", 0), "") as found:
        yield found


@pytest.fixture
def started(listener: Listener) -> Iterator[tuple[ExporterChild, Played]]:
    """The master's side, which has just started its exporter, at the time 0."""
    board, children = Board(), []

    def fork(kind: Any, slot: Slot, body: Callable[..., int]) -> Any:
        children.append(Played(slot))
        return children[-1]

    subject = Exported("service", (listener,), True, lambda: True)
    exporter = ExporterChild(subject, listener, board, fork, lambda: None)
    exporter.turn(0.0)
    yield exporter, children[0]
    exporter.close()
    for child in children:
        child.slot.close()
    board.forget()


def test_one_that_is_asked_without_a_pause(listener: Listener, started: tuple[ExporterChild, Played]) -> None:
    """As long as it takes connections it is well, though whenever the master looks somebody waits."""
    exporter, played = started
    with socket.create_connection(listener.getsockname()):
        for now in range(1, 20):
            played.take_one()
            exporter.turn(float(now))
        assert played.signals == []


def test_one_that_takes_none(listener: Listener, started: tuple[ExporterChild, Played]) -> None:
    """When for three seconds it has taken none of those that wait it is killed, once, and no sooner; where the kernel
    refuses that, in the next turn."""
    exporter, played = started
    for second in range(1, 20):  # nobody asks
        exporter.turn(float(second))
    with socket.create_connection(listener.getsockname()):
        looks = [exporter.turn(now) for now in (20.0, 21.0, 21.9)]
        assert played.signals == []
        assert looks == [21.0, 22.0, 22.0]
        played.reach = False
        exporter.turn(22.0)
        played.reach = True
        for now in (22.5, 23.0):
            exporter.turn(now)
        assert played.signals == [signal.SIGKILL]


def test_one_of_an_earlier_image(started: tuple[ExporterChild, Played]) -> None:
    """It is told to end, once, as soon as it has a successor and the kernel lets it be told."""
    exporter, _ = started
    old: Any = Played(Slot(0), reach=False)
    exporter.succeed([old])
    exporter.turn(1.0)
    old.reach = True
    for now in (2.0, 3.0):
        exporter.turn(now)
    assert (old.signals, old.deadline) == ([signal.SIGTERM, signal.SIGCONT], 12.0)
    old.slot.close()


def test_it_counts_what_it_takes(listener: Listener) -> None:
    """Each connection that the exporter takes is counted where the master looks, also one that asks for nothing."""
    unused: Any = None
    slot = Slot(0)
    exporter = Exporter(Scope("service", listener, (), True), unused, unused, slot)
    for number in (1, 2):
        with socket.create_connection(listener.getsockname()) as client:
            assert exporter.verify_request(client, client.getsockname())
        assert slot.words[CONNECTIONS_TAKEN] == number
    slot.close()
