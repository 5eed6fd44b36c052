"""Servers over BaseServer that have no socket of their own to listen: a pipe, and an epoll in which two sockets are.
Copied to where a test runs it, as `app`."""

import os
import select
import socket
import socketserver
from typing import Any

import prefork


class Word(socketserver.BaseRequestHandler):
    """A line of the pipe is a request; the answer goes to the path that it names."""

    def handle(self) -> None:
        with open(self.request, "w") as answer:
            answer.write("answered")


class Upper(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(self.rfile.readline().upper())


def piped(base: Any) -> Any:
    class Piped(base):  # type: ignore[misc]
        """Reads paths from a pipe; `server_address` is the path of the pipe's file for others."""

        def __init__(self, address: Any = None) -> None:
            self.read, self.write = os.pipe()
            super().__init__(f"/proc/{os.getpid()}/fd/{self.write}", Word)

        def fileno(self) -> int:
            return int(self.read)

        def get_request(self) -> tuple[Any, Any]:
            return os.read(self.read, 1000).decode(), self.server_address

        def server_close(self) -> None:
            super().server_close()
            if self.read != -1:
                os.close(self.read)
                os.close(self.write)
                self.read = -1

    return Piped


def polled(base: Any) -> Any:
    class Polled(base):  # type: ignore[misc]
        """Listens at two ports."""

        def __init__(self, address: Any = None) -> None:
            self.both = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
            self.epoll = select.epoll()
            for sock in self.both:
                self.epoll.register(sock, select.EPOLLIN)
            super().__init__(self.both[0].getsockname(), Upper)

        def fileno(self) -> int:
            return self.epoll.fileno()

        def get_request(self) -> tuple[Any, Any]:
            ready = self.epoll.poll(0, 1)[0][0]
            return next(sock for sock in self.both if sock.fileno() == ready).accept()

        def close_request(self, request: Any) -> None:
            request.close()

        def server_close(self) -> None:
            super().server_close()
            self.epoll.close()
            for sock in self.both:
                sock.close()

    return Polled


class Piped(piped(socketserver.BaseServer)):  # type: ignore[misc]
    pass


class PipedOver(piped(prefork.BaseServer)):  # type: ignore[misc]
    pass
