"""A datagram listener at every address of the host answers from the one that it was asked at."""

import contextlib
import socket
from collections.abc import Callable, Iterator

import pytest

from prefork.sockets.listener import Listener
from prefork.sockets.wildcard import IP_PKTINFO, DatagramPeer, WildcardListener, answer_as_addressed, peer_of

HUNG = 30.0  # seconds; never reached unless something hangs
ASKED = ("127.0.0.2", "127.0.0.1", "127.8.9.10")

Answer = Callable[[Listener, DatagramPeer], object]
ANSWERS: dict[str, Answer] = {
    "as it came": lambda listener, peer: listener.sendto(b"answer", peer),
    "made anew": lambda listener, peer: listener.sendto(b"answer", (peer[0], *peer[1:])),
    "without its scope": lambda listener, peer: listener.sendto(b"answer", (peer[0], peer[1])),
    "as a message": lambda listener, peer: listener.sendmsg([b"ans", b"wer"], [], 0, peer),
    "as one made anew": lambda listener, peer: listener.sendmsg(iter([b"answer"]), (), 0, tuple(peer)),
    "with flags": lambda listener, peer: listener.sendto(b"answer", socket.MSG_DONTWAIT, peer),
}


@contextlib.contextmanager
def listening(host: str) -> Iterator[Listener]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with Listener(family, socket.SOCK_DGRAM) as listener:
        if family is socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.settimeout(HUNG)
        listener.bind((host, 0))
        answer_as_addressed(listener)
        yield listener


@contextlib.contextmanager
def asking(host: str, listener: Listener) -> Iterator[socket.socket]:
    """A client that hears nobody but whom it has asked."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(HUNG)
        client.connect((host, listener.getsockname()[1]))
        client.send(b"question")
        yield client


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_from_where_it_was_asked(host: str, answer: Answer) -> None:
    """However the handler says to whom, over IPv4 and for IPv4 clients of an IPv6 listener."""
    with listening(host) as listener:
        for asked in ASKED:
            with asking(asked, listener) as client:
                data, peer = listener.recvfrom(100)
                answer(listener, peer)
                assert (data, client.recv(100)) == (b"question", b"answer")


@pytest.mark.parametrize("send", ["sendto", "sendmsg"])
def test_to_whom_nothing_came_from(send: str) -> None:
    """A datagram that is no answer leaves from where the routes have it."""
    with listening("0.0.0.0") as listener, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.settimeout(HUNG)
        other.bind(("127.0.0.3", 0))
        if send == "sendto":
            assert listener.sendto(b"news", other.getsockname()) == 4
        else:
            assert listener.sendmsg([b"ne", b"ws"], [], 0, other.getsockname()) == 4
        assert other.recv(100) == b"news"


def test_several_in_hand() -> None:
    """Each has its own way back, in whatever order they are answered: threads may have them."""
    with listening("0.0.0.0") as listener, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(asking(asked, listener)) for asked in ASKED]
        peers = {peer: data for data, peer in (listener.recvfrom(100) for _ in ASKED)}
        for made in (lambda peer: peer, tuple):
            for peer in reversed(peers):
                listener.sendto(b"answer", made(peer))
            assert [client.recv(100) for client in clients] == [b"answer"] * 3


def test_an_address_like_any_other() -> None:
    """What a handler does with a client's address goes on working: compare it, take it apart, show it."""
    with listening("0.0.0.0") as listener, asking("127.0.0.1", listener) as client:
        _, peer = listener.recvfrom(100)
        host, port = peer
        assert peer == (host, port) == client.getsockname()
        assert (repr(peer), hash(peer)) == (repr((host, port)), hash((host, port)))


def test_another_client() -> None:
    """A client that did not ask is told what it is told from wherever the kernel chooses."""
    with (
        listening("0.0.0.0") as listener,
        asking("127.0.0.2", listener),
        socket.socket(type=socket.SOCK_DGRAM) as other,
    ):
        listener.recvfrom(100)
        other.bind(("127.0.0.1", 0))
        listener.sendto(b"news", other.getsockname())
        other.settimeout(HUNG)
        assert other.recvfrom(100) == (b"news", ("127.0.0.1", listener.getsockname()[1]))


