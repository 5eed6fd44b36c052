"""A stay: the time for which a worker has a kept connection in hand, from bytes at hand until there are none.

The contract between the handler (prefork/keepalive.py) and whoever gave it the connection (workers/keeping.py). The
handler finds its stay as `request.stay`; where the request has none (a plain server, TLS, a connection that a program's
`get_request()` has wrapped) it serves one request after another, and keeps its lane.

Bytes that were read ahead cannot be put back into the kernel: they are in `stay.unread`, and come first in whatever
reads through the connection's methods and files. A KeptFile that is closed gives back what it has not been asked for;
at the end of a stay all files are closed, whoever holds them.
Must not wait, and must not close a connection. Runs in a worker. Longer than most files: all ways in which a handler
may read stand together.
"""

import fcntl
import io
import select
import socket
import sys
import termios
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from weakref import ref

from .http_chunks import Chunks
from .kept import CLOSING, MET, SHORT, SILENT, Kept
from .socket_files import AcceptedSocket, SocketReader

MOST_REQUESTS = 8  # in one stay: others wait
UNREAD_MAX = 64 * 1024  # of a message, beside the state; files read no more ahead
WHOLE_MAX = 64 * 1024  # bytes that a `complete()` is shown; so many are given to the handler in any case
UNIX_MOST = 32  # bytes waited for: the kernel takes 70 of a client that waits for room, if it sends each by itself

TCP_RECEIVED = slice(128, 136)  # bytes of struct tcp_info, linux/tcp.h: tcpi_bytes_received
_PEEK = socket.MSG_PEEK | socket.MSG_DONTWAIT
_init, _recv, _recv_into = socket.SocketType.__init__, socket.SocketType.recv, socket.SocketType.recv_into


class Stay:
    """One stay. Made by `keeping` with the connection as it came; the handler's words of it are left here."""

    __slots__ = (
        "_next_request", "begun", "ends", "files", "goes_on", "has_read", "hung_up", "kept", "looks", "met", "more",
        "state", "unread", "wanted",
    )  # fmt: skip

    def __init__(
        self, kept: Kept, next_request: Callable[["Stay"], None], begun: int = 1, looks: bool = True,
        ends: Callable[[], bool] = bool,
    ) -> None:  # fmt: skip
        """`next_request` counts the request that has ended, and begins to count the next one.

        `begun`: 1 if `keeping` has begun a request, as there are bytes at hand; 0 if nobody has said anything, or the
        connection is to be closed. `looks`: after a request the handler asks whether the client has said more, or hung
        up; else that is left to the wait of whoever has the connection next. `ends`: whether nobody would take it from
        here, as the service ends.
        """
        self.kept = kept  # as it came; `requests` are those before this stay. CLOSING: to be closed, without a request
        self.begun = begun  # requests in this stay
        self.looks = looks
        self.ends = ends
        self.files: tuple[ref[Any], ...] = ()  # of the connection, with a buffer
        self.goes_on = False  # the handler leaves it to be kept, with what follows; else it is closed
        self.state = kept.state  # encoded
        self.unread = kept.unread  # not yet read by a file of the handler's; at the end: what these had read ahead
        self.more = False  # others wait, and there is more at hand: it is forwarded at once
        self.wanted = 0  # what is at hand is less than a request: the bytes that the kernel must have for another look
        self.met = bool(kept.flags & MET)  # `connection_opened()` was called, and `connection_closed()` was not
        self.has_read = False  # the handler has surely asked for bytes; else it may have, in a way that is not seen
        self.hung_up = False  # the client, as the handler has found out
        self._next_request = next_request

    def next_request(self) -> None:
        """Called by the handler between two requests of this stay, and before the first where `begun` is 0."""
        self.begun += 1
        self._next_request(self)

    def ahead(self) -> bytes:
        """Return what was read ahead, without taking it."""
        data = self.unread
        for each in reversed(self.files):
            file = each()
            if isinstance(file, _AHEAD) and not file.closed:
                data = file.ahead() + data
        return data

    def close_files(self) -> None:
        """Close the files that the program has left open: nothing can be read or written by them any more."""
        for each in reversed(self.files):
            file = each()
            if file is not None and not file.closed:
                with suppress(OSError):  # the client has gone, which whoever has it next will see
                    file.close()

    def left(self) -> Kept:
        """Return the connection as the handler has left it."""
        kept, wanted = self.kept, self.wanted
        over = SHORT | CLOSING | MET | (SILENT if self.begun else 0)
        flags = kept.flags & ~over | (MET if self.met else 0) | (SHORT if wanted else 0)
        return Kept(
            kept.listener, kept.requests + self.begun, kept.opened_ns, kept.client_address, self.state, self.unread,
            flags, wanted or 1, 0, 0 if self.begun else kept.since_ns, kept.cell,
        )  # fmt: skip

    def read(self, buffer: Any, *, keep: bool = False) -> int:
        """Move bytes that are unread into a buffer; `keep` them, as MSG_PEEK does."""
        with memoryview(buffer) as view, view.cast("B") as into:
            count = min(len(into), len(self.unread))
            into[:count] = self.unread[:count]
        if not keep:
            self.unread = self.unread[count:]
        return count


