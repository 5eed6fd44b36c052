"""The PROXY protocol, versions 1 and 2: the header by which a proxy says for whom it has connected.

Parses bytes; pure, and must not read from a socket. Runs in the process that serves the request. Source:
https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt, whose "must" is read as such: nothing is guessed.
"""

import os
import socket
import struct
from functools import cache
from typing import Any, NamedTuple

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"  # of version 2
V1 = b"PROXY "
V1_MOST = 107  # with CR and LF
V2_HEAD = 16
V2_MOST = V2_HEAD + 0xFFFF

PP2_TYPE_ALPN, PP2_TYPE_AUTHORITY, PP2_TYPE_CRC32C, PP2_TYPE_NOOP, PP2_TYPE_UNIQUE_ID = 1, 2, 3, 4, 5
PP2_TYPE_SSL, PP2_TYPE_NETNS = 0x20, 0x30

_LOCAL, _PROXY = 0x20, 0x21
_V2 = struct.Struct("!12sBBH")
_TLV = struct.Struct("!BH")
_FAMILIES = {1: (socket.AF_INET, "!4s4sHH"), 2: (socket.AF_INET6, "!16s16sHH"), 3: (socket.AF_UNIX, "!108s108s")}
_TRANSPORTS = {0: None, 1: socket.SOCK_STREAM, 2: socket.SOCK_DGRAM}
_V1_FAMILIES = {b"TCP4": socket.AF_INET, b"TCP6": socket.AF_INET6}


class ProxiedAddress(tuple[Any, ...]):
    """The address of a client for whom a proxy has connected: as any other, and with the header as `proxy`."""

    proxy: "ProxyHeader"


class ProxiedPath(str):
    """The same, for the path of a client's Unix socket."""

    proxy: "ProxyHeader"


class ProxyHeaderError(ValueError):
    """These bytes are no header of the PROXY protocol."""


class ProxyHeader(NamedTuple):
    """The things that a proxy has said of a connection.

    `source` and `destination` are addresses as the socket module has them: (host, port), (host, port, 0, 0), or a path;
    None where the proxy speaks for itself (LOCAL, as in a health check) or does not know. `tlvs` are the additions of
    version 2, as they came, without paddings and the checksum: pairs of PP2_TYPE_… and bytes. `peer` is the address of
    the proxy itself.
    """

    version: int
    source: Any = None
    destination: Any = None
    transport: int | None = None  # SOCK_STREAM or SOCK_DGRAM, if told
    tlvs: tuple[tuple[int, bytes], ...] = ()
    peer: Any = None

    def client_address(self) -> Any:
        """Return the client's address, which is the proxy's own if it speaks for itself."""
        found = self.peer if self.source is None else self.source
        address = ProxiedAddress(found) if isinstance(found, tuple) else ProxiedPath(os.fsdecode(found))
        address.proxy = self
        return address

    def tlv(self, kind: int) -> bytes | None:
        """Return the first addition of this kind, or None."""
        return next((value for found, value in self.tlvs if found == kind), None)


def belonging(data: bytes) -> int:
    """Return how many bytes of `data`, the first of a connection, belong to a header for certain.

    It is complete when `is_complete()` of those says so. Raises ProxyHeaderError once they cannot begin a header.
    """
    if data[: len(SIGNATURE)] == SIGNATURE[: len(data)]:
        if len(data) < V2_HEAD:
            return len(data)
        return min(len(data), V2_HEAD + int.from_bytes(data[14:16], "big"))
    if data[: len(V1)] != V1[: len(data)]:
        raise ProxyHeaderError("it does not begin with a header of the PROXY protocol")
    end = data.find(b"\n", 0, V1_MOST) + 1
    if not end and len(data) >= V1_MOST:
        raise ProxyHeaderError(f"the line of version 1 has no end within {V1_MOST} bytes")
    return end or len(data)


def is_complete(header: bytes) -> bool:
    if header.startswith(SIGNATURE):
        return len(header) >= V2_HEAD and len(header) == V2_HEAD + int.from_bytes(header[14:16], "big")
    return header.endswith(b"\n") and header.startswith(V1)


def split(datagram: bytes) -> tuple[ProxyHeader, bytes]:
    """Return the header of a datagram, which has one of version 2 as a whole, and what follows it.

    Raises ProxyHeaderError. Version 1 is for TCP only.
    """
    if not datagram.startswith(SIGNATURE):
        raise ProxyHeaderError("it does not begin with a header of version 2 of the PROXY protocol")
    size = belonging(datagram)
    return parse(datagram[:size]), datagram[size:]


