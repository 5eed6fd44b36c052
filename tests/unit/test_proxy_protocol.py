"""The PROXY protocol: every header that the specification has, byte by byte, and a hundred thousand that it has not."""

import ipaddress
import os
import random
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.workers.proxy_protocol import (
    PP2_TYPE_ALPN,
    PP2_TYPE_CRC32C,
    PP2_TYPE_NOOP,
    PP2_TYPE_UNIQUE_ID,
    SIGNATURE,
    V1_MOST,
    ProxyHeader,
    ProxyHeaderError,
    belonging,
    crc32c,
    is_complete,
    parse,
    split,
)

STREAM, DGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
V4 = socket.inet_aton("192.0.2.1") + socket.inet_aton("198.51.100.2") + struct.pack("!HH", 5555, 443)
V6 = socket.inet_pton(socket.AF_INET6, "2001:db8::1") + bytes(15) + b"\1" + struct.pack("!HH", 1, 65535)
PATHS = b"/run/a".ljust(108, b"\0") + b"\0abstract".ljust(108, b"\0")


def v2(kind: int, body: bytes, command: int = 0x21) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, kind, len(body)) + body


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


def checked(kind: int, addresses: bytes, *more: bytes) -> bytes:
    """A header with a right checksum behind the addresses."""
    rest = b"".join(more)
    header = v2(kind, addresses + tlv(PP2_TYPE_CRC32C, bytes(4)) + rest)
    sum_ = struct.pack("!I", crc32c(header))
    return v2(kind, addresses + tlv(PP2_TYPE_CRC32C, sum_) + rest)


SOURCE_4, DESTINATION_4 = ("192.0.2.1", 5555), ("198.51.100.2", 443)
GOOD = {
    b"PROXY UNKNOWN\r\n": ProxyHeader(1),
    b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n": ProxyHeader(1),
    b"PROXY TCP4 192.0.2.1 198.51.100.2 5555 443\r\n": ProxyHeader(1, SOURCE_4, DESTINATION_4, STREAM),
    b"PROXY TCP4 255.255.255.255 0.0.0.0 0 65535\r\n": ProxyHeader(
        1, ("255.255.255.255", 0), ("0.0.0.0", 65535), STREAM
    ),
    b"PROXY TCP6 2001:db8::1 ::1 1 65535\r\n": ProxyHeader(
        1, ("2001:db8::1", 1, 0, 0), ("::1", 65535, 0, 0), STREAM
    ),
    v2(0x11, V4): ProxyHeader(2, SOURCE_4, DESTINATION_4, STREAM),
    v2(0x12, V4): ProxyHeader(2, SOURCE_4, DESTINATION_4, DGRAM),
    v2(0x10, V4): ProxyHeader(2, SOURCE_4, DESTINATION_4),
    v2(0x21, V6): ProxyHeader(2, ("2001:db8::1", 1, 0, 0), ("::1", 65535, 0, 0), STREAM),
    v2(0x31, PATHS): ProxyHeader(2, "/run/a", b"\0abstract", STREAM),
    v2(0x31, bytes(216)): ProxyHeader(2, "", "", STREAM),
    v2(0x00, b""): ProxyHeader(2),
    v2(0x01, tlv(PP2_TYPE_ALPN, b"h2")): ProxyHeader(2, transport=STREAM, tlvs=((PP2_TYPE_ALPN, b"h2"),)),
    v2(0x00, b"", 0x20): ProxyHeader(2),
    v2(0x11, V4, 0x20): ProxyHeader(2),
    v2(0xFF, b"anything", 0x20): ProxyHeader(2),  # LOCAL: the rest must be ignored
    v2(0x11, V4 + tlv(PP2_TYPE_NOOP, bytes(5)) + tlv(PP2_TYPE_UNIQUE_ID, b"") + tlv(0xEA, b"vpce")): ProxyHeader(
        2, SOURCE_4, DESTINATION_4, STREAM, ((PP2_TYPE_UNIQUE_ID, b""), (0xEA, b"vpce"))
    ),
    checked(0x11, V4, tlv(PP2_TYPE_ALPN, b"x")): ProxyHeader(
        2, SOURCE_4, DESTINATION_4, STREAM, ((PP2_TYPE_ALPN, b"x"),)
    ),
}  # fmt: skip

