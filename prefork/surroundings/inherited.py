"""Mends what this process inherited by accident: closed standard descriptors, blocked signals, interval timers.

Runs in the process that becomes the master, when prefork is imported and once more when it begins to serve. Owns what
was found at the import; what the program has done since then is the program's, and must stay. Ignored signals are taken
over by their handlers (workers/signals.py).
"""

import contextlib
import errno
import logging
import os
import signal
import sys
from collections.abc import Iterable

from prefork.metrics.log_events import LogEvent, event
from prefork.workers.signals import DRAIN_SIGNAL, TIMERS

__all__ = ["forget_inherited", "open_standard_descriptors", "put_right"]

log = logging.getLogger("prefork.supervisor")

_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))

_blocked: set[int] = set(signal.pthread_sigmask(signal.SIG_BLOCK, ())) if hasattr(signal, "pthread_sigmask") else set()
# Timers live on over an exec, handlers do not (execve(2)).
_running = {timer for timer in TIMERS if signal.getitimer(timer)[0]}


def open_standard_descriptors() -> None:
    """Open /dev/null on whichever of the descriptors 0 to 2 is closed, and give Python the stream for it.

    Else the next descriptor of ours or the program's gets that number: a listener, on which a child prints.
    """
    for fd, (name, mode) in enumerate(_STREAMS):
        try:
            os.fstat(fd)
        except OSError as exc:
            if exc.errno != errno.EBADF:
                continue
            with contextlib.suppress(OSError):  # there is no /dev/null
                null = os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
                os.set_inheritable(null, True)
                if getattr(sys, name) is None:
                    setattr(sys, name, os.fdopen(fd, mode, closefd=False))


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
