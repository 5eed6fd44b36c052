"""Signal handlers of the program's: where they run while the master is in a turn."""

import ctypes
import errno
import faulthandler
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import pytest

from prefork.workers import signals as module
from prefork.workers.holding import LetThrough, held, holds_some
from prefork.workers.signals import STACKS_SIGNAL, Signals, ignore, interrupted_after
from prefork.workers.wakeup import Wakeup


class Raised(Exception):
    """What the program's handler raises."""


def raising(signum: int, frame: FrameType | None) -> None:
    raise Raised


def raise_signal(signum: int) -> None:
    """Its handler has run when this returns."""
    signal.raise_signal(signum)


@pytest.fixture
def signals() -> Iterator[Signals]:
    """With a handler of the program's for SIGUSR1 that is held back, and the default action of SIGPIPE undone."""
    before = signal.signal(signal.SIGUSR1, raising), signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    wakeup = Wakeup()
    signals = Signals(wakeup)
    signals.outlive_readers()
    signals.hold_back()
    yield signals
    signals.put_back()
    wakeup.close()
    signal.signal(signal.SIGUSR1, before[0])
    signal.signal(signal.SIGPIPE, before[1])


@pytest.mark.usefixtures("signals")
def test_a_handler_waits_for_the_end_of_the_outermost_block() -> None:
    """A handler that raises does so at the end of the outermost block, after every step inside; elsewhere at once."""
    steps = []

    def turn() -> None:
        with held():
            with held():
                raise_signal(signal.SIGUSR1)
                steps.append("inner")
            assert holds_some()
            steps.append("outer")

    with pytest.raises(Raised):
        turn()
    assert steps == ["inner", "outer"]
    assert not holds_some()
    with pytest.raises(Raised):
        raise_signal(signal.SIGUSR1)


@pytest.mark.usefixtures("signals")
def test_a_handler_raises_where_it_is_LetThrough() -> None:
    """Inside of a block that holds it back, a handler raises where it is let through, at once or for what came before;
    nobody else is interrupted, and afterwards it is held back again."""
    steps: list[str] = []
    with held():
        for when in ("before", "inside"):
            if when == "before":
                raise_signal(signal.SIGUSR1)
            with pytest.raises(Raised), LetThrough():
                raise_signal(signal.SIGUSR1)
            steps.append(when)
            assert not holds_some()
        with LetThrough():
            steps.append("nothing came")
    assert steps == ["before", "inside", "nothing came"]
    with LetThrough(), pytest.raises(Raised):
        raise_signal(signal.SIGUSR1)


@pytest.mark.usefixtures("signals")
def test_another_thread_holds_nothing_back() -> None:
    """A handler runs in the main thread, whatever another thread is doing."""
    inside, end = threading.Event(), threading.Event()

    def hold() -> None:
        with held():
            inside.set()
            end.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait()
    with pytest.raises(Raised):
        raise_signal(signal.SIGUSR1)
    end.set()
    thread.join()


def test_the_programs_handlers_are_put_back(signals: Signals) -> None:
    """But for one that it has replaced meanwhile."""
    signals.put_back()
    assert signal.getsignal(signal.SIGUSR1) is raising
    assert signal.getsignal(signal.SIGPIPE) is signal.SIG_DFL
    signals.hold_back()
    signal.signal(signal.SIGUSR1, ignore)
    signals.put_back()
    assert signal.getsignal(signal.SIGUSR1) is ignore


@pytest.mark.usefixtures("signals")
def test_a_reader_that_is_gone_ends_nobody() -> None:
    """A write to a pipe without a reader fails, as if nobody had asked for the default action of SIGPIPE."""
    read, write = os.pipe()
    os.close(read)
    with pytest.raises(BrokenPipeError):
        os.write(write, b"x")
    os.close(write)


def test_stacks_are_written_between_a_call_and_its_errno() -> None:
    """Both signals write the stacks and leave errno to the call that they came after; then what stood there is back."""
    before = signal.signal(signal.SIGUSR1, raising)
    wakeup = Wakeup()
    signals = Signals(wakeup)
    stacks = os.memfd_create("stacks")
    try:
        signals.take({signal.SIGUSR1: ignore, STACKS_SIGNAL: ignore})
        signals.write_stacks(stacks)
        libc = ctypes.CDLL(None, use_errno=True)  # errno is set to its copy before a call, and kept in it afterwards
        for signum in (signal.SIGUSR1, STACKS_SIGNAL):
            written = os.fstat(stacks).st_size
            ctypes.set_errno(errno.EAGAIN)
            getattr(libc, "raise")(signum)
            assert ctypes.get_errno() == errno.EAGAIN
            assert b"test_stacks_are_written" in os.pread(stacks, 1 << 16, written)
        signals.put_back()
        written = os.fstat(stacks).st_size
        with pytest.raises(Raised):
            raise_signal(signal.SIGUSR1)
        assert os.fstat(stacks).st_size == written
        assert signal.getsignal(STACKS_SIGNAL) is signal.SIG_DFL
    finally:
        signals.put_back()
        wakeup.close()
        os.close(stacks)
        signal.signal(signal.SIGUSR1, before)


def test_stacks_that_the_program_asks_for_stay() -> None:
    """Who has put back its handlers has not undone what the program has told faulthandler for the same signal."""
    before = signal.signal(signal.SIGUSR1, ignore)
    wakeup, stacks = Wakeup(), os.memfd_create("stacks")
    try:
        faulthandler.register(signal.SIGUSR1, file=stacks, chain=True)
        signals = Signals(wakeup)
        signals.take({signal.SIGUSR2: ignore})
        signals.put_back()
        raise_signal(signal.SIGUSR1)
        assert os.fstat(stacks).st_size
    finally:
        faulthandler.unregister(signal.SIGUSR1)
        wakeup.close()
        os.close(stacks)
        signal.signal(signal.SIGUSR1, before)


def test_an_alarm_on_the_way_into_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process stood still before the block had begun: it is not interrupted, and handler, timer and mask are put
    back after it."""
    clock = iter([0.0])
    monkeypatch.setattr(module, "monotonic", lambda: next(clock, 99.0))
    before, done = signal.getsignal(signal.SIGALRM), False
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    try:
        signal.raise_signal(signal.SIGALRM)  # it comes as soon as it is unblocked
        with interrupted_after(30.0):
            done = True
        assert done
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
        assert signal.getsignal(signal.SIGALRM) is before
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask | {signal.SIGALRM}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
