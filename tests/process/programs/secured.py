"""Servers that do TLS themselves, each in its own way: mixed in before the server class, over ours or standard ones.

They demand a certificate of their clients, and read their own in the current directory. `Lines` answers over whatever
the request has become.
"""

import importlib
import os
import socket
import socketserver
import ssl
from typing import TYPE_CHECKING, Any

from tests.support.programs.served import tell
from tests.support.tools.certificates import CERTIFICATE, KEY, server_context

if TYPE_CHECKING:
    _Server = socketserver.TCPServer
else:
    _Server = object


class Lines(socketserver.BaseRequestHandler):
    """Answers each line with the pid, as `Who` does; `cert` with the name in the client's certificate."""

    def handle(self) -> None:
        rest = b""
        while data := self.receive():
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self.request.sendall(b"%s\n" % self.answer(line))

    def receive(self) -> bytes:
        data: bytes = self.request.recv(4096)
        return data

    def answer(self, line: bytes) -> bytes:
        if line == b"cert":
            return str(dict(pair for (pair,) in self.request.getpeercert()["subject"])["commonName"]).encode()
        if line == b"held":
            tell("held")
        return b"%d" % os.getpid()


class WrapsInHandler(Lines):
    def setup(self) -> None:
        self.request = server_context().wrap_socket(self.request, server_side=True, do_handshake_on_connect=False)
        self.request.settimeout(20)


class InHandler(_Server):
    """Leaves it to the handler."""


class InGetRequest(_Server):
    def get_request(self) -> tuple[Any, Any]:
        request, address = super().get_request()
        return server_context().wrap_socket(request, server_side=True, do_handshake_on_connect=False), address


class InProcessRequest(_Server):
    def process_request(self, request: Any, client_address: Any) -> None:
        secured = server_context().wrap_socket(request, server_side=True, do_handshake_on_connect=False)
        super().process_request(secured, client_address)


class BeforeBind(_Server):
    def __init__(self, address: Any, handler: Any) -> None:
        socketserver.BaseServer.__init__(self, address, handler)
        self.socket = None  # type: ignore[assignment]
        self.socket = server_context().wrap_socket(socket.socket(), server_side=True)
        self.server_bind()
        self.server_activate()


class AfterTheConstructor(_Server):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.socket = server_context().wrap_socket(self.socket, server_side=True)


class AnotherSocket(_Server):
    """Puts a second socket, at the same address, in the place of the first."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.socket = server_context().wrap_socket(socket.socket(), server_side=True)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.server_bind()
        self.server_activate()


def openssl() -> Any:
    """pyOpenSSL, where it is installed."""
    return importlib.import_module("OpenSSL.SSL")


def openssl_connection(sock: socket.socket) -> Any:
    library = openssl()
    context = library.Context(library.TLS_SERVER_METHOD)
    context.use_certificate_file(CERTIFICATE)
    context.use_privatekey_file(KEY)
    context.load_verify_locations(CERTIFICATE)
    context.set_options(ssl.OP_IGNORE_UNEXPECTED_EOF)
    context.set_verify(library.VERIFY_PEER | library.VERIFY_FAIL_IF_NO_PEER_CERT)
    return library.Connection(context, sock)


class OpenSSLRequests(_Server):
    def shutdown_request(self, request: Any) -> None:
        library = openssl()
        try:
            request.shutdown()  # its own takes no argument
        except library.Error:
            pass  # there was no handshake
        self.close_request(request)


class OpenSSLBeforeBind(OpenSSLRequests):
    def __init__(self, address: Any, handler: Any) -> None:
        socketserver.BaseServer.__init__(self, address, handler)
        self.socket = openssl_connection(socket.socket())
        self.server_bind()
        self.server_activate()


class OpenSSLAfter(OpenSSLRequests):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.socket = openssl_connection(self.socket)


class OpenSSLLines(Lines):
    def receive(self) -> bytes:
        library = openssl()
        while True:
            try:
                return super().receive()
            except library.WantReadError:
                pass  # a signal interrupted it
            except library.ZeroReturnError:
                return b""

    def answer(self, line: bytes) -> bytes:
        if line == b"cert":
            return str(self.request.get_peer_certificate().get_subject().CN).encode()
        return super().answer(line)
