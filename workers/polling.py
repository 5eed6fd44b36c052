"""poll(2) for the loop of a process that serves by itself, or select(2) where there is none.

Pure, but for the wait. Neither has a descriptor, as an epoll has, which a child would share. A selector costs as much
again as the wait itself.
"""

import math
import select
from typing import Any


class _Select:
    """The methods of a poll object that the loop calls."""

    def __init__(self) -> None:
        self._fds: set[int] = set()

    def register(self, fd: int, events: int) -> None:
        self._fds.add(fd)

    def unregister(self, fd: int) -> None:
        self._fds.remove(fd)

    def poll(self, timeout_ms: int | None = None) -> list[tuple[int, int]]:
        ready = select.select(self._fds, (), (), None if timeout_ms is None else timeout_ms / 1000)[0]
        return [(fd, 0) for fd in ready]


Poll: Any = getattr(select, "poll", _Select)
READ: int = getattr(select, "POLLIN", 0)


def patience(poll_interval: Any) -> float | None:
    """Return a program's `poll_interval` as seconds: any number, and below 0 no wait, as for a selector. Raises
    TypeError."""
    return None if poll_interval is None else max(0.0 + poll_interval, 0.0)


def ms(seconds: float | None) -> int | None:
    """Return a timeout for `poll()`, which never ends before that many seconds have passed."""
    return None if seconds is None else math.ceil(seconds * 1000)
