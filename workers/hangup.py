"""The current requests, whose read side is shut down when the worker drains, with `drain_connections = "eof"`.

Runs in a worker. A handler that loops over `rfile` reads what was already sent and then sees end of file; its answers
still go out. `hang_up()` runs in the handler of SIGTERM, which the master repeats while requests are left.
"""

import socket
from time import monotonic_ns
from typing import Any

# The first bytes of a connection that was just accepted may still be on their way: shut down, it would end before it
# began. Less than the 250 ms after which the master signals a draining worker again.
FIRST_BYTES_NS = 200_000_000


class InHand:
    """The stream requests that handlers work on now."""

    def __init__(self) -> None:
        self._requests: dict[int, tuple[socket.socket, int]] = {}

    def bind(self, server: Any) -> None:
        """Track the requests that this server instance finishes from now on."""
        finish, requests = server.finish_request, self._requests

        def finish_request(request: Any, client_address: Any) -> None:
            if not isinstance(request, socket.socket):
                finish(request, client_address)
                return
            key = id(request)
            requests[key] = request, monotonic_ns()
            try:
                finish(request, client_address)
            finally:
                requests.pop(key, None)

        server.finish_request = finish_request

    def hang_up(self) -> None:
        """Shut down the read side of each request that is old enough. Data sent so far can still be read."""
        now_ns = monotonic_ns()
        for key, (request, since_ns) in list(self._requests.items()):
            if now_ns - since_ns >= FIRST_BYTES_NS:
                self._requests.pop(key, None)
                try:
                    socket.socket.shutdown(request, socket.SHUT_RD)  # ssl's own would continue in the clear
                except OSError:
                    pass  # the client closed first
