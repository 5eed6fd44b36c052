"""The hand-over of a new log file to every process of a service: the master opens it, and hands its descriptor on.

The master makes one before the first fork. A worker that has changed its user, its root or its descriptors' limit could
not open the file by its path. One message lies in a socket pair, with the descriptor; whoever wants it looks at it and
leaves it there for the others (MSG_PEEK, which duplicates descriptors; unix(7)). Must never block.
"""

import array
import contextlib
import os
import socket

NUMBER_BYTES = 8


class LogHanding:
    """The pair. Only the master calls `hand()`; any process may `look()`.

    A process of the service may shut it down, shutdown(2), for all that have it. The master makes another then, under
    the same numbers, and sets `anew`: whoever was forked before has the old one.
    """

    def __init__(self, fds: tuple[int, int] | None = None) -> None:
        """`fds`: the pair that an earlier image of this process made, which its children hold."""
        if fds is None:
            self._in, self._out = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        else:
            self._in, self._out = (socket.socket(fileno=fd) for fd in fds)
        self.fds = self._in.fileno(), self._out.fileno()
        self.anew = False

    def hand(self, number: int, fd: int) -> None:
        """Put this descriptor in place of the one before. Raises OSError; then there is none."""
        with contextlib.suppress(OSError):
            while self._out.recv(NUMBER_BYTES, socket.MSG_DONTWAIT):
                pass
        try:
            self._send(number, fd)
        except BrokenPipeError:
            self._make_anew()
            self._send(number, fd)

    def _send(self, number: int, fd: int) -> None:
        flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
        socket.send_fds(self._in, [number.to_bytes(NUMBER_BYTES, "little")], [fd], flags)

    def _make_anew(self) -> None:
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with one, other:
            for anew, ours in zip((one, other), self.fds, strict=True):
                os.dup2(anew.fileno(), ours, inheritable=False)
        self.anew = True

    def look(self, number: int) -> int | None:
        """Return a copy of the descriptor with this number; None if it is not there, or no descriptor is free."""
        space = socket.CMSG_SPACE(array.array("i", [0]).itemsize)
        flags = socket.MSG_PEEK | socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        try:
            found, ancillary, _, _ = self._out.recvmsg(NUMBER_BYTES, space, flags)
        except OSError:
            return None
        fds = array.array("i")
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        if int.from_bytes(found, "little") == number and len(fds) == 1:
            return fds[0]
        for fd in fds:
            os.close(fd)
        return None
