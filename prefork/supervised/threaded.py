"""ThreadedRequests: the state behind ThreadingMixIn, which serves each request in a thread of its own.

Runs in the serving process; in a worker of a pool, as a copy. Owns the threads. Must not accept, which is the loop's
task.
"""

from collections.abc import Callable
from typing import Any

from prefork.workers.lanes import Lanes
from prefork.workers.straight import ServeOne, way_to_threads
from prefork.workers.threads import RequestThread, Threads

from .state import Supervised


class ThreadedRequests(Supervised):
    """State of a server that starts a thread per request."""

    def __init__(self, server: Any) -> None:
        super().__init__(server)
        self.threads = Threads()

    def way(self, lanes: Lanes) -> ServeOne:
        return lanes.serve_one if self.in_place else way_to_threads(lanes, self.server, self.start)

    def start(self, server: Any, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        """Start a thread for a request. Raises RuntimeError if the system cannot start one."""
        thread = RequestThread(self.threads, function, arguments, daemon=server.daemon_threads)
        if server.block_on_close:
            self.threads.append(thread)
        try:
            thread.start()
        except BaseException:
            self.threads.forget(thread)
            raise

    def wait_for_requests(self) -> None:
        self.threads.join()
