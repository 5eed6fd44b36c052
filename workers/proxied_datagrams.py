"""Answers to clients for whom a proxy has sent a datagram: they go back to the proxy, which knows where they belong.

So do dnsdist and the specification's silence have it: the header is in front of what comes, and an answer bears none;
it is told from others by the address that the proxy has sent from. A handler need not know: it answers the client's
address by `sendto()` or `sendmsg()` of the server's socket, as always. Runs where datagrams are received.
"""

import socket
from typing import Any

from .proxy_protocol import ProxiedAddress, ProxiedPath, ProxyHeader
from .recent_peers import RecentPeers

_recent = RecentPeers()  # for a program that makes the address anew


def asked_through(sock: Any, header: ProxyHeader) -> Any:
    """Return the address of the client whose datagram this socket has received, with the header as `proxy`."""
    address = header.client_address()
    _recent.note(sock.fileno(), address, header.peer)
    return address


class ThroughProxy(socket.socket):
    """The sends of a datagram socket behind a proxy. An address that nobody has asked from is sent to as it is."""

    __slots__ = ()

    def sendto(self, data: Any, *where: Any) -> int:
        """Send as socket.sendto does: `(data, address)` or `(data, flags, address)`."""
        flags, address = where if len(where) == 2 else (0, where[-1])
        return super().sendto(data, flags, self._proxy_of(address))

    def sendmsg(self, buffers: Any, ancdata: Any = (), flags: int = 0, address: Any = None, /) -> int:
        return super().sendmsg(buffers, ancdata, flags, self._proxy_of(address))

    def _proxy_of(self, address: Any) -> Any:
        if isinstance(address, ProxiedAddress | ProxiedPath):
            return address.proxy.peer
        proxy = _recent.find(self.fileno(), address)
        return address if proxy is None else proxy


def answer_through_proxy(sock: Any) -> None:
    """Have a datagram socket answer through the proxies, whatever its class does with it then."""
    kind = type(sock)
    if isinstance(sock, socket.socket) and sock.type == socket.SOCK_DGRAM and not issubclass(kind, ThroughProxy):
        sock.__class__ = type(kind.__name__, (ThroughProxy, kind), {"__slots__": (), "__module__": kind.__module__})
