"""Datagram listeners at every address of the host: each answer leaves from the address that its datagram came to.

Without that the kernel chooses the address by its routes, and a client that asked another one of the host takes no
notice of the answer. Runs where datagrams are received: in a worker, or in the only process with `--single`. Owns no
socket. What one address is bound to keeps the plain `recvfrom()` and `sendto()`, which cost less.

The client's address carries where its datagram came to (IP_PKTINFO, ip(7); IPV6_PKTINFO, ipv6(7)), so handlers need
not know, in whatever thread they answer.
"""

import socket
from functools import lru_cache
from typing import Any

from prefork.workers.proxied_datagrams import answer_through_proxy
from prefork.workers.recent_peers import RecentPeers

from .listener import Listener, beneath
from .shared import SharedDatagrams

IP_PKTINFO = 8  # socket has it since Python 3.12
WILDCARDS = ("0.0.0.0", "::")
ROOM = 128  # for a packet's information, beside what the program itself has asked for

Information = tuple[int, int, bytes]  # as recvmsg() has it and sendmsg() takes it


class DatagramPeer(tuple[Any, ...]):
    """A client's address, equal to the plain tuple. `answer` is the ancillary data for what is sent back."""

    answer: Information | None = None


_recent = RecentPeers()  # for a program that makes the address anew


def peer_of(sock: socket.socket, address: Any, ancillary: list[Information]) -> Any:
    """Return the address of the client whose datagram this socket has received, with what came with that."""
    for information in ancillary:
        answer = _answer(*information)
        if answer is not None:
            address = DatagramPeer(address)
            address.answer = answer
            _recent.note(sock.fileno(), address, address)
    return address


def answer_as_addressed(sock: socket.socket | None) -> None:
    """Have a datagram listener at every address answer each client from the address that it had asked."""
    if not isinstance(sock, Listener) or sock.type != socket.SOCK_DGRAM or sock.fileno() == -1:
        return
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.getsockname()[0] not in WILDCARDS:
        return
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    sock.__class__ = WildcardListener


def prepare_answers(sock: Any, *, through_proxy: bool) -> None:
    """Have a datagram listener answer from where it was asked, and through whom. Nothing for other listeners."""
    answer_as_addressed(sock)
    if through_proxy:
        answer_through_proxy(beneath(sock))


class WildcardListener(Listener):
    """A Listener that notes where each datagram came to, and sends to a client from there."""

    __slots__ = ()

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, Any]:
        data, ancillary, came, address = self.recvmsg(bufsize, ROOM, flags)
        if came & socket.MSG_TRUNC and not flags and SharedDatagrams.in_get_request():
            SharedDatagrams.note_cut(bufsize, address)
        return data, peer_of(self, address, ancillary)

    def sendto(self, data: Any, *where: Any) -> int:
        """Send as socket.sendto does: `(data, address)` or `(data, flags, address)`."""
        flags, address = where if len(where) == 2 else (0, where[-1])
        peer = address if isinstance(address, DatagramPeer) else _recent.find(self.fileno(), address)
        if peer is not None and peer.answer is not None:
            try:
                return super().sendmsg((data,), (peer.answer,), flags, address)
            except (BlockingIOError, TimeoutError):
                raise
            except OSError:
                pass  # it is a broadcast's, or an address that the host has no longer; nothing has been sent
        return super().sendto(data, *where)

    def sendmsg(self, buffers: Any, ancdata: Any = (), flags: int = 0, address: Any = None, /) -> int:
        """Send as socket.sendmsg does. What the program itself says of where it leaves from comes last, and wins."""
        peer = address if isinstance(address, DatagramPeer) else _recent.find(self.fileno(), address)
        buffers, ancdata = list(buffers), list(ancdata)
        if peer is not None and peer.answer is not None:
            try:
                return super().sendmsg(buffers, (peer.answer, *ancdata), flags, address)
            except (BlockingIOError, TimeoutError):
                raise
            except OSError:
                pass  # as above
        return super().sendmsg(buffers, ancdata, flags, address)


@lru_cache(maxsize=256)
def _answer(level: int, kind: int, information: bytes) -> Information | None:
    """Return the ancillary data that makes an answer leave from where this datagram came to; None if it says nothing.

    The interface is the routes' to choose, except of a link-local address, which is none without it.
    """
    if level == socket.IPPROTO_IP and kind == IP_PKTINFO:
        return level, kind, bytes(4) + information[4:8] + bytes(4)  # the local address, also of a broadcast
    if level != socket.IPPROTO_IPV6 or kind != socket.IPV6_PKTINFO or information[0] == 0xFF:
        return None
    is_link_local = information[0] == 0xFE and information[1] & 0xC0 == 0x80
    return level, kind, information if is_link_local else information[:16] + bytes(4)
