"""A group of sockets at one address, one for each worker: who is heard by which, and who cannot join."""

import contextlib
import os
import socket
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

import prefork
from prefork.errors import BindError, ConfigError
from prefork.settings.affinity import check_affinity
from prefork.sockets.affinity import Places, gather, give_room, spread

HUNG = 30.0  # seconds; never reached unless something hangs
PEERS = 200


@contextlib.contextmanager
def group(host: str, places: int) -> Iterator[list[socket.socket]]:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as listener:
        if ":" in host:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((host, 0))
        others = spread(listener, places)
        try:
            yield [listener, *others]
        finally:
            gather(listener, others)


def heard_at(sockets: list[socket.socket]) -> int:
    """The place of the one datagram that is queued."""
    found = []
    for place, sock in enumerate(sockets):
        with contextlib.suppress(BlockingIOError):
            sock.recv(9, socket.MSG_DONTWAIT)
            found.append(place)
    assert len(found) == 1, found
    return found[0]


@pytest.mark.parametrize("places", [1, 2, 3, 7])
@pytest.mark.parametrize(
    ("host", "asked"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.5"), ("::1", "::1"), ("::", "127.0.0.5"),
                        ("::", "::1")]
)  # fmt: skip
def test_each_peer_is_heard_at_one_place(host: str, asked: str, places: int) -> None:
    """Always the same, and all places have their share."""
    with group(host, places) as sockets:
        port, heard = sockets[0].getsockname()[1], Counter[int]()
        for _ in range(PEERS):
            with socket.socket(socket.AF_INET6 if ":" in asked else socket.AF_INET, socket.SOCK_DGRAM) as peer:
                peer.connect((asked, port))
                at = set()
                for _ in range(3):
                    peer.send(b"x")
                    at.add(heard_at(sockets))
                assert len(at) == 1
                heard[at.pop()] += 1
        assert set(heard) == {*range(places)}
        assert min(heard.values()) > PEERS / places / 3


def test_the_address_counts_as_the_port_does() -> None:
    with group("127.0.0.1", 3) as sockets:
        heard = set()
        for number in range(1, 60):
            with socket.socket(type=socket.SOCK_DGRAM) as peer:
                peer.bind((f"127.0.3.{number}", 5353))
                peer.sendto(b"x", sockets[0].getsockname())
                heard.add(heard_at(sockets))
        assert heard == {0, 1, 2}


def test_options_in_the_header_are_passed_over() -> None:
    """The port stands behind them."""
    with group("127.0.0.1", 3) as sockets:
        heard = set()
        for _ in range(40):
            with socket.socket(type=socket.SOCK_DGRAM) as peer:
                peer.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, b"\1\1\1\0")
                peer.connect(sockets[0].getsockname())
                at = set()
                for _ in range(3):
                    peer.send(b"x")
                    at.add(heard_at(sockets))
                assert len(at) == 1
                heard |= at
        assert heard == {0, 1, 2}


@pytest.mark.parametrize("number", range(1, 8))
def test_the_place_of_a_worker_is_that_of_its_number(number: int) -> None:
    """In turn, however high the number is; the other sockets are closed."""
    with group("127.0.0.1", 3) as sockets:
        places = Places()
        places.others = [socket.socket(fileno=os.dup(each.fileno())) for each in sockets[1:]]
        with socket.socket(fileno=os.dup(sockets[0].fileno())) as listener:
            inodes = [os.fstat(each.fileno()).st_ino for each in sockets]
            places.take(number, listener)
            assert os.fstat(listener.fileno()).st_ino == inodes[(number - 1) % 3]
        assert places.others == []


def test_a_multicast_is_heard_once() -> None:
    """By the first, as without a group: the kernel gives each socket a copy, and the others refuse theirs."""
    here = socket.inet_aton("127.0.0.1")
    with group("0.0.0.0", 3) as sockets, socket.socket(type=socket.SOCK_DGRAM) as peer:
        sockets[0].setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("239.1.2.3") + here)
        peer.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, here)
        for _ in range(3):
            peer.sendto(b"x", ("239.1.2.3", sockets[0].getsockname()[1]))
            assert heard_at(sockets) == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_options_of_the_listener_are_those_of_all(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as listener:
        listener.bind((host, 0))
        options = [
            (socket.SOL_SOCKET, socket.SO_RCVBUF, 65536),
            (socket.SOL_SOCKET, socket.SO_SNDBUF, 70000),
            (socket.IPPROTO_IP, 8, 1),
        ]
        if family == socket.AF_INET6:
            options.append((socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1))
        for level, option, value in options:
            listener.setsockopt(level, option, value)
        others = spread(listener, 3)
        for sock in others:
            for level, option, _ in options:
                assert sock.getsockopt(level, option) == listener.getsockopt(level, option)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
        give_room(listener, others)
        assert [sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) for sock in others] == [65536, 65536]
        gather(listener, others)
        assert [sock.fileno() for sock in others] == [-1, -1]
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0


def test_nobody_is_heard_with_us() -> None:
    """Another socket cannot be bound; one that asks to share the port, as only the same user can, hears nothing."""
    with group("127.0.0.1", 3) as sockets, socket.socket(type=socket.SOCK_DGRAM) as stranger:
        with pytest.raises(OSError, match="in use"):
            stranger.bind(sockets[0].getsockname())
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        stranger.bind(sockets[0].getsockname())
        for _ in range(PEERS):
            with socket.socket(type=socket.SOCK_DGRAM) as peer:
                peer.sendto(b"x", sockets[0].getsockname())
                heard_at(sockets)
        with pytest.raises(BlockingIOError):
            stranger.recv(9, socket.MSG_DONTWAIT)


def test_what_cannot_be_bound_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        monkeypatch.setattr("prefork.sockets.affinity.program_for", lambda places: [(0xFF, 0)])
        with pytest.raises(BindError, match=r"could not bind 127\.0\.0\.1:\d+ for each worker \(peer_affinity\): "):
            spread(listener, 3)
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0


Udp, Tcp = prefork.PreForkingUDPServer, prefork.PreForkingTCPServer


class Ahead(prefork.PreForkingMixIn, prefork.ForkingUDPServer):
    pass


@pytest.mark.parametrize(
    ("kind", "settings", "why"),
    [
        (Tcp, {}, "it is for UDP"),
        (Udp, {"min_children": 1}, "min_children is 1 and max_children 3"),
        (Ahead, {}, "each worker serves one request"),
        (Udp, {"proxy_trusted": "127.0.0.1"}, "every datagram is from the proxy"),
        (Udp, {"allow_reuse_port": True}, "others have the port"),
    ],
)
def test_where_it_cannot_be(kind: Any, settings: dict[str, Any], why: str) -> None:
    """One sentence says why."""
    cls = type("Affine", (kind,), {"peer_affinity": True, "max_children": 3, **settings})
    with cls(("127.0.0.1", 0), prefork.BaseRequestHandler) as server:
        with pytest.raises(ConfigError, match=f"could not set peer_affinity: .*{why}"):
            server._prefork_.check()
        server.peer_affinity = False
        server._prefork_.check()


def test_it_cannot_be_with_several_listeners() -> None:
    with Udp(("127.0.0.1", 0), prefork.BaseRequestHandler) as server:
        server.peer_affinity = True
        with pytest.raises(ConfigError, match="several listeners"):
            check_affinity(server, inherited=False, alone=False)
        with pytest.raises(ConfigError, match="the socket is inherited"):
            check_affinity(server, inherited=True, alone=True)
