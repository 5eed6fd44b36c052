"""The socketserver contract: BaseServer, and the four server classes over a socket.

    serve_forever() ─▶ get_request ─▶ verify_request ─▶ process_request ─▶ finish_request ─▶ shutdown_request
                                         │ refused ─▶ shutdown_request                          └─▶ close_request
                                      error ─▶ handle_error, then shutdown_request

Owns the listener; the loop is serving_loop.py's. Runs in the process that serves, and in a pool in master and workers
alike. A constructor makes the socket and nothing else.
"""

import socket
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Annotated, Any, Self

from .serving_loop import ServingMixIn
from .settings.fields import Setting

__all__ = ["BaseServer", "TCPServer", "UDPServer", "UnixDatagramServer", "UnixStreamServer"]


class BaseServer(ServingMixIn):
    """A server without a transport: derive from it and define `fileno()` and `get_request()`, at least.

    For the caller: the constructor, `serve_forever()`, `shutdown()`, `shutdown_nowait()`, `handle_request()`, and
    `server_close()` or `with`. All the others are there to be overridden, `finish_request()` to be extended.
    """

    timeout: float | None = None  # seconds, for handle_request()

    def __init__(self, server_address: Any, RequestHandlerClass: Callable[[Any, Any, Any], Any]) -> None:  # noqa: N803
        """Only remember both. May be extended; a server that does not call it has no handler."""
        self.server_address = server_address
        self.RequestHandlerClass = RequestHandlerClass

    def server_activate(self) -> None:
        """Begin to listen; the constructor calls it after `server_bind()`. Override it."""

    def service_actions(self) -> None:
        """Do what is to be done between requests. Override it, or extend it below a mix-in."""

    def handle_timeout(self) -> None:
        """No request came within `timeout` of `handle_request()`. Override it, or extend it below a mix-in."""

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether to serve this request; if not, it is shut down. Override it."""
        return True

    def process_request(self, request: Any, client_address: Any) -> None:
        """Finish the request, then shut it down: here and now. Override it to do this elsewhere."""
        self.finish_request(request, client_address)
        self.shutdown_request(request)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Serve the request, by making a handler for it. Extend it."""
        self.RequestHandlerClass(request, client_address, self)

    def shutdown_request(self, request: Any) -> None:
        """Say goodbye to the client, then close. Called once for each request, however it went. Override it."""
        self.close_request(request)

    def close_request(self, request: Any) -> None:
        """Give back what this process holds of the request. Override it."""

    def server_close(self) -> None:
        """Give back what the server holds. Call it after `serve_forever()` has returned; extend it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.server_close()


class TCPServer(BaseServer):
    """A server on a stream socket: TCP over IPv4, or over IPv6 when the host is an IPv6 address such as "::".

    `server_address` is where it is bound, so with port 0 the port it got. To override: `server_bind()`,
    `server_activate()`, `get_request()` and those of BaseServer.
    """

    address_family: int = socket.AF_INET
    socket_type: int = socket.SOCK_STREAM
    # Connections that the kernel may hold for us, at most net.core.somaxconn, listen(2); the interpreter's own default.
    request_queue_size = getattr(socket, "SOMAXCONN", 5) if sys.version_info >= (3, 15) else 5
    allow_reuse_address = False  # SO_REUSEADDR: bind although connections of an earlier server linger; socket(7)
    allow_reuse_port = False  # SO_REUSEPORT
    dual_stack: Annotated[
        bool, Setting("an IPv6 listener takes IPv4 clients as well", group="Listening", reloadable=False)
    ] = False

    def __init__(
        self,
        server_address: Any,
        RequestHandlerClass: Callable[[Any, Any, Any], Any],  # noqa: N803
        bind_and_activate: bool = True,
    ) -> None:
        """Make the socket, and unless told not to, bind it and listen. May be extended.

        Raises what the socket raises (OSError, OverflowError for a port out of range), and nothing is left open then.
        """
        BaseServer.__init__(self, server_address, RequestHandlerClass)
        if self.address_family == socket.AF_INET and _is_ipv6(server_address):
            self.address_family = socket.AF_INET6
            self._prefork_.family_chosen = True
        self.socket = socket.socket(self.address_family, self.socket_type)
        if bind_and_activate:
            try:
                self.server_bind()
                self.server_activate()
            except BaseException:
                self.server_close()
                raise

    def server_bind(self) -> None:
        """Bind the socket to `server_address`, which becomes the address it got. Override or extend it."""
        if self.allow_reuse_address:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Linux refuses it for other families since 6.12.9; the standard library sets it for these two alone by now.
        if self.allow_reuse_port and self.address_family in (socket.AF_INET, socket.AF_INET6):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # A class that names AF_INET6 itself gets what the system gives (net.ipv6.bindv6only), as it always did.
        if self.address_family == socket.AF_INET6 and (self.dual_stack or self._prefork_.family_chosen):
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not self.dual_stack)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def server_activate(self) -> None:
        self.socket.listen(self.request_queue_size)

    def server_close(self) -> None:
        self.socket.close()

    def fileno(self) -> int:
        """The listener's descriptor, so that the server itself can be waited for; -1 when closed."""
        return self.socket.fileno()

    def get_request(self) -> tuple[Any, Any]:
        """Take what is there: the request and the client's address. An OSError means that it is gone. Override it."""
        return self.socket.accept()

    def shutdown_request(self, request: Any) -> None:
        try:
            request.shutdown(socket.SHUT_WR)  # now, although a copy of the socket in another process may stay open
        except OSError:
            pass  # the client was faster
        self.close_request(request)

    def close_request(self, request: Any) -> None:
        request.close()


class UDPServer(TCPServer):
    """A server on a datagram socket. A request is a datagram and the listener to answer through; nothing is closed."""

    socket_type: int = socket.SOCK_DGRAM
    max_packet_size = 8192  # bytes; what a datagram has beyond that is lost

    def server_activate(self) -> None:
        pass  # a datagram socket is ready when it is bound

    def get_request(self) -> tuple[Any, Any]:
        data, client_address = self.socket.recvfrom(self.max_packet_size)
        return (data, self.socket), client_address

    def shutdown_request(self, request: Any) -> None:
        self.close_request(request)

    def close_request(self, request: Any) -> None:
        pass


if hasattr(socket, "AF_UNIX"):

    class UnixStreamServer(TCPServer):
        """A stream server on a Unix socket; the address is a path. The path stays when the server is closed."""

        address_family: int = socket.AF_UNIX

    class UnixDatagramServer(UDPServer):
        """A datagram server on a Unix socket; a client that wants an answer must be bound to a path itself."""

        address_family: int = socket.AF_UNIX


def _is_ipv6(address: Any) -> bool:
    return isinstance(address, (tuple, list)) and bool(address) and isinstance(address[0], str) and ":" in address[0]
