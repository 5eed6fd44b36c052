"""The read side of requests in hand is shut, whatever object the program has made of a connection meanwhile."""

import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from prefork.workers import hangup
from prefork.workers.hangup import InHand


class Opaque:
    """A wrapper that is no socket, as pyOpenSSL's Connection; its own shutdown() takes no argument."""

    def __init__(self, sock: socket.socket) -> None:
        self._kept = sock
        self.fileno = sock.fileno

    def shutdown(self) -> None:
        raise AssertionError("this would say good-bye in TLS")


class Unwrapping(socket.socket):
    def shutdown(self, how: int) -> None:
        raise AssertionError("this would go on in the clear")


def unwrapping(sock: socket.socket) -> Unwrapping:
    return Unwrapping(fileno=sock.detach())


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def hung_up(monkeypatch: pytest.MonkeyPatch, request: Any, handle: Callable[[], Any]) -> None:
    """The worker is told to drain while this request is in hand, after what its handler does first."""
    monkeypatch.setattr(hangup, "FIRST_BYTES_NS", 0)
    in_hand = InHand()

    class Server:
        def finish_request(self, request: Any, client_address: Any) -> None:
            handle()
            in_hand.hang_up()

    server = Server()
    in_hand.bind(server)
    server.finish_request(request, None)
    in_hand.hang_up()


@pytest.mark.parametrize("wrap", [lambda sock: sock, Opaque, unwrapping], ids=["plain", "no socket", "a subclass"])
@pytest.mark.parametrize("in_handler", [False, True], ids=["before", "in the handler"])
def test_every_object(
    wrap: Callable[[socket.socket], Any], in_handler: bool, pair: tuple[socket.socket, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What was sent is read, then comes the end; answers still go out. Wrapped before the handler, or in it."""
    ours, theirs = pair
    theirs.sendall(b"asked")
    fd = ours.fileno()
    request = ours if in_handler else wrap(ours)
    kept: list[Any] = []

    def handle() -> None:
        kept.append(wrap(ours) if in_handler else request)

    hung_up(monkeypatch, request, handle)
    assert (os.read(fd, 10), os.read(fd, 10)) == (b"asked", b"")
    os.write(fd, b"answer")
    assert theirs.recv(10) == b"answer"
    for each in kept:
        if isinstance(each, Unwrapping):
            each.close()


def test_another_connection_under_the_same_number(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler that has closed its connection may have opened another: that one is left alone. So is a closed one."""
    ours, _ = pair
    fd = ours.fileno()
    again, theirs = socket.socketpair()
    with again, theirs:

        def handle() -> None:
            ours.close()
            os.dup2(again.fileno(), fd)

        hung_up(monkeypatch, ours, handle)
        theirs.sendall(b"x")
        assert os.read(fd, 10) == b"x"
        os.close(fd)
    hung_up(monkeypatch, ours, lambda: None)
    with socket.socket() as closed:
        hung_up(monkeypatch, closed, closed.close)


def test_datagrams_and_newcomers(pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    """A datagram is no connection; one that came this moment may still say what it came for."""
    ours, theirs = pair
    hung_up(monkeypatch, (b"data", ours), lambda: None)
    monkeypatch.undo()
    in_hand = InHand()

    class Server:
        def finish_request(self, request: Any, client_address: Any) -> None:
            in_hand.hang_up()

    server = Server()
    in_hand.bind(server)
    server.finish_request(ours, None)
    theirs.sendall(b"x")
    assert ours.recv(10) == b"x"
