"""The loop at its limits: no descriptor left, no room left, no time left."""

import errno
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from prefork import BaseRequestHandler, TCPServer, ThreadingTCPServer
from tests.support.clients.connections import ask, dial
from tests.support.programs.serving import HUNG, Upper, serving

LOOPBACK = ("127.0.0.1", 0)
AT_ONCE = 0.25  # seconds; the standard shutdown() takes up to poll_interval
ROOT = Path(__file__).parents[2]


# Shortage


@pytest.mark.timed
@pytest.mark.parametrize("name", ["TCPServer", "ThreadingTCPServer"])
def test_no_descriptor_left(name: str) -> None:
    """Out of descriptors the loop tries ten times a second, says so once, and recovers by itself within a second."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.process.programs.short_of_descriptors", name],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        hung = threading.Timer(HUNG, process.kill)  # then every read below comes to its end
        hung.start()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            address = ("127.0.0.1", int(process.stdout.readline()))
            assert ask(address, b"before") == b"BEFORE"
            assert process.stdout.readline() == "short\n"
            with dial(address) as client:
                client.sendall(b"patience\n")
                print(file=process.stdin, flush=True)
                said = process.stdout.readline()
                tries, cpu = process.stdout.readline().split()
                lifted = time.monotonic()
                assert client.recv(100) == b"PATIENCE\n"
                assert time.monotonic() - lifted < 1.0
            print(file=process.stdin, flush=True)
            rest = process.stdout.read()
            assert process.wait(HUNG) == 0
        finally:
            hung.cancel()
            hung.join()
            process.kill()  # nothing when it has ended
    assert said.startswith("WARNING could not accept: ")
    assert 1 <= int(tries) <= 20
    assert float(cpu) < 0.05
    assert rest == ""


@pytest.mark.timed
def test_other_accept_errors_do_not_pause() -> None:
    """An OSError of get_request() that is no shortage only means that the request is gone."""

    class Fails(TCPServer):
        tries = 0

        def get_request(self) -> tuple[Any, Any]:
            self.tries += 1
            if self.tries < 3:
                raise OSError(errno.ECONNABORTED, "gone")
            return super().get_request()

    with Fails(LOOPBACK, Upper) as server:
        with dial(server.server_address):
            before = time.monotonic()
            for _ in range(2):
                server.handle_request()
            assert time.monotonic() - before < AT_ONCE
            assert server.tries == 2


# handle_request()


class TimesOut(TCPServer):
    timed_out = 0

    def handle_timeout(self) -> None:
        self.timed_out += 1


@pytest.mark.parametrize(("own", "sockets"), [(0.05, None), (None, 0.05), (0.05, HUNG), (HUNG, 0.05)])
def test_handle_request_times_out(own: float | None, sockets: float | None) -> None:
    """handle_request() waits for the shorter of `timeout` and the socket's, then calls handle_timeout(), once."""
    with TimesOut(LOOPBACK, Upper) as server:
        server.timeout = own
        server.socket.settimeout(sockets)
        before = time.monotonic()
        server.handle_request()
        assert 0.05 <= time.monotonic() - before < HUNG / 2
        assert server.timed_out == 1


def test_handle_request_with_timeout_zero() -> None:
    """With timeout 0 it never waits: what is there is served, else handle_timeout() is called."""
    with TimesOut(LOOPBACK, Upper) as server:
        server.timeout = 0
        server.handle_request()
        assert server.timed_out == 1
        with dial(server.server_address) as client:
            client.sendall(b"x")
            client.shutdown(socket.SHUT_WR)
            server.handle_request()
            assert client.recv(1) == b"X"
        assert server.timed_out == 1


def test_serve_forever_ignores_timeout() -> None:
    """`timeout` is for handle_request() alone."""
    server = TimesOut(LOOPBACK, Upper)
    server.timeout = 0
    with serving(server):
        assert ask(server.server_address, b"x") == b"X"
    assert server.timed_out == 0


def test_handle_request_without_room() -> None:
    """At the cap handle_request() waits for room, and calls handle_timeout() when there was none in time."""
    go_on = threading.Event()

    class Holds(BaseRequestHandler):
        def handle(self) -> None:
            go_on.wait(HUNG)

    class OneThread(ThreadingTCPServer):
        max_threads = 1
        timeout = 0.05
        timed_out = False

        def handle_timeout(self) -> None:
            self.timed_out = True

    with OneThread(LOOPBACK, Holds) as server, dial(server.server_address), dial(server.server_address) as second:
        server.handle_request()
        server.handle_request()
        assert server.timed_out
        server.timed_out = False
        server.timeout = HUNG
        threading.Timer(0.05, go_on.set).start()
        server.handle_request()
        assert not server.timed_out
        assert second.recv(1) == b""


@pytest.mark.timed
def test_shutdown_at_the_cap() -> None:
    """A loop that accepts nothing, because every thread is busy, hears shutdown() all the same."""
    begun, go_on = threading.Event(), threading.Event()

    class Holds(BaseRequestHandler):
        def handle(self) -> None:
            begun.set()
            go_on.wait(HUNG)

    class OneThread(ThreadingTCPServer):
        max_threads = 1

    server = OneThread(LOOPBACK, Holds)
    with serving(server), dial(server.server_address), dial(server.server_address):
        assert begun.wait(HUNG)
        before = time.monotonic()
        server.shutdown()
        assert time.monotonic() - before < AT_ONCE
        go_on.set()