class KeptSocket(AcceptedSocket):
    """A connection that can be kept; `stay` is the present one. What it receives begins with what is unread."""

    __slots__ = ("stay",)

    stay: Stay | None

    def __init__(self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None) -> None:
        if fileno is None:
            super().__init__(family, type, proto)
        else:  # as socket.socket does, without a call
            _init(self, family, type, proto, fileno)
            self._io_refs, self._closed = 0, False
        self.stay = None  # of a copy by dup(), too

    def makefile(self, mode: str = "r", buffering: int | None = None, **text: Any) -> Any:
        if (stay := self.stay) is None:
            return super().makefile(mode, buffering, **text)
        if mode == "rb":
            reader = KeptReader(self, stay)
            if buffering == 0:
                return reader
            size = io.DEFAULT_BUFFER_SIZE if buffering == -1 else _buffer_size(buffering)
            file: Any = KeptFile(reader, size)
        elif "b" in mode and {*mode} <= {*"rb"}:
            return self.makefile("rb", buffering)
        elif not {*mode} <= {*"rwb"} or buffering == 0 or ("w" in mode and "r" not in mode):
            file = super().makefile(mode, buffering, **text)  # there is none such, or it reads nothing ahead
        elif "b" in mode:
            file = KeptPair(self, KeptReader(self, stay), _buffer_size(buffering))
        else:
            file = self._text(mode, buffering, **text)
        stay.files = (*stay.files, ref(file))
        return file

    def _text(
        self, mode: str, buffering: int | None, *, encoding: str | None = None, errors: str | None = None,
        newline: str | None = None,
    ) -> Any:  # fmt: skip
        """Open a file for text that reads nothing ahead, which nobody could tell of it."""
        binary = self.makefile("rwb" if "w" in mode else "rb", buffering)
        file: Any = io.TextIOWrapper(binary, io.text_encoding(encoding, 3), errors, newline)
        file.mode, file._CHUNK_SIZE = mode, 1
        return file

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        if (stay := self.stay) is None:
            return super().recv(bufsize, flags)
        if not flags:
            stay.has_read = True
        if not stay.unread:
            return super().recv(bufsize, flags)
        data = bytearray(bufsize)
        return bytes(data[: self.recv_into(data, bufsize, flags)])

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        if (stay := self.stay) is None:
            return super().recv_into(buffer, nbytes, flags)
        if not flags:
            stay.has_read = True
        if not stay.unread:
            return super().recv_into(buffer, nbytes, flags)
        with memoryview(buffer) as view, view.cast("B") as whole, whole[: nbytes or None] as into:
            count = stay.read(into, keep=bool(flags & socket.MSG_PEEK))
            if flags & socket.MSG_WAITALL and not flags & socket.MSG_PEEK and count < len(into):
                count += super().recv_into(into[count:], 0, flags)
        return count

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, Any]:
        if self.stay is None or not self.stay.unread:
            return super().recvfrom(bufsize, flags)
        return self.recv(bufsize, flags), None  # as the kernel has it for a stream

    def recvfrom_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> tuple[int, Any]:
        if self.stay is None or not self.stay.unread:
            return super().recvfrom_into(buffer, nbytes, flags)
        return self.recv_into(buffer, nbytes, flags), None

    def recvmsg(self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /) -> Any:
        if self.stay is None or not self.stay.unread:
            return super().recvmsg(bufsize, ancbufsize, flags)
        return self.recv(bufsize, flags), [], 0, None

    def recvmsg_into(self, buffers: Any, ancbufsize: int = 0, flags: int = 0, /) -> Any:
        if self.stay is None or not self.stay.unread:
            return super().recvmsg_into(buffers, ancbufsize, flags)
        return self.recv_into(next(iter(buffers)), 0, flags), [], 0, None


