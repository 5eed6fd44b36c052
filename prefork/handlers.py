"""The request handlers of the socketserver contract: one object per request, alive as long as the request.

Owns the files a handler reads from and writes to, not the connection itself, which the server closes. Runs wherever
`finish_request()` does: in the serving process, a thread of it, a child per request, or a worker of a pool.
"""

import io
import socket
from typing import Any

__all__ = ["BaseRequestHandler", "DatagramRequestHandler", "StreamRequestHandler"]


class BaseRequestHandler:
    """Handles one request: making it is handling it. Derive from it and override `handle()`.

    `setup()`, `handle()` and `finish()` are called in this order; `finish()` also when `handle()` raised, but not when
    `setup()` did. What is raised goes to the server's `handle_error()`.

    `request` is what the server's `get_request()` returned: a connected socket of a stream server, a pair of bytes and
    the server's socket of a datagram one.
    """

    def __init__(self, request: Any, client_address: Any, server: Any) -> None:
        self.request = request
        self.client_address = client_address
        self.server = server  # Any: the handler knows which class it is written for, and what that class has
        self.setup()
        try:
            self.handle()
        finally:
            self.finish()

    def setup(self) -> None:
        """Prepare for `handle()`. Override or extend it."""

    def handle(self) -> None:
        """Do everything the request asks for. Override it."""

    def finish(self) -> None:
        """Clean up after `handle()`. Override or extend it."""


class StreamRequestHandler(BaseRequestHandler):
    """Handles one connection through two binary files: `rfile` to read from, `wfile` to write to.

    `connection` is the socket. `setup()` and `finish()` may be extended.
    """

    rbufsize = -1  # as of socket.makefile(): read ahead, or every readline() costs a call per byte
    wbufsize = 0  # each write() is sent before it returns; with another size, what is written waits for flush()
    timeout: float | None = None  # seconds the client may take for each single send or receive; None: as the socket is
    disable_nagle_algorithm = False  # TCP_NODELAY, for a handler with a wbufsize that flushes small answers

    def setup(self) -> None:
        self.connection: socket.socket = self.request
        if self.timeout is not None:
            self.connection.settimeout(self.timeout)
        if self.disable_nagle_algorithm:
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        self.rfile: io.BufferedIOBase = self.connection.makefile("rb", self.rbufsize)
        if self.wbufsize == 0:
            self.wfile: io.BufferedIOBase = _SocketWriter(self.connection)
        else:
            self.wfile = self.connection.makefile("wb", self.wbufsize)

    def finish(self) -> None:
        try:
            if not self.wfile.closed:
                try:
                    self.wfile.flush()
                except OSError:
                    pass  # the client left without its answer; that is not worth an error
            self.wfile.close()
        finally:
            self.rfile.close()


class DatagramRequestHandler(BaseRequestHandler):
    """Handles one datagram: `rfile` holds it, and what was written to `wfile` is sent back as one datagram.

    `packet` is the datagram as bytes, `socket` the server's own, through which the answer goes. The answer is sent even
    if it is empty. `setup()` and `finish()` may be extended.
    """

    def setup(self) -> None:
        self.packet: bytes
        self.socket: socket.socket
        self.packet, self.socket = self.request
        self.rfile = io.BytesIO(self.packet)
        self.wfile = io.BytesIO()

    def finish(self) -> None:
        self.socket.sendto(self.wfile.getvalue(), self.client_address)


class _SocketWriter(io.BufferedIOBase):
    """A `wfile` that buffers nothing: `write()` returns when the kernel has all of it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self._sock.sendall(data)
        with memoryview(data) as view:
            return view.nbytes

    def fileno(self) -> int:
        return self._sock.fileno()
