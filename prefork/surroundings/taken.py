"""The signals of the table of commands, taken for as long as a pool serves.

Runs in the master, in its main thread; in another thread no signal can be taken. Must not decide what a signal means.
"""

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator

from prefork.metrics.log_events import LogEvent, event
from prefork.workers.signals import Signals, blocked

from ..commands import BY_SIGNAL
from .inherited import put_right

__all__ = ["keeping", "signals_taken"]

log = logging.getLogger("prefork.supervisor")


@contextlib.contextmanager
def signals_taken(signals: Signals, early: Signals | None) -> Iterator[None]:
    """Have `signals` note what the program does not handle itself, in the block; `early` has noted it so far."""
    unblocked = set[int]()
    if threading.current_thread() is threading.main_thread():
        with blocked():  # in between, a signal would have its default action
            if early is not None:
                early.hand_over(signals)
            theirs = signals.take_unhandled(BY_SIGNAL)
            signals.reap_ourselves()
            signals.outlive_readers()
            signals.hold_back()
        unblocked = put_right(BY_SIGNAL)
        for signum in theirs:
            log.info(
                "the program handles %s itself",
                signal.Signals(signum).name,
                extra=event(LogEvent.SIGNAL_LEFT_TO_PROGRAM, signal=signal.Signals(signum).name),
            )
    try:
        yield
    finally:
        signals.put_back(then_block=unblocked)


def keeping(signals: Signals | None, act: Callable[[], None]) -> Callable[[], None]:
    """Return `act`, a hook of the program's, after which what is taken stays taken: an event loop that ran in it leaves
    the signals that it used at their default action."""

    def acting() -> None:
        try:
            act()
        finally:
            if signals is not None:
                signals.keep()

    return acting
