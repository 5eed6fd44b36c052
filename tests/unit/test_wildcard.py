"""A datagram listener at every address of the host answers from the one that it was asked at."""

import contextlib
import socket
from collections.abc import Callable, Iterator

import pytest

from prefork.sockets.listener import Listener
from prefork.sockets.wildcard import DatagramPeer, WildcardListener, answer_as_addressed

HUNG = 30.0  # seconds; never reached unless something hangs
ASKED = ("127.0.0.2", "127.0.0.1", "127.8.9.10")

Answer = Callable[[Listener, DatagramPeer], object]
ANSWERS: dict[str, Answer] = {
    "as it came": lambda listener, peer: listener.sendto(b"answer", peer),
    "made anew": lambda listener, peer: listener.sendto(b"answer", (peer[0], *peer[1:])),
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


def test_several_in_hand() -> None:
    """Each has its own way back, in whatever order they are answered: threads may have them."""
    with listening("0.0.0.0") as listener, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(asking(asked, listener)) for asked in ASKED]
        peers = {peer: data for data, peer in (listener.recvfrom(100) for _ in ASKED)}
        for peer in reversed(peers):
            listener.sendto(b"answer", peer)
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
