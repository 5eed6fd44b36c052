"""Servers that serve in a thread of the test's process, and the check that nothing of them is left.

from tests.support.serving import nothing_left, serving  # the fixture is used by importing it
"""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

from prefork import StreamRequestHandler

HUNG = 30.0  # seconds; never reached unless something hangs


class Upper(StreamRequestHandler):
    """Sends every line back in upper case."""

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line.upper())


@contextlib.contextmanager
def serving(server: Any, poll_interval: float = 0.5) -> Iterator[threading.Thread]:
    """`serve_forever()` in a thread; at the end it is shut down, joined, and the server closed."""
    thread = threading.Thread(target=server.serve_forever, args=(poll_interval,), name="serving")
    thread.start()
    try:
        yield thread
    finally:
        server.shutdown()
        thread.join(HUNG)
        server.server_close()
        assert not thread.is_alive()


@contextlib.contextmanager
def threads_end() -> Iterator[None]:
    """At the end waits for every thread begun in the block: around a server that does not wait for its own."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(HUNG)


def connect(address: Any) -> socket.socket:
    """A client of the server at this `server_address`; one that listens on every address is found on loopback."""
    if isinstance(address, tuple):
        host, port = address[:2]
        return socket.create_connection(("::1" if host == "::" else host, port), HUNG)
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(HUNG)
    client.connect(address)
    return client


def ask(address: Any, text: bytes) -> bytes:
    """Send this, say that it was all, and read the whole answer."""
    with connect(address) as client:
        client.sendall(text)
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as answer:
            return answer.read()


def descriptors() -> dict[int, str]:
    """What this process has open."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found
