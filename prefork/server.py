"""The socketserver contract: BaseServer, and the four server classes over a socket.

    serve_forever() ─▶ get_request ─▶ verify_request ─▶ process_request ─▶ finish_request ─▶ shutdown_request
                                         │ refused ─▶ shutdown_request                          └─▶ close_request
                                      error ─▶ handle_error, then shutdown_request

Owns the listener, but not the loop, which is in serving_loop.py. Runs in the serving process; in a pool, in the master
and in the workers. Constructors must make nothing but the socket; what serves is loaded there (inheritance/own.py). The
contract is that of the standard library: https://docs.python.org/3/library/socketserver.html
"""

import socket
import sys
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Self

from prefork.workers.definitions import gives_way, ships
from prefork.workers.plain_accept import accepted_by
from prefork.workers.unnamed_peer import UNNAMED

from .inheritance.own import Own, load_for
from .inheritance.precedence import loop_behind
from .inheritance.standard_classes import POLL_INTERVAL, Ended, Requested
from .settings.fields import Setting
from .sockets.bindable import bindable

if TYPE_CHECKING:
    from .serving_loop import ServingLoop

__all__ = ["BaseServer", "TCPServer", "UDPServer", "UnixDatagramServer", "UnixStreamServer"]


def _serving_loop() -> "type[ServingLoop]":
    from .serving_loop import ServingLoop  # late: see inheritance/own.py

    return ServingLoop


@gives_way
class ServingMixIn:
    """Public methods of the loop, for BaseServer, and with the mix-ins for the standard library's servers too."""

    if TYPE_CHECKING:  # not defined here: this class stands before the standard library's in the MRO

        def fileno(self) -> int: ...

    _prefork_: Any = Own(_serving_loop)
    _BaseServer__is_shut_down: Any = Ended()
    _BaseServer__shutdown_request: Any = Requested()

    def serve_forever(self, poll_interval: float = POLL_INTERVAL) -> None:
        """Handle requests one after another until `shutdown()`. Ignores `timeout`.

        `service_actions()` is called after every wait; if it is overridden, at least every `poll_interval` seconds.
        Otherwise the loop does not poll. See socketserver.BaseServer.serve_forever().
        """
        own: ServingLoop = self._prefork_
        behind = None if own.within_theirs else loop_behind(type(self), ServingMixIn)
        if behind is None:
            own.serve(poll_interval)
        else:
            own.serve_within(vars(behind)["serve_forever"], poll_interval)

    def shutdown(self) -> None:
        """Make `serve_forever()` return and wait until it has. Call it from any thread or signal handler.

        In the serving thread it does not wait, which would be a deadlock. If the server is not serving, it returns at
        once, and so will the next `serve_forever()`. In a worker or a request's child it asks the serving process, and
        does not wait.
        """
        self._prefork_.shutdown(wait=True)

    def shutdown_nowait(self) -> None:
        """Like `shutdown()`, but do not wait for `serve_forever()` to return."""
        self._prefork_.shutdown(wait=False)

    def handle_request(self) -> None:
        """Wait for one request and handle it, or call `handle_timeout()` if none comes in time.

        The wait lasts for the shorter of `timeout` and the listener's own timeout, in seconds; with neither, for ever.
        """
        self._prefork_.handle_one()

    def _handle_request_noblock(self) -> None:
        """Accept and process one request. A private name of socketserver, kept for programs that override it."""
        self._prefork_.accept()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log the exception that is being handled, with its traceback. Override it.

        Called in the `except` block of the code that processes the request. A connection that the client broke is
        logged at DEBUG, a TLS handshake that failed in one line at INFO, everything else at ERROR.
        """
        self._prefork_.log_error(request, client_address)


class BaseServer(ServingMixIn):
    """Base class of servers, without a transport. A subclass must define at least `fileno()` and `get_request()`.

    Call the constructor, `serve_forever()`, `shutdown()`, `shutdown_nowait()`, `handle_request()`, and `server_close()`
    or a `with` block. Override any other method; extend `finish_request()`.
    """

    timeout: float | None = None  # seconds, for handle_request()

    def __init__(self, server_address: Any, RequestHandlerClass: Callable[[Any, Any, Any], Any]) -> None:  # noqa: N803
        """Store both arguments. May be extended; a subclass that does not call it has no handler class."""
        self.server_address = server_address
        self.RequestHandlerClass = RequestHandlerClass
        load_for(self)

    def server_activate(self) -> None:
        """Start listening. The constructor calls it after `server_bind()`. Override it."""

    def service_actions(self) -> None:
        """Do periodic work; called by the loop after every wait. Override it; below a mix-in, extend it."""

    def handle_timeout(self) -> None:
        """Called when `handle_request()` timed out (`timeout` seconds). Override it; below a mix-in, extend it."""

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Return True if this request should be served; otherwise it is shut down. Override it."""
        return True

    def process_request(self, request: Any, client_address: Any) -> None:
        """Finish the request and shut it down, before returning. Override it to do this in a thread or process."""
        self.finish_request(request, client_address)
        self.shutdown_request(request)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Serve the request by instantiating `RequestHandlerClass`. Extend it."""
        self.RequestHandlerClass(request, client_address, self)

    def shutdown_request(self, request: Any) -> None:
        """Shut down and close the request. Called once per request, whether it succeeded or failed. Override it."""
        self.close_request(request)

    def close_request(self, request: Any) -> None:
        """Release what this process holds of the request. Override it."""

    def server_close(self) -> None:
        """Release the server's resources. Call it after `serve_forever()` has returned; extend it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.server_close()


