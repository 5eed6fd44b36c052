"""The requests in hand whose read side is shut when the worker drains, with `drain_connections = "eof"`.

Runs in a worker. A handler that loops over `rfile` reads what was sent and then the end of file; its answers still
go out. `hang_up()` runs in the handler of TERM, which the master repeats while something is in hand.
"""

import socket
from time import monotonic_ns
from typing import Any

# A connection that was just accepted may have its first bytes still on the way: it would end before it began. Less than
# the 250 ms after which the master tells a draining worker again.
FIRST_BYTES_NS = 200_000_000


class InHand:
    """Stream requests that a handler works on now."""

    def __init__(self) -> None:
        self._requests: dict[int, tuple[socket.socket, int]] = {}

    def bind(self, server: Any) -> None:
        """Know what this server instance finishes from now on."""
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
        """Shut the read side of each that is old enough. What was sent until now is still read."""
        now_ns = monotonic_ns()
        for key, (request, since_ns) in list(self._requests.items()):
            if now_ns - since_ns >= FIRST_BYTES_NS:
                self._requests.pop(key, None)
                try:
                    socket.socket.shutdown(request, socket.SHUT_RD)  # TLS's own would go on in the clear
                except OSError:
                    pass  # the client was faster
