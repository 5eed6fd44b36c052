"""The traffic: what a client asks, how often, and what must be answered.

Runs in client processes. A *traffic* is a way of asking; a *load* is how many clients ask, each in a closed loop.
"""

import contextlib
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

Address = tuple[str, int] | str  # a Unix path
Ready = Callable[[Address], None]  # told by each process that serves, where
Ask = Callable[[], None]

LOOPBACK = ("127.0.0.1", 0)
LINE = b"THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG\n"  # in upper case, so that an echo answers it as well
BODY = b"the quick brown fox jumps over the lazy dog\n"
GET = b"GET /hello HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
LINES = 2  # of a connection of the line protocol
TIMEOUT = struct.pack("ll", 20, 0)  # s; SO_RCVTIMEO costs no poll() for each recv()

TRAFFIC = {
    "recv": "a TCP connection for each line: BaseRequestHandler, recv() and sendall(); the server closes",
    "stream": "a TCP connection for each line: StreamRequestHandler, rfile.readline() and wfile.write()",
    "line": f"a TCP connection of {LINES} lines, each answered: `for line in self.rfile`; the client closes",
    "unix": "as recv, over a Unix stream socket",
    "udp": "a datagram and its answer",
    "unixgram": "as udp, over a Unix datagram socket",
    "http": "GET of 44 bytes, a connection for each: BaseHTTPRequestHandler",
}
EDGE = {  # of the section of that name, as recv
    "proxied, v1": "behind a header of the PROXY protocol, version 1",
    "proxied, v2": "the same, version 2, with a checksum",
    "tls": "over TLS, a whole handshake each",
    "resumed": "over TLS, by a ticket of an earlier one",
}
HEADERS = {
    "proxied, v1": b"PROXY TCP4 192.0.2.7 198.51.100.1 4242 443\r\n",
    "proxied, v2": bytes.fromhex("0d0a0d0a000d0a515549540a 21 11 0013 c0000207 c6336401 1092 01bb 03 0004 7ddbb32e"),
}
DATAGRAMS = ("udp", "unixgram")
LOADS = {"saturated": 2, "sequential": 1}  # clients


class WrongAnswer(Exception):
    """A contender did not answer as it must: what it costs says nothing."""


def connected(address: Address, kind: int = socket.SOCK_STREAM) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, TIMEOUT)
    sock.connect(address)
    return sock


def to_the_end(sock: socket.socket) -> bytes:
    answer = b""
    while more := sock.recv(4096):
        answer += more
    return answer


def ask_line(address: Address) -> None:
    with connected(address) as sock:
        sock.sendall(LINE)
        if (answer := to_the_end(sock)) != LINE:
            raise WrongAnswer(f"{address} answered {answer!r}")


def ask_behind(header: bytes, address: Address) -> None:
    with connected(address) as sock:
        sock.sendall(header + LINE)
        if (answer := to_the_end(sock)) != LINE:
            raise WrongAnswer(f"{address} answered {answer!r}")


class Secured:
    """A client over TLS. What it is to know of the server is nothing."""

    def __init__(self, *, resumes: bool) -> None:
        import ssl

        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.check_hostname, self._context.verify_mode = False, ssl.CERT_NONE
        self._resumes = resumes
        self._session: Any = None

    def ask(self, address: Address) -> None:
        with self._context.wrap_socket(connected(address), session=self._session) as sock:
            sock.sendall(LINE)
            answer = sock.recv(1024)
            if answer != LINE or (self._session is not None) != bool(sock.session_reused):
                raise WrongAnswer(f"{address} answered {answer!r}, resumed: {sock.session_reused}")
            if self._resumes:
                self._session = sock.session


def ask_lines(address: Address) -> None:
    with connected(address) as sock:
        for _ in range(LINES):
            sock.sendall(LINE)
            answer = b""
            while not answer.endswith(b"\n") and (more := sock.recv(1024)):
                answer += more
            if answer != LINE:
                raise WrongAnswer(f"{address} answered {answer!r}")


def ask_http(address: Address) -> None:
    with connected(address) as sock:
        sock.sendall(GET)
        answer = to_the_end(sock)
        if not answer.startswith((b"HTTP/1.0 200", b"HTTP/1.1 200")) or not answer.endswith(BODY):
            raise WrongAnswer(f"{address} answered {answer!r}")


def _asker(traffic: str) -> Callable[[Address], None]:
    if traffic in HEADERS:
        return partial(ask_behind, HEADERS[traffic])
    if traffic in EDGE:
        return Secured(resumes=traffic == "resumed").ask
    return {"line": ask_lines, "http": ask_http}.get(traffic, ask_line)


@contextlib.contextmanager
def asking(traffic: str, address: Address) -> Iterator[Ask]:
    """A client: what it gives asks once and has the answer."""
    if traffic not in DATAGRAMS:
        yield partial(_asker(traffic), address)
        return
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(connected(address, socket.SOCK_DGRAM))
        if isinstance(address, str):  # what has no name gets no answer
            own = f"{address}.{os.getpid()}"
            sock.bind(own)
            stack.callback(os.unlink, own)

        def datagram() -> None:
            sock.send(LINE)
            if (answer := sock.recv(1024)) != LINE:
                raise WrongAnswer(f"{address} answered {answer!r}")

        yield datagram


def drive(traffic: str, address: Address, seconds: float, least: int = 1) -> int:
    """Ask for so long, one after another, and at least so often; return how often."""
    with asking(traffic, address) as ask:
        deadline, done = time.monotonic() + seconds, 0
        while done < least or time.monotonic() < deadline:
            ask()
            done += 1
    return done
