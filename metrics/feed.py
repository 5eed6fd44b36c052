"""The feed: tells an exporter about the slots of children that were forked after it.

One packet for each slot, over a pair of SEQPACKET sockets that the master creates before the fork: serial, number and
shape, and a read-only descriptor of the slot. The master sends and must never block; the exporter receives whenever
something has arrived. Each side closes its copy of the other's end.
"""

import errno
import mmap
import os
import select
import socket
import struct
import threading
from collections.abc import Iterator

from .board import Board, BoardReader, Snapshot
from .scoreboard import Slot, SlotReader

REST_S = 0.1  # what comes within it is taken at once; the feed holds 277 slots
SPARE_SLOTS = 64  # folded slots that may be held, beside as many as there are live ones
NAME = struct.Struct("=QQQQQ")  # the packet of a slot: its serial, the number of its child, and its shape


def read_only(fd: int) -> int:
    """Return a descriptor by which this memory can only be read; without /proc a copy, which is only mapped so."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return os.dup(fd)


class Feed:
    """The socket pair over which the master sends an exporter the slots of children that were forked after it."""

    def __init__(self) -> None:
        self._ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.setblocking(False)

    def send(self, serial: int, reader: SlotReader) -> bool:
        """Send a slot and return whether that succeeded. An exporter that takes no more is stuck or dead.

        Raises OSError where this process has no descriptor free for it, which is not the exporter's fault.
        """
        fd = read_only(reader.slot.fd)
        try:
            socket.send_fds(
                self._ours, [NAME.pack(serial, reader.number, *reader.slot.shape)], [fd], socket.MSG_NOSIGNAL
            )
        except OSError:
            return False
        finally:
            os.close(fd)
        return True

    def keep_theirs(self) -> None:
        """Close the master's end, in the exporter."""
        self._ours.close()

    def keep_ours(self) -> None:
        self.theirs.close()

    def close(self) -> None:
        self._ours.close()
        self.theirs.close()


class Arrivals:
    """The exporter's end of the feed. `fileno()` is readable while something is on it.

    The master of an image that was replaced has closed its end: nothing comes any more then, and the end of file must
    not wake the exporter again and again.
    """

    def __init__(self, feed: socket.socket) -> None:
        self._feed = feed
        feed.setblocking(False)
        self._epoll = select.epoll()
        self._epoll.register(feed, select.EPOLLIN)
        self._ended = False

    def fileno(self) -> int:
        return self._epoll.fileno()

    def rest(self, resting: bool) -> bool:
        """Be readable no more until told so, whatever comes; but for the end of file. Return False if the kernel has no
        memory for that."""
        try:
            if not self._ended:
                self._epoll.modify(self._feed, 0 if resting else select.EPOLLIN)
        except OSError:
            return False
        return True

    def take(self) -> Iterator[tuple[bytes, int]]:
        """Yield each packet, and the descriptor that came with it. Raises OSError if it came without, which is how the
        kernel tells that none is free (recvmsg(2), MSG_CTRUNC)."""
        while not self._ended:
            try:
                name, fds, _, _ = socket.recv_fds(self._feed, NAME.size, 1)
            except BlockingIOError:
                return
            if not name:
                self._ended = True
                self._epoll.unregister(self._feed)
            elif not fds:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            else:
                yield name, fds[0]


class Slots:
    """The slots that the exporter knows, read-only: those it was forked with, and those that came over the feed.

    A process that lives for one request costs an exporter that nobody scrapes next to nothing: what comes is taken by
    the batch, and mapped when it is first read, or is still there when the board is looked at for many.
    """

    def __init__(self, board: Board, feed: socket.socket) -> None:
        self._arrivals = Arrivals(feed)
        self.look_again_at: float | None = None  # monotonic; until then what comes wakes nobody
        self.failed: OSError | None = None  # why a slot was lost on its way: only a new exporter knows every one again
        fd = read_only(board.fd)
        try:
            self._board = BoardReader(mmap.mmap(fd, 0, prot=mmap.PROT_READ))
        finally:
            os.close(fd)
        self._readers: dict[int, SlotReader] = {}
        # Not mapped yet: number, descriptor and shape.
        self._arrived: dict[int, tuple[int, int, tuple[int, int, int]]] = {}
        self._last = 0  # the highest serial seen on the board
        self._most = SPARE_SLOTS  # with more slots than these it is time to look which are folded
        for serial, reader in board.readers().items():
            fd = read_only(reader.slot.fd)
            self._map(serial, reader.number, fd, reader.slot.shape)
        self._lock = threading.Lock()

    def snapshot(self, *, application: bool = False) -> Snapshot:
        with self._lock:
            snapshot = self._board.snapshot(self._reader, application=application)
            self._forget_folded(snapshot.serials)
            return snapshot

    def _forget_folded(self, on_board: frozenset[int]) -> None:
        """Let go of the slots that are on the board no more.

        Each serial goes over the feed and onto the board before the next one is given out. So one that is not on the
        board, and not above one that is or was, has been folded, whether or not we ever saw it there.
        """
        self._last = max(self._last, 0, *on_board)
        for serial in [each for each in self._readers if each not in on_board and each <= self._last]:
            self._readers.pop(serial).slot.close()
        for serial in [each for each in self._arrived if each not in on_board and each <= self._last]:
            os.close(self._arrived.pop(serial)[1])
        self._most = 2 * len(self._readers) + SPARE_SLOTS

    def receive(self, now: float) -> None:
        """Receive the slots that came over the feed, and let go of those that have been folded.

        Otherwise an exporter that is never scraped would hold every slot there ever was. Only when it is quiet, or
        there are many: at 300 forks a second a look for each took a fifth of a core, and a turn for each a twelfth.
        """
        with self._lock:
            came = self._receive()
            quiet = not came and self.look_again_at is not None
            if came or quiet:
                changed = self._arrivals.rest(came)
                self.look_again_at = now + REST_S if came or not changed else None
            if quiet or len(self._readers) + len(self._arrived) > self._most or len(self._arrived) > SPARE_SLOTS:
                self._forget_folded(self._board.serials())
                for serial in list(self._arrived):
                    self._reader(serial)

    def _reader(self, serial: int) -> SlotReader | None:
        if serial not in self._readers:
            self._receive()
            if serial in self._arrived:
                try:
                    self._map(serial, *self._arrived.pop(serial))
                except OSError as exc:
                    self.failed = exc
        return self._readers.get(serial)

    def _receive(self) -> bool:
        """Receive what has come; return whether anything has."""
        before = len(self._arrived)
        try:
            for name, fd in self._arrivals.take():
                serial, number, lanes, listeners, size = NAME.unpack(name)
                self._arrived[serial] = number, fd, (lanes, listeners, size)
        except OSError as exc:
            self.failed = exc
        return len(self._arrived) > before

    def _map(self, serial: int, number: int, fd: int, shape: tuple[int, int, int]) -> None:
        """Map a slot by the shape that the master sent: a child that corrupts its slot must not hide the others."""
        self._readers[serial] = SlotReader(Slot.view(fd, shape), number)

    def fileno(self) -> int:
        return self._arrivals.fileno()
