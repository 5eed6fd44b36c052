"""The accept queues of the listeners as the master sees them: their length, and how they are closed when the service
ends.

Runs in the master, which must not accept. Owns whether a listener has been narrowed, and when something was last seen
in its queue.
"""

import logging
import socket
from collections.abc import Sequence

from prefork.metrics.kernel import accept_queue, datagram_queue
from prefork.metrics.log_events import LogEvent, event
from prefork.workers.kept import QueueEnd

from ..errors import reason_of
from ..sockets.addresses import address_text
from ..sockets.listener import Listener, origin_of
from ..sockets.shared import is_shut, listen_again, narrow, queued

log = logging.getLogger("prefork.supervisor")


class AcceptQueue:
    """The accept queue of one listener, or of none.

    `queued_at` is when something was last queued for us. It is no longer updated once the queue is not ours to serve.
    `origin` is the Listener that knows it, also where the program has wrapped it (TLS).
    """

    def __init__(self, listener: socket.socket | None, others: Sequence[socket.socket] = ()) -> None:
        """`others`: the sockets of the other workers, where each has its own."""
        self._listener = listener
        self._others = others
        self.origin = origin_of(listener)
        self._narrowed = False
        self._serves_queue = listener is not None
        self._name = None if listener is None or listener.fileno() == -1 else listener.getsockname()
        self._given_up = False  # it was shut down for good
        self.queued_at = 0.0

    def narrow(self, now: float) -> None:
        """Refuse new connections; only the first call has an effect. The workers serve the queue to its end, unless
        another process holds the listener too."""
        if not self._narrowed:
            self._narrowed = True
            self._serves_queue = self._listener is not None and narrow(self._listener)
            for each in self._others:
                narrow(each)
            self.queued_at = now if self._serves_queue else float("-inf")

    def look(self, now: float) -> bool:
        """Return whether something is queued for us now, and note the time if so.

        Before the end that is nothing to plan by where each worker has a socket of its own: no other may help.
        """
        if self._listener is not None and not (self._narrowed or self._given_up) and is_shut(self._listener):
            self._listen_again(self._listener)
        waiting = self._serves_queue and self._listener is not None and queued(self._listener)
        if self._serves_queue and self._others:
            waiting = waiting or any(map(queued, self._others))
        if waiting:
            self.queued_at = now
        return waiting and (self._narrowed or not self._others)

    def _listen_again(self, listener: socket.socket) -> None:
        """Undo what only a process of the service's own can do, once where that is in vain."""
        where = address_text(self._name)
        try:
            what = listen_again(listener, self._name)
        except OSError as exc:
            what = f"no new client can connect there until a restart ({reason_of(exc)})"
        self._given_up = is_shut(listener)
        log.error("%s was shut down by a process of the service: %s", where, what,
                  extra=event(LogEvent.LISTENER_SHUT, address=where, reason=what))  # fmt: skip

    def queue_length(self) -> int:
        """Return how many connections wait; 0 for datagrams, and where the kernel does not tell."""
        listener = self._listener
        if listener is None or listener.fileno() == -1 or listener.type == socket.SOCK_DGRAM:
            return 0
        return accept_queue(listener)[0] or 0

    def datagrams_dropped(self) -> int | None:
        """Return how many datagrams the kernel has dropped for want of room; None where it does not tell."""
        return None if self._listener is None else datagram_queue(self._listener, *self._others)[1]

    def kept(self) -> tuple[int, str] | None:
        """Return the descriptor and name of the listener for a service manager to keep over a crash.

        None for an inherited listener: the manager that passed it on still has it; and where each worker has a socket,
        which only make a group again if they are bound anew.
        """
        origin = self.origin
        if (
            self._listener is not None
            and origin is not None
            and origin.asked
            and not (origin.inherited or self._others)
        ):
            return self._listener.fileno(), origin.asked
        return None


class AcceptQueues:
    """The queues of a service from which workers take, as one: the accept queues of all listeners, and that of the kept
    connections which are ready."""

    def __init__(
        self, listeners: Sequence[socket.socket], others: Sequence[socket.socket] = (), ready: QueueEnd | None = None
    ) -> None:  # fmt: skip
        """`others`: beside the only listener, where each worker has a socket of its own."""
        self._each = [AcceptQueue(listener, others) for listener in listeners]
        self._ready = ready
        self._ready_at = float("-inf")

    @property
    def origins(self) -> tuple[Listener, ...]:
        return tuple(each.origin for each in self._each if each.origin is not None)

    @property
    def queued_at(self) -> float:
        """The time at which something was last queued for us, at any of them."""
        return max(self._ready_at, max((each.queued_at for each in self._each), default=0.0))

    def narrow(self, now: float) -> None:
        for each in self._each:
            each.narrow(now)

    def look(self, now: float) -> bool:
        """Return whether something is queued for us now, at any of them."""
        waiting = [each.look(now) for each in self._each]  # each, for the time at which it last was
        return self._look_at_ready(now) or any(waiting)

    def _look_at_ready(self, now: float) -> bool:
        if self._ready is None or not queued(self._ready):
            return False
        self._ready_at = now
        return True

    def note_coming(self, now: float) -> None:
        """Note that the holder still has connections, which it closes or passes on: the service is not quiet yet."""
        self._ready_at = now

    def queue_length(self) -> int:
        return sum(self.queue_lengths())

    def queue_lengths(self) -> list[int]:
        return [each.queue_length() for each in self._each]

    def datagrams_dropped(self) -> int | None:
        told = [dropped for each in self._each if (dropped := each.datagrams_dropped()) is not None]
        return sum(told) if told else None

    def kept(self) -> list[tuple[int, str]]:
        return [kept for each in self._each if (kept := each.kept()) is not None]
