"""The three handlers: order of the steps, the files of a stream, the one datagram."""

import io
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from prefork import BaseRequestHandler, DatagramRequestHandler, StreamRequestHandler
from tests.support.programs.serving import HUNG


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The server's end and the client's of one TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname(), HUNG)
        request, _ = listener.accept()
    with request, client:
        yield request, client


class Steps(BaseRequestHandler):
    fails_in = ""
    steps: list[str]

    def _step(self, name: str) -> None:
        self.server.append(name)
        if name == self.fails_in:
            raise ValueError(name)

    def setup(self) -> None:
        self._step("setup")

    def handle(self) -> None:
        self._step("handle")

    def finish(self) -> None:
        self._step("finish")


@pytest.mark.parametrize(
    ("fails_in", "steps"),
    [
        ("", ["setup", "handle", "finish"]),
        ("setup", ["setup"]),
        ("handle", ["setup", "handle", "finish"]),
        ("finish", ["setup", "handle", "finish"]),
    ],
)
def test_steps(fails_in: str, steps: list[str]) -> None:
    """finish() follows handle() also when that raised, but not a setup() that did; the error comes out."""
    seen: list[str] = []
    handler = type("Handler", (Steps,), {"fails_in": fails_in})
    if fails_in:
        with pytest.raises(ValueError, match=fails_in):
            handler("request", "somebody", seen)
    else:
        made = handler("request", "somebody", seen)
        assert (made.request, made.client_address, made.server) == ("request", "somebody", seen)
    assert seen == steps


def test_unbuffered_writer(pair: tuple[socket.socket, socket.socket]) -> None:
    """With the default wbufsize, write() has sent everything when it returns, and says how many bytes that was."""
    request, client = pair
    seen: list[Any] = []

    class Handler(StreamRequestHandler):
        def handle(self) -> None:
            seen.append(self.wfile.write(memoryview(bytearray(12)).cast("I")))
            seen.append(client.recv(100))
            seen.append((self.wfile.writable(), self.wfile.fileno() == self.request.fileno(), self.wfile.closed))

    handler = Handler(request, "somebody", None)
    assert seen == [12, bytes(12), (True, True, False)]
    assert isinstance(handler.wfile, io.BufferedIOBase)
    assert handler.wfile.closed
    assert handler.rfile.closed
    assert request.fileno() >= 0  # it is the server that closes the connection


def test_buffered_writer(pair: tuple[socket.socket, socket.socket]) -> None:
    """With a wbufsize, what is written is sent at the end, or when flush() is called."""
    request, client = pair
    client.setblocking(False)

    class Handler(StreamRequestHandler):
        wbufsize = -1

        def handle(self) -> None:
            self.wfile.write(b"held")
            with pytest.raises(BlockingIOError):
                client.recv(100)

    Handler(request, "somebody", None)
    client.settimeout(HUNG)
    assert client.recv(100) == b"held"


def test_client_gone_before_the_flush(pair: tuple[socket.socket, socket.socket]) -> None:
    """Both files are closed, although the last of the answer could not be sent."""
    request, client = pair

    class Handler(StreamRequestHandler):
        wbufsize = -1

        def handle(self) -> None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            self.wfile.write(b"too late")
            made.append(self)

    made: list[Handler] = []
    with pytest.raises(OSError):
        Handler(request, "somebody", None)
    assert made[0].wfile.closed
    assert made[0].rfile.closed


def test_timeout(pair: tuple[socket.socket, socket.socket]) -> None:
    """`timeout` limits each single receive."""

    class Handler(StreamRequestHandler):
        timeout = 0.01

        def handle(self) -> None:
            self.rfile.readline()

    with pytest.raises(TimeoutError):
        Handler(pair[0], "somebody", None)


@pytest.mark.parametrize("disabled", [False, True])
def test_nagle(pair: tuple[socket.socket, socket.socket], disabled: bool) -> None:
    """`disable_nagle_algorithm` sets TCP_NODELAY."""
    handler = type("Handler", (StreamRequestHandler,), {"disable_nagle_algorithm": disabled})
    handler(pair[0], "somebody", None)
    assert bool(pair[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)) is disabled


def test_datagram() -> None:
    """rfile is the datagram, and what is in wfile at the end goes back as one datagram, also when it is empty."""

    class Handler(DatagramRequestHandler):
        def handle(self) -> None:
            assert self.packet == b"packet"
            for _ in range(self.server):
                self.wfile.write(self.rfile.read(3).upper())

    with socket.socket(type=socket.SOCK_DGRAM) as listener, socket.socket(type=socket.SOCK_DGRAM) as client:
        client.bind(("127.0.0.1", 0))
        client.settimeout(HUNG)
        Handler((b"packet", listener), client.getsockname(), 2)
        assert client.recv(100) == b"PACKET"
        Handler((b"packet", listener), client.getsockname(), 0)
        assert client.recv(100) == b""


@pytest.mark.parametrize("address", [None, ""])
def test_a_datagram_that_nobody_can_be_answered_for(address: Any) -> None:
    """A client of a Unix socket that is bound to no path, as logger(1), is served without an answer."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        DatagramRequestHandler((b"x", ours), address, None)
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)
