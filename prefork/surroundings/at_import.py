"""The part of the surroundings that is seen to when prefork is imported, before the program changes it: closed standard
descriptors, and which signals were blocked and which interval timers ran.

Runs in any program that imports prefork. Must stay small: inherited.py mends the rest when a pool begins to serve.
"""

import _signal  # type: ignore[import-not-found]  # the C module that `signal` wraps, without its enums: 1 ms
import contextlib
import errno
import os
import sys

__all__ = ["blocked", "open_standard_descriptors", "running"]

_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))

blocked: set[int] = (
    set(map(int, _signal.pthread_sigmask(_signal.SIG_BLOCK, ()))) if hasattr(_signal, "pthread_sigmask") else set()
)
# Timers live on over an exec, handlers do not (execve(2)).
running: set[int] = {
    timer for timer in (_signal.ITIMER_REAL, _signal.ITIMER_VIRTUAL, _signal.ITIMER_PROF) if _signal.getitimer(timer)[0]
}


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