@ships("request_queue_size", "allow_reuse_address")
class TCPServer(BaseServer):
    """Stream socket server: TCP over IPv4, or over IPv6 if the host is an IPv6 address such as "::".

    `server_address` is the bound address; if port 0 was asked for, it has the port that the kernel chose. Override
    `server_bind()`, `server_activate()`, `get_request()` and the methods of BaseServer.
    """

    address_family: int = socket.AF_INET
    socket_type: int = socket.SOCK_STREAM
    # Length of the accept queue, capped at net.core.somaxconn, see listen(2). The default is this interpreter's own.
    request_queue_size = getattr(socket, "SOMAXCONN", 5) if sys.version_info >= (3, 15) else 5
    allow_reuse_address = False  # SO_REUSEADDR: bind although an earlier server's connections linger, see socket(7)
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
        """Create the socket; with `bind_and_activate`, also bind it and listen. May be extended.

        Raises OSError as the socket does, and OverflowError if the port is out of range. On error nothing stays open.
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
        """Bind the socket to `server_address`, then set `server_address` to the bound address. Raises OSError.

        Override or extend it.
        """
        if self.allow_reuse_address:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Since 6.12.9 Linux refuses it for other families. The standard library now sets it for these two only.
        if self.allow_reuse_port and self.address_family in (socket.AF_INET, socket.AF_INET6):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # A class that names AF_INET6 itself keeps the system's default (net.ipv6.bindv6only), as it always did.
        if self.address_family == socket.AF_INET6 and (self.dual_stack or self._prefork_.family_chosen):
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not self.dual_stack)
        self.socket.bind(bindable(self.server_address))
        self.server_address = self.socket.getsockname()

    def server_activate(self) -> None:
        self.socket.listen(self.request_queue_size)

    def server_close(self) -> None:
        self.socket.close()

    def fileno(self) -> int:
        """Return the listener's descriptor, or -1 if it is closed. Lets a selector wait for the server itself."""
        return self.socket.fileno()

    def get_request(self) -> tuple[Any, Any]:
        """Accept a request; return it and the client's address. Raises OSError if it is already gone. Override it."""
        return accepted_by(self.socket)

    def shutdown_request(self, request: Any) -> None:
        try:
            request.shutdown(socket.SHUT_WR)  # takes effect even while another process holds a copy of the socket
        except OSError:
            pass  # the client closed first
        self.close_request(request)

    def close_request(self, request: Any) -> None:
        request.close()


@ships("allow_reuse_address")
class UDPServer(TCPServer):
    """Datagram socket server. A request is the pair `(data, socket)`; the answer is sent through that socket.

    The socket is the listener itself, so closing a request closes nothing.
    """

    socket_type: int = socket.SOCK_DGRAM
    # Its own: a program that sets one for all of TCPServer does not mean that others may take datagrams at its port.
    allow_reuse_address = False
    allow_reuse_port = False
    max_packet_size = 8192  # bytes; the rest of a longer datagram is lost

    def server_activate(self) -> None:
        pass  # a bound datagram socket needs no listen(2)

    def get_request(self) -> tuple[Any, Any]:
        data, client_address = self.socket.recvfrom(self.max_packet_size)
        return (data, self.socket), client_address

    def shutdown_request(self, request: Any) -> None:
        self.close_request(request)

    def close_request(self, request: Any) -> None:
        pass


if hasattr(socket, "AF_UNIX"):

    class UnixStreamServer(TCPServer):
        """Stream server on a Unix socket; the address is a path. Closing the server does not remove the path."""

        address_family: int = socket.AF_UNIX

        def get_request(self) -> tuple[Any, Any]:
            request, client_address = super().get_request()
            return request, client_address or UNNAMED

    class UnixDatagramServer(UDPServer):
        """Datagram server on a Unix socket. A client that wants an answer must bind its own socket to a path."""

        address_family: int = socket.AF_UNIX


def _is_ipv6(address: Any) -> bool:
    return isinstance(address, (tuple, list)) and bool(address) and isinstance(address[0], str) and ":" in address[0]
