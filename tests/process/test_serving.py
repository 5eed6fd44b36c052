"""The loop of a process that serves by itself: how it ends, what it calls, and that it sleeps."""

import os
import signal
import socket
import socketserver
import sys
import threading
import time
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

import prefork
from prefork import (
    BaseRequestHandler,
    ForkingTCPServer,
    PreForkingTCPServer,
    TCPServer,
    ThreadingTCPServer,
)
from tests.support.clients.connections import ask, dial
from tests.support.programs.serving import HUNG, Upper, serving

LOOPBACK = ("127.0.0.1", 0)
AT_ONCE = 0.25  # seconds; the standard shutdown() takes up to poll_interval


# shutdown()


@pytest.mark.timed
def test_shutdown_is_immediate() -> None:
    """shutdown() ends an idle loop at once, however long its poll_interval is."""
    server = TCPServer(LOOPBACK, Upper)
    with serving(server, poll_interval=HUNG) as thread:
        assert ask(server.server_address, b"there\n") == b"THERE\n"
        before = time.monotonic()
        server.shutdown()
        assert time.monotonic() - before < AT_ONCE
        thread.join(HUNG)


def test_shutdown_before_serving_is_remembered() -> None:
    """shutdown() before serve_forever() returns at once, and the next serve_forever() does, but not the one after."""
    with TCPServer(LOOPBACK, Upper) as server:
        server.shutdown()
        server.serve_forever()
        with serving(server):
            assert ask(server.server_address, b"again\n") == b"AGAIN\n"


def test_shutdown_of_a_loop_that_has_not_begun() -> None:
    """Whoever starts a thread and calls shutdown() right away sees it end, at whatever point the thread is."""
    for _ in range(200):
        with TCPServer(LOOPBACK, Upper) as server:
            thread = threading.Thread(target=server.serve_forever, args=(HUNG,))
            thread.start()
            server.shutdown()
            thread.join(HUNG)
            assert not thread.is_alive()


