"""Handlers that shut down the socket of their server, shutdown(2), for every process that has it; or every socket that
they find."""

import contextlib
import os
import socket
import stat
from typing import Any

from prefork import DatagramRequestHandler, KeepAliveMixIn, StreamRequestHandler


def shut(server: Any, how: bytes) -> None:
    """Of datagrams it says that there is no client, and is done all the same."""
    with contextlib.suppress(OSError):
        server.socket.shutdown({b"read": socket.SHUT_RD, b"both": socket.SHUT_RDWR}[how])


def found(server: Any, connection: socket.socket) -> list[tuple[str, socket.socket]]:
    """Copies of the sockets of this process, but for the client's connection, with their kinds."""
    sockets = []
    for fd in [fd for fd in map(int, os.listdir("/proc/self/fd")) if is_socket(fd)]:
        if fd != connection.fileno():
            sock = socket.socket(fileno=os.dup(fd))
            kind = f"{sock.family.name} {sock.type.name}"
            sockets.append(("listener" if fd == server.fileno() else kind, sock))
    return sockets


def is_socket(fd: int) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    return False


class Shutting(StreamRequestHandler):
    """Answers with its pid; shuts first if told how. Or with the kinds of the sockets that it finds, and shuts them."""

    def handle(self) -> None:
        for line in self.rfile:
            answer = b"%d" % os.getpid()
            if (how := line.strip()) in (b"kinds", b"all"):
                sockets = found(self.server, self.connection)
                answer = ", ".join(sorted(kind for kind, _ in sockets)).encode()
                for _, sock in sockets:
                    with sock, contextlib.suppress(OSError):
                        if how == b"all":
                            sock.shutdown(socket.SHUT_RDWR)
            elif how != b"pid":
                shut(self.server, how)
            self.wfile.write(answer + b"\n")


class Kept(KeepAliveMixIn, Shutting):
    """The same, of a connection that is kept."""


class Datagrams(DatagramRequestHandler):
    """The same, of datagrams."""

    def handle(self) -> None:
        if (how := self.rfile.read().strip()) != b"pid":
            shut(self.server, how)
        self.wfile.write(b"%d" % os.getpid())


class Hooked:
    """A hook before the thread, so that the main thread accepts."""

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return True
