"""The mix-ins over the standard library's own classes: its socketserver, http.server, xmlrpc.server and wsgiref."""

import functools
import http.client
import http.server
import os
import socketserver
import threading
import time
import xmlrpc.client
import xmlrpc.server
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref import simple_server

import pytest

import prefork
from tests.support.clients.connections import ask
from tests.support.programs.serving import HUNG, Upper, serving

LOOPBACK = ("127.0.0.1", 0)


class Pool(prefork.PreForkingMixIn):
    """A pool of two. `full` is set once both are ready: a client's socket that this process, the master, has while a
    worker is forked would stay open in that worker, and nobody would see its end."""

    max_children = 2

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.full = threading.Event()
        super().__init__(*args, **kwargs)

    def service_actions(self) -> None:
        super().service_actions()
        if self.statistics().workers["idle"] == self.max_children:
            self.full.set()


class Page(http.server.BaseHTTPRequestHandler):
    """The pid of the process that answers."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = b"%d" % os.getpid()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def get(address: tuple[str, int], times: int = 1) -> list[int]:
    """The answers to so many requests over one connection."""
    connection = http.client.HTTPConnection(address[0], address[1], timeout=HUNG)
    try:
        answers = []
        for _ in range(times):
            connection.request("GET", "/")
            answers.append(int(connection.getresponse().read()))
        return answers
    finally:
        connection.close()


@pytest.mark.parametrize("base", [http.server.HTTPServer, http.server.ThreadingHTTPServer])
def test_http(base: type[http.server.HTTPServer]) -> None:
    """http.server's classes serve HTTP from a pool; a connection that is kept alive stays with its worker."""

    class Server(Pool, base):  # type: ignore[misc, valid-type]
        pass

    server = Server(LOOPBACK, Page)
    with serving(server):
        assert server.full.wait(HUNG)
        for _ in range(5):
            first, second = get(server.server_address, times=2)
            assert first == second != os.getpid()
        assert server.server_name
        assert server.server_port == server.server_address[1]
    statistics = server.statistics()
    assert (statistics.accepted, statistics.completed, statistics.lost) == (5, 5, 0)


def test_xmlrpc() -> None:
    """SimpleXMLRPCServer answers a real client from a pool, errors included."""

    class Server(Pool, xmlrpc.server.SimpleXMLRPCServer):
        pass

    server = Server(LOOPBACK, logRequests=False, allow_none=True)
    server.register_function(os.getpid, "pid")
    server.register_function(lambda a, b: a // b, "divide")
    with serving(server):
        assert server.full.wait(HUNG)
        with xmlrpc.client.ServerProxy("http://%s:%d" % server.server_address) as client:
            assert client.pid() != os.getpid()
            assert client.divide(7, 2) == 3
            with pytest.raises(xmlrpc.client.Fault, match="ZeroDivisionError"):
                client.divide(1, 0)


def test_wsgi() -> None:
    """A WSGI application of wsgiref's server is called in a pool."""

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"%d" % os.getpid()]

    class Server(Pool, simple_server.WSGIServer):
        pass

    class Quiet(simple_server.WSGIRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = Server(LOOPBACK, Quiet)
    server.set_app(application)
    with serving(server):
        assert server.full.wait(HUNG)
        assert get(server.server_address) != [os.getpid()]


PLAIN = [prefork.SupervisedMixIn, prefork.ThreadingMixIn, prefork.ForkingMixIn]


@pytest.mark.timed
@pytest.mark.parametrize("mixin", PLAIN)
def test_the_loop_comes_along(mixin: type) -> None:
    """Over socketserver.TCPServer a plain mix-in brings our loop: shutdown() is immediate, before it is remembered."""
    server: Any = type("Server", (mixin, socketserver.TCPServer), {})(LOOPBACK, Upper)
    server.shutdown()
    server.serve_forever()
    with serving(server, poll_interval=HUNG) as thread:
        assert ask(server.server_address, b"mixed\n") == b"MIXED\n"
        before = time.monotonic()
        server.shutdown()
        assert time.monotonic() - before < 0.25
        thread.join(HUNG)
    assert server.statistics().completed == 1


@pytest.mark.parametrize("mixin", PLAIN)
def test_handle_request_comes_along(mixin: type) -> None:
    """handle_request(), with its timeout, works over the standard library's servers."""
    timed_out = threading.Event()
    members = {"timeout": 0.01, "handle_timeout": lambda self: timed_out.set()}
    server: Any = type("Server", (mixin, socketserver.TCPServer), members)(LOOPBACK, Upper)
    with server:
        server.handle_request()
        assert timed_out.is_set()
        server.timeout = HUNG
        client = threading.Thread(target=ask, args=(server.server_address, b"x"))
        client.start()
        server.handle_request()
        client.join(HUNG)


@pytest.mark.parametrize("mixin", PLAIN[:2])
def test_errors_go_to_the_log(mixin: type, caplog: pytest.LogCaptureFixture) -> None:
    """handle_error() of the standard library's servers logs; nothing is printed."""

    class Fails(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            raise LookupError("a reason")

    server: Any = type("Server", (mixin, socketserver.TCPServer), {})(LOOPBACK, Fails)
    with serving(server):
        assert ask(server.server_address, b"") == b""
    assert [(record.name, record.levelname, bool(record.exc_info)) for record in caplog.records] == [
        ("prefork.server", "ERROR", True)
    ]
    caplog.clear()  # the traceback holds the lane


def test_the_standard_librarys_mixins_over_ours() -> None:
    """The other way round: socketserver's own mix-ins work over our server classes."""
    for mixin in (socketserver.ThreadingMixIn, socketserver.ForkingMixIn):
        server = type("Server", (mixin, prefork.TCPServer), {})(LOOPBACK, Upper)
        with serving(server, poll_interval=0.01):
            assert [ask(server.server_address, b"x") for _ in range(3)] == [b"X"] * 3


def test_standard_handlers_in_a_pool() -> None:
    """A handler class that derives from the standard library's needs no change."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(self.rfile.readline().upper())

    class Server(Pool, prefork.TCPServer):
        pass

    server = Server(LOOPBACK, Handler)
    with serving(server):
        assert server.full.wait(HUNG)
        assert ask(server.server_address, b"std\n") == b"STD\n"


def test_partial_as_a_handler() -> None:
    """RequestHandlerClass may be anything that can be called with the three arguments."""
    server = prefork.TCPServer(LOOPBACK, functools.partial(Upper))
    with serving(server):
        assert ask(server.server_address, b"x") == b"X"


class Told(socketserver.StreamRequestHandler):
    """The classes of the connection and of the file that it is read through."""

    def handle(self) -> None:
        raw: Any = vars(self)["rfile"].raw
        self.wfile.write(f"{type(self.connection).__name__} {type(raw).__name__} {self.rfile.readline()!r}".encode())


class ToldByOurs(prefork.StreamRequestHandler):
    handle = Told.handle


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize(("handler", "connection"), [(Told, "AcceptedSocket"), (ToldByOurs, "socket")])
def test_a_file_costs_less_in_a_pool(handler: Any, connection: str, threads: bool) -> None:
    """A handler of the standard library's gets a connection whose files are ours; one of ours opens its own, and the
    connection is what it was."""
    bases = (Pool, *([prefork.ThreadingMixIn] if threads else []), socketserver.TCPServer)
    server: Any = type("Server", bases, {})(LOOPBACK, handler)
    with serving(server):
        assert ask(server.server_address, b"hello\n") == f"{connection} SocketReader b'hello\\n'".encode()
