"""The server classes: addresses, constructors, errors, and the order of the hooks."""

import gc
import logging
import os
import socket
import socketserver
import struct
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import prefork
from prefork import (
    BaseRequestHandler,
    BaseServer,
    DatagramRequestHandler,
    ForkingTCPServer,
    StreamRequestHandler,
    TCPServer,
    ThreadingTCPServer,
    UDPServer,
)
from tests.support.clients.connections import ask, dial
from tests.support.programs.serving import HUNG, Upper, descriptors, serving

LOOPBACK = ("127.0.0.1", 0)


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
                    dial(over_ipv4)

    def test_dual_stack_set_before_binding(self) -> None:
        """Dual stack may be set on an instance that is bound later."""
        with TCPServer(("::", 0), Upper, bind_and_activate=False) as server:
            server.dual_stack = True
            server.server_bind()
            assert not server.socket.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)

    def test_a_class_that_says_ipv6_itself(self) -> None:
        """A class that says IPv6 itself keeps the system's setting, as with the standard module."""

        class Six(TCPServer):
            address_family = socket.AF_INET6

        with socket.socket(socket.AF_INET6) as untouched, Six(("::", 0), Upper) as server:
            option = (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
            assert server.socket.getsockopt(*option) == untouched.getsockopt(*option)

    def test_udp(self) -> None:
        """A datagram socket is dual-stack as well."""
        with UDPServer(("::1", 0), Upper) as server:
            assert server.socket.family == socket.AF_INET6


def test_bind_and_activate_false() -> None:
    """Nothing is bound until server_bind(), nothing listens until server_activate()."""
    with TCPServer(LOOPBACK, Upper, bind_and_activate=False) as server:
        assert server.socket.getsockname() == ("0.0.0.0", 0)
        assert server.server_address == LOOPBACK
        server.server_bind()
        with pytest.raises(ConnectionRefusedError):
            dial(server.server_address)
        server.server_activate()
        dial(server.server_address).close()


def test_reuse_port() -> None:
    """Two servers with allow_reuse_port share a port; on a Unix socket, where it means nothing, it does no harm."""

    class Shared(TCPServer):
        allow_reuse_port = True

    with Shared(LOOPBACK, Upper) as one, Shared(one.server_address, Upper) as other:
        assert one.server_address == other.server_address


@pytest.mark.parametrize("family", sorted(socket.AddressFamily), ids=lambda family: family.name)
def test_reuse_port_is_for_the_internet(family: socket.AddressFamily) -> None:
    """SO_REUSEPORT is set for IPv4 and IPv6 alone: for others newer kernels refuse it."""
    told = []

    class Told:
        def setsockopt(self, level: int, option: int, value: int) -> None:
            told.append(option)

        def bind(self, address: object) -> None:
            pass

        def getsockname(self) -> object:
            return LOOPBACK

        def close(self) -> None:
            pass

    server: Any = TCPServer(LOOPBACK, Upper, bind_and_activate=False)
    server.server_close()
    server.address_family, server.socket, server.allow_reuse_port = family, Told(), True
    server.server_bind()
    assert (socket.SO_REUSEPORT in told) == (family in (socket.AF_INET, socket.AF_INET6))


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
    handler = DatagramRequestHandler if "UDP" in name or "Datagram" in name else Upper
    gc.disable()
    try:
        before = descriptors()
        for _ in range(1024):
            with pytest.raises(error):
                getattr(prefork, name)(address, handler)
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
        with dial(server.server_address) as client:
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
        client = dial(server.server_address)
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


def test_a_queue_longer_than_the_kernels(caplog: pytest.LogCaptureFixture) -> None:
    """A pool that asks for a longer queue than net.core.somaxconn gives says so; a plain server does not."""
    limit = int(Path("/proc/sys/net/core/somaxconn").read_text())
    assert prefork.PreForkingTCPServer.request_queue_size == max(1024, socketserver.TCPServer.request_queue_size)
    for base, size, said in ((prefork.PreForkingTCPServer, limit, 0), (TCPServer, limit + 1, 0),
                             (prefork.PreForkingTCPServer, limit + 1, 1)):  # fmt: skip
        type("Server", (base,), {"request_queue_size": size})(LOOPBACK, Upper).server_close()
        assert len(caplog.records) == said
    assert f"the kernel cuts the listen queue of {limit + 1} to {limit} (net.core.somaxconn)" in caplog.text


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


def test_shutdown_in_a_child_that_has_ended() -> None:
    """A request's child asks the server to end as the last thing it does: it is heard, though nobody looked before."""

    class Ends(BaseRequestHandler):
        def handle(self) -> None:
            self.server.shutdown()

    class Slow(ForkingTCPServer):
        def process_request(self, request: Any, client_address: Any) -> None:
            super().process_request(request, client_address)
            for pid in self.active_children or ():
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    server = Slow(LOOPBACK, Ends)
    with serving(server) as thread:
        ask(server.server_address, b"")
        thread.join(HUNG)
        assert not thread.is_alive()
