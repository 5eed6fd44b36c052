"""A kept connection on its way from one process to another, and the two queues on which it travels.

    worker ─▶ park queue ─▶ holder ─▶ ready queue ─▶ any worker

A connection belongs to one process at a time, or to the message in which it is. A message is a head, the client's
address, the handler's state, bytes that were read ahead, and one descriptor. Both queues are SEQPACKET pairs, made by
the master before the first fork. Nobody ever blocks on one.
"""

import array
import contextlib
import errno
import marshal
import mmap
import os
import socket
import struct
import sys
from typing import Any, NamedTuple, Self

from .proxy_protocol import ProxiedAddress, ProxiedPath, ProxyHeader
from .unnamed_peer import UNNAMED, UnnamedPeer

MESSAGE_VERSION = 1
# version, flags, listener, reason (CloseReason + 1; 0: none), requests, opened_ns, since_ns, wanted, cell; the length
# of each part that follows: address, state, unread
HEAD = struct.Struct("<BBBBIQQIIIII")
STATE_MAX = 64 * 1024
MESSAGE_MAX = 160 * 1024  # below the usual limit of a queue's buffer
PARK_BUFFER = 1 << 20  # where the kernel allows it: no worker has to keep what it could park
# Half of what the kernel makes of it: room for the longest message, or some 250 short ones. The rest waits in the
# holder: all descriptors of a user that are on their way count for the limit that unix(7) calls ETOOMANYREFS, which is
# 1024 in most workers.
READY_BUFFER = 96 * 1024
MARSHAL = 4  # the version of that format, which all supported Pythons read

# Flags.
TELL_END = 1  # the handler's class has a connection_closed(): it is called by a worker, however the connection ends
SHORT = 2  # to the holder: what is there is less than a request. From it: that is all, for the client has hung up
CLOSING = 4  # from the holder: call connection_closed() and close, for this reason, and count that
MET = 8  # a handler has had it: connection_opened() was called
SLOW = 16  # it has lingered in vain: it is parked at once, until it comes back to the holder quickly
SILENT = 32  # its client has said nothing so far; it ends at `since_ns` if that stays so
HANDED_OVER = 128  # from a holder to the next one

_FULL = (errno.EAGAIN, errno.ENOBUFS, errno.ETOOMANYREFS, errno.ENOMEM)
_FD = struct.Struct("i")
_LONG, _SHORT = struct.Struct("<Q"), struct.Struct("<I")
_SINCE_AT, _WANTED_AT, _CELL_AT, _UNREAD_AT = 16, 24, 28, 40  # in the head
_ROOM = socket.CMSG_SPACE(array.array("i").itemsize)
_RECEIVING = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
_PLAIN = frozenset((type(None), bool, int, float, complex, str, bytes))
_COLLECTIONS = (tuple, list, set, frozenset)
_NOT_PLAIN = "the state of a connection must be of plain values, not {!r:.80}"
_NO_CODE: dict[str, Any] = {"allow_code": False} if sys.version_info >= (3, 13) else {}

# Where messages are received, each of them for one thread at a time: `recvmsg()` would allocate MESSAGE_MAX for each,
# and what it returns keep a page of that. Private to a process, and no page of it is used before it is needed.
_rooms: list[memoryview] = []


