"""TLS handshakes that fail are told in a line, by whatever they fail; other errors of TLS and of sockets are not."""

import contextlib
import logging
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prefork import BaseServer
from prefork.workers import handshake
from tests.support.tools.certificates import client_context, make_certificate, server_context

HUNG = 30.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the certificate is."""
    folder = tmp_path_factory.mktemp("certificate")
    make_certificate(folder)
    return folder


@contextlib.contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(HUNG)
        yield ours, theirs


@contextlib.contextmanager
def talking(theirs: socket.socket, say: Callable[[socket.socket], Any]) -> Iterator[None]:
    """A client that says this, in a thread."""
    thread = threading.Thread(target=say, args=(theirs,))
    thread.start()
    try:
        yield
    finally:
        thread.join(HUNG)


def plain_text(sock: socket.socket) -> None:
    sock.sendall(b"GET / HTTP/1.0\r\n\r\n")


def nothing(sock: socket.socket) -> None:
    sock.close()


def no_certificate(folder: Path) -> Callable[[socket.socket], Any]:
    def say(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            with client_context(folder, certified=False).wrap_socket(sock, server_hostname="localhost") as client:
                client.recv(1)

    return say


def why(exc: BaseException) -> str | None:
    """As handle_error() asks."""
    return handshake.failure(exc)


def serve(context: ssl.SSLContext, sock: socket.socket, where: str) -> None:
    begun = where == "wrap_socket"
    secured = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=begun)
    with secured, secured.makefile("rb") as file:
        if where == "makefile":
            file.readline()
        elif where == "read":
            secured.recv(1)
        else:
            handshake.shake_hands(secured)


@pytest.mark.parametrize("where", ["wrap_socket", "read", "makefile", "shake_hands"])
@pytest.mark.parametrize("client", ["plain text", "hangs up", "no certificate", "silent"])
def test_what_fails(client: str, where: str, folder: Path) -> None:
    """A handshake fails by what the client says, or does not say, in the call of the program's that it is left to."""
    if client == "hangs up" and where in ("read", "makefile"):
        return  # a handler that reads sees an end there: suppress_ragged_eofs
    say = {"plain text": plain_text, "hangs up": nothing, "no certificate": no_certificate(folder)}.get(client)
    with pair() as (ours, theirs), talking(theirs, say or (lambda sock: None)):
        ours.settimeout(0.01 if client == "silent" else HUNG)
        with pytest.raises((ssl.SSLError, OSError)) as raised:
            serve(server_context(folder), ours, where)
        said = {"plain text": "http request", "hangs up": "eof", "no certificate": "did not return a certificate",
                "silent": "timed out"}[client]  # fmt: skip
        assert said in (why(raised.value) or "").lower()


def test_what_is_no_handshake(folder: Path) -> None:
    """An error after the handshake, one of another socket of the handler's, and one without TLS are no such failure."""
    with pair() as (ours, theirs):

        def say(sock: socket.socket) -> None:
            client = client_context(folder).wrap_socket(sock, server_hostname="localhost", suppress_ragged_eofs=False)
            client.sendall(b"x")
            with socket.socket(fileno=client.detach()) as raw:
                raw.sendall(b"no record of TLS")

        with talking(theirs, say):
            ours.settimeout(HUNG)
            with server_context(folder).wrap_socket(ours, server_side=True, do_handshake_on_connect=False) as secured:
                assert secured.recv(1) == b"x"
                with pytest.raises(ssl.SSLError) as late:
                    secured.recv(1)
                assert why(late.value) is None
                secured.settimeout(0.01)
    with pair() as (ours, theirs), talking(theirs, plain_text):
        with pytest.raises(ssl.SSLError) as own:
            client_context(folder).wrap_socket(ours, server_hostname="localhost").close()
        assert why(own.value) is None
    with pair() as (ours, _):
        ours.settimeout(0.01)
        with pytest.raises(TimeoutError) as plain:
            ours.recv(1)
        assert why(plain.value) is None
    assert why(ValueError()) is None


def test_without_ssl(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that has not imported ssl has no handshakes."""
    monkeypatch.delitem(sys.modules, "ssl")
    assert why(TimeoutError()) is None


def test_a_line_and_no_traceback(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """handle_error() tells it in one line, with the client's address."""
    server = BaseServer(("127.0.0.1", 0), lambda *args: None)
    with caplog.at_level(logging.DEBUG, "prefork.server"), pair() as (ours, theirs), talking(theirs, plain_text):
        try:
            server_context(folder).wrap_socket(ours, server_side=True).close()
        except OSError:
            server.handle_error(ours, ("192.0.2.7", 41522))
    (record,) = caplog.records
    assert (record.levelname, record.exc_info) == ("INFO", None)
    assert record.getMessage() == "TLS handshake with 192.0.2.7:41522 failed: http request"


class Listening:
    """A server whose listener is wrapped; `program` adds hooks of the program's own."""

    def __init__(self, sock: Any) -> None:
        self.socket = sock
        self.served: list[Any] = []

    def get_request(self) -> Any:
        return self.socket.accept()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return True

    def process_request(self, request: Any, client_address: Any) -> None:
        self.finish_request(request, client_address)

    def finish_request(self, request: Any, client_address: Any) -> None:
        self.served.append(request.getpeercert()["subject"])


Listening.__module__ = "socketserver"  # no hook of it is the program's


class Verifying(Listening):
    def verify_request(self, request: Any, client_address: Any) -> bool:
        return bool(request.getpeercert())


@pytest.mark.parametrize("kind", [Listening, Verifying])
@pytest.mark.parametrize("client", ["good", "silent"])
def test_a_wrapped_listener(kind: type[Listening], client: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The handshake is made before anybody may ask for the certificate, in the request's thread if none of the
    program's hooks might; a silent client has its time, and then the listener goes on."""
    monkeypatch.setattr(handshake, "HANDSHAKE_TIMEOUT_S", 0.05 if client == "silent" else HUNG)
    plain = socket.create_server(("127.0.0.1", 0))
    with server_context(folder).wrap_socket(plain, server_side=True) as listener:
        server = kind(listener)
        handshake.in_its_lane(server)
        with socket.create_connection(listener.getsockname(), HUNG) as theirs:

            def say(sock: socket.socket) -> None:
                if client == "good":
                    client_context(folder).wrap_socket(sock, server_hostname="localhost").close()

            with talking(theirs, say):
                raises = client == "silent"
                with pytest.raises(TimeoutError) if raises else contextlib.nullcontext() as raised:
                    request, address = server.get_request()
                    with request:
                        assert server.verify_request(request, address)
                        server.process_request(request, address)
                        assert request.gettimeout() is None
        if raised is not None:
            assert why(raised.value) is not None
        assert len(server.served) == (client == "good")


def test_what_is_left_alone(folder: Path) -> None:
    """A listener that is not wrapped, and one whose connections the program shakes hands with itself."""
    with socket.create_server(("127.0.0.1", 0)) as plain:
        server = Listening(plain)
        handshake.in_its_lane(server)
        assert "finish_request" not in vars(server)
    plain = socket.create_server(("127.0.0.1", 0))
    with server_context(folder).wrap_socket(plain, server_side=True, do_handshake_on_connect=False) as listener:
        server = Listening(listener)
        handshake.in_its_lane(server)
        assert "finish_request" not in vars(server)
