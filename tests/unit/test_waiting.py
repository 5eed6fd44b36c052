"""What the supervisor waits on, with a clock that the test turns: the nudge, the wake-up, pidfds, saturation."""

import os
import socket
import tempfile
from collections.abc import Iterator

import pytest

from prefork.master.waiting import Waiting
from prefork.workers.wakeup import Wakeup

# What is documented, in seconds where the name says so: written out, so that a number cannot change unseen.
NUDGE_EVERY_S = 0.01
RELISTEN_S = 0.02
WAIT_AGAIN_S = 1.0


class Hands:
    """A clock with hands that somebody moves."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Hands:
    return Hands()


@pytest.fixture
def wakeup() -> Wakeup:
    return Wakeup()  # closed by Waiting.close()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.fixture
def waiting(wakeup: Wakeup, clock: Hands, listener: socket.socket) -> Iterator[Waiting]:
    waiting = Waiting(wakeup, clock, (listener,))
    yield waiting
    waiting.close()


@pytest.fixture
def pidfd() -> int:
    """Readable once written, as that of a process that ends; closed by `remove()`."""
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


def test_nothing_is_heard(waiting: Waiting) -> None:
    """With nothing to hear the wait ends by its time, and nobody has nudged."""
    assert waiting.wait(0.001) == set()
    assert not waiting.nudged
    assert not waiting.saturated


def test_nudges_are_heard_a_hundred_times_a_second(waiting: Waiting, clock: Hands) -> None:
    """A worker that nudges without pause ends no wait until 10 ms after the last one that did."""
    heard = 0
    for _ in range(1000):  # a second, in steps of a millisecond
        waiting.nudge()
        waiting.wait(0)
        heard += waiting.nudged
        waiting.nudged = False
        clock.now += 0.001
        waiting.hear_nudges()
    assert heard == pytest.approx(1 / NUDGE_EVERY_S, abs=10)


def test_a_nudge_that_cannot_be_written(waiting: Waiting) -> None:
    """It is no failure of the worker's: the master looks at the slots in its next turn anyway."""
    with open("/dev/full", "wb") as full:
        os.dup2(full.fileno(), waiting._nudge)
    waiting.nudge()


def test_a_nudge_in_the_pause_is_not_lost(waiting: Waiting, clock: Hands) -> None:
    """What comes while the nudge is deaf is heard when it is not; until then the supervisor knows when to ask."""
    waiting.nudge()
    waiting.wait(0)
    waiting.nudged = False
    assert waiting.next_at(False) == clock.now + NUDGE_EVERY_S
    waiting.nudge()
    assert waiting.wait(0) == set()
    clock.now += NUDGE_EVERY_S
    waiting.hear_nudges()
    assert waiting.wait(0)
    assert waiting.nudged


def test_a_thousand_nudges_are_one(waiting: Waiting, clock: Hands) -> None:
    """However often it is written, the nudge is heard once and never blocks who writes it."""
    for _ in range(1000):
        waiting.nudge()
    assert len(waiting.wait(0)) == 1
    clock.now += NUDGE_EVERY_S
    waiting.hear_nudges()
    assert waiting.wait(0) == set()
    assert waiting.next_at(False) == float("inf")


def test_full_of_nudges(waiting: Waiting) -> None:
    """A scribbler that fills the eventfd to the brim blocks nobody."""
    os.eventfd_write(waiting.pack_nudge()[0], (1 << 64) - 2)
    waiting.nudge()
    assert waiting.wait(0)
    assert waiting.nudged


def test_wakeup_is_forgotten_once_heard(waiting: Waiting, wakeup: Wakeup) -> None:
    """A wake-up ends one wait."""
    wakeup.wake()
    assert waiting.wait(0) == {wakeup.fileno()}
    assert waiting.wait(0) == set()


def test_a_process_is_heard_until_it_is_removed(waiting: Waiting, pidfd: int) -> None:
    """The pidfd of one that has ended is heard at every wait; removed, it is closed and heard no more."""
    waiting.add(pidfd)
    assert waiting.wait(0) == set()
    os.eventfd_write(pidfd, 1)
    assert waiting.wait(0) == waiting.wait(0) == {pidfd}
    waiting.remove(pidfd)
    assert waiting.wait(0) == set()
    with pytest.raises(OSError):
        os.fstat(pidfd)