class Kept(NamedTuple):
    """A connection that is kept, without its descriptor."""

    listener: int = 0  # the number of the one by which it came
    requests: int = 0  # so far
    opened_ns: int = 0  # monotonic
    client_address: Any = None
    state: bytes = b""  # as `encode_state()` returns it; empty: None
    unread: bytes = b""  # read ahead
    flags: int = 0
    wanted: int = 1  # with SHORT: the number of bytes that the kernel must have before anybody is asked again
    reason: int = 0  # with CLOSING: a CloseReason + 1
    since_ns: int = 0  # the holder's: since when it is short, or idle; see SILENT. Whoever begins a request makes it 0
    cell: int = 0  # in which it is counted (kept_cells.py); 0: in none

    def encoded(self) -> bytes:
        """Return the message. Raises ValueError if it is longer than MESSAGE_MAX, or the address has no bytes."""
        address = encode_address(self.client_address)
        head = HEAD.pack(
            MESSAGE_VERSION, self.flags, self.listener, self.reason, self.requests & 0xFFFF_FFFF, self.opened_ns,
            self.since_ns, self.wanted, self.cell, len(address), len(self.state), len(self.unread),
        )  # fmt: skip
        message = b"".join((head, address, self.state, self.unread))
        if len(message) > MESSAGE_MAX:
            raise ValueError(f"a kept connection has {len(message)} bytes to take along, more than {MESSAGE_MAX}")
        return message

    @classmethod
    def decoded(cls, message: bytes) -> Self:
        """Return what `encoded()` was called of. Raises ValueError if it is of another version, or no such message."""
        try:
            (version, flags, listener, reason, requests, opened_ns, since_ns, wanted, cell, of_address, of_state,
             of_unread) = HEAD.unpack_from(message)  # fmt: skip
        except struct.error as exc:
            raise ValueError("this is no message of a kept connection") from exc
        address_end = HEAD.size + of_address
        state_end = address_end + of_state
        if version != MESSAGE_VERSION or state_end + of_unread != len(message):
            raise ValueError(f"this message of a kept connection is of version {version}, or cut")
        return cls(
            listener, requests, opened_ns, decode_address(message[HEAD.size : address_end]),
            message[address_end:state_end], message[state_end:], flags, wanted, reason, since_ns, cell,
        )  # fmt: skip


# What a holder looks at and changes in a message, whose parts it does not decode: it has thousands.


def changed(message: bytes, flags: int, reason: int = 0, since_ns: int = 0) -> bytes:
    """Return the message with these in place of its own."""
    head = bytes((MESSAGE_VERSION, flags, message[2], reason)) + message[4:_SINCE_AT] + _LONG.pack(since_ns)
    return head + message[_WANTED_AT:]


def has_unread(message: bytes) -> bool:
    return message[_UNREAD_AT : HEAD.size] != b"\0\0\0\0"


def since_of(message: bytes) -> int:
    since_ns: int = _LONG.unpack_from(message, _SINCE_AT)[0]
    return since_ns


def wanted_of(message: bytes) -> int:
    wanted: int = _SHORT.unpack_from(message, _WANTED_AT)[0]
    return wanted


def cell_of(message: bytes) -> int:
    cell: int = _SHORT.unpack_from(message, _CELL_AT)[0]
    return cell


def encode_address(address: Any) -> bytes:
    """Return bytes for a client's address, with what a proxy has said of it. Raises ValueError if that cannot be: a
    program's `get_request()` may return anything."""
    if type(address) is tuple:
        return marshal.dumps(address, MARSHAL)
    if isinstance(address, UnnamedPeer):
        return b""
    if isinstance(address, ProxiedAddress | ProxiedPath):
        header = address.proxy
        kind = None if header.transport is None else int(header.transport)
        fields = (header.version, header.source, header.destination, kind, header.tlvs, encode_address(header.peer))
        return marshal.dumps({"proxy": fields}, MARSHAL)
    if isinstance(address, dict):
        raise ValueError(f"this is no address of a client: {address!r:.80}")
    return marshal.dumps(address, MARSHAL)


def decode_address(data: bytes) -> Any:
    """Return what `encode_address()` was called of."""
    if not data:
        return UNNAMED
    address = marshal.loads(data)
    if not isinstance(address, dict):
        return address
    version, source, destination, kind, tlvs, peer = address["proxy"]
    transport = None if kind is None else socket.SocketKind(kind)
    return ProxyHeader(version, source, destination, transport, tlvs, decode_address(peer)).client_address()