def test_shutdown_by_many() -> None:
    """Every thread that calls shutdown() returns, and after that the loop has."""
    server = TCPServer(LOOPBACK, Upper)
    with serving(server) as serving_thread:
        threads = [threading.Thread(target=server.shutdown) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(HUNG)
        assert not any(thread.is_alive() for thread in threads)
        serving_thread.join(HUNG)


def test_shutdown_in_the_serving_thread() -> None:
    """A handler that runs in the serving thread may call shutdown(): it does not wait, and the loop ends after it."""

    class Last(BaseRequestHandler):
        def handle(self) -> None:
            self.server.shutdown()
            self.request.sendall(b"the last")

    with TCPServer(LOOPBACK, Last) as server:
        with dial(server.server_address) as client:
            server.serve_forever(HUNG)
            assert client.recv(100) == b"the last"


@pytest.mark.parametrize("name", ["shutdown", "shutdown_nowait"])
def test_shutdown_in_a_signal_handler(name: str) -> None:
    """A signal handler over the serving thread may end the loop, with either method."""
    with TCPServer(LOOPBACK, Upper) as server:
        before = signal.signal(signal.SIGUSR1, lambda signum, frame: getattr(server, name)())

        def kill_when_it_serves() -> None:
            assert ask(server.server_address, b"x") == b"X"
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

        try:
            thread = threading.Thread(target=kill_when_it_serves)
            thread.start()
            server.serve_forever(HUNG)
            thread.join(HUNG)
        finally:
            signal.signal(signal.SIGUSR1, before)


def test_shutdown_waits_for_the_request() -> None:
    """shutdown() returns when the request in hand is finished, shutdown_nowait() at once."""
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    class Busy(BaseRequestHandler):
        def handle(self) -> None:
            begun.set()
            go_on.wait(HUNG)
            ended.set()

    server = TCPServer(LOOPBACK, Busy)
    with serving(server), dial(server.server_address):
        assert begun.wait(HUNG)
        server.shutdown_nowait()
        assert not ended.is_set()
        threading.Timer(0.05, go_on.set).start()
        server.shutdown()
        assert ended.is_set()


# The loop


def test_overridden_service_actions_is_called_every_poll_interval() -> None:
    """A subclass that overrides service_actions() is polled, as in the standard library, and not more often."""
    fifth = threading.Event()

    class Polled(TCPServer):
        calls = 0

        def service_actions(self) -> None:
            self.calls += 1
            if self.calls == 5:
                fifth.set()

    server = Polled(LOOPBACK, Upper)
    before = time.monotonic()
    with serving(server, poll_interval=0.02):
        assert fifth.wait(HUNG)
    assert time.monotonic() - before >= 5 * 0.02


@pytest.mark.parametrize("interval", [0, -1, Fraction(1, 50)])
@pytest.mark.parametrize("cls", [TCPServer, ThreadingTCPServer, PreForkingTCPServer])
def test_any_number_is_a_poll_interval(cls: type[TCPServer], interval: Any) -> None:
    """It is one for a selector too: below 0 it waits for nothing. In a pool as well."""
    called = threading.Semaphore(0)
    server = type("Polled", (cls,), {"service_actions": lambda self: called.release(), "max_children": 1})
    with serving(server(LOOPBACK, Upper), poll_interval=interval):
        for _ in range(3):
            assert called.acquire(timeout=HUNG)


@pytest.mark.parametrize("interval", ["1", Decimal(1), [1]])
@pytest.mark.parametrize("cls", [TCPServer, ThreadingTCPServer, PreForkingTCPServer])
def test_what_is_no_poll_interval(cls: type[TCPServer], interval: Any) -> None:
    """As in the standard library, `serve_forever()` raises TypeError."""
    server_class = type("Polled", (cls,), {"service_actions": lambda self: None, "max_children": 1})
    with server_class(LOOPBACK, Upper) as server, pytest.raises(TypeError):
        server.serve_forever(interval)


def test_service_actions_of_an_instance() -> None:
    """One that is set on the instance counts as an override."""
    called = threading.Event()
    server = TCPServer(LOOPBACK, Upper)
    server.service_actions = called.set  # type: ignore[method-assign]
    with serving(server, poll_interval=0.01):
        assert called.wait(HUNG)


@pytest.mark.parametrize("cls", [TCPServer, ThreadingTCPServer])
def test_idle_loop_sleeps(cls: type[TCPServer]) -> None:
    """Where nobody overrides service_actions(), an idle loop is not woken at all, whatever its poll_interval."""
    server = cls(LOOPBACK, Upper)
    with serving(server, poll_interval=0.001) as thread:
        assert ask(server.server_address, b"x") == b"X"
        _wait_asleep(thread, 0.3)


def _wait_asleep(thread: threading.Thread, seconds: float) -> None:
    """Until this thread has slept for so long without a break."""
    deadline = time.monotonic() + HUNG
    while True:
        before = _switches(thread)
        threading.Event().wait(seconds)
        if _switches(thread) == before:
            return
        assert time.monotonic() < deadline, "hung: it does not sleep"


def _switches(thread: threading.Thread) -> int:
    """How often this thread has gone to sleep until now; proc(5)."""
    status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
    return int(status.split("voluntary_ctxt_switches:")[1].split()[0])


@pytest.mark.parametrize("cls", [TCPServer, ThreadingTCPServer, ForkingTCPServer])
def test_closed_under_the_loop(cls: type[TCPServer]) -> None:
    """A server that is closed while it serves neither spins nor ends: it waits for shutdown()."""
    server = cls(LOOPBACK, Upper)
    with serving(server) as thread:
        assert ask(server.server_address, b"x") == b"X"
        server.server_close()
        server._prefork_.wake()
        _wait_asleep(thread, 0.1)
        assert thread.is_alive()


def test_closed_before_a_daemonic_thread_ends() -> None:
    """server_close() does not wait for a daemonic thread, and what that one still holds goes when it ends."""
    begun, go_on = threading.Event(), threading.Event()

    class Holds(BaseRequestHandler):
        def handle(self) -> None:
            begun.set()
            go_on.wait(HUNG)

    class Daemonic(ThreadingTCPServer):
        daemon_threads = True

    before = set(threading.enumerate())
    server = Daemonic(LOOPBACK, Holds)
    with serving(server), dial(server.server_address):
        assert begun.wait(HUNG)
    (thread,) = set(threading.enumerate()) - before
    assert server.statistics().in_flight == 1
    go_on.set()
    thread.join(HUNG)
    assert server.statistics().completed == 1
    assert server.statistics().in_flight == 0


KINDS = ("TCP", "UDP", "UnixStream", "UnixDatagram")
MIXED_IN: dict[str, tuple[type, ...]] = {
    "plain": (),
    "threads": (prefork.ThreadingMixIn,),
    "forked": (prefork.ForkingMixIn,),
    "pool": (prefork.PreForkingMixIn,),
    "pool with threads": (prefork.PreForkingMixIn, prefork.ThreadingMixIn),
    "pool ahead": (prefork.PreForkingMixIn, prefork.ForkingMixIn),
}


@pytest.mark.parametrize("has_served", [False, True])
@pytest.mark.parametrize("mixins", MIXED_IN)
@pytest.mark.parametrize("kind", KINDS)
def test_serving_a_closed_server(kind: str, mixins: str, has_served: bool, tmp_path: Path) -> None:
    """serve_forever() and handle_request() of a closed server raise ValueError, as they always did."""
    bases = (*MIXED_IN[mixins], getattr(prefork, f"{kind}Server"))
    cls: Any = type("Server", bases, {"max_children": 1})
    server = cls(str(tmp_path / "s") if "Unix" in kind else LOOPBACK, BaseRequestHandler)
    if has_served:
        server.shutdown()
        server.serve_forever()
    server.server_close()
    for method in (server.serve_forever, server.handle_request):
        with pytest.raises(ValueError, match=r"[Ff]ile descriptor"):
            method()


@pytest.mark.parametrize("mixins", MIXED_IN)
@pytest.mark.parametrize("kind", KINDS)
def test_serving_a_closed_server_of_the_standard_library(kind: str, mixins: str, tmp_path: Path) -> None:
    """With our mix-ins it is the same over its classes; without any, it is what is meant by the same."""
    cls: Any = type("Server", (*MIXED_IN[mixins], getattr(socketserver, f"{kind}Server")), {"max_children": 1})
    server = cls(str(tmp_path / "s") if "Unix" in kind else LOOPBACK, BaseRequestHandler)
    server.server_close()
    for method in (server.serve_forever, server.handle_request):
        with pytest.raises(ValueError, match=r"[Ff]ile descriptor"):
            method()


def test_base_exception_ends_the_loop() -> None:
    """SystemExit in a handler of the serving thread closes the request and leaves serve_forever(), which can go on."""

    class Exits(BaseRequestHandler):
        def handle(self) -> None:
            sys.exit(3)

    with TCPServer(LOOPBACK, Exits) as server:
        for _ in range(2):
            with dial(server.server_address) as client:
                with pytest.raises(SystemExit):
                    server.serve_forever()
                assert client.recv(1) == b""


def test_error_in_verify_request(caplog: pytest.LogCaptureFixture) -> None:
    """One that verify_request() raises costs the request, not the server."""

    class Unsure(TCPServer):
        def verify_request(self, request: Any, client_address: Any) -> bool:
            raise LookupError("who is it")

    server = Unsure(LOOPBACK, Upper)
    with serving(server):
        assert [ask(server.server_address, b"") for _ in range(2)] == [b"", b""]
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]