def parse(header: bytes) -> ProxyHeader:
    """Parse a complete header. Raises ProxyHeaderError, with the reason in words that complete "it was refused: …"."""
    return _parse_v2(header) if header.startswith(SIGNATURE) else _parse_v1(header)


# --- version 1 ------------------------------------------------------------------------------------


def _parse_v1(line: bytes) -> ProxyHeader:
    if not line.startswith(V1) or not line.endswith(b"\r\n") or len(line) > V1_MOST:
        raise ProxyHeaderError("the line of version 1 does not end in CR LF")
    words = line[len(V1) : -2].split(b" ")
    if words[0] == b"UNKNOWN":
        return ProxyHeader(1)
    family = _V1_FAMILIES.get(words[0])
    if family is None or len(words) != 5:
        raise ProxyHeaderError("the line of version 1 is not PROXY TCP4|TCP6 and two addresses and ports")
    source, destination = (_address(family, _v1_host(family, words[at]), _v1_port(words[at + 2])) for at in (1, 2))
    return ProxyHeader(1, source, destination, socket.SOCK_STREAM)


def _v1_host(family: int, word: bytes) -> bytes:
    try:
        return socket.inet_pton(family, word.decode("ascii"))
    except (OSError, ValueError):  # UnicodeDecodeError is one; so is a NUL within
        raise ProxyHeaderError("an address of version 1 is none of its family") from None


def _v1_port(word: bytes) -> int:
    if not word.isdigit() or (word[:1] == b"0" and word != b"0") or len(word) > 5 or int(word) > 0xFFFF:
        raise ProxyHeaderError("a port of version 1 is no plain number up to 65535")
    return int(word)


# --- version 2 ------------------------------------------------------------------------------------


def _parse_v2(header: bytes) -> ProxyHeader:
    if not is_complete(header):
        raise ProxyHeaderError("the header of version 2 is shorter or longer than it says")
    _, command, kind, _ = _V2.unpack_from(header)
    if command == _LOCAL:
        return ProxyHeader(2)
    if command != _PROXY:
        raise ProxyHeaderError("neither version 2 nor a command that it knows")
    family, transport = kind >> 4, kind & 0x0F
    if transport not in _TRANSPORTS or (family and family not in _FAMILIES):
        raise ProxyHeaderError("an address family or a transport that version 2 does not know")
    body = header[V2_HEAD:]
    if not family:
        return ProxyHeader(2, transport=_TRANSPORTS[transport], tlvs=_tlvs(header, body))
    number, layout = _FAMILIES[family]
    size = struct.calcsize(layout)
    if len(body) < size:
        raise ProxyHeaderError("the header of version 2 ends within its addresses")
    source, destination, *ports = struct.unpack(layout, body[:size])
    return ProxyHeader(
        2, _address(number, source, *ports[:1]), _address(number, destination, *ports[1:]), _TRANSPORTS[transport],
        _tlvs(header, body[size:]),
    )  # fmt: skip


def _address(family: int, host: bytes, port: int = 0) -> Any:
    if family == socket.AF_UNIX:
        if host[:1] == b"\0" and host.strip(b"\0"):
            return host.rstrip(b"\0")  # an abstract name, which Python gives as bytes
        return os.fsdecode(host.partition(b"\0")[0])
    text = socket.inet_ntop(family, host)
    return (text, port) if family == socket.AF_INET else (text, port, 0, 0)


def _tlvs(header: bytes, data: bytes) -> tuple[tuple[int, bytes], ...]:
    found, at = [], len(header) - len(data)
    while at < len(header):
        if at + _TLV.size > len(header):
            raise ProxyHeaderError("an addition of version 2 is cut off")
        kind, size = _TLV.unpack_from(header, at)
        at += _TLV.size
        value = header[at : at + size]
        if len(value) < size:
            raise ProxyHeaderError("an addition of version 2 is cut off")
        if kind == PP2_TYPE_CRC32C:
            _check(header, at, value)
        elif kind != PP2_TYPE_NOOP:
            found.append((kind, value))
        at += size
    return tuple(found)


def _check(header: bytes, at: int, value: bytes) -> None:
    """Check a checksum, which is over the whole header with zeroes in its place."""
    if len(value) != 4 or crc32c(header[:at] + bytes(4) + header[at + 4 :]) != int.from_bytes(value, "big"):
        raise ProxyHeaderError("the checksum of version 2 is wrong")


@cache
def _crc32c_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


def crc32c(data: bytes) -> int:
    """Return the CRC-32C (Castagnoli) of `data`. zlib's is another polynomial."""
    table, value = _crc32c_table(), 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ table[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF
