"""A latch: set once, in a signal handler or anywhere, and seen by all who wait for it, in any thread.

Owns one eventfd, which is written once and never read, so that it stays readable. A process that user code forks has a
copy, and is told when its parent is. Runs in a companion.
"""

import contextlib
import os
import select
from time import monotonic

from .wakeup import Wakeup


class Latch:
    """Raises OSError from the constructor when descriptors are short."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def set(self) -> None:
        with contextlib.suppress(OSError):  # the program has closed it; raised here, that would be anywhere in its code
            os.eventfd_write(self._fd, 1)

    def wait(self, seconds: float, wakeup: Wakeup | None = None) -> bool:
        """Wait until it is set, at most `seconds`, of which there are few; return whether it is.

        `wakeup`: given in the main thread, whose signal handlers may have to run first.
        """
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        if wakeup is not None:
            poll.register(wakeup.fileno(), select.POLLIN)
        until = monotonic() + seconds
        while True:
            ready = [fd for fd, _ in poll.poll(max(0.0, until - monotonic()) * 1000)]
            if wakeup is not None and wakeup.fileno() in ready:
                wakeup.drain()
            if self._fd in ready:
                return True
            if monotonic() >= until:
                return False
