"""Tests of a user, with our fixture. Copied to where pytest runs them."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

from prefork import PreForkingTCPServer, StreamRequestHandler
from prefork.testing import Running

pytest_plugins = ["prefork.fixtures"]


class Handler(StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(b"good")


def test_good(prefork_running: Callable[..., Running]) -> None:
    pool = prefork_running(PreForkingTCPServer, Handler)
    for _ in range(20):
        with socket.create_connection(pool.address) as sock:
            assert sock.recv(10) == b"good"


def test_bad(prefork_running: Callable[..., Running]) -> None:
    pool = prefork_running(PreForkingTCPServer, Handler)
    Path(f"pid-{os.getpid()}").write_text(str(pool.pid))
    assert pool is None
