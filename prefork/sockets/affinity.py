"""One socket for each worker of a datagram service: whoever sends from one address is heard by one worker.

The sockets share an address (SO_REUSEPORT, socket(7)); a program in the kernel picks one of them by the peer's address
and port (SO_ATTACH_REUSEPORT_CBPF), by its index in the group, which is the order of their binding. So the group is
made as a whole before it is served, and none of it is closed before the end: the master holds them all, also while a
worker is replaced, and what is queued at one waits for whoever has its place next.

Runs in the master, and at the start of a worker, which takes the socket of its place; that follows from its number. The
first of the sockets is the listener, which is bound without SO_REUSEPORT, so that an address in
use is refused. Who joins the group afterwards, which only the same user can, is picked for nothing; that user could
bind a single address of a group that listens at every one.
"""

import contextlib
import ctypes
import socket
import struct
from collections.abc import Iterable

from ..errors import BindError, reason_of
from .addresses import address_text
from .listener import take_over

SO_ATTACH_FILTER, SO_ATTACH_REUSEPORT_CBPF = 26, 51
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33

# Classic BPF: operation, and number; of a comparison: operation, jumps if true and if false, number. See bpf_common.h
# and filter.h of Linux. The packet begins behind the header of UDP, so what is before it is read from the header of IP
# on (SKF_NET_OFF).
Steps = list[tuple[int, ...]]
_LD_B, _LD_H, _LD_W, _LD_H_X, _LD_K = 0x30, 0x28, 0x20, 0x48, 0x00
_AND, _MUL, _LSH, _RSH, _MOD, _XOR_X = 0x54, 0x24, 0x64, 0x74, 0x94, 0xAC
_TAX, _TXA, _JA, _JEQ, _JGE, _RET, _RET_A = 0x07, 0x87, 0x05, 0x15, 0x35, 0x06, 0x16
_IP, _PACKET_TYPE = 0xFFF00000, 0xFFFFF004  # SKF_NET_OFF, SKF_AD_OFF + SKF_AD_PKTTYPE
_ODD = 0x9E3779B1  # Knuth's multiplicative hash
_UDP = 17

# A broadcast and a multicast reach every socket of the group: the first of them alone takes it. They are known by the
# packet's type (PACKET_HOST is 0), and where that does not say so, as on the loopback interface, by the address.
UNICAST_ONLY: Steps = [
    (_LD_B, _PACKET_TYPE), (_JEQ, 0, 8, 0),
    (_LD_B, _IP), (_AND, 0xF0), (_JEQ, 0, 2, 0x40),
    (_LD_B, _IP + 16), (_JGE, 3, 2, 0xE0),
    (_LD_B, _IP + 24), (_JEQ, 1, 0, 0xFF),
    (_RET, 0xFFFFFFFF), (_RET, 0),
]  # fmt: skip

# What a socket of the group has as the listener has it: level, option.
_COPIED = [
    (socket.SOL_SOCKET, socket.SO_BROADCAST), (socket.SOL_SOCKET, socket.SO_PRIORITY),
    (socket.SOL_SOCKET, getattr(socket, "SO_MARK", 36)), (socket.IPPROTO_IP, socket.IP_TOS),
    (socket.IPPROTO_IP, 8), (socket.IPPROTO_IP, 15), (socket.IPPROTO_IP, 19),  # PKTINFO, FREEBIND, TRANSPARENT
]  # fmt: skip
_COPIED_IPV6 = [
    (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY), (socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO),
    (socket.IPPROTO_IPV6, socket.IPV6_TCLASS),
]  # fmt: skip


class Places:
    """The sockets of all workers but the first's, which is the listener itself. None where they share that."""

    def __init__(self) -> None:
        self.others: list[socket.socket] = []

    def take(self, number: int, listener: socket.socket | None) -> None:
        """Have the listener of this process be the socket of its place: that of the worker of this number."""
        place = (number - 1) % (len(self.others) + 1)
        if place and listener is not None:
            take_over(listener, self.others[place - 1].detach())
        self.leave()

    def leave(self) -> None:
        """Close the sockets, or this forked process's copies: it may outlive us and must not hold the address."""
        for each in self.others:
            each.close()
        self.others = []


