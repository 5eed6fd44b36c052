"""The threads of ThreadingMixIn: kept while they run, forgotten when they end, joined on demand.

Runs in any process that serves. Must not limit their number: lanes.py does.
"""

import threading


class Threads:
    """The non-daemonic threads of one server. Only the serving thread appends; any thread may join."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []

    def append(self, thread: threading.Thread) -> None:
        self.forget_finished()
        if not thread.daemon:
            self._threads.append(thread)

    def forget(self, thread: threading.Thread) -> None:
        """Forget a thread that could not be started."""
        self._threads = [each for each in self._threads if each is not thread]

    def forget_finished(self) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive() or thread.ident is None]

    def join(self) -> None:
        """Wait for all of them."""
        threads, self._threads = self._threads, []
        for thread in threads:
            thread.join()

    def __len__(self) -> int:
        return len(self._threads)
