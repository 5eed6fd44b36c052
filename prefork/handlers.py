"""The request handlers of the socketserver contract: one object per request, which lives as long as the request.

Owns the files that a handler reads and writes. Must not close the connection itself, which the server does. Runs where
`finish_request()` does: in the serving process, one of its threads, a child per request, or a worker of a pool. See
https://docs.python.org/3/library/socketserver.html#request-handler-objects
"""

import io
import socket
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import TYPE_CHECKING, Any

from prefork.metrics.kernel import PeerCredentials, peer_credentials
from prefork.workers.socket_files import open_rfile

from .inheritance.own import Computed
from .settings.handlers import why_not_run

if TYPE_CHECKING:
    from prefork.workers.proxy_protocol import ProxyHeader

__all__ = ["BaseRequestHandler", "DatagramRequestHandler", "StreamRequestHandler"]


class BaseRequestHandler:
    """Handle one request; the constructor does it all. Derive from it and override `handle()`.

    It calls `setup()`, `handle()` and `finish()`, in this order. `finish()` is called if `handle()` raised, but not if
    `setup()` did. Exceptions go to the server's `handle_error()`.

    `request` is what the server's `get_request()` returned: the connected socket for a stream server, the pair
    `(data, socket)` of bytes and the server's socket for a datagram server.
    """

    def __init__(self, request: Any, client_address: Any, server: Any) -> None:
        self.request = request
        self.client_address = client_address
        self.server = server  # Any: a handler is written for one server class and knows its attributes
        self.setup()
        try:
            ran: object = self.handle()  # type: ignore[func-returns-value]
            if ran is not None:
                _refuse_what_did_not_run(self, ran)
        finally:
            self.finish()

    @Computed
    def proxy(self) -> "ProxyHeader | None":
        """The header that a proxy has put before this connection, if `proxy_trusted` is set; else None.

        Other handlers find it as `client_address.proxy`.
        """
        return getattr(self.client_address, "proxy", None)

    @Computed
    def peer_credentials(self) -> PeerCredentials | None:
        """The process, user and group of the client of a Unix stream socket, from the kernel: `pid`, `uid`, `gid`.

        They are what they were when it connected. None for other sockets, and where the connection is closed.
        """
        return peer_credentials(self.request)

    def setup(self) -> None:
        """Prepare for `handle()`. Override or extend it."""

    def handle(self) -> None:
        """Serve the request. Override it."""

    def finish(self) -> None:
        """Clean up after `handle()`. Override or extend it."""


class StreamRequestHandler(BaseRequestHandler):
    """Handle one connection through two binary files: read from `rfile`, write to `wfile`.

    `connection` is the socket. Extend `setup()` and `finish()` if needed. Reads and writes raise TimeoutError when
    `timeout` seconds have passed; see socket.settimeout().
    """

    rbufsize = -1  # see socket.makefile(): read ahead, otherwise readline() costs a call per byte
    wbufsize = 0  # write() returns when all is sent; with another size, data may wait for flush()
    timeout: float | None = None  # seconds, for each single send or receive; None leaves the socket as it is
    disable_nagle_algorithm = False  # TCP_NODELAY, see tcp(7): for a handler with a wbufsize that flushes small answers

    def setup(self) -> None:
        self.connection: socket.socket = self.request
        if self.timeout is not None:
            self.connection.settimeout(self.timeout)
        if self.disable_nagle_algorithm:
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        self.rfile: io.BufferedIOBase = open_rfile(self.connection, self.rbufsize)
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
                    pass  # the client left before its answer, which is no error
            self.wfile.close()
        finally:
            self.rfile.close()


class DatagramRequestHandler(BaseRequestHandler):
    """Handle one datagram: read it from `rfile`; what is written to `wfile` is sent back as one datagram.

    `packet` is the datagram as bytes, `socket` the server's socket, which sends the answer. An empty answer is sent
    too; none to a client without an address, a Unix socket that is bound to no path. Extend `setup()` and `finish()`
    if needed. Raises OSError if the answer cannot be sent.
    """

    def setup(self) -> None:
        self.packet: bytes
        self.socket: socket.socket
        self.packet, self.socket = self.request
        self.rfile = io.BytesIO(self.packet)
        self.wfile = io.BytesIO()

    def finish(self) -> None:
        if self.client_address:
            self.socket.sendto(self.wfile.getvalue(), self.client_address)


def _refuse_what_did_not_run(handler: BaseRequestHandler, ran: object) -> None:
    """Raise TypeError for a `handle()` that is async or a generator. A server refuses such a class before it is bound;
    this one was made by a function, into which nobody can look."""
    if isinstance(ran, CoroutineType | GeneratorType | AsyncGeneratorType):
        if not isinstance(ran, AsyncGeneratorType):
            ran.close()
        raise TypeError(f"{type(handler).__qualname__}.handle() {why_not_run(type(handler).handle)}")


class _SocketWriter(io.BufferedIOBase):
    """Unbuffered `wfile`: `write()` returns when the kernel has taken all the data."""

    __slots__ = ("_sock", "closed")

    closed: bool

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.closed = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self._sock.sendall(data)
        if type(data) is bytes:
            return len(data)
        with memoryview(data) as view:
            return view.nbytes

    def fileno(self) -> int:
        return self._sock.fileno()

    def flush(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file.")

    def close(self) -> None:
        self.closed = True
