"""Signals as notes: the one place that installs handlers, for the master and for its workers alike.

Owns the dispositions it replaced, and gives them back. A handler notes its signal and wakes the loop; what a signal
means is decided by whoever reads the notes. Only the main thread of a process may call `take` and `put_back`.
"""

import _signal  # type: ignore[import-not-found]  # what signal wraps
import contextlib
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FrameType
from typing import Any

from .wakeup import Wakeup

SignalHandler = Callable[[int, FrameType | None], Any]

# What Python itself installs, or the parent left us: nobody's decision to handle the signal.
UNHANDLED = (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler, None)


_TERM, _INT, _DEFAULT = int(signal.SIGTERM), int(signal.SIGINT), int(signal.SIG_DFL)
EVERY = frozenset(map(int, signal.valid_signals()))


def set_mask(mask: Iterable[int]) -> set[int]:
    """Set this thread's signal mask; the one it had. (signal's own makes enums of both, 0.1 ms each fork.)"""
    before: set[int] = _signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return before


@contextlib.contextmanager
def blocked() -> Iterator[set[int]]:
    """Hold every signal of this thread back; yields the mask that is put back at the end."""
    before = set_mask(EVERY)
    try:
        yield before
    finally:
        set_mask(before)


def ignore(signum: int, frame: FrameType | None) -> None:
    """Do nothing. Not SIG_IGN: that would pass to subprocesses."""


class Signals:
    """The signals one process has taken, and what it has been told."""

    def __init__(self, wakeup: Wakeup, post: Callable[[int], None] | None = None) -> None:
        """`post` is told of each signal that is noted; without it they are kept for `hand_over()`."""
        self._notes: deque[int] = deque()
        self._post = post or self._notes.append
        self._wakeup = wakeup
        self._before: dict[int, Any] = {}
        self._ours: dict[int, SignalHandler] = {}
        self._wakeup_before: int | None = None

    def note(self, signum: int, frame: FrameType | None = None) -> None:
        self._post(signum)

    def take(self, handlers: Mapping[int, SignalHandler]) -> None:
        """Install these handlers, and the wake-up that ends a wait when one runs."""
        self._wakeup_before = signal.set_wakeup_fd(self._wakeup.write_fileno(), warn_on_full_buffer=False)
        for signum, handler in handlers.items():
            self._before[signum] = signal.signal(signum, handler)
            self._ours[signum] = handler

    def keep(self) -> None:
        """Install again what went back to its default action: an event loop that ran in a handler leaves the signals
        that it had so. A handler of the program's own stays. Called between requests: two cheap calls tell."""
        if _signal.getsignal(_TERM) == _DEFAULT or _signal.getsignal(_INT) is signal.default_int_handler:
            for signum, handler in self._ours.items():
                if signal.getsignal(signum) in UNHANDLED:
                    signal.signal(signum, handler)

    def take_unhandled(self, signums: Iterable[int]) -> list[int]:
        """Note each of these that the program does not handle itself; return the others."""
        wanted = list(signums)
        theirs = [signum for signum in wanted if signal.getsignal(signum) not in UNHANDLED]
        self.take({signum: self.note for signum in wanted if signum not in theirs})
        return theirs

    def reap_ourselves(self) -> None:
        """Undo an inherited "ignore" of SIGCHLD, with which the kernel would reap and forget every status."""
        if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
            self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def hand_over(self, to: "Signals") -> None:
        """What was noted until now is `to`'s to act on, and our wake-up, which is closed, nobody's. A handler that the
        program has put over ours stays."""
        for signum in list(self._before):
            if signal.getsignal(signum) != self.note:
                del self._before[signum]
        self.put_back()
        self._wakeup.close()
        while self._notes:
            to.note(self._notes.popleft())

    def put_back(self) -> None:
        """Restore what `take` found."""
        while self._before:
            signum, handler = self._before.popitem()
            # None: a handler that was not installed from Python; it cannot be put back from here either.
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        if self._wakeup_before is not None:
            signal.set_wakeup_fd(self._wakeup_before)
            self._wakeup_before = None

    def close(self) -> None:
        """Of a process that is about to end, and hears nothing more; the wake-up is closed as well."""
        set_mask(EVERY)
        self.put_back()
        self._wakeup.close()

    @staticmethod
    def raise_after(seconds: float, error: type[BaseException]) -> None:
        """Raise this in the main thread then, wherever it is in Python; 0: no longer."""

        def on_alarm(signum: int, frame: FrameType | None) -> None:
            raise error

        signal.signal(signal.SIGALRM, on_alarm if seconds else signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)

    @staticmethod
    def kill_me_after(seconds: float) -> None:
        """Let the kernel end this process then, even inside a C call."""
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
