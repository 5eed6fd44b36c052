"""What is around a child that runs in the test's own process: a master that is none, and signals that come back."""

import contextlib
import faulthandler
import os
import signal
from collections.abc import Iterable, Iterator

from prefork.workers import user_forks
from prefork.workers.loop import IGNORED
from prefork.workers.signals import DRAIN_SIGNAL, STACKS_SIGNAL, set_mask

OF_A_CHILD = (DRAIN_SIGNAL, signal.SIGTERM, signal.SIGQUIT, *IGNORED, signal.SIGALRM)


class NoMaster:
    """Dies when the test says so."""

    def __init__(self) -> None:
        self.pidfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.asked = 0  # to be told of its death
        self.by = set[int]()  # these signals
        self.dead = False

    def fileno(self) -> int:
        return self.pidfd

    def gone(self) -> bool:
        return self.dead

    def tell_us_when_dying(self, signum: int = signal.SIGTERM) -> None:
        assert callable(signal.getsignal(signum)), "before there is a handler it would be the end"
        self.asked += 1
        self.by.add(signum)

    def die(self) -> None:
        self.dead = True
        os.eventfd_write(self.pidfd, 1)


class Stray(BaseException):
    """The end of a process that the program has forked."""


@contextlib.contextmanager
def signals_put_back(signums: Iterable[int]) -> Iterator[None]:
    """No signal is blocked inside, and none has a wake-up. Afterwards all, with the handlers of these, is as it was."""
    before = {signum: signal.getsignal(signum) for signum in signums}
    mask, wakeup = set_mask(()), signal.set_wakeup_fd(-1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for signum, handler in before.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(wakeup)
        set_mask(mask)


@contextlib.contextmanager
def as_a_child() -> Iterator[None]:
    """As after a fork of ours: every signal is blocked inside. Afterwards all of this process's is as it was."""
    try:
        with signals_put_back(OF_A_CHILD):
            set_mask(signal.valid_signals())
            try:
                yield
            finally:
                faulthandler.unregister(STACKS_SIGNAL)
    finally:
        user_forks.on_fork_by_user(None)
