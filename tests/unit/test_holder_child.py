"""The master's side of the holder, with the holder played by the test."""

import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from prefork.holder.child import HeldTerms, HolderChild, all_of
from prefork.master.kept_queues import KeptQueues
from prefork.master.policy import TICK_S
from prefork.master.restarts import Restarts
from prefork.metrics.board import Board, Word
from prefork.metrics.facts import ChildKind, CloseReason, ExitReason
from prefork.metrics.scoreboard import CLOSED, COUNTS, HEADER_WORDS, IDLE_HERE, READY, STARTED_NS, YES, Slot
from prefork.workers.kept import Kept
from prefork.workers.signals import DRAIN_SIGNAL

TERMS = HeldTerms(75.0, None, 10.0, 30.0)
CONT = signal.SIGCONT
HUNG_S = 5.0  # written out, so that it cannot change unseen


@dataclass
class Played:
    """A holder that does what the test does for it."""

    slot: Slot
    serial: int = 0
    started: float = 0.0
    changed: float = 0.0
    reach: bool = True  # signals arrive
    drain_signal: int = DRAIN_SIGNAL
    reason: Any = None
    replace: bool = False  # it was sent TERM by somebody else
    fields: dict[str, Any] = field(default_factory=dict)
    signals: list[int] = field(default_factory=list)

    def signal(self, signum: int) -> bool:
        if self.reach and signum != CONT:
            self.signals.append(signum)
        return self.reach

    def beat(self, idle: int = 0) -> None:
        lane = self.slot.lane(0)
        self.slot.words[READY] = YES
        lane[STARTED_NS] += 1
        lane[IDLE_HERE] = idle


class Masters:
    """A master that starts holders; `children` are those."""

    def __init__(self) -> None:
        self.children: list[Played] = []
        self.board = Board()
        self.kept = KeptQueues(True, None)
        self.refuses = False
        self.now = 0.0

    def fork(self, kind: ChildKind, slot: Slot, body: Callable[..., int]) -> Any:
        assert kind is ChildKind.HOLDER
        if self.refuses:
            raise OSError(11, "no process")
        self.children.append(Played(slot, len(self.children), self.now))
        return self.children[-1]

    def side(self, **more: Any) -> HolderChild:
        return HolderChild(TERMS, self.kept, all_of((0, 3)), self.board, self.fork, lambda: None, **more)

    def played(self, serial: int = 0) -> Any:
        self.children.append(Played(Slot(1), serial))
        return self.children[-1]


@pytest.fixture
def master() -> Iterator[Masters]:
    found = Masters()
    yield found
    for child in found.children:
        child.slot.close()
    found.kept.close()
    found.board.forget()


def test_one_is_started_and_watched(master: Masters) -> None:
    """There is one, with a lane for each listener; while its heart beats it is left alone."""
    side = master.side()
    assert side.turn(0.0) == TICK_S
    [child] = master.children
    assert (child.slot.lanes, child.slot.numbers) == (1, [0, 3])
    for now in range(1, 30):
        child.beat()
        side.turn(float(now))
    assert (len(master.children), child.signals) == (1, [])


@pytest.mark.parametrize("number", [0, 3])
def test_one_that_hangs(number: int, master: Masters) -> None:
    """When its heart has stood still for HUNG_S it is killed, and no sooner; again as long as it is there."""
    side = master.side()
    side.turn(0.0)
    [child] = master.children
    child.slot.of_listener(number).lane(0)[STARTED_NS] = 7
    side.turn(2.0)
    side.turn(2.0 + HUNG_S - 0.01)
    assert child.signals == []
    side.turn(2.0 + HUNG_S)
    side.turn(2.0 + HUNG_S + 1.0)
    assert child.signals == [signal.SIGKILL]
    side.turn(2.0 + 2 * HUNG_S)
    assert child.signals == [signal.SIGKILL] * 2


def test_one_that_dies_is_started_again(master: Masters) -> None:
    """At once if it has run for a while; else after a pause, which doubles."""
    side = master.side()
    side.turn(0.0)
    ran: Any = master.children[0]
    side.ended(ran, 20.0)
    master.now = 20.0
    side.turn(20.0)
    assert len(master.children) == 2
    for number, pause in enumerate((0.2, 0.4, 0.8), 2):
        died: Any = master.children[-1]
        side.ended(died, master.now)
        assert side.turn(master.now) == master.now + pause
        assert len(master.children) == number
        master.now += pause
        side.turn(master.now)
        assert len(master.children) == number + 1


def test_one_that_cannot_be_forked(master: Masters) -> None:
    """It is tried again after a pause, and no slot is left open."""
    side = master.side()
    master.refuses = True
    assert side.turn(0.0) == TICK_S
    assert side.turn(0.1) == 0.2
    master.refuses = False
    side.turn(0.2)
    assert len(master.children) == 1


def test_one_that_was_sent_term(master: Masters) -> None:
    """It parks what it has and leaves, so that another is started at once, which takes all of it."""
    side = master.side()
    side.turn(0.0)
    master.children[0].beat()
    master.children[0].replace = True
    side.turn(1.0)
    side.turn(1.1)
    assert len(master.children) == 2
    gone: Any = master.children[0]
    side.ended(gone, 1.2)
    side.turn(1.2)
    assert [len(child.signals) for child in master.children] == [0, 0]


