"""The server classes and their loop: where the standard module is weak, and what must stay as it is there."""

import errno
import gc
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import prefork
from prefork import (
    BaseRequestHandler,
    BaseServer,
    ForkingTCPServer,
    StreamRequestHandler,
    TCPServer,
    ThreadingTCPServer,
    UDPServer,
)
from tests.support.serving import HUNG, Upper, ask, connect, descriptors, serving

LOOPBACK = ("127.0.0.1", 0)
AT_ONCE = 0.25  # seconds; the standard shutdown() takes up to poll_interval
ROOT = Path(__file__).parents[2]


# shutdown()


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
        with connect(server.server_address) as client:
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
    with serving(server), connect(server.server_address):
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
        window = threading.Event()
        window.wait(0.2)  # the thread is done with that request
        before = _switches(thread)
        window.wait(0.3)
        assert _switches(thread) == before


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
        server._wake()
        window = threading.Event()
        window.wait(0.2)  # it has seen that
        before = _switches(thread)
        window.wait(0.1)
        assert thread.is_alive()
        assert _switches(thread) == before


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
    with serving(server), connect(server.server_address):
        assert begun.wait(HUNG)
    (thread,) = set(threading.enumerate()) - before
    assert server.statistics().in_flight == 1
    go_on.set()
    thread.join(HUNG)
    assert server.statistics().completed == 1
    assert server.statistics().in_flight == 0


def test_serving_a_closed_server() -> None:
    """serve_forever() and handle_request() of a closed server raise ValueError, as they always did."""
    server = TCPServer(LOOPBACK, Upper)
    server.server_close()
    with pytest.raises(ValueError):
        server.serve_forever()
    with pytest.raises(ValueError):
        server.handle_request()


def test_base_exception_ends_the_loop() -> None:
    """SystemExit in a handler of the serving thread closes the request and leaves serve_forever(), which can go on."""

    class Exits(BaseRequestHandler):
        def handle(self) -> None:
            sys.exit(3)

    with TCPServer(LOOPBACK, Exits) as server:
        for _ in range(2):
            with connect(server.server_address) as client:
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


# Shortage

SHORT_OF_DESCRIPTORS = """
import logging, os, resource, sys, threading, time
import prefork
from tests.support.serving import Upper

class Server(prefork.{name}):
    tries = 0
    first_done = threading.Event()
    def get_request(self):
        self.tries += 1
        return super().get_request()
    def close_request(self, request):
        super().close_request(request)
        self.first_done.set()

logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
server = Server(("127.0.0.1", 0), Upper)
thread = threading.Thread(target=server.serve_forever)
thread.start()
print(server.server_address[1], flush=True)
server.first_done.wait()
enough = resource.getrlimit(resource.RLIMIT_NOFILE)
lowest_free = os.dup(0)
os.close(lowest_free)
resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, enough[1]))
print("short", flush=True)
sys.stdin.readline()  # a connection is waiting
tries, cpu = server.tries, time.process_time()
threading.Event().wait(1.0)
print(server.tries - tries, time.process_time() - cpu, flush=True)
resource.setrlimit(resource.RLIMIT_NOFILE, enough)
sys.stdin.readline()  # it was served
server.shutdown()
server.server_close()
"""