def test_an_answer_that_cannot_leave_from_there() -> None:
    """An address that the host has no longer is no reason for no answer."""
    with listening("0.0.0.0") as listener, asking("127.0.0.1", listener) as client:
        _, peer = listener.recvfrom(100)
        level, kind, _ = peer.answer
        peer.answer = level, kind, bytes(4) + bytes([192, 0, 2, 1]) + bytes(4)  # RFC 5737: nobody's
        listener.sendto(b"answer", peer)
        assert client.recv(100) == b"answer"
        listener.sendmsg([b"answer"], [], 0, peer)
        assert client.recv(100) == b"answer"


def test_where_the_program_says_it_itself() -> None:
    """A message that names the address from which it leaves goes out from that one."""
    with listening("0.0.0.0") as listener, socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(HUNG)
        client.bind(("127.0.0.1", 0))
        client.sendto(b"question", ("127.0.0.2", listener.getsockname()[1]))
        _, peer = listener.recvfrom(100)
        own = socket.IPPROTO_IP, IP_PKTINFO, bytes(4) + bytes([127, 0, 0, 3]) + bytes(4)
        listener.sendmsg([b"answer"], [own], 0, peer)
        assert client.recvfrom(100) == (b"answer", ("127.0.0.3", listener.getsockname()[1]))


def test_one_address_costs_nothing() -> None:
    """Where one address is bound nothing is changed, nor on a stream or a closed listener."""
    with listening("127.0.0.1") as one, Listener(socket.AF_INET, socket.SOCK_STREAM) as stream:
        stream.bind(("0.0.0.0", 0))
        answer_as_addressed(stream)
        assert type(one) is type(stream) is Listener
    answer_as_addressed(one)
    answer_as_addressed(None)
    with listening("0.0.0.0") as every:
        assert type(every) is WildcardListener


HOST, BROADCAST = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 255])
LOCAL, INDEX = bytes.fromhex("20010db8000000000000000000000001"), bytes([2, 0, 0, 0])
V4, V6 = (socket.IPPROTO_IP, IP_PKTINFO), (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO)


@pytest.mark.parametrize(
    ("came", "leaves"),
    [
        ((*V4, INDEX + HOST + BROADCAST), (*V4, bytes(4) + HOST + bytes(4))),
        ((*V6, LOCAL + INDEX), (*V6, LOCAL + bytes(4))),
        ((*V6, b"\xfe\x80" + LOCAL[2:] + INDEX), (*V6, b"\xfe\x80" + LOCAL[2:] + INDEX)),
        ((*V6, b"\xfe\xbf" + LOCAL[2:] + INDEX), (*V6, b"\xfe\xbf" + LOCAL[2:] + INDEX)),
        ((*V6, b"\xfe\xc0" + LOCAL[2:] + INDEX), (*V6, b"\xfe\xc0" + LOCAL[2:] + bytes(4))),
        ((*V6, b"\xfc\x80" + LOCAL[2:] + INDEX), (*V6, b"\xfc\x80" + LOCAL[2:] + bytes(4))),
        ((*V6, b"\xff\x02" + LOCAL[2:] + INDEX), None),
        ((socket.SOL_SOCKET, IP_PKTINFO, bytes(12)), None),
        ((socket.IPPROTO_IP, IP_PKTINFO + 1, bytes(12)), None),
        ((socket.SOL_SOCKET, socket.IPV6_PKTINFO, LOCAL + INDEX), None),
        ((socket.IPPROTO_IPV6, socket.IPV6_PKTINFO + 1, LOCAL + INDEX), None),
    ],
)  # fmt: skip
def test_what_came_with_a_datagram(came: tuple[int, int, bytes], leaves: tuple[int, int, bytes] | None) -> None:
    """The answer leaves from the address that it came to: the host's own where that was a broadcast, with the interface
    where that is link-local (fe80::/10), and from wherever the kernel chooses where it was a multicast."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        peer = peer_of(sock, ("10.9.9.9", 9), [came])
    assert peer == ("10.9.9.9", 9)
    assert getattr(peer, "answer", None) == leaves