def test_somebody_elses_end(master: Masters) -> None:
    """The end of the one before is no reason to start another."""
    side = master.side()
    old = master.played()
    side.succeed([old])
    side.turn(0.0)
    side.ended(old, 1.0)
    side.turn(1.0)
    assert [child is old for child in master.children] == [True, False]


def test_the_one_of_the_image_before(master: Masters) -> None:
    """It has its connections until ours is ready; then it is told to park them and to leave, once."""
    side = master.side()
    old = master.played()
    side.succeed([old])
    assert side.turn(0.0) < TICK_S
    old.beat()
    assert old.signals == []
    master.children[1].beat()
    for now in (1.0, 2.0):
        old.beat()
        side.turn(now)
    assert (old.signals, old.reason) == ([signal.SIGTERM], ExitReason.REPLACED)
    assert master.children[1].signals == []


def test_one_before_that_hangs(master: Masters) -> None:
    """It is killed as any other."""
    side = master.side()
    old = master.played()
    side.succeed([old])
    for now in (0.0, HUNG_S):
        if len(master.children) > 1:
            master.children[1].beat()
        side.turn(now)
    assert old.signals == [signal.SIGKILL, signal.SIGTERM]


def test_one_before_of_another_layout(master: Masters) -> None:
    """Its heart cannot be seen: it is told to leave, and has the time that it takes."""
    side = master.side()
    old = master.played()
    old.slot.close()
    old.slot = Slot(0)
    side.succeed([old])
    side.turn(0.0)
    for now in range(1, 60):
        master.children[1].beat()
        side.turn(float(now))
    assert old.signals == [signal.SIGTERM]


def test_without_the_program(master: Masters) -> None:
    """The degraded master goes on with the youngest that is there, and starts another only when that has ended."""
    side = master.side(adopts=True)
    older, old = master.played(3), master.played(5)
    side.succeed([old, older])
    old.beat()
    older.beat()
    side.turn(0.0)
    assert (len(master.children), older.signals, old.signals) == (2, [signal.SIGTERM], [])
    side.ended(old, 50.0)
    side.turn(50.0)
    assert len(master.children) == 3


def test_where_nothing_is_kept_any_more(master: Masters) -> None:
    """The holder of the image before stays for as long as that one's workers do; then it is told to close everything,
    what is on its way is closed, and none is started."""
    serving = [True]
    side = master.side(wanted=False, in_use=lambda: bool(serving))
    old = master.played()
    side.succeed([old])
    old.beat()
    side.turn(0.0)
    assert old.signals == []
    serving.clear()
    side.turn(1.0)
    side.turn(2.0)
    assert old.signals == [signal.SIGQUIT]
    assert master.kept.queues is not None
    client, kept = socket.socketpair()
    master.kept.queues.park_in.send(Kept(3).encoded(), kept.fileno())
    kept.close()
    side.ended(old, 2.5)
    side.turn(3.0)
    assert len(master.children) == 1
    assert client.recv(1) == b""
    client.close()
    assert master.board.words[Word.LANES_DEAD + CLOSED + CloseReason.DRAINED - COUNTS.start] == 1


def test_the_longest_pause() -> None:
    """One that never lives long is tried again after half a minute at most; one that has lived for ten seconds, and no
    longer, is no better."""
    restarts = Restarts()
    for _ in range(12):
        restarts.ended(90.0, 100.0)
    assert restarts.next_start == 130.0
    restarts.ended(89.9, 100.0)
    assert restarts.next_start == 100.0


def test_the_end_of_the_service(master: Masters) -> None:
    """All holders are told that it ends, once, those not ready yet as soon as they are; at last to leave at once."""
    side = master.side()
    old = master.played()
    old.beat(idle=3)
    side.succeed([old])
    side.turn(0.0)
    new = master.children[1]
    side.drain()
    assert side.holds_some()
    assert (old.signals, new.signals) == ([DRAIN_SIGNAL], [])
    new.beat()
    old.beat()
    side.drain()
    side.turn(1.0)
    assert (old.signals, new.signals) == ([DRAIN_SIGNAL], [DRAIN_SIGNAL])
    assert not side.holds_some()
    side.stop()
    assert new.signals == [DRAIN_SIGNAL, signal.SIGQUIT]
    assert new.reason is ExitReason.STOPPED


def test_the_last_one(master: Masters) -> None:
    """After one that was stopped none is started."""
    side = master.side()
    side.turn(0.0)
    ended: Any = master.children[0]
    ended.reason = ExitReason.STOPPED
    side.ended(ended, 50.0)
    assert side.turn(50.0) == 50.0 + TICK_S
    assert len(master.children) == 1


def test_one_out_of_reach_is_told_again(master: Masters) -> None:
    """A signal that the kernel refuses is sent in the next turn."""
    side = master.side()
    side.turn(0.0)
    [child] = master.children
    child.beat()
    child.reach = False
    side.drain()
    child.reach = True
    side.turn(1.0)
    assert child.signals == [DRAIN_SIGNAL]


def test_what_it_has(master: Masters) -> None:
    """Its connections are those of all its listeners."""
    side = master.side()
    side.turn(0.0)
    [child] = master.children
    assert not side.holds_some()
    child.slot.of_listener(3).lane(0)[IDLE_HERE] = 1
    assert side.holds_some()
    assert child.slot.words[HEADER_WORDS + IDLE_HERE] == 0