# Turns of the supervisor


def turns(server: ThreadingTCPServer) -> int:
    return int(server._prefork_.supervisor.turns)


def test_a_request_needs_no_turn() -> None:
    """Requests in threads leave nothing for a supervisor to do: it has no turn for them."""
    server = ThreadingTCPServer(LOOPBACK, Upper)
    with serving(server):
        ask(server.server_address, b"x")
        before = turns(server)
        for _ in range(20):
            ask(server.server_address, b"x")
        assert turns(server) == before


def test_service_actions_called_by_the_program_is_a_turn() -> None:
    """Outside our loop nobody knows whether there is something to do, so each call is a turn."""
    with ThreadingTCPServer(LOOPBACK, Upper) as server, dial(server.server_address) as client:
        client.shutdown(socket.SHUT_WR)
        server.handle_request()
        before = turns(server)
        server.service_actions()
        server.service_actions()
        assert turns(server) == before + 2


@pytest.mark.parametrize("calls_super", [True, False])
def test_children_are_reaped_whatever_service_actions_does(calls_super: bool) -> None:
    """A child that ends is reaped at once, also where an override of service_actions() leaves out `super()`."""

    class Polled(ForkingTCPServer):
        called = 0

        def service_actions(self) -> None:
            self.called += 1
            if calls_super:
                super().service_actions()

    server = Polled(LOOPBACK, Upper)
    with serving(server, poll_interval=HUNG):
        for _ in range(3):
            assert ask(server.server_address, b"x") == b"X"
            deadline = time.monotonic() + HUNG
            while server.active_children:
                assert time.monotonic() < deadline
                os.sched_yield()
        assert server.called >= 3
