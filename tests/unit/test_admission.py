"""Admission: each term alone, on a pair of sockets; what is read and what is left, and how long a client may take."""

import logging
import os
import socket
from collections.abc import Iterator
from time import monotonic
from typing import Any

import pytest

from prefork.metrics.facts import Refusal
from prefork.sockets.addresses import address_text
from prefork.sockets.networks import Networks, asked
from prefork.workers import admission as module
from prefork.workers.accepting import NotAdmitted
from prefork.workers.admission import Admission, Terms
from prefork.workers.proxy_protocol import SIGNATURE

V1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 4242 443\r\n"
V2 = SIGNATURE + bytes.fromhex("21 11 000c c0000207 c6336401 1092 01bb")
PEER = ("127.0.0.1", 5)
LONG = 30.0


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def admit(request: Any, address: Any = PEER, **terms: Any) -> Any:
    found, client_address = Admission(Terms(**terms), address_text).admit(request, address)
    assert found is request
    return client_address


def refused(request: Any, address: Any = PEER, **terms: Any) -> Refusal:
    with pytest.raises(NotAdmitted) as caught:
        admit(request, address, **terms)
    return caught.value.refusal


@pytest.mark.parametrize("header", [V1, V2], ids=["v1", "v2"])
@pytest.mark.parametrize("timeout", [None, 7.0, 0.0])
def test_header_is_read_and_nothing_else(
    header: bytes, timeout: float | None, pair: tuple[socket.socket, socket.socket]
) -> None:
    """The bytes behind it are left, the socket's timeout is what it was, and the address is the client's."""
    ours, theirs = pair
    theirs.sendall(header + b"PROXY of the program's")
    ours.settimeout(timeout)
    blocking = os.get_blocking(ours.fileno())
    found = admit(ours, proxies=Networks("127.0.0.1"), header_timeout=LONG)
    assert found == ("192.0.2.7", 4242)
    assert (found.proxy.peer, found.proxy.destination) == (PEER, ("198.51.100.1", 443))
    assert ours.gettimeout() == timeout
    assert os.get_blocking(ours.fileno()) is blocking
    ours.settimeout(LONG)
    assert ours.recv(99) == b"PROXY of the program's"