BAD = (
    b"PROXY TCP4 192.0.2.1 198.51.100.2 5555 443\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 05555 443\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 5555 65536\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 +555 443\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 5_5 443\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 \xb2 443\r\n",
    b"PROXY TCP4 192.0.2.1  198.51.100.2 5555 443\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 5555 443 \r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 5555\r\n",
    b"PROXY TCP4 192.0.2 198.51.100.2 5555 443\r\n",
    b"PROXY TCP4 192.0.2.01 198.51.100.2 5555 443\r\n",
    b"PROXY TCP4 ::1 ::1 5555 443\r\n",
    b"PROXY TCP6 192.0.2.1 198.51.100.2 5555 443\r\n",
    b"PROXY TCP6 fe80::1%1 ::1 5555 443\r\n",
    b"PROXY TCP4 192.0.2.1\0 198.51.100.2 5555 443\r\n",
    b"PROXY TCP5 192.0.2.1 198.51.100.2 5555 443\r\n",
    b"PROXY \r\n",
    b"PROXY unknown\r\n",
    v2(0x11, V4, 0x11),
    v2(0x11, V4, 0x22),
    v2(0x11, V4[:-1]),
    v2(0x21, V4),
    v2(0x13, V4),
    v2(0x41, V4),
    v2(0x11, V4 + b"\1"),
    v2(0x11, V4 + b"\1\0\2x"),
    v2(0x11, V4 + tlv(PP2_TYPE_CRC32C, bytes(4))),
    v2(0x11, V4 + tlv(PP2_TYPE_CRC32C, bytes(3))),
)  # fmt: skip


def read(data: bytes) -> tuple[bytes, bytes]:
    """Take a header from the front as a reader does that sees one byte more each time; return it, and the rest."""
    for end in range(1, len(data) + 1):
        header = data[: belonging(data[:end])]
        if is_complete(header):
            return header, data[len(header) :]
        assert len(header) == end, "what is incomplete is the header's as a whole"
    raise EOFError


@pytest.mark.parametrize("header", GOOD)
def test_header_is_read_however_it_is_cut(header: bytes) -> None:
    payload = b"\r\n\r\nPROXY UNKNOWN\r\nGET /"
    assert read(header + payload) == (header, payload)
    assert belonging(header + payload) == len(header)
    assert parse(header) == GOOD[header]


@pytest.mark.parametrize("header", GOOD)
def test_what_is_cut_off_is_not_complete(header: bytes) -> None:
    with pytest.raises(EOFError):
        read(header[:-1])


@pytest.mark.parametrize("header", BAD)
def test_what_the_specification_has_not_is_refused(header: bytes) -> None:
    with pytest.raises(ProxyHeaderError):
        parse(read(header)[0])


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n", b"\x16\x03\1", b"PROXYY", b"proxy ", b"\r\n\r\n\0\r\nQUIT\r"])
def test_what_begins_otherwise_is_refused_at_the_first_byte_that_differs(data: bytes) -> None:
    for end in range(1, len(data)):
        if data[:end] not in (SIGNATURE[:end], b"PROXY "[:end]):
            break
    else:
        end = len(data)
    assert belonging(data[: end - 1]) == end - 1
    with pytest.raises(ProxyHeaderError, match="does not begin"):
        belonging(data[:end])


def test_line_without_an_end_is_refused_at_its_longest() -> None:
    line = b"PROXY UNKNOWN ".ljust(V1_MOST, b"x")
    assert belonging(line[:-1]) == V1_MOST - 1
    with pytest.raises(ProxyHeaderError, match="no end"):
        belonging(line)
    assert belonging(line[:-2] + b"\r\n") == V1_MOST


def test_checksum_is_castagnolis() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # the check value of RFC 3720's polynomial
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4


# But for the kind of the addition, at 28, without which there is none.
@pytest.mark.parametrize("at", sorted({*range(len(checked(0x11, V4)))} - {28}))
def test_checksum_finds_every_changed_byte(at: int) -> None:
    header = bytearray(checked(0x11, V4))
    header[at] ^= 0x40
    try:
        found = parse(read(bytes(header))[0])
    except (ProxyHeaderError, EOFError):
        return
    pytest.fail(f"byte {at} was changed, and it was taken for {found}")


