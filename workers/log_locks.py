"""Logging's locks at a fork: nobody holds one, so that no worker inherits the lock of a stream in the middle of a line.

`logging` makes its own locks anew in a new process, but not those of the streams below them, which a thread that logs
holds while it writes. Runs in the process that forks. Must not wait for long.
"""

import errno
import gc
import logging
import sys
from time import monotonic
from typing import Any

MODULE_S = 0.5  # os.fork() itself waits for logging's own lock, without a bound
HANDLERS_S = 0.05  # all together; one that is held for longer is held by a thread that hangs


def is_alone() -> bool:
    """Return True if no other thread of this process can be in Python code, and hold a lock.

    CPython before 3.11.9 and 3.12.3 waits for itself for ever where its garbage is collected meanwhile (gh-106883).
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        return len(sys._current_frames()) == 1
    finally:
        if collects:
            gc.enable()


def hold(held: list[Any]) -> None:
    """Hold logging's locks, and put them into the list, unless this thread `is_alone()`: then nobody else holds any.

    Raises OSError if its own lock is not to be had.
    """
    lock = logging._lock  # type: ignore[attr-defined]
    if not lock.acquire(timeout=MODULE_S):
        raise BlockingIOError(errno.EAGAIN, "a thread of the program's holds the lock of logging")
    held.append(lock)
    until = monotonic() + HANDLERS_S
    for reference in list(logging._handlerList):  # type: ignore[attr-defined]
        of_handler = getattr(reference(), "lock", None)
        if isinstance(of_handler, type(lock)) and of_handler.acquire(timeout=max(0.0, until - monotonic())):
            held.append(of_handler)


def release(held: list[Any]) -> None:
    while held:
        held.pop().release()
