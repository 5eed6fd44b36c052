"""The accept queues of the listeners as the master sees them: their length, and how they are closed when the service
ends.

Runs in the master, which must not accept. Owns whether a listener has been narrowed, and when something was last seen
in its queue.
"""

import errno
import socket
from collections.abc import Callable, Sequence
from math import inf
from typing import NamedTuple

from prefork.metrics.kernel import accept_queue, datagram_queue
from prefork.workers.accepting import is_shut
from prefork.workers.kept import QueueEnd

from ..errors import reason_of
from ..sockets.listener import Listener, origin_of
from ..sockets.mending import Mended, mend, say_shut
from ..sockets.shared import narrow, queued

TRY_AGAIN_S = 10.0  # where a listener could not be mended for a reason that passes, as clients or files that are open
PASSING = (errno.EADDRINUSE, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Mending(NamedTuple):
    """The terms of what is done with a listener that a worker has shut down."""

    starts_workers: bool = True  # False in a master without its program
    let_go: Callable[[], None] = lambda: None  # called before it becomes another socket, to wait for it no more


AS_EVER = Mending()


class AcceptQueue:
    """The accept queue of one listener, or of none.

    `queued_at` is when something was last queued for us. It is no longer updated once the queue is not ours to serve.
    `origin` is the Listener that knows it, also where the program has wrapped it (TLS).
    """

    def __init__(
        self, listener: socket.socket | None, others: Sequence[socket.socket] = (), mending: Mending = AS_EVER
    ) -> None:  # fmt: skip
        """`others`: the sockets of the other workers, where each has its own."""
        self._listener = listener
        self._others = others
        self.origin = origin_of(listener)
        self._narrowed = False
        self._serves_queue = listener is not None
        self._name = None if listener is None or listener.fileno() == -1 else listener.getsockname()
        self._mending = mending
        self._mend_at = 0.0  # not before that; inf: it was shut down for good
        self.bound_anew = False  # it is another socket, of which no child has a copy
        self.reachable = True  # False while it is shut down, and no client comes
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
        if not self._narrowed and self._listener is not None and (now >= self._mend_at or not self.reachable):
            if not self._is_shut():
                self.reachable = True  # also by the program's own doing
            elif now >= self._mend_at:
                self._mend(self._listener, now)
        waiting = self._serves_queue and self._listener is not None and queued(self._listener)
        if self._serves_queue and self._others:
            waiting = waiting or any(map(queued, self._others))
        if waiting:
            self.queued_at = now
        return waiting and (self._narrowed or not self._others)

    def _is_shut(self) -> bool:
        return any(each is not None and is_shut(each.fileno()) for each in (self._listener, *self._others))

    def _mend(self, listener: socket.socket, now: float) -> None:
        """Undo what only a process of the service's own can do, once where that is in vain."""
        self._mending.let_go()
        try:
            mended = mend(listener, self._name, starts_workers=self._mending.starts_workers)
        except OSError as exc:
            again_s = TRY_AGAIN_S if exc.errno in PASSING else inf
            until = " until a restart" if again_s == inf else f", which is tried again in {again_s:g} s"
            mended = Mended(f"no new client can connect there{until} ({reason_of(exc)})", False, again_s, False)
        self.bound_anew, self.reachable = self.bound_anew or mended.anew, mended.reachable
        self._mend_at = now + mended.again_after_s
        say_shut(self._name, mended.text)

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
        self, listeners: Sequence[socket.socket], others: Sequence[socket.socket] = (), ready: QueueEnd | None = None,
        mending: Mending = AS_EVER,
    ) -> None:  # fmt: skip
        """`others`: beside the only listener, where each worker has a socket of its own."""
        self._each = [AcceptQueue(listener, others, mending) for listener in listeners]
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

    @property
    def reachable(self) -> bool:
        """False while any of them was shut down, and no client comes there."""
        return all(each.reachable for each in self._each)

    def bound_anew(self) -> bool:
        """Return whether any has become another socket since the last call, of which no child has a copy."""
        anew = [each for each in self._each if each.bound_anew]
        for each in anew:
            each.bound_anew = False
        return bool(anew)

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