@pytest.mark.parametrize("data", [b"", V1[:-1], V2[:-1], SIGNATURE], ids=["nothing", "v1", "v2", "signature"])
@pytest.mark.parametrize("ends", [True, False], ids=["and the end", "and silence"])
def test_header_that_does_not_come(data: bytes, ends: bool, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.sendall(data)
    if ends:
        theirs.shutdown(socket.SHUT_WR)
    assert refused(ours, proxies=Networks("127.0.0.1"), header_timeout=LONG if ends else 0.05) is Refusal.PROXY_HEADER


def test_deadline_is_for_the_whole_header(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that sends a byte whenever the wait is about to end is not waited for any longer."""
    ours, theirs = pair
    now = [monotonic()]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])

    class Dripping:
        """A peek is a second later, and sees one byte more."""

        def __init__(self) -> None:
            self.left = list(V2)
            self.timeouts: list[float] = []

        def settimeout(self, seconds: float) -> None:
            self.timeouts.append(seconds)

        def recv(self, size: int, flags: int = 0) -> bytes:
            if flags:
                now[0] += 1
                theirs.send(bytes((self.left.pop(0),)))
            if self.timeouts[-1] <= 0.001:
                raise TimeoutError
            return ours.recv(size, flags)

    dripping: Any = Dripping()
    with pytest.raises(TimeoutError):
        module._read_header(dripping, now[0] + 5)
    assert dripping.timeouts == [5, 4, 3, 2, 1, 0.001]


@pytest.mark.parametrize(("host", "admitted"), [("10.1.2.3", True), ("10.9.0.1", False), ("8.8.8.8", False)])
def test_clients_by_their_addresses(host: str, admitted: bool) -> None:
    """Denied wins over allowed."""
    address = (host, 1)
    terms = {"allowed": Networks("10.0.0.0/8"), "denied": Networks("10.9.0.0/16")}
    if admitted:
        assert admit(None, address, **terms) == address
    else:
        assert refused(None, address, **terms) is Refusal.DENIED


def test_client_is_the_one_behind_the_proxy(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.sendall(V1)
    terms = {"proxies": Networks("127.0.0.1"), "header_timeout": LONG, "denied": Networks("192.0.2.7")}
    assert refused(ours, **terms) is Refusal.DENIED


@pytest.mark.parametrize("peer", [PEER, ("::1", 5, 0, 0), "/run/proxy", None])
def test_datagram_is_relieved_of_its_header(peer: Any) -> None:
    """The program sees the rest of it, and the client that the header names; the proxy stands there, by its name."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        door = Admission(Terms(proxies=Networks("127.0.0.1, ::1, unix")), address_text)
        (data, its), address = door.admit((V2 + b"question", sock), peer)
    assert (data, its, address) == (b"question", sock, ("192.0.2.7", 4242))
    assert address.proxy.peer == (peer or "")


@pytest.mark.parametrize(
    ("data", "peer"),
    [(b"question", PEER), (V1 + b"question", PEER), (V2[:-1], PEER), (V2, ("127.0.0.2", 5)), (V2, "x")],
)
def test_datagram_that_is_dropped(data: bytes, peer: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Without a good header, or from elsewhere, whatever it begins with."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock, caplog.at_level(logging.INFO, "prefork.server"):
        door = Admission(Terms(proxies=Networks("127.0.0.1")), address_text)
        with pytest.raises(NotAdmitted) as caught:
            door.admit((data, sock), peer)
    assert (caught.value.refusal, caught.value.client_address) == (Refusal.PROXY_HEADER, peer)
    assert f"datagram from {address_text(peer)} dropped: it " in caplog.text or "the header" in caplog.text


def test_client_of_a_datagram_is_the_one_behind_the_proxy() -> None:
    terms = {"proxies": Networks("127.0.0.1"), "denied": Networks("192.0.2.7")}
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        assert refused((V2, sock), **terms) is Refusal.DENIED


def test_first_byte(pair: tuple[socket.socket, socket.socket]) -> None:
    """It is waited for, and left where it is; the end of file is one."""
    ours, theirs = pair
    assert refused(ours, first_byte_timeout=0.05) is Refusal.FIRST_BYTE
    theirs.sendall(b"x")
    assert admit(ours, first_byte_timeout=LONG) == PEER
    assert ours.recv(9) == b"x"
    theirs.close()
    assert admit(ours, first_byte_timeout=LONG) == PEER


def test_who_has_waited_too_long_is_closed_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = {"served": 900_000_000, "closed": 1_100_000_000, "unknown": None}
    monkeypatch.setattr(module, "queue_wait_ns", waited.get)
    for request in ("served", "unknown"):
        assert admit(request, max_queue_wait=1.0) == PEER
    assert refused("closed", max_queue_wait=1.0) is Refusal.OVERLOAD


def test_each_reason_is_said_once_in_ten_seconds(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    door = Admission(Terms(denied=Networks("127.0.0.0/8")), address_text)
    caplog.set_level(logging.DEBUG, "prefork.server")
    for now[0] in (0.0, 1.0, 9.9, 10.0, 10.1):
        with pytest.raises(NotAdmitted):
            door.admit(None, PEER)
    assert [record.levelname for record in caplog.records] == ["INFO", "DEBUG", "DEBUG", "INFO", "DEBUG"]
    assert caplog.messages[0] == "connection from 127.0.0.1:5 closed: it is in denied_clients"


class Nothing:
    proxy_trusted = allowed_clients = denied_clients = first_byte_timeout = max_queue_wait = None
    max_connections = max_connections_per_client = None
    proxy_header_timeout = tls_handshake_timeout = 5.0


def test_nothing_is_asked_unless_it_is_set() -> None:
    assert asked(Nothing(), None) is None
    assert asked(Nothing(), "a context") is not None
    for name, value in (
        ("proxy_trusted", "::1"), ("allowed_clients", "::1"), ("denied_clients", "::1"), ("first_byte_timeout", 1.0),
        ("max_queue_wait", 1.0), ("max_connections", 1), ("max_connections_per_client", 1),
    ):  # fmt: skip
        assert asked(type("Settings", (Nothing,), {name: value})(), None) is not None, name


@pytest.mark.parametrize(
    ("address", "found"),
    [
        (("10.2.3.4", 1), True), (("11.0.0.1", 1), False), (("::1", 1, 0, 0), True), (("::2", 1, 0, 0), False),
        (("::ffff:10.0.0.1", 1, 0, 0), True), (("1.2.3.77", 2), True), (("1.2.4.0", 2), False),
        (("fe80::1%eth0", 1, 0, 2), True), ("", True), (b"\0name", True), (("no address", 1), False),
    ],
)  # fmt: skip
def test_networks(address: Any, found: bool) -> None:
    networks = Networks("10.0.0.0/8, ::1 unix, ::ffff:1.2.3.0/120, fe80::/10")
    assert [address in networks for _ in range(2)] == [found, found]


def test_networks_without_unix_and_with_everything() -> None:
    assert "" not in Networks("0.0.0.0/0 ::/0")
    assert ("1.2.3.4", 1) in Networks("0.0.0.0/0")
    assert ("1.2.3.4", 1) not in Networks("::/0")
    assert ("2001:db8::1", 1, 0, 0) in Networks("::/0")


def test_networks_remember_a_bounded_number() -> None:
    networks = Networks("10.0.0.0/8")
    for number in range(5000):
        assert ((f"10.0.{number // 250}.{number % 250}", 1)) in networks
    assert len(networks._known) <= 1024


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("10.0.0.1/8", "could not read the network '10.0.0.1/8': it has bits behind its prefix"),
        ("10/8", "could not read the network '10/8': it is no address, network or 'unix'"),
        ("::1, x", "could not read the network 'x': it is no address, network or 'unix'"),
        ("::1/129", "could not read the network '::1/129': its prefix is no number up to 128"),
        ("1.2.3.4/", "could not read the network '1.2.3.4/': its prefix is no number up to 32"),
        ("1.2.3.4/+8", "could not read the network '1.2.3.4/+8': its prefix is no number up to 32"),
        (" ,", "could not read the networks ' ,': there is none"),
    ],
)
def test_what_is_no_network_is_named(text: str, why: str) -> None:
    with pytest.raises(ValueError) as caught:
        Networks(text)
    assert str(caught.value) == why