class QueueEnd:
    """One end of a queue. Whoever has made it closes it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.setblocking(False)

    def fileno(self) -> int:
        return self.sock.fileno()

    def send(self, message: bytes, fd: int) -> bool:
        """Send a connection; the caller still has to close its descriptor. False: the queue is full now, or too many
        descriptors are on their way (ETOOMANYREFS of unix(7)); try again later. Raises OSError: with EMSGSIZE, if the
        kernel's buffers are smaller than the message."""
        try:
            self.sock.sendmsg((message,), ((socket.SOL_SOCKET, socket.SCM_RIGHTS, _FD.pack(fd)),), socket.MSG_NOSIGNAL)
        except OSError as exc:
            if exc.errno in _FULL:
                return False
            raise
        return True

    def receive(self, *, has_room: bool = False) -> tuple[bytes, int] | None:
        """Return the next message and its descriptor, now the caller's; None if the queue is empty.

        Raises OSError with EMFILE where this process has no descriptor free, and leaves the message in the queue: the
        kernel would deliver it and close the connection. The descriptor is -1 where that happened because another
        thread was faster. `has_room`: the caller knows that there is one.
        """
        if not has_room:
            os.close(os.dup(self.sock.fileno()))
        try:
            room = _rooms.pop()
        except IndexError:
            room = memoryview(mmap.mmap(-1, MESSAGE_MAX, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        try:
            size, ancillary, _, _ = self.sock.recvmsg_into((room,), _ROOM, _RECEIVING)
            message = bytes(room[:size])
        except BlockingIOError:
            return None
        finally:
            _rooms.append(room)
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS and len(data) >= _FD.size:
                return message, _FD.unpack_from(data)[0]
        return (message, -1) if message else None  # an empty one: nobody has the other end any more

    def close(self) -> None:
        self.sock.close()


class Queues(NamedTuple):
    """The four ends of the two queues, as the master makes them and hands them on."""

    park_in: QueueEnd  # workers send
    park_out: QueueEnd  # the holder receives
    ready_in: QueueEnd  # the holder sends
    ready_out: QueueEnd  # workers receive

    @classmethod
    def made(cls) -> Self:
        """Make both queues. Raises OSError when descriptors are short, and then leaves nothing open."""
        with contextlib.ExitStack() as stack:
            socks = []
            for size in (PARK_BUFFER, READY_BUFFER):
                pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                socks += [stack.enter_context(each) for each in pair]
                pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
            stack.pop_all()
        return cls(*map(QueueEnd, socks))

    def pack(self) -> tuple[dict[str, list[int]], list[int]]:
        fds = [each.fileno() for each in self]
        return {"fds": fds}, fds

    @classmethod
    def over(cls, packed: dict[str, list[int]]) -> Self:
        """Return the queues that an earlier image of this process has packed."""
        return cls(*(QueueEnd(socket.socket(fileno=fd)) for fd in packed["fds"]))

    def close(self) -> None:
        for each in self:
            each.close()


def end_connection(fd: int) -> None:
    """Close a connection for good: its client sees the end even where a process of the program's has a copy of it."""
    with socket.socket(fileno=fd) as sock, contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)


def encode_state(state: Any) -> bytes:
    """Return the bytes of a handler's state. Raises ValueError if it is not of plain values, or too large."""
    if state is None:
        return b""
    try:
        data = marshal.dumps(state, MARSHAL, **_NO_CODE)
    except ValueError as exc:
        raise ValueError(_NOT_PLAIN.format(state)) from exc
    if len(data) > STATE_MAX:
        raise ValueError(f"the state of a connection takes {len(data)} bytes, more than {STATE_MAX}")
    if type(state) not in _PLAIN:
        try:
            plain = _is_plain(state)
        except RecursionError:  # it is in itself
            plain = False
        if not plain:
            raise ValueError(_NOT_PLAIN.format(state))
    return data


def _is_plain(state: Any) -> bool:
    """Return whether this comes back as it is: marshal makes bytes of whatever has a buffer, as a bytearray."""
    kind = type(state)
    if kind is dict:
        return all(map(_is_plain, state)) and all(map(_is_plain, state.values()))
    return kind in _PLAIN or (kind in _COLLECTIONS and all(map(_is_plain, state)))


def decode_state(data: bytes) -> Any:
    return marshal.loads(data) if data else None
