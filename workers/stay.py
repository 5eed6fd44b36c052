"""A stay: the time for which a worker has a kept connection in hand, from bytes at hand until there are none.

The contract between the handler (prefork/keepalive.py) and whoever gave it the connection (workers/keeping.py). The
handler finds its stay as `request.stay`; where the request has none (a plain server, TLS, a connection that a program's
`get_request()` has wrapped) it serves one request after another, and keeps its lane.
"""

import socket
from collections.abc import Callable

from .kept import Kept

MOST_REQUESTS = 8  # in one stay: others wait


class KeptSocket(socket.socket):
    """A connection that can be kept; `stay` is the present one."""

    __slots__ = ("stay",)

    stay: "Stay | None"


class Stay:
    """One stay. Made by `keeping` with the connection as it came; the handler's words of it are left here."""

    def __init__(self, kept: Kept, next_request: Callable[["Stay"], None]) -> None:
        """`next_request` counts the request that has ended, and begins to count the next one."""
        self.kept = kept  # as it came; `requests` are those before this stay
        self.begun = 1  # requests in this stay: the first was begun by `keeping`, as there are bytes at hand
        self.goes_on = False  # the handler leaves it to be kept, with `state` and `unread`; else it is closed
        self.state = kept.state  # encoded
        self.unread = kept.unread  # not yet read by a file of the handler's; at the end: what these had read ahead
        self._next_request = next_request

    def next_request(self) -> None:
        """Called by the handler between two requests of this stay."""
        self.begun += 1
        self._next_request(self)