@pytest.mark.parametrize("name", ["TCPServer", "ThreadingTCPServer"])
def test_no_descriptor_left(name: str) -> None:
    """Out of descriptors the loop tries ten times a second, says so once, and recovers by itself within a second."""
    with subprocess.Popen(
        [sys.executable, "-c", SHORT_OF_DESCRIPTORS.format(name=name)],
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
            with connect(address) as client:
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
        with connect(server.server_address):
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
        with connect(server.server_address) as client:
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

    with OneThread(LOOPBACK, Holds) as server, connect(server.server_address), connect(server.server_address) as second:
        server.handle_request()
        server.handle_request()
        assert server.timed_out
        server.timed_out = False
        server.timeout = HUNG
        threading.Timer(0.05, go_on.set).start()
        server.handle_request()
        assert not server.timed_out
        assert second.recv(1) == b""


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
    with serving(server), connect(server.server_address), connect(server.server_address):
        assert begun.wait(HUNG)
        before = time.monotonic()
        server.shutdown()
        assert time.monotonic() - before < AT_ONCE
        go_on.set()


# Addresses


@pytest.mark.skipif(not socket.has_ipv6, reason="this system has no IPv6")
class TestIPv6:
    def test_a_host_with_a_colon(self) -> None:
        """("::", port) works without a subclass; the instance says AF_INET6, the class says what it said."""
        server = TCPServer(("::", 0), Upper)
        assert server.address_family == socket.AF_INET6
        assert TCPServer.address_family == socket.AF_INET
        assert server.server_address[0] == "::"
        with serving(server):
            assert ask(server.server_address, b"six\n") == b"SIX\n"

    @pytest.mark.parametrize("dual_stack", [False, True])
    def test_dual_stack(self, dual_stack: bool) -> None:
        """IPv4 clients reach it exactly when `dual_stack` is set, whatever the system's default is."""

        class Server(TCPServer):
            pass

        Server.dual_stack = dual_stack
        server = Server(("::", 0), Upper)
        assert server.socket.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == (not dual_stack)
        with serving(server):
            over_ipv4 = ("127.0.0.1", server.server_address[1])
            if dual_stack:
                assert ask(over_ipv4, b"four\n") == b"FOUR\n"
            else:
                with pytest.raises(ConnectionRefusedError):
                    connect(over_ipv4)

    def test_dual_stack_set_before_binding(self) -> None:
        """It may be set on an instance that is bound later."""
        with TCPServer(("::", 0), Upper, bind_and_activate=False) as server:
            server.dual_stack = True
            server.server_bind()
            assert not server.socket.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)

    def test_a_class_that_says_ipv6_itself(self) -> None:
        """It keeps the system's setting, as with the standard module."""

        class Six(TCPServer):
            address_family = socket.AF_INET6

        with socket.socket(socket.AF_INET6) as untouched, Six(("::", 0), Upper) as server:
            option = (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
            assert server.socket.getsockopt(*option) == untouched.getsockopt(*option)

    def test_udp(self) -> None:
        """The same on a datagram socket."""
        with UDPServer(("::1", 0), Upper) as server:
            assert server.socket.family == socket.AF_INET6


def test_bind_and_activate_false() -> None:
    """Nothing is bound until server_bind(), nothing listens until server_activate()."""
    with TCPServer(LOOPBACK, Upper, bind_and_activate=False) as server:
        assert server.socket.getsockname() == ("0.0.0.0", 0)
        assert server.server_address == LOOPBACK
        server.server_bind()
        with pytest.raises(ConnectionRefusedError):
            connect(server.server_address)
        server.server_activate()
        connect(server.server_address).close()


def test_reuse_port() -> None:
    """Two servers with allow_reuse_port share a port; on a Unix socket, where it means nothing, it does no harm."""

    class Shared(TCPServer):
        allow_reuse_port = True

    with Shared(LOOPBACK, Upper) as one, Shared(one.server_address, Upper) as other:
        assert one.server_address == other.server_address


def test_unix_servers(tmp_path: Path) -> None:
    """A path serves; the port options are no hindrance."""

    class Server(prefork.UnixStreamServer):
        allow_reuse_port = True
        allow_reuse_address = True

    server = Server(str(tmp_path / "socket"), Upper)
    with serving(server):
        assert ask(server.server_address, b"path\n") == b"PATH\n"


SERVERS = sorted(name for name in prefork.__all__ if name.endswith("Server") and name != "BaseServer")


@pytest.mark.parametrize("name", SERVERS)
def test_failing_constructors_leak_nothing(name: str) -> None:
    """1,024 servers of every class that fail to bind leave no descriptor, collected or not."""
    address, error = ("/no/such/path", OSError) if "Unix" in name else (("127.0.0.1", -1), OverflowError)
    gc.disable()
    try:
        before = descriptors()
        for _ in range(1024):
            with pytest.raises(error):
                getattr(prefork, name)(address, Upper)
        assert descriptors().keys() == before.keys()
    finally:
        gc.enable()


def test_constructor_makes_only_the_socket() -> None:
    """A server that does not serve yet holds one descriptor, whatever is mixed in."""
    for name in ("TCPServer", "ThreadingTCPServer", "ForkingTCPServer", "PreForkingTCPServer"):
        before = descriptors().keys()
        with getattr(prefork, name)(LOOPBACK, Upper) as server:
            assert descriptors().keys() - before == {server.fileno()}


# Errors


class Raises(BaseRequestHandler):
    def handle(self) -> None:
        raise self.server.error


def _records(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "prefork.server"]


def test_errors_are_logged(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    """A handler's error goes to the log, with who was served and the traceback, and not to stderr."""
    caplog.set_level(logging.DEBUG)
    server: Any = TCPServer(LOOPBACK, Raises)
    server.error = ValueError("a reason")
    with serving(server):
        with connect(server.server_address) as client:
            assert client.recv(1) == b""
            host, port = client.getsockname()
    (record,) = _records(caplog)
    assert record.levelno == logging.ERROR
    assert f"{host}:{port}" in record.getMessage()
    assert "a reason" in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[1] is server.error
    assert capfd.readouterr() == ("", "")


def test_overridden_handle_error() -> None:
    """An override is called in the except block, before the request is shut down."""
    seen = []

    class Server(TCPServer):
        error = ValueError("a reason")

        def handle_error(self, request: Any, client_address: Any) -> None:
            seen.append((sys.exception(), request.fileno() >= 0))

    server = Server(LOOPBACK, Raises)
    with serving(server):
        ask(server.server_address, b"")
    assert seen == [(server.error, True)]


def test_a_client_that_resets_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    """A connection that the client broke is logged at DEBUG only."""
    caplog.set_level(logging.DEBUG)
    begun, reset = threading.Event(), threading.Event()

    class Reads(StreamRequestHandler):
        def handle(self) -> None:
            begun.set()
            reset.wait(HUNG)
            self.rfile.read()

    server = TCPServer(LOOPBACK, Reads)
    with serving(server):
        client = connect(server.server_address)
        assert begun.wait(HUNG)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        reset.set()
    assert [record.levelno for record in _records(caplog)] == [logging.DEBUG]


def test_another_connection_that_broke_is_news(caplog: pytest.LogCaptureFixture) -> None:
    """The same error from a connection of the handler's own, with the client still there, is an error."""
    caplog.set_level(logging.DEBUG)
    server: Any = TCPServer(LOOPBACK, Raises)
    server.error = ConnectionResetError("the database")
    with serving(server):
        ask(server.server_address, b"")
    assert [record.levelno for record in _records(caplog)] == [logging.ERROR]


def test_plain_servers_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A program that only changed its import finds nothing new in its log, also after a second of idleness."""
    caplog.set_level(logging.INFO)
    for cls in (TCPServer, ThreadingTCPServer, ForkingTCPServer):
        server = cls(LOOPBACK, Upper)
        with serving(server):
            ask(server.server_address, b"x")
            threading.Event().wait(0.6)  # longer than what would be taken for a stopped process
            ask(server.server_address, b"x")
    assert caplog.records == []


# The contract of the bases


def test_base_server_is_enough() -> None:
    """BaseServer with fileno() and get_request() serves whatever it reads, and hooks run in the documented order."""
    calls: list[str] = []
    mine, theirs = socket.socketpair()

    class Server(BaseServer):
        socket = mine

        def fileno(self) -> int:
            return mine.fileno()

        def get_request(self) -> tuple[Any, Any]:
            return mine.recv(10), "somebody"

        def __getattribute__(self, name: str) -> Any:
            if name.endswith("_request") or name == "RequestHandlerClass":
                calls.append(name)
            return super().__getattribute__(name)

    handled = []
    with mine, theirs, Server("nowhere", lambda *args: handled.append(args)) as server:
        theirs.send(b"request")
        server.handle_request()
        assert handled == [(b"request", "somebody", server)]
        assert [name for name in calls if not name.startswith(("handle", "_"))] == [
            "get_request", "verify_request", "process_request", "finish_request", "RequestHandlerClass",
            "shutdown_request", "close_request",
        ]  # fmt: skip


def test_refused_request_is_shut_down() -> None:
    """When verify_request() says no, the handler is not made and the connection is closed."""

    class Refuses(TCPServer):
        def verify_request(self, request: Any, client_address: Any) -> bool:
            return False

    server = Refuses(LOOPBACK, Raises)
    with serving(server):
        assert ask(server.server_address, b"") == b""


def test_shutdown_request_of_a_broken_connection() -> None:
    """shutdown_request() closes also what can no longer be shut down."""
    with TCPServer(LOOPBACK, Upper) as server:
        never_connected = socket.socket()
        server.shutdown_request(never_connected)
        assert never_connected.fileno() == -1


def test_fork_in_a_handler_does_not_disturb() -> None:
    """A process that a handler forked may call shutdown() on its copy: it returns, and the parent serves on."""

    class Forks(StreamRequestHandler):
        def handle(self) -> None:
            pid = os.fork()
            if pid == 0:
                self.server.shutdown()
                os._exit(7)
            self.wfile.write(b"%d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    server = TCPServer(LOOPBACK, Forks)
    with serving(server):
        assert [ask(server.server_address, b"") for _ in range(3)] == [b"7"] * 3
