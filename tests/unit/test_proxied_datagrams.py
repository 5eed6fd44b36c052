"""Answers to clients behind a proxy: in whatever form they are sent, they go to the proxy and nowhere else."""

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prefork.sockets.listener import Listener
from prefork.sockets.shared import prepared
from prefork.sockets.wildcard import prepare_answers
from prefork.workers.proxied_datagrams import ThroughProxy, asked_through
from prefork.workers.proxy_protocol import ProxyHeader

HUNG = 30.0  # seconds; never reached unless something hangs
CLIENT = ("192.0.2.7", 4242)  # RFC 5737: nobody's

Answer = Callable[[socket.socket, Any], object]
ANSWERS: dict[str, Answer] = {
    "as it came": lambda sock, address: sock.sendto(b"answer", address),
    "with flags": lambda sock, address: sock.sendto(b"answer", socket.MSG_DONTWAIT, address),
    "made anew": lambda sock, address: sock.sendto(b"answer", (address[0], address[1])),
    "as a message": lambda sock, address: sock.sendmsg([b"answer"], (), 0, address),
    "as one made anew": lambda sock, address: sock.sendmsg([b"answer"], (), 0, tuple(address)),
}


@contextlib.contextmanager
def listening(host: str) -> Iterator[Listener]:
    """A listener as it is in a worker."""
    with Listener(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as listener:
        if ":" in host:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((host, 0))
        prepare_answers(listener, through_proxy=True)
        with prepared(listener, lambda: True):
            yield listener


def received(listener: Listener) -> tuple[bytes, Any]:
    listener.getsockname()
    while True:
        with contextlib.suppress(BlockingIOError):
            return listener.recvfrom(100)


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
@pytest.mark.parametrize(("host", "asked"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.2"), ("::", "127.0.0.2")])
def test_to_the_proxy_that_asked(host: str, asked: str, answer: Answer) -> None:
    """From where that had asked, too: the last one of that client, and not the last of all."""
    with listening(host) as listener, contextlib.ExitStack() as stack:
        proxies = [stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(2)]
        for number, proxy in enumerate(proxies):
            proxy.settimeout(HUNG)
            proxy.connect((asked, listener.getsockname()[1]))
            proxy.send(b"%d" % number)
        found = {}
        for _ in proxies:
            data, peer = received(listener)
            client = (CLIENT[0], CLIENT[1] + int(data))
            found[int(data)] = asked_through(listener, ProxyHeader(2, client, ("198.51.100.1", 53), peer=peer))
        for number in (1, 0):
            assert found[number] == (CLIENT[0], CLIENT[1] + number)
            answer(listener, found[number])
            assert proxies[number].recv(100) == b"answer"


def test_who_has_not_asked_is_sent_to_directly() -> None:
    with listening("127.0.0.1") as listener, socket.socket(type=socket.SOCK_DGRAM) as other:
        other.settimeout(HUNG)
        other.bind(("127.0.0.1", 0))
        asked_through(listener, ProxyHeader(2, CLIENT, CLIENT, peer=("127.0.0.1", 9)))
        listener.sendto(b"news", other.getsockname())
        assert other.recv(100) == b"news"


@pytest.mark.parametrize("local", [True, False])
def test_a_proxy_that_speaks_for_itself_or_for_a_client_of_its_own_address(local: bool) -> None:
    """It is answered as itself."""
    with listening("127.0.0.1") as listener, socket.socket(type=socket.SOCK_DGRAM) as proxy:
        proxy.settimeout(HUNG)
        proxy.connect(listener.getsockname())
        peer = proxy.getsockname()
        address = asked_through(listener, ProxyHeader(2, None if local else peer, None, peer=peer))
        for answer in ANSWERS.values():
            answer(listener, address)
            assert proxy.recv(100) == b"answer"


def test_over_unix_sockets(tmp_path: Path) -> None:
    """A proxy at a path is answered there; for one without a name there is an error, and nothing reaches the client."""
    with (
        Listener(socket.AF_UNIX, socket.SOCK_DGRAM) as listener,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as proxy,
    ):
        listener.bind(str(tmp_path / "listener"))
        proxy.settimeout(HUNG)
        proxy.bind(str(tmp_path / "proxy"))
        prepare_answers(listener, through_proxy=True)
        client = str(tmp_path / "client")
        for source in (CLIENT, client):
            address = asked_through(listener, ProxyHeader(2, source, peer=str(tmp_path / "proxy")))
            for made in (address, str(address) if source == client else tuple(address)):
                listener.sendto(b"answer", made)
                assert proxy.recv(100) == b"answer"
            unnamed = asked_through(listener, ProxyHeader(2, source, peer=""))
            for made in (unnamed, str(unnamed) if source == client else tuple(unnamed)):
                with pytest.raises(OSError):
                    listener.sendto(b"answer", made)


def test_nothing_is_changed_without_it() -> None:
    with Listener(socket.AF_INET, socket.SOCK_DGRAM) as one, Listener(socket.AF_INET, socket.SOCK_STREAM) as stream:
        one.bind(("127.0.0.1", 0))
        prepare_answers(one, through_proxy=False)
        prepare_answers(stream, through_proxy=True)
        prepare_answers(None, through_proxy=True)
        assert type(one) is type(stream) is Listener
        for _ in range(2):
            prepare_answers(one, through_proxy=True)
        assert type(one).__mro__.count(ThroughProxy) == 1
