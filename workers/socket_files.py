"""The files that handlers read their connections through: those of `socket.makefile()`, for two thirds less.

Used in any process that serves. They are socket.SocketIO in every respect; what is left out are calls of Python
functions, of which the standard library's takes ten for each file and two for each read. Must not open files of sockets
that are not the standard library's own: a program's class, or ssl.SSLSocket, may have a `makefile()` that differs.
"""

import errno
import io
import socket
import sys
from functools import partial
from typing import Any


def standard(name: str) -> Any:
    """Return this method of socket.socket, if it is the standard library's; None where the program has its own there,
    which is to be called."""
    found = getattr(socket.socket, name)
    return found if getattr(found, "__globals__", None) is vars(socket) else None


_standard_makefile = standard("makefile")
_CLOSED = "I/O operation on closed file."
_BLOCKED = (errno.EAGAIN, errno.EWOULDBLOCK)


class SocketReader(socket.SocketIO):
    """A socket.SocketIO in mode "rb": it keeps the socket open until it is closed, and refuses to read on after a
    timeout."""

    __slots__ = ("_sock", "_timeout_occurred", "closed")

    _sock: Any
    closed: bool
    _mode, _reading, _writing = "rb", True, False

    def __init__(self, sock: socket.socket) -> None:
        self.closed = self._timeout_occurred = False
        self._sock = sock
        sock._io_refs += 1  # type: ignore[attr-defined]

    def readinto(self, buffer: Any, /) -> int | None:
        if self.closed:
            raise ValueError(_CLOSED)
        if self._timeout_occurred:
            raise OSError("cannot read from timed out object")
        try:
            return self._sock.recv_into(buffer)  # type: ignore[no-any-return]
        except TimeoutError:
            self._timeout_occurred = True
            raise
        except OSError as exc:
            if exc.errno in _BLOCKED:
                return None
            raise

    def readable(self) -> bool:
        if self.closed:
            raise ValueError("I/O operation on closed socket.")
        return True

    def flush(self) -> None:
        if self.closed:
            raise ValueError(_CLOSED)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            sock, self._sock = self._sock, None
            sock._decref_socketios()


def open_reader(sock: socket.socket, buffering: int | None) -> Any:
    """Return what `sock.makefile("rb", buffering)` does, of a socket of the standard library's own class."""
    reader = SocketReader(sock)
    if buffering == 0:
        return reader
    if buffering is None or buffering < 0:
        buffering = io.DEFAULT_BUFFER_SIZE
    return io.BufferedReader(reader, buffering)


def open_rfile(sock: Any, buffering: int) -> Any:
    """Return what `sock.makefile("rb", buffering)` does, of any object with this method."""
    kind = type(sock)
    if kind is socket.socket and kind.makefile is _standard_makefile:
        return open_reader(sock, buffering)
    return sock.makefile("rb", buffering)


class AcceptedSocket(socket.socket):
    """A connection whose handler reads a file, where that asks `makefile()` itself, as the standard library's does."""

    __slots__ = ()

    def makefile(
        self, mode: str = "r", buffering: int | None = None, *, encoding: str | None = None, errors: str | None = None,
        newline: str | None = None,
    ) -> Any:  # fmt: skip
        if mode == "rb" and socket.socket.makefile is _standard_makefile:
            return open_reader(self, buffering)
        if "b" not in mode:
            encoding = io.text_encoding(encoding)  # here, so that its warning names who has called us
        return super().makefile(mode, buffering, encoding=encoding, errors=errors, newline=newline)  # type: ignore[call-overload]

    def __reduce_ex__(self, protocol: Any, /) -> Any:
        """Let multiprocessing send it to another process, which it knows how to do for the class socket.socket alone.

        Raises TypeError for any other pickler.
        """
        caller = sys._getframe(1).f_globals
        if caller.get("__name__") == "multiprocessing.reduction":
            return caller["_reduce_socket"](self)
        return super().__reduce_ex__(protocol)


def accepted_class(handler: Any) -> type[socket.socket]:
    """Return the class of the connections to be made for this handler class: AcceptedSocket where that gains something.

    Our own StreamRequestHandler needs it not, and a program that looks at the class of a connection sees what it knows.
    """
    while isinstance(handler, partial):
        handler = handler.func
    standard = getattr(sys.modules.get("socketserver"), "StreamRequestHandler", None)
    asks = isinstance(handler, type) and isinstance(standard, type) and issubclass(handler, standard)
    return AcceptedSocket if asks and standard.__module__ == "socketserver" else socket.socket
