"""The shortest get_request(): the same as the server's own, where neither it nor the socket is the program's."""

import contextlib
import socket
import socketserver
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import prefork
from prefork.sockets.accepted import accept_for
from prefork.sockets.receiving import shortest
from prefork.sockets.shared import SharedDatagrams, prepared
from prefork.sockets.wildcard import DatagramPeer, answer_as_addressed

HUNG_S = 30.0


class Standard(prefork.PreForkingMixIn, socketserver.TCPServer):
    pass


class StandardDatagrams(prefork.PreForkingMixIn, socketserver.UDPServer):
    pass


class StandardUnix(prefork.PreForkingMixIn, socketserver.UnixStreamServer):
    pass


STREAMS: dict[str, Any] = {
    "ours": prefork.PreForkingTCPServer, "the standard library's": Standard,
    "ours, unix": prefork.PreForkingUnixStreamServer, "the standard library's, unix": StandardUnix,
}  # fmt: skip
DATAGRAMS: dict[str, Any] = {
    "ours": prefork.PreForkingUDPServer, "the standard library's": StandardDatagrams,
    "ours, unix": prefork.PreForkingUnixDatagramServer,
}  # fmt: skip


class Handler(prefork.BaseRequestHandler):
    pass


@contextlib.contextmanager
def serving(server_class: Any, tmp_path: Path, host: str = "127.0.0.1", handler: Any = Handler) -> Iterator[Any]:
    """A server whose listener is prepared for workers, as it is in one."""
    family = server_class.address_family
    address = str(tmp_path / "socket") if family == socket.AF_UNIX else (host, 0)
    with server_class(address, handler) as server:
        answer_as_addressed(server.socket)
        with prepared(server.socket, lambda: True):
            accept_for(server.socket, handler)
            yield server


@contextlib.contextmanager
def client_of(server: Any, tmp_path: Path, name: str = "client") -> Iterator[socket.socket]:
    with socket.socket(server.socket.family, server.socket.type) as client:
        client.settimeout(HUNG_S)
        if (client.family, client.type) == (socket.AF_UNIX, socket.SOCK_DGRAM):
            client.bind(str(tmp_path / name))
        client.connect(server.server_address)
        yield client


@pytest.mark.parametrize("default", [None, 5.0])
@pytest.mark.parametrize("handler", [Handler, socketserver.StreamRequestHandler])
@pytest.mark.parametrize("kind", STREAMS)
def test_a_connection_is_the_same(kind: str, handler: Any, default: float | None, tmp_path: Path) -> None:
    """Class, family, type, protocol, timeout, blocking, inheritability, and the client's address."""
    with serving(STREAMS[kind], tmp_path, handler=handler) as server:
        get_request = shortest(server)
        assert get_request is not None
        socket.setdefaulttimeout(default)
        try:
            found = []
            for get in (server.get_request, get_request):
                with client_of(server, tmp_path) as client:
                    request, address = get()
                    with request:
                        found.append(
                            (
                                type(request), request.family, type(request.family), request.type, type(request.type),
                                request.proto, request.gettimeout(), request.getblocking(), request.get_inheritable(),
                                type(address), address == client.getsockname() or not client.getsockname(),
                            )
                        )  # fmt: skip
                        client.sendall(b"question")
                        assert request.recv(100) == b"question"
        finally:
            socket.setdefaulttimeout(None)
        assert found[0] == found[1]
        assert found[0][6] == default
        for get in (server.get_request, get_request):
            with pytest.raises(BlockingIOError):
                get()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("kind", DATAGRAMS)
def test_a_datagram_is_the_same(kind: str, host: str, tmp_path: Path) -> None:
    """Its bytes, up to `max_packet_size` as it is now, the server's socket, and the client's address with where it was
    asked; nothing waits for one."""
    with serving(DATAGRAMS[kind], tmp_path, host) as server, contextlib.ExitStack() as stack:
        client = stack.enter_context(client_of(server, tmp_path))
        get_request = shortest(server)
        assert get_request is not None
        for size in (8192, 5):
            server.max_packet_size = size
            found = []
            for get in (server.get_request, get_request):
                client.send(b"question")
                (data, sock), address = get()
                found.append((data, sock is server.socket, address, type(address), getattr(address, "answer", None)))
                sock.sendto(b"answer", address)
                assert client.recv(100) == b"answer"
            assert found[0] == found[1]
            assert found[0][0] == b"question"[:size]
            assert (found[0][3] is DatagramPeer) is (host == "0.0.0.0" and "unix" not in kind)
        for get in (server.get_request, get_request):
            with pytest.raises(BlockingIOError):
                get()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("kind", DATAGRAMS)
