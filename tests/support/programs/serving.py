"""Servers that serve in a thread of the test's process, and the check that nothing of them is left.

from tests.support.programs.serving import nothing_left, serving  # the fixture is used by importing it
"""

import contextlib
import os
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


def descriptors() -> dict[int, str]:
    """The open descriptors of this process."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found
