"""The feed: how an exporter gets to know the slots of children that come after it.

One packet for each slot, over a pair of SEQPACKET sockets that the master makes before the fork: serial, number and
shape, and a descriptor of the slot that can only read. The master sends and never waits; the exporter receives whenever
something is there. Either end closes its copy of the other's.
"""

import mmap
import os
import socket
import struct
import threading

from .board import Board, BoardReader, Snapshot
from .scoreboard import Slot, SlotReader

NAME = struct.Struct("=QQQQ")  # of a slot on its way: serial, the number of its child, and its shape


class Feed:
    """The master's end of the socket pair over which the exporter gets the slots of children that come after it."""

    def __init__(self) -> None:
        self._ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.setblocking(False)

    def send(self, serial: int, reader: SlotReader) -> bool:
        """Whether the exporter got it; one that takes no more is wedged or dead."""
        try:
            fd = os.open(f"/proc/self/fd/{reader.slot.fd}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
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
        """In the exporter."""
        self._ours.close()

    def keep_ours(self) -> None:
        self.theirs.close()

    def close(self) -> None:
        self._ours.close()
        self.theirs.close()


class Slots:
    """Every slot the exporter knows, read-only: those it was forked with, and those that came over the feed."""

    def __init__(self, board: Board, feed: socket.socket) -> None:
        self._feed = feed
        feed.setblocking(False)
        fd = os.open(f"/proc/self/fd/{board.fd}", os.O_RDONLY | os.O_CLOEXEC)
        self._board = BoardReader(mmap.mmap(fd, 0, prot=mmap.PROT_READ))
        self._readers: dict[int, SlotReader] = {}
        self._last = 0  # the highest serial that was on the board
        for serial, reader in board.readers().items():
            fd = os.open(f"/proc/self/fd/{reader.slot.fd}", os.O_RDONLY | os.O_CLOEXEC)
            self._add(serial, reader.number, fd, reader.slot.shape)
        self._lock = threading.Lock()

    def snapshot(self, *, application: bool = False) -> Snapshot:
        with self._lock:
            snapshot = self._board.snapshot(self._reader, application=application)
            # A serial comes over the feed and then to the board before the next one is given: one that does not stand
            # there, behind one that does or did, is folded, whether we saw it there or not.
            self._last = max(self._last, 0, *snapshot.serials)
            for serial in [each for each in self._readers if each not in snapshot.serials and each <= self._last]:
                self._readers.pop(serial).slot.close()
            return snapshot

    def receive(self) -> None:
        """Take what came over the feed. Where something did, something may have ended: a look lets go of that, or an
        exporter that nobody scrapes would hold every slot there ever was."""
        with self._lock:
            known = len(self._readers)
            self._receive()
        if len(self._readers) > known:
            self.snapshot()

    def _reader(self, serial: int) -> SlotReader | None:
        if serial not in self._readers:
            self._receive()
        return self._readers.get(serial)

    def _receive(self) -> None:
        while True:
            try:
                name, fds, _, _ = socket.recv_fds(self._feed, NAME.size, 1)
            except BlockingIOError:
                return
            if not fds:
                return
            serial, number, *shape = NAME.unpack(name)
            self._add(serial, number, fds[0], (shape[0], shape[1]))

    def _add(self, serial: int, number: int, fd: int, shape: tuple[int, int]) -> None:
        """By the shape that the master says: what a child writes over its slot must not keep the others from view."""
        self._readers[serial] = SlotReader(Slot.view(fd, shape), number)

    def fileno(self) -> int:
        return self._feed.fileno()