def test_removed_although_a_copy_is_left(waiting: Waiting, pidfd: int) -> None:
    """A child that was just forked has a copy of the pidfd: it is heard no more all the same."""
    copy = os.dup(pidfd)
    waiting.add(pidfd)
    os.eventfd_write(pidfd, 1)
    waiting.remove(pidfd)
    assert waiting.wait(0) == set()
    os.close(copy)


def test_saturation_is_heard_once(waiting: Waiting, clock: Hands, listener: socket.socket) -> None:
    """A connection that nobody takes is told once; 20 ms later it is asked again."""
    waiting.listen(True)
    with socket.create_connection(listener.getsockname()):
        assert waiting.wait(1) == {listener.fileno()}
        assert waiting.saturated
        waiting.saturated = False
        waiting.listen(True)
        assert waiting.wait(0) == set()
        assert waiting.next_at(True) == clock.now + RELISTEN_S
        clock.now += RELISTEN_S
        waiting.listen(True)
        waiting.wait(1)
        assert waiting.saturated


def test_not_listening_unless_wanted(waiting: Waiting, listener: socket.socket) -> None:
    """Where another worker would not be started, no connection wakes the supervisor."""
    waiting.listen(True)
    waiting.listen(False)
    with socket.create_connection(listener.getsockname()):
        assert waiting.wait(0.01) == set()
    assert waiting.next_at(False) == float("inf")


def test_behind_one_that_got_ready(waiting: Waiting, clock: Hands) -> None:
    """After a step back it may come back at once, and stands behind whoever registered meanwhile."""
    waiting.listen(True)
    waiting.step_back()
    assert waiting.next_at(True) <= clock.now
    waiting.listen(True)
    assert waiting.next_at(True) == float("inf")


def test_without_a_listener(wakeup: Wakeup, clock: Hands) -> None:
    """There is nothing to come back to, so nothing to wake up for."""
    waiting = Waiting(wakeup, clock)
    waiting.listen(True)
    assert waiting.next_at(True) == float("inf")
    waiting.close()


def test_a_step_back_brings_nobody_back_sooner(waiting: Waiting, clock: Hands, listener: socket.socket) -> None:
    """Who has just been woken stays away for its time, whoever gets READY meanwhile."""
    waiting.listen(True)
    with socket.create_connection(listener.getsockname()):
        waiting.wait(1)
    waiting.step_back()
    assert waiting.next_at(True) == clock.now + RELISTEN_S


def test_it_listens_from_the_beginning(waiting: Waiting, clock: Hands, listener: socket.socket) -> None:
    """Of whatever clock."""
    clock.now = 0.0
    waiting.listen(True)
    with socket.create_connection(listener.getsockname()):
        assert waiting.wait(1) == {listener.fileno()}


def test_a_listener_that_cannot_be_waited_for(wakeup: Wakeup, clock: Hands) -> None:
    """It is tried again a second later: epoll_ctl(2) refuses a file with EPERM, where memory is short any other."""
    with tempfile.TemporaryFile() as file:
        waiting = Waiting(wakeup, clock, (file,))  # type: ignore[arg-type]  # has a descriptor
        waiting.listen(True)
        assert waiting.next_at(True) == clock.now + WAIT_AGAIN_S
        clock.now += WAIT_AGAIN_S
        waiting.listen(True)
        assert waiting.next_at(True) == clock.now + WAIT_AGAIN_S
        waiting.close()


def test_a_nudge_that_cannot_be_waited_for(waiting: Waiting, clock: Hands) -> None:
    """It is tried again after its pause."""
    waiting.nudge()
    waiting.wait(0)
    nudge, _ = waiting.pack_nudge()
    waiting.take_out(nudge)
    clock.now += NUDGE_EVERY_S
    waiting.hear_nudges()
    assert waiting.next_at(False) == clock.now + NUDGE_EVERY_S
    waiting.add(nudge)
    clock.now += NUDGE_EVERY_S
    waiting.hear_nudges()
    assert waiting.next_at(False) == float("inf")


@pytest.mark.parametrize("given", [False, True])
def test_without_an_epoll(given: bool, wakeup: Wakeup, clock: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left open of its own; the nudge of the previous image is still its children's."""

    def refuses() -> None:
        raise OSError

    nudge = os.eventfd(0, os.EFD_CLOEXEC) if given else None
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr("select.epoll", refuses)
    with pytest.raises(OSError):
        Waiting(wakeup, clock, (), nudge)
    assert len(os.listdir("/proc/self/fd")) == before
    wakeup.close()
    if nudge is not None:
        os.close(nudge)