def program_for(places: int) -> Steps:
    """Return the program that gives the index of a peer's socket, from its address and port.

    Behind an extension header of IPv6 it is the address alone.
    """
    v4 = [(_LD_B, _IP), (_AND, 0x0F), (_LSH, 2), (_TAX,), (_LD_H_X, _IP)]
    v4 += [(_TAX,), *_mixed((_LD_W, _IP + 12))]
    v6 = [(_LD_K, 0), (_TAX,)]
    for at in (8, 12, 16, 20):
        v6 += _mixed((_LD_W, _IP + at))
    v6 += [(_LD_B, _IP + 6), (_JEQ, 0, 4, _UDP), *_mixed((_LD_H, _IP + 40))]
    v4 += [(_JA, len(v6))]
    head = [(_LD_B, _IP), (_AND, 0xF0), (_JEQ, 0, len(v4), 0x40)]
    return [*head, *v4, *v6, (_TXA,), (_RSH, 16), (_MOD, places), (_RET_A,)]


def _mixed(load: tuple[int, ...]) -> Steps:
    return [load, (_XOR_X,), (_MUL, _ODD), (_TAX,)]


def spread(listener: socket.socket, places: int) -> list[socket.socket]:
    """Return the sockets of all places but the first, which is the listener's. Raises BindError.

    It has to be served by nobody yet: what comes meanwhile may be at any of them.
    """
    others: list[socket.socket] = []
    if places == 1:
        return others
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        for _ in range(places - 1):
            others.append(_beside(listener))
        _attach(listener, SO_ATTACH_REUSEPORT_CBPF, program_for(places))
    except OSError as exc:
        gather(listener, others)
        where = address_text(listener.getsockname())
        raise BindError(exc.errno, f"could not bind {where} for each worker (peer_affinity): {reason_of(exc)}") from exc
    return others


def gather(listener: socket.socket, others: Iterable[socket.socket]) -> None:
    """Close the sockets of the other places, and let nobody join any more."""
    for each in others:
        each.close()
    if listener.fileno() != -1:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)


def _beside(listener: socket.socket) -> socket.socket:
    sock = socket.socket(listener.family, listener.type)
    try:
        sock.settimeout(None)
        for level, option in [*_COPIED, *(_COPIED_IPV6 if listener.family == socket.AF_INET6 else [])]:
            with contextlib.suppress(OSError):  # it is another system's, or a privilege that it was set with is gone
                if value := listener.getsockopt(level, option):
                    sock.setsockopt(level, option, value)
        with contextlib.suppress(OSError):
            if device := listener.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)
        give_room(listener, [sock])
        _attach(sock, SO_ATTACH_FILTER, UNICAST_ONLY)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if listener.family == socket.AF_INET6:
            only = listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        sock.bind(listener.getsockname())
    except BaseException:
        sock.close()
        raise
    return sock


def give_room(listener: socket.socket, others: Iterable[socket.socket]) -> None:
    """Have the sockets keep as many bytes as the listener does; a reload may have changed that."""
    for option, beyond_the_limit in ((socket.SO_RCVBUF, SO_RCVBUFFORCE), (socket.SO_SNDBUF, SO_SNDBUFFORCE)):
        size = listener.getsockopt(socket.SOL_SOCKET, option)
        for sock in others:
            if sock.getsockopt(socket.SOL_SOCKET, option) != size:
                try:
                    sock.setsockopt(socket.SOL_SOCKET, beyond_the_limit, size // 2)  # the kernel doubles what is set
                except OSError:
                    sock.setsockopt(socket.SOL_SOCKET, option, size // 2)


def _attach(sock: socket.socket, option: int, steps: Steps) -> None:
    code = ctypes.create_string_buffer(b"".join(map(_packed, steps)))
    sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("HP", len(steps), ctypes.addressof(code)))


def _packed(step: tuple[int, ...]) -> bytes:
    operation, *jumps, number = step if len(step) > 1 else (*step, 0)
    return struct.pack("HBBI", operation, *(jumps or (0, 0)), number)
