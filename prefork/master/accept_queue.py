"""The door: the listener as the master sees it. What waits there, and how it is narrowed when the service ends.

Runs in the master, which never accepts. Owns whether the door is narrow, and when somebody was last seen before it.
"""

import socket

from prefork.metrics.kernel import accept_queue

from ..sockets.listener import Listener, narrow, queued


class AcceptQueue:
    """`queued_at` is when something was last queued for us; it stays behind once the queue is not ours to serve."""

    def __init__(self, listener: socket.socket | None) -> None:
        self._listener = listener
        self._narrowed = False
        self._serves_queue = listener is not None
        self.queued_at = 0.0

    def narrow(self, now: float) -> None:
        """Let nobody new in, once. The queue is served to its end, where it is nobody else's as well."""
        if not self._narrowed:
            self._narrowed = True
            self._serves_queue = self._listener is not None and narrow(self._listener)
            self.queued_at = now if self._serves_queue else float("-inf")

    def look(self, now: float) -> bool:
        """Whether something is queued for us now."""
        waiting = self._serves_queue and self._listener is not None and queued(self._listener)
        if waiting:
            self.queued_at = now
        return waiting

    def queue_length(self) -> int:
        """How many connections wait; 0 for datagrams, and where the kernel does not tell."""
        listener = self._listener
        if listener is None or listener.fileno() == -1 or listener.type == socket.SOCK_DGRAM:
            return 0
        return accept_queue(listener)[0] or 0

    def kept(self) -> tuple[int, str] | None:
        """What a service manager may keep for us over a crash: what it gave us it has itself."""
        listener = self._listener
        if isinstance(listener, Listener) and listener.asked and not listener.inherited:
            return listener.fileno(), listener.asked
        return None
