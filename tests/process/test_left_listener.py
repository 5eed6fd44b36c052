"""A handler may ask the server where it listens, also where this process has closed its copy of the listener."""

import socket
import socketserver
import threading
from time import monotonic
from typing import Any

import pytest

import prefork
from tests.process.test_precedence import LOOPBACK, MIXINS
from tests.support.clients.connections import ask, dial
from tests.support.programs.serving import HUNG, serving


class Where(socketserver.BaseRequestHandler):
    """Answers where its server listens: at once, and once more when the client has said something."""

    def handle(self) -> None:
        for _ in range(2):
            sock = self.server.socket  # type: ignore[attr-defined]
            self.request.sendall(f"{sock.getsockname()[1]} {sock.family.name}\n".encode())
            self.request.recv(100)


@pytest.mark.parametrize("module", [prefork, socketserver])
@pytest.mark.parametrize("mixins", MIXINS)
def test_where_it_listens(mixins: str, module: Any) -> None:
    """In every process that serves a request, the server's socket tells its address."""
    server: Any = type("Server", (*MIXINS[mixins], module.TCPServer), {"max_children": 1})(LOOPBACK, Where)
    with serving(server):
        said = f"{server.server_address[1]} AF_INET\n".encode()
        assert ask(server.server_address, b"word") == said * 2


class Later(socketserver.BaseRequestHandler):
    """Answers where its server listened, as soon as it does so no longer."""

    def handle(self) -> None:
        sock = self.server.socket  # type: ignore[attr-defined]
        self.request.sendall(b"begun\n")
        until = monotonic() + HUNG
        while sock.fileno() != -1 and monotonic() < until:
            threading.Event().wait(0.01)
        self.request.sendall(f"{sock.fileno()} {sock.getsockname()[1]} {sock.family.name}\n".encode())


class Tracing(socket.socket):
    """A class of the program's, with a place for things of its own."""


@pytest.mark.parametrize("kind", [None, Tracing])
@pytest.mark.parametrize("base", [prefork.TCPServer, socketserver.TCPServer])
def test_where_it_listened(base: Any, kind: Any) -> None:
    """So it does in a worker that drains, which has closed the listener before its requests are finished; also where
    the program has made that an object of another class."""
    bases = (prefork.PreForkingMixIn, prefork.ThreadingMixIn, base)
    server: Any = type("Server", bases, {"max_children": 1})(LOOPBACK, Later)
    if kind is not None:
        server.socket = kind(fileno=server.socket.detach())
    port = server.socket.getsockname()[1]
    with serving(server), dial(("127.0.0.1", port)) as client:
        assert client.recv(6) == b"begun\n"
        ending = threading.Thread(target=server.shutdown)
        ending.start()
        assert client.recv(100).decode() == f"-1 {port} AF_INET\n"
        ending.join(HUNG)