def test_a_datagram_that_is_cut(kind: str, host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is noted, by each way, with the client's address; one that just fits is not, nor what a handler receives."""
    noted: list[tuple[int, Any]] = []
    with serving(DATAGRAMS[kind], tmp_path, host) as server, client_of(server, tmp_path) as client:
        monkeypatch.setattr(SharedDatagrams, "note_cut", staticmethod(lambda *told: noted.append(told)))
        get_request = shortest(server)
        assert get_request is not None
        server.max_packet_size = 8
        for get in (server.get_request, get_request):
            for question, cut in ((b"question", False), (b"questions", True)):
                client.send(question)
                (data, _), address = get()
                assert data == b"question"
                assert noted == ([(8, address)] if cut else [])
            noted.clear()
        monkeypatch.setattr(SharedDatagrams, "in_get_request", staticmethod(lambda: False))
        client.send(b"questions")
        assert server.socket.recvfrom(8)[0] == b"question"
        assert noted == []


class Accepts(prefork.PreForkingTCPServer):
    def get_request(self) -> tuple[Any, Any]:
        return super().get_request()


class Receives(prefork.PreForkingUDPServer):
    def get_request(self) -> tuple[Any, Any]:
        return super().get_request()


class OwnSocket(socket.socket):
    def accept(self) -> tuple[socket.socket, Any]:
        return super().accept()

    def recvfrom(self, *arguments: Any) -> tuple[bytes, Any]:
        return super().recvfrom(*arguments)


class Wraps:
    """A server that has a socket of a class of its own."""

    server_address: Any
    socket: Any
    address_family: Any
    socket_type: Any

    def server_bind(self) -> None:
        self.socket.close()
        self.socket = OwnSocket(self.address_family, self.socket_type)
        super().server_bind()  # type: ignore[misc]


class WrapsStream(Wraps, prefork.PreForkingTCPServer):
    pass


class WrapsDatagrams(Wraps, prefork.PreForkingUDPServer):
    pass


@pytest.mark.parametrize("server_class", [Accepts, Receives, WrapsStream, WrapsDatagrams])
def test_there_is_none(server_class: Any, tmp_path: Path) -> None:
    """Where the server's get_request() or the socket's accept() and recvfrom() are the program's."""
    with serving(server_class, tmp_path) as server:
        assert shortest(server) is None


def test_there_is_none_for_what_is_no_socket(tmp_path: Path) -> None:
    """A program may have wrapped it, as pyOpenSSL does: that accepts in its own way."""

    class Wrapper:
        def __init__(self, sock: socket.socket) -> None:
            self._socket = sock
            self.fileno, self.type = sock.fileno, sock.type

    with serving(prefork.PreForkingTCPServer, tmp_path) as server:
        sock = server.socket
        server._prefork_.listener = Wrapper(sock)
        assert shortest(server) is None
        server._prefork_.listener = sock


def test_there_is_none_on_the_object(tmp_path: Path) -> None:
    """An object may have one of its own, too."""
    with serving(prefork.PreForkingTCPServer, tmp_path) as server:
        assert shortest(server) is not None
        server.get_request = lambda: None
        assert shortest(server) is None


@pytest.mark.parametrize("change", ["the object", "its class", "its base"])
@pytest.mark.parametrize("kind", [prefork.PreForkingTCPServer, prefork.PreForkingUDPServer, "everywhere"])
def test_another_one_later(kind: Any, change: str, tmp_path: Path) -> None:
    """One that the program puts in its place while it serves is called from then on."""
    host = "0.0.0.0" if kind == "everywhere" else "127.0.0.1"
    base = type("Base", (prefork.PreForkingUDPServer if kind == "everywhere" else kind,), {})
    with serving(type("Mine", (base,), {}), tmp_path, host) as server:
        get_request = shortest(server)
        assert get_request is not None
        with pytest.raises(BlockingIOError):
            get_request()
        place = {"the object": server, "its class": type(server), "its base": base}[change]
        place.get_request = lambda *arguments: ("mine", "somebody")
        assert get_request() == ("mine", "somebody")
        del place.get_request
        with pytest.raises(BlockingIOError):
            get_request()


@pytest.mark.parametrize("get", [lambda server: server.get_request, shortest], ids=["long", "short"])
def test_what_a_peer_keeps(get: Callable[[Any], Any], tmp_path: Path) -> None:
    """A client's address that the program makes anew is answered from where that client has asked last."""
    with serving(prefork.PreForkingUDPServer, tmp_path, "0.0.0.0") as server:
        for asked in ("127.0.0.2", "127.0.0.3"):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.settimeout(HUNG_S)
                client.connect((asked, server.server_address[1]))
                client.send(b"question")
                (_, sock), address = get(server)()
                sock.sendto(b"answer", tuple(address))
                assert client.recv(100) == b"answer"
