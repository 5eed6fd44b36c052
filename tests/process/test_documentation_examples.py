"""The services that everybody begins with, written against socketserver: only the import has changed.

What each does is what the standard library's documentation of socketserver shows; the words are ours.
"""

import os
import socket
import threading

import pytest

import prefork as socketserver
from tests.support.clients.connections import ask, dial
from tests.support.programs.serving import HUNG, serving, threads_end

LOOPBACK = ("127.0.0.1", 0)


class UpperOnce(socketserver.BaseRequestHandler):
    """The receive form: what comes in one piece goes back in upper case."""

    def handle(self) -> None:
        self.data = self.request.recv(1024).strip()
        self.request.sendall(self.data.upper())


class UpperAll(socketserver.BaseRequestHandler):
    """The receive form as a loop: piece by piece until the client has said all."""

    def handle(self) -> None:
        while piece := self.request.recv(1024):
            self.request.sendall(piece.upper())


class UpperLine(socketserver.StreamRequestHandler):
    """The file form: a line."""

    def handle(self) -> None:
        self.data = self.rfile.readline(10000).rstrip()
        self.wfile.write(self.data.upper())


class UpperDatagram(socketserver.BaseRequestHandler):
    """A datagram is a pair of what came and the socket to answer on."""

    def handle(self) -> None:
        data, listener = self.request
        listener.sendto(data.strip().upper(), self.client_address)


class WhichThread(socketserver.BaseRequestHandler):
    """Says in which thread, of which process, it was called."""

    def handle(self) -> None:
        text = self.request.recv(1024).decode()
        self.request.sendall(f"{threading.current_thread().name} {os.getpid()}: {text}".encode())


@pytest.mark.parametrize("handler", [UpperOnce, UpperAll, UpperLine])
def test_tcp(handler: type[socketserver.BaseRequestHandler]) -> None:
    """The TCP server in its forms, as a context manager, in a thread of the program's own."""
    with socketserver.TCPServer(LOOPBACK, handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        assert [ask(server.server_address, word) for word in (b"one", b"two")] == [b"ONE", b"TWO"]
        server.shutdown()
        thread.join(HUNG)


def test_tcp_one_at_a_time() -> None:
    """handle_request() instead of serve_forever()."""
    with socketserver.TCPServer(LOOPBACK, UpperOnce) as server:
        for _ in range(2):
            with dial(server.server_address) as client:
                client.sendall(b"word")
                server.handle_request()
                assert client.recv(100) == b"WORD"


@pytest.mark.parametrize(
    "cls", [socketserver.UDPServer, socketserver.ThreadingUDPServer, socketserver.ForkingUDPServer]
)
def test_udp(cls: type[socketserver.UDPServer]) -> None:
    """The UDP server, alone and with either mix-in."""
    server = cls(LOOPBACK, UpperDatagram)
    with serving(server), socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(HUNG)
        for _ in range(3):
            client.sendto(b"datagram\n", server.server_address)
            assert client.recv(1024) == b"DATAGRAM"


def test_threads() -> None:
    """A mix-in before a server class: each request has a thread of this process, the server's among them is not."""

    class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
        daemon_threads = True

    with threads_end(), Server(LOOPBACK, WhichThread) as server:
        thread = threading.Thread(target=server.serve_forever, name="serving", daemon=True)
        thread.start()
        answers = [ask(server.server_address, b"hello") for _ in range(3)]
        server.shutdown()
        thread.join(HUNG)
    assert all(answer.endswith(f" {os.getpid()}: hello".encode()) for answer in answers)
    assert not any(answer.startswith(b"serving ") for answer in answers)


def test_children() -> None:
    """With the other mix-in each request has a process of its own."""

    class Server(socketserver.ForkingMixIn, socketserver.TCPServer):
        pass

    server = Server(LOOPBACK, WhichThread)
    with serving(server):
        pids = {ask(server.server_address, b"hello").split(b":")[0].split()[-1] for _ in range(3)}
    assert len(pids) == 3
    assert str(os.getpid()).encode() not in pids