def mutated(corpus: list[bytes]) -> Iterator[bytes]:
    """A hundred thousand of them."""
    chance = random.Random(20261129)
    for _ in range(100_000):
        data = bytearray(chance.choice(corpus))
        for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
            at = chance.randrange(len(data) + 1)
            match chance.randrange(3):
                case 0:
                    data[at:at] = bytes((chance.randrange(256),))
                case 1:
                    del data[at : at + chance.randrange(1, 4)]
                case _ if at < len(data):
                    data[at] = chance.choice((data[at] ^ 1 << chance.randrange(8), chance.randrange(256)))
        yield bytes(data)


def test_hundred_thousand_mutations_give_an_address_that_the_bytes_have_or_none() -> None:
    """Of a header that is taken, every address can be packed again to the very bytes of the header."""
    taken = 0
    for data in mutated([*GOOD, *BAD]):
        try:
            header, _ = read(data)
            found = parse(header)
        except (ProxyHeaderError, EOFError):
            continue
        taken += 1
        if found.source is not None:
            assert endpoints(found) == told(header), (header, found)
    assert taken > 1000


PAYLOAD = b"\r\n\r\n\0\r\nQUIT\nPROXY UNKNOWN\r\n"


@pytest.mark.parametrize("header", GOOD)
def test_datagram_begins_with_a_whole_header_of_version_2(header: bytes) -> None:
    """What follows is the client's, if only nothing; and cut off at whichever byte, within the header, it is none."""
    if header.startswith(b"PROXY"):
        with pytest.raises(ProxyHeaderError, match="version 2"):
            split(header + PAYLOAD)
        return
    for payload in (PAYLOAD, b""):
        assert split(header + payload) == (GOOD[header], payload)
    for end in range(len(header)):
        with pytest.raises(ProxyHeaderError):
            split(header[:end])


@pytest.mark.parametrize("header", [*BAD, b"", PAYLOAD, b"x"])
def test_datagram_without_a_good_header_is_refused(header: bytes) -> None:
    with pytest.raises(ProxyHeaderError):
        split(header + b"x")


def test_hundred_thousand_datagrams_mutated_give_the_address_and_the_rest_of_their_bytes_or_none() -> None:
    taken = 0
    for data in mutated([header + PAYLOAD for header in [*GOOD, *BAD]]):
        try:
            found, payload = split(data)
        except ProxyHeaderError:
            continue
        taken += 1
        size = 16 + int.from_bytes(data[14:16], "big")
        assert (data[:12], payload) == (SIGNATURE, data[size:]), data
        assert len(data) >= size
        if found.source is not None:
            assert endpoints(found) == told(data[:size]), (data, found)
    assert taken > 1000


def endpoints(found: ProxyHeader) -> bytes:
    """The addresses and ports that were found, packed as version 2 has them."""
    source, destination = found.source, found.destination
    if isinstance(source, tuple):
        family = socket.AF_INET if len(source) == 2 else socket.AF_INET6
        hosts = b"".join(socket.inet_pton(family, host) for host, *_ in (source, destination))
        return hosts + struct.pack("!HH", source[1], destination[1])
    return b"".join(os.fsencode(path).ljust(108, b"\0") for path in (source, destination))


def told(header: bytes) -> bytes:
    """The same, from the bytes of a header, read in another way than ours."""
    if header.startswith(SIGNATURE):
        addresses = header[16 : 16 + {1: 12, 2: 36, 3: 216}[header[13] >> 4]]
        if header[13] >> 4 < 3:
            return addresses
        return b"".join(
            path if path[:1] == b"\0" else path.split(b"\0")[0].ljust(108, b"\0")
            for path in (addresses[:108], addresses[108:])
        )
    _, family, *hosts, source_port, destination_port = header.decode().split()
    packed = b"".join(ipaddress.ip_address(host).packed for host in hosts)
    assert family == {8: "TCP4", 32: "TCP6"}[len(packed)]
    return packed + struct.pack("!HH", int(source_port), int(destination_port))


@given(st.binary(max_size=300))
def test_no_bytes_make_another_error(data: bytes) -> None:
    for begin in (b"", SIGNATURE, b"PROXY "):
        try:
            header, _ = read(begin + data)
            parse(header)
        except (ProxyHeaderError, EOFError):
            pass
