"""Handlers that tell of their connection: version, protocol, the client's name; a class with a context of its own."""

import os
import socketserver
import ssl
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import prefork
from tests.support.programs.served import tell
from tests.support.tools.certificates import CERTIFICATE, KEY

if TYPE_CHECKING:
    _Server = prefork.PreForkingTCPServer
else:
    _Server = object


def told(handler: Any) -> None:
    """Answer one line; go on to the end of file."""
    for line in handler.rfile:
        request = handler.request
        names = dict(pair for (pair,) in (request.getpeercert() or {}).get("subject", ()))
        words = [request.version(), request.selected_alpn_protocol() or "-", names.get("commonName", "-")]
        said = {b"pid\n": str(os.getpid()), b"peer\n": handler.client_address[0]}.get(line, line.decode().strip())
        handler.wfile.write(" ".join([*words, said]).encode() + b"\n")
        if line == b"hello\n":
            return


class Ours(prefork.StreamRequestHandler):
    def handle(self) -> None:
        told(self)


class Standard(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        told(self)


class Extends(_Server):
    def create_ssl_context(self) -> Any:
        context = super().create_ssl_context()
        assert isinstance(context, ssl.SSLContext)
        context.set_alpn_protocols(["extended"])
        return context


class ByFile(prefork.PreForkingTCPServer):
    """Has the context that a file asks for, each time anew."""

    def __init__(self, address: Any) -> None:
        super().__init__(address, Ours)

    def create_ssl_context(self) -> Any:
        how = Path("context").read_text()
        if how == "raise":
            raise RuntimeError("the vault is away")
        if how == "exit":
            sys.exit("there is no certificate")
        if how == "none":
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE, KEY)
        return context


class WrapsItself(_Server):
    """Has a method of our hook's name, for what it does itself."""

    def create_ssl_context(self) -> Any:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE, KEY)
        context.set_alpn_protocols(["itself"])
        return context

    def get_request(self) -> Any:
        request, address = super().get_request()
        context = self.create_ssl_context()
        return context.wrap_socket(request, server_side=True, do_handshake_on_connect=False), address


def one_request() -> None:
    """Serve one, in this process."""
    with prefork.PreForkingTCPServer(("127.0.0.1", 0), Ours) as server:
        server.tls_certificate, server.tls_key = CERTIFICATE, KEY
        tell("listening", address=server.server_address)
        server.handle_request()
