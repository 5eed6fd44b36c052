"""Admission: what a connection or a datagram must be and show before the program sees it, and the end of others.

Runs where the request is served, on its lane: a client that says nothing costs one lane, for a bounded time. Of a PROXY
header it reads exactly the bytes, so that what follows, such as a TLS handshake, is left to whoever reads it.
"""

import logging
import os
import select
import socket
from collections.abc import Callable, Container
from time import monotonic
from typing import Any, NamedTuple

from prefork.metrics.facts import Refusal
from prefork.metrics.kernel import queue_wait_ns
from prefork.metrics.log_events import LogEvent, event

from .accepting import NotAdmitted
from .connection_table import ConnectionLimits
from .contexts import Lane
from .handshake import failure, shake_hands
from .proxied_datagrams import asked_through
from .proxy_protocol import V2_MOST, ProxyHeaderError, belonging, is_complete, parse, split

log = logging.getLogger("prefork.server")

LOGGED_EVERY_S = 10.0  # of each reason; the rest is logged at DEBUG


class Terms(NamedTuple):
    """The things that are asked of each connection; None: not asked. Times are in seconds."""

    allowed: Container[Any] | None = None  # addresses of clients
    denied: Container[Any] | None = None
    proxies: Container[Any] | None = None  # each request is from one of these, and begins with a PROXY header
    header_timeout: float = 0.0
    first_byte_timeout: float | None = None
    max_queue_wait: float | None = None
    max_connections: int | None = None
    max_connections_per_client: int | None = None
    tls: Any = None  # an ssl.SSLContext, by which it is wrapped
    handshake_timeout: float = 0.0

    def ask_nothing(self) -> bool:
        return self == Terms(header_timeout=self.header_timeout, handshake_timeout=self.handshake_timeout)


class Admission:
    """Admits connections by these terms.

    `at_once`: always in the thread that accepts; else in the thread of the request, where the program's hooks allow it.
    `limits`: what counts the connections of the pool, which then has to be told when a lane is done.
    """

    def __init__(
        self, terms: Terms, address_text: Callable[[Any], str], *, at_once: bool = False,
        limits: ConnectionLimits | None = None,
    ) -> None:  # fmt: skip
        self.at_once = at_once
        self.limits = limits
        self._terms = terms
        self._address_text = address_text
        self._said: dict[Refusal, float] = {}

    @property
    def first_byte_timeout(self) -> float | None:
        return self._terms.first_byte_timeout

    def admit(
        self, request: Any, client_address: Any, lane: Lane | None = None, *, waits: bool = True
    ) -> tuple[Any, Any]:
        """Return the request and the address of the client for whom it is. Raises NotAdmitted.

        Behind a proxy the address has the header as `proxy`; with TLS the request is another object. Unless it `waits`
        here for the first byte, the caller has to.
        """
        terms = self._terms
        limits = None if lane is None else self.limits
        if terms.max_queue_wait is not None and (queue_wait_ns(request) or 0) > terms.max_queue_wait * 1e9:
            raise self._refused(Refusal.OVERLOAD, request, client_address, "it had waited longer than max_queue_wait")
        if limits is not None and lane is not None and not limits.admits(lane):
            raise self._refused(Refusal.OVERLOAD, request, client_address, "max_connections are served already")
        if terms.proxies is not None:
            request, client_address = self._proxied(terms.proxies, request, client_address)
        if terms.denied is not None and client_address in terms.denied:
            raise self._refused(Refusal.DENIED, request, client_address, "it is in denied_clients")
        if terms.allowed is not None and client_address not in terms.allowed:
            raise self._refused(Refusal.DENIED, request, client_address, "it is not in allowed_clients")
        if limits is not None and lane is not None and not limits.admits_client(lane, client_address):
            why = "its client has max_connections_per_client already"
            raise self._refused(Refusal.PER_CLIENT, request, client_address, why)
        if waits and terms.first_byte_timeout is not None and not _readable(request, terms.first_byte_timeout):
            raise self._refused(
                Refusal.FIRST_BYTE, request, client_address, "it said nothing within first_byte_timeout"
            )
        if terms.tls is not None:
            request = self._secured(terms.tls, request, client_address)
        return request, client_address

    def _secured(self, context: Any, request: Any, client_address: Any) -> Any:
        """Return the connection over TLS, into which the request has become."""
        secured = request
        try:
            secured = context.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
            shake_hands(secured, self._terms.handshake_timeout)
        except OSError as exc:
            secured.close()
            why = "it took too long" if isinstance(exc, TimeoutError) else failure(exc) or exc
            raise self._refused(Refusal.TLS, request, client_address, f"the TLS handshake failed: {why}") from None
        except BaseException:
            secured.close()
            raise
        return secured

    def _proxied(self, proxies: Container[Any], request: Any, peer: Any) -> tuple[Any, Any]:
        """Return the request without its header, and the address of the client that the header names."""
        why = "it is not from an address of proxy_trusted"
        if peer in proxies:
            try:
                if isinstance(request, tuple):
                    header, data = split(request[0])
                    return (data, *request[1:]), asked_through(request[1], header._replace(peer=peer or ""))
                header = parse(_read(request, monotonic() + self._terms.header_timeout))
            except TimeoutError:
                why = "its PROXY header did not come in time"
            except (ProxyHeaderError, OSError) as exc:
                why = str(exc)
            else:
                return request, header._replace(peer=peer).client_address()
        raise self._refused(Refusal.PROXY_HEADER, request, peer, why)

    def _refused(self, refusal: Refusal, request: Any, client_address: Any, why: str) -> NotAdmitted:
        peer, now = self._address_text(client_address or "an unnamed client"), monotonic()
        level = logging.DEBUG
        if now - self._said.get(refusal, -LOGGED_EVERY_S) >= LOGGED_EVERY_S:
            self._said[refusal] = now
            level = logging.INFO
        what = "datagram from %s dropped: %s" if isinstance(request, tuple) else "connection from %s closed: %s"
        log.log(level, what, peer, why,
                extra=event(LogEvent.CONNECTION_REFUSED, peer=peer, reason=why))  # fmt: skip
        return NotAdmitted(refusal, client_address)


def _readable(request: Any, seconds: float) -> bool:
    poll = select.poll()
    poll.register(request.fileno(), select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _read(request: Any, deadline: float) -> bytes:
    """Read the header of a connection, and not a byte more. Raises ProxyHeaderError, and OSError as the socket does."""
    fd = request.fileno()
    blocking = os.get_blocking(fd)  # which a timeout changes, the default one too, and the request does not hear of it
    sock = socket.socket(fileno=fd)  # it may be a wrapper, whose recv() reads something else
    try:
        return _read_header(sock, deadline)
    finally:
        sock.detach()
        os.set_blocking(fd, blocking)


def _read_header(sock: socket.socket, deadline: float) -> bytes:
    header = b""
    while not is_complete(header):
        sock.settimeout(max(deadline - monotonic(), 0.001))
        # Looked at first: how much of it is the header's is known only then. That much is taken, or waiting would spin.
        seen = sock.recv(V2_MOST - len(header), socket.MSG_PEEK)
        if not seen:
            raise ProxyHeaderError("it ended within its PROXY header" if header else "it ended without a PROXY header")
        header += sock.recv(belonging(header + seen) - len(header))
    return header