class KeptReader(SocketReader):
    """The raw file of a kept connection: it reads what is unread first, and notes its end."""

    __slots__ = ("chunks", "dry", "emptied", "received", "stay")

    def __init__(self, sock: KeptSocket, stay: Stay) -> None:
        self.closed = self._timeout_occurred = False  # as a SocketReader's, without a call
        self._sock = sock
        sock._io_refs += 1
        self.stay = stay
        self.dry = False  # it gives nothing now, so that what is buffered above it can be told
        self.received = 0  # bytes so far
        self.chunks: Chunks | None = None  # what is read is a body in chunks
        self.emptied = -1  # of so many nothing was buffered above it any more

    def readinto(self, buffer: Any, /) -> int | None:
        if self.dry:
            return None
        stay = self.stay
        if self.closed or stay.unread or self._timeout_occurred or self._sock.gettimeout() is not None:
            count = stay.read(buffer) if stay.unread and not self.closed else super().readinto(buffer)
        else:
            count = _recv_into(self._sock, buffer)  # as all that is left out would do
        if count == 0 and memoryview(buffer).nbytes:
            stay.hung_up = True
        self.received += count or 0
        stay.has_read = True
        if self.chunks is not None and count:
            self.chunks.follow(bytes(memoryview(buffer)[:count]))
        return count

    def taken(self) -> int:
        """Return how many bytes were read from this file."""
        return self.received

    def ahead(self) -> bytes:
        return b""

    def give_back(self, data: bytes) -> None:
        """Have these bytes read first by whoever reads next."""
        self.stay.unread = data + self.stay.unread


class KeptFile(io.BufferedReader):
    """The buffered file of a kept connection. Closed, it gives back what it has read ahead."""

    __slots__ = ()

    def ahead(self) -> bytes:
        """Return what it has read ahead, without reading and without taking it."""
        raw: Any = self.raw
        if raw.emptied == raw.received:
            return b""
        raw.dry = True
        try:
            ahead = self.peek()
        finally:
            raw.dry = False
        if not ahead:
            raw.emptied = raw.received
        return ahead

    def taken(self) -> int:
        """Return how many bytes were read from this file."""
        raw: Any = self.raw
        return int(raw.received) - len(self.ahead())

    def close(self) -> None:
        if not self.closed and (ahead := self.ahead()):
            raw: Any = self.raw
            raw.give_back(ahead)
        super().close()


class KeptPair(io.BufferedRWPair):
    """The same for reading and writing."""

    def __init__(self, sock: KeptSocket, reader: KeptReader, size: int) -> None:
        writer = socket.SocketIO(sock, "w")
        sock._io_refs += 1
        super().__init__(reader, writer, size)
        self._kept = reader

    def ahead(self) -> bytes:
        """As of a KeptFile."""
        self._kept.dry = True
        try:
            return self.peek()
        finally:
            self._kept.dry = False

    def close(self) -> None:
        if not self.closed and (ahead := self.ahead()):
            self._kept.give_back(ahead)
        super().close()


_AHEAD = (KeptFile, KeptPair)


def _buffer_size(buffering: int | None) -> int:
    return io.DEFAULT_BUFFER_SIZE if buffering is None or buffering < 0 else min(buffering, UNREAD_MAX)


def peek(sock: socket.socket, size: int = 1) -> bytes | None:
    """Return what the kernel has of a connection, at most `size` bytes, and leave it there.

    None if it has nothing now; b"" if the client has hung up, or the connection was reset. Does not wait, whatever the
    socket's timeout.
    """
    if timeout := sock.gettimeout():
        sock.settimeout(0)
    try:
        return _recv(sock, size, _PEEK)
    except BlockingIOError:
        return None
    except OSError:
        return b""
    finally:
        if timeout:
            sock.settimeout(timeout)


def at_hand(sock: socket.socket) -> tuple[int, bytes]:
    """Return how many bytes the kernel has of a connection, and of TCP all that it has ever received, which is the same
    later only if nothing was read and nothing has come."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_RECEIVED.stop)
    except OSError:
        info = b""
    try:
        count = fcntl.ioctl(sock.fileno(), termios.FIONREAD, bytes(4))
    except (OSError, ValueError):
        count = b""
    return int.from_bytes(count, sys.byteorder), info[TCP_RECEIVED]


def bytes_wanted(sock: socket.socket, unread: bytes, complete: Callable[[bytes], Any]) -> int:
    """Return 0 if what is at hand is a whole request, or has to be given to the handler as it is.

    Otherwise the number of bytes that the kernel must have before `complete()` is asked again, where it has room for
    so many. Raises what that does.
    """
    found = peek(sock, WHOLE_MAX) or b""
    data = unread + found
    if len(data) >= WHOLE_MAX or complete(data) or is_at_end(sock):
        return 0
    return min(len(found) + 1, UNIX_MOST) if sock.family == socket.AF_UNIX else len(found) + 1


def is_at_end(sock: socket.socket) -> bool:
    """Return True if the client will send no more than what is at hand."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))
