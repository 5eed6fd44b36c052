"""The connections of a holder: idle ones in the order of their idleness, short ones, and those that nobody takes yet.

    park queue ─▶ take ─▶ idle ──────▶ readable ─▶ pass on ─▶ ready queue
                    │  ─▶ short ─────▶ enough   ─▶    │
                    └ read ahead, or to be closed ─▶  └──▶ backlog, while that is full

Runs in the holder only, and owns every descriptor in it. Must not read a byte of a client's, nor block. What is passed
on is a worker's from then on. Who closes a connection counts it: one whose handler wants to hear of the end is passed
on with the reason. A connection that belongs to nobody's message is in one of three tables, and in the gauge of its
listener. Longer than most files: all that can become of a connection reads here in one piece.
"""

import fcntl
import os
import socket
import sys
import termios
from collections import OrderedDict, deque
from heapq import heapify, heappop, heappush
from select import EPOLLIN, EPOLLRDHUP, epoll
from typing import NamedTuple

from prefork.metrics.facts import CloseReason, Refusal
from prefork.metrics.histogram import NS
from prefork.metrics.scoreboard import ACCEPTED, CLOSED, IDLE_HERE, REJECTED, Slot
from prefork.workers.kept import (
    CLOSING,
    HANDED_OVER,
    MESSAGE_VERSION,
    SHORT,
    SILENT,
    SLOW,
    TELL_END,
    QueueEnd,
    cell_of,
    changed,
    end_connection,
    has_unread,
    since_of,
    wanted_of,
)
from prefork.workers.kept_cells import KeptCells

WATCHED = EPOLLIN | EPOLLRDHUP
UNIX_LOOK_S = 0.02  # for a Unix socket the kernel knows no least number of bytes
# An attempt that fails with ETOOMANYREFS gives its buffer back, which the kernel takes for room, and says so.
FLUSH_AGAIN_S = 0.002
# A connection that comes back so soon, and before any other came, is in the midst of something, and had better linger.
QUICK_S = 0.005
STALE_ENTRIES = 100  # of silent ones that have spoken since: as many are left in any case before all are taken out
_FLAGS, _LISTENER = 1, 2  # bytes of a message


class Bounds(NamedTuple):
    """The bounds of what a holder has. Times are in seconds."""

    keepalive_timeout: float | None  # None: no limit
    incomplete_timeout: float
    most_idle: int  # connections
    most: int  # connections for which there are descriptors, and for one more


