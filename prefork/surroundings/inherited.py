"""Mends what this process inherited by accident: blocked signals, interval timers. at_import.py has found them.

Runs in the process that becomes the master, when it begins to serve. What the program has done since the import is the
program's, and must stay. Ignored signals are taken over by their handlers (workers/signals.py).
"""

import logging
import signal
from collections.abc import Iterable

from prefork.metrics.log_events import LogEvent, event
from prefork.workers.signals import DRAIN_SIGNAL, TIMERS

from .at_import import blocked as _blocked
from .at_import import running as _running

__all__ = ["forget_inherited", "put_right"]

log = logging.getLogger("prefork.supervisor")


def put_right(signums: Iterable[int]) -> set[int]:
    """Unblock the signals, and those that we use besides, where they were blocked when prefork was imported.

    Return those that were unblocked. Disarm the timers that ran then, where nobody handles the signal: it would end
    this process. Call it in the main thread.
    """
    ours = {*signums, signal.SIGALRM, signal.SIGCHLD, DRAIN_SIGNAL}
    unblocked = _blocked & ours & set(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, unblocked)
    for timer in list(_running):
        signum = TIMERS[timer]
        if signal.getsignal(signum) is signal.SIG_DFL and signal.getitimer(timer)[0]:
            signal.setitimer(timer, 0)
            log.warning(
                "stopped an interval timer that was running at the start; its %s would have ended this process",
                signum.name,
                extra=event(LogEvent.TIMER_STOPPED, signal=signum.name),
            )
        _running.discard(timer)
    return unblocked


def forget_inherited() -> None:
    """Take it that nothing was inherited: called in a new image, whose previous one has put everything right."""
    _blocked.clear()
    _running.clear()
