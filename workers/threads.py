"""The threads of ThreadingMixIn: kept while they run, forgotten when they end, joined on demand.

Runs in any process that serves. Must not limit their number: lanes.py does.
"""

import threading
from collections import deque
from collections.abc import Callable
from typing import Any


class RequestThread(threading.Thread):
    """A thread that says when it is about to end: to find that out, each that lives would have to be asked.

    That was half the cost of a request beside a thousand threads.
    """

    def __init__(self, threads: "Threads", target: Callable[..., Any], args: tuple[Any, ...], *, daemon: bool) -> None:
        super().__init__(target=target, args=args, daemon=daemon)
        self._prefork_threads = threads

    def run(self) -> None:
        try:
            super().run()
        finally:
            self._prefork_threads.note_end(self)


class Threads:
    """The non-daemonic threads of one server. Only the serving thread appends; any thread may join."""

    def __init__(self) -> None:
        self._running: dict[threading.Thread, None] = {}
        self._ending: deque[threading.Thread] = deque()  # they have said so, and may still be in their last steps
        self._theirs: list[threading.Thread] = []  # of the program's own `process_request()`: they never say so

    def append(self, thread: threading.Thread) -> None:
        """Keep a thread that is about to be started."""
        while self._ending and not self._ending[0].is_alive():
            self._ending.popleft()
        if thread.daemon:
            return
        if isinstance(thread, RequestThread):
            self._running[thread] = None
        else:
            self._theirs = [each for each in self._theirs if each.is_alive()] + [thread]

    def forget(self, thread: RequestThread) -> None:
        """Forget a thread that could not be started."""
        self._running.pop(thread, None)

    def note_end(self, thread: RequestThread) -> None:
        """Note that this thread, the caller's own, is about to end."""
        if thread in self._running:
            self._ending.append(thread)  # first, so that join() finds it in one place or the other
            self._running.pop(thread, None)

    def join(self) -> None:
        """Wait for all of them."""
        for thread in (*self._running, *self._ending, *(each for each in self._theirs if each.is_alive())):
            thread.join()
            self._running.pop(thread, None)  # in a process that was forked beside it, it can say nothing

    def __len__(self) -> int:
        return len(self._running) + sum(thread.is_alive() for thread in (*self._ending, *self._theirs))