class Connections:
    """All connections of one holder."""

    def __init__(
        self, bounds: Bounds, slot: Slot, watch: epoll, ready: QueueEnd, cells: KeptCells | None = None
    ) -> None:
        """`cells`: where each is counted, if their number is limited."""
        self.bounds = bounds
        self._timeout = float("inf") if bounds.keepalive_timeout is None else bounds.keepalive_timeout
        self.idle: OrderedDict[int, tuple[bytes, float]] = OrderedDict()  # by descriptor: message, since when
        self.short: dict[int, tuple[bytes, float]] = {}
        self.backlog: deque[tuple[int, bytes]] = deque()
        self.ending = False  # the service ends: nothing stays
        self.look_at = float("inf")  # when `look()` is to be called; where there is a backlog, after whatever happens
        self._slot = slot
        self._words = {number: slot.of_listener(number).lane(0) for number in slot.numbers}
        self._watch = watch
        self._ready = ready
        self._cells = cells
        self._flush_at = 0.0  # no earlier
        self._silent: list[tuple[float, int, bytes]] = []  # a heap: when it ends, descriptor, message; or it has spoken
        self._looked_at: dict[int, int] = {}  # short Unix connections: the number of bytes that each must have
        self._look_at_short = float("inf")  # at their deadlines
        self._look_at_bytes = 0.0  # at those of a Unix socket

    def __len__(self) -> int:
        return len(self.idle) + len(self.short) + len(self.backlog)

    def has_room(self) -> bool:
        """Return True if another one may be received. If it is one too many, the longest idle one goes for it."""
        return len(self) <= self.bounds.most

    # What comes.

    def take(self, message: bytes, fd: int, now: float) -> None:
        """Take a connection from a message."""
        words = self._words.get(message[_LISTENER]) if message[0] == MESSAGE_VERSION else None
        if words is None:  # no listener of this image, or of a version that it does not know
            self.close(message, fd)
            return
        if fd == -1:
            words[CLOSED + CloseReason.LOST] += 1
            self._drop(message)
            return
        words[IDLE_HERE] += 1
        if self._cells is not None:
            self._cells.take(cell_of(message))
        flags = message[_FLAGS]
        if flags & CLOSING:
            self._pass_on(fd, message)
        elif flags & SHORT:
            self._take_short(fd, message, now)
        elif has_unread(message):
            self._pass_on(fd, message)
        elif self.ending:
            self._end_idle(fd, message)
        elif self._watches(fd, message, WATCHED):
            since = now
            if flags & HANDED_OVER:
                # A holder sends the longest idle one last, and each goes before the others.
                since = since_of(message) / NS
                self.idle[fd] = changed(message, flags & ~HANDED_OVER), since
                self.idle.move_to_end(fd, last=False)
            else:
                self.idle[fd] = message, now
                if flags & SILENT:
                    self._note_silent(since_of(message) / NS, fd, message)
            self.look_at = min(self.look_at, since + self._timeout)
        waiting = len(self.idle) + len(self.short)
        if waiting > self.bounds.most_idle or waiting + len(self.backlog) > self.bounds.most:
            self._evict()

    def _take_short(self, fd: int, message: bytes, now: float) -> None:
        since = (since_of(message) or int(now * NS)) / NS
        message = changed(message, message[_FLAGS], since_ns=int(since * NS))
        if self.ending:
            self._end(fd, message, CloseReason.DRAINED)
            return
        wanted = wanted_of(message)
        sock = socket.socket(fileno=fd)
        try:
            look = sock.family == socket.AF_UNIX
            if not look:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wanted)
        except OSError:
            look = False  # it is reset
        finally:
            sock.detach()
        if self._watches(fd, message, EPOLLRDHUP if look else WATCHED):
            self.short[fd] = message, since
            if look:
                self._looked_at[fd] = wanted
            self._look_at_short = min(self._look_at_short, since + self.bounds.incomplete_timeout)
            self.look_at = min(self.look_at, now if look else self._look_at_short)

    def _watches(self, fd: int, message: bytes, events: int) -> bool:
        """Wait for this connection. Where the kernel has no memory for that, the longest idle one goes, or this."""
        while True:
            try:
                self._watch.register(fd, events)
                return True
            except OSError:  # ENOMEM, or ENOSPC: epoll(7), max_user_watches
                if not self._evict():
                    self._end(fd, message, CloseReason.EVICTED)
                    return False

    # What becomes of it.

    def on_event(self, fd: int, event: int, now: float) -> None:
        """Pass on a connection that has become readable, or end it if it is at its end."""
        entry = self.idle.pop(fd, None)
        if entry is not None:
            self._watch.unregister(fd)
            message, since = entry
            if event == EPOLLIN or _bytes_at_hand(fd):
                if message[_FLAGS] & SLOW and now - since < QUICK_S and self._came_last(since):
                    message = changed(message, message[_FLAGS] & ~SLOW)
                self._pass_on(fd, message)
            else:
                self._end(fd, message, CloseReason.CLIENT)
        elif fd in self.short:
            message = self._forget_short(fd)
            if event == EPOLLIN:
                self._pass_on(fd, changed(message, message[_FLAGS] & ~SHORT, since_ns=since_of(message)))
            elif has_unread(message) or _bytes_at_hand(fd):
                self._pass_on(fd, message)
            else:
                self._end(fd, message, CloseReason.CLIENT)

    def _came_last(self, since: float) -> bool:
        """Return whether no other connection has become idle since then: one would not let it linger."""
        last = next(reversed(self.idle.values()), None)
        return last is None or last[1] <= since

    def look(self, now: float) -> float:
        """End what has been idle or short for too long, and try what nobody has taken. Return when to look again."""
        again = float("inf")
        if self.backlog and now < self._flush_at:
            again = self._flush_at
        elif self.backlog:
            self.flush()
            self._flush_at = now + FLUSH_AGAIN_S
        if self._looked_at and now >= self._look_at_bytes:
            self._look_at_bytes = now + UNIX_LOOK_S
            for fd, wanted in list(self._looked_at.items()):
                if _bytes_at_hand(fd) >= wanted:
                    self.on_event(fd, EPOLLIN, now)
        if self._looked_at:
            again = self._look_at_bytes
        if self.backlog:
            again = min(again, now + UNIX_LOOK_S)
        if now >= self._look_at_short:
            self._expire_short(now)
        self.look_at = min(again, self._look_at_short, self._expire_silent(now), self._expire_idle(now))
        return self.look_at

    def _expire_idle(self, now: float) -> float:
        while self.idle:
            fd, (message, since) = next(iter(self.idle.items()))
            if since + self._timeout > now:
                return since + self._timeout
            self._forget_idle(fd)
            self._end_idle(fd, message, CloseReason.IDLE_TIMEOUT)
        return float("inf")

    def _note_silent(self, until: float, fd: int, message: bytes) -> None:
        if len(self._silent) > 2 * len(self.idle) + STALE_ENTRIES:  # most have spoken, long before their time
            self._silent = [each for each in self._silent if self._is_silent(*each)]
            heapify(self._silent)
        heappush(self._silent, (until, fd, message))
        self.look_at = min(self.look_at, until)

    def _is_silent(self, until: float, fd: int, message: bytes) -> bool:
        return self.idle.get(fd, (b"",))[0] is message

    def _expire_silent(self, now: float) -> float:
        while self._silent:
            until, fd, message = self._silent[0]
            if self._is_silent(until, fd, message):
                if until > now:
                    return until
                self._forget_idle(fd)
                words = self._words[message[_LISTENER]]
                words[ACCEPTED] += 1
                words[REJECTED + Refusal.FIRST_BYTE] += 1  # as where a worker has waited for it
                self._end_idle(fd, message, CloseReason.IDLE_TIMEOUT)
            heappop(self._silent)
        return float("inf")

    def _expire_short(self, now: float) -> None:
        timeout = self.bounds.incomplete_timeout
        self._look_at_short = float("inf")
        for fd, (message, since) in list(self.short.items()):
            if since + timeout <= now:
                self._forget_short(fd)
                self._end(fd, message, CloseReason.IDLE_TIMEOUT)
            else:
                self._look_at_short = min(self._look_at_short, since + timeout)

    def _evict(self) -> bool:
        """End the longest idle connection. Return whether there is room for another one now."""
        before = len(self)
        if self.idle:
            fd, (message, _) = self.idle.popitem(last=False)
            self._watch.unregister(fd)
            self._end_idle(fd, message, CloseReason.EVICTED)
        elif self.short:
            fd = next(iter(self.short))
            self._end(fd, self._forget_short(fd), CloseReason.EVICTED)
        return len(self) < before

    # The three ends of a connection's time here.

    def flush(self) -> None:
        """Send what has waited for room in the ready queue."""
        backlog = self.backlog
        while backlog and self._sent(self._ready, *backlog[0]):
            backlog.popleft()

    def _pass_on(self, fd: int, message: bytes) -> None:
        if self.backlog or not self._sent(self._ready, fd, message):
            self.backlog.append((fd, message))

    def _sent(self, queue: QueueEnd, fd: int, message: bytes) -> bool:
        """Return False if the queue is full. Counted first: killed in between, it must not be counted twice."""
        words = self._words[message[_LISTENER]]
        cells = self._cells
        words[IDLE_HERE] -= 1
        if cells is not None:
            cells.park(cell_of(message))
        try:
            if not queue.send(message, fd):
                words[IDLE_HERE] += 1
                if cells is not None:
                    cells.take(cell_of(message))
                return False
        except OSError:  # nobody has the other end any more, or the kernel's buffers are too small for this message
            words[CLOSED + CloseReason.LOST] += 1
            self._drop(message)
            end_connection(fd)
        else:
            os.close(fd)
        return True

    def _end(self, fd: int, message: bytes, reason: CloseReason) -> None:
        """Close a connection, or have a worker do so whose handler wants to hear of it, while there is room."""
        flags = message[_FLAGS]
        if flags & TELL_END and self.has_room():
            self._pass_on(fd, changed(message, flags & ~SHORT | CLOSING, reason + 1))
        else:
            self._close(fd, message, reason)

    def _end_idle(self, fd: int, message: bytes, reason: CloseReason = CloseReason.DRAINED) -> None:
        """The same for one that is not watched any more; if bytes have just come, it is passed on."""
        if _bytes_at_hand(fd):
            self._pass_on(fd, message)
        else:
            self._end(fd, message, reason)

    def _close(self, fd: int, message: bytes, reason: CloseReason) -> None:
        words = self._words[message[_LISTENER]]
        words[IDLE_HERE] -= 1
        words[CLOSED + reason] += 1
        self._drop(message)
        end_connection(fd)

    def _drop(self, message: bytes) -> None:
        if self._cells is not None:
            self._cells.drop(cell_of(message))

    def _forget_idle(self, fd: int) -> bytes:
        message, _ = self.idle.pop(fd)
        self._watch.unregister(fd)
        return message

    def _forget_short(self, fd: int) -> bytes:
        message, _ = self.short.pop(fd)
        self._watch.unregister(fd)
        if self._looked_at.pop(fd, None) is None:
            sock = socket.socket(fileno=fd)
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)  # else a handler's read would wait for more
            finally:
                sock.detach()
        return message

    # All of them.

    def end_all(self) -> None:
        """The service ends: end what is idle, and from now on what becomes so."""
        self.ending = True
        while self.idle:
            fd, (message, _) = self.idle.popitem(last=False)
            self._watch.unregister(fd)
            self._end_idle(fd, message)
        for fd in list(self.short):
            self._end(fd, self._forget_short(fd), CloseReason.DRAINED)

    def close_all(self) -> None:
        """Close everything at once. It can be used for nothing afterwards; nor after `hand_over()`."""
        for fd, (message, _) in (*self.idle.items(), *self.short.items()):
            self._close(fd, message, CloseReason.DRAINED)
        for fd, message in self.backlog:
            self._close(fd, message, CloseReason.DRAINED)
        self.idle.clear()
        self.short.clear()
        self.backlog.clear()

    def close(self, message: bytes, fd: int) -> None:
        """Close a connection from a message at once."""
        if message[0] == MESSAGE_VERSION:
            self._drop(message)
            if (words := self._words.get(message[_LISTENER])) is not None:
                words[CLOSED + CloseReason.DRAINED] += 1
        if fd != -1:
            end_connection(fd)

    def hand_over(self, park: QueueEnd) -> bool:
        """Send everything to the next holder. Return False if the queue is full; then try again."""
        while self.backlog:
            fd, message = self.backlog[0]
            if not self._sent(park, fd, message):
                return False
            self.backlog.popleft()
        for fd, (message, _) in list(self.short.items()):
            if not self._sent(park, fd, message):
                return False
            del self.short[fd]
        while self.idle:
            fd, (message, since) = self.idle.popitem()
            handed = message
            if not message[_FLAGS] & SILENT:
                handed = changed(message, message[_FLAGS] | HANDED_OVER, since_ns=int(since * NS))
            if not self._sent(park, fd, handed):
                self.idle[fd] = message, since
                return False
        return True


def _bytes_at_hand(fd: int) -> int:
    """Return how many bytes can be read at once; 0 too where there is only the end to be read."""
    try:
        return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)
    except OSError:
        return 0
