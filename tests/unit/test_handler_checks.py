"""Handlers and hooks that can never work are refused by name before anything is bound, and nothing else is."""

import functools
import http.server
import socket
import socketserver
import wsgiref.simple_server
import xmlrpc.server
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import prefork
from prefork import (
    BaseRequestHandler,
    ConfigError,
    DatagramRequestHandler,
    PreForkingMixIn,
    PreForkingTCPServer,
    PreForkingUDPServer,
    StreamRequestHandler,
    ThreadingTCPServer,
)
from prefork.pool import pool_of
from prefork.settings.handlers import BEFORE_THE_HANDLER

ASYNC = "async, and nobody would await it; call asyncio.run() in a plain function"
GENERATOR = "a generator, and calling it would run nothing"


class Awaited(StreamRequestHandler):
    async def handle(self) -> None:  # type: ignore[override]
        """Never awaited."""


class Generated(socketserver.StreamRequestHandler):
    def handle(self) -> Iterator[None]:  # type: ignore[override]
        yield


class GeneratedLater(StreamRequestHandler):
    async def handle(self) -> AsyncIterator[None]:  # type: ignore[override]
        yield


class AwaitedSetup(BaseRequestHandler):
    async def setup(self) -> None:  # type: ignore[override]
        """Never awaited."""


class AwaitedGet(http.server.BaseHTTPRequestHandler):
    async def do_GET(self) -> None:
        """Never awaited."""


class Extended(Awaited):
    def __init__(self, *args: Any) -> None:
        self.more = 1
        super().__init__(*args)


async def awaited(request: Any, client_address: Any, server: Any) -> None:
    """Never awaited."""


class Called:
    async def __call__(self, request: Any, client_address: Any, server: Any) -> None:
        """Never awaited."""


NEVER = {
    "Awaited": (Awaited, f"Awaited: its handle() is {ASYNC}"),
    "Generated": (Generated, f"Generated: its handle() is {GENERATOR}"),
    "GeneratedLater": (GeneratedLater, f"GeneratedLater: its handle() is {ASYNC}"),
    "AwaitedSetup": (AwaitedSetup, f"AwaitedSetup: its setup() is {ASYNC}"),
    "AwaitedGet": (AwaitedGet, f"AwaitedGet: its do_GET() is {ASYNC}"),
    "Extended": (Extended, f"Extended: its handle() is {ASYNC}"),
    "function": (awaited, f"awaited: it is {ASYNC}"),
    "partial": (functools.partial(Awaited), f"Awaited: its handle() is {ASYNC}"),
    "partial of a partial": (functools.partial(functools.partial(awaited)), f"awaited: it is {ASYNC}"),
    "instance": (Called(), f"it is {ASYNC}"),
}


@pytest.mark.parametrize("base", [prefork.TCPServer, socketserver.TCPServer, http.server.ThreadingHTTPServer])
@pytest.mark.parametrize(("handler", "sentence"), NEVER.values(), ids=NEVER)
def test_refused(handler: Any, sentence: str, base: Any) -> None:
    """By name, before the address is bound, over our classes and the standard library's."""
    kind = type("Pool", (PreForkingMixIn, base), {})
    with socket.create_server(("127.0.0.1", 0)) as taken:  # binding it would be another error
        with pytest.raises(ConfigError, match="could not serve with ") as refused:
            kind(taken.getsockname(), handler)
    assert str(refused.value).endswith(sentence)


@pytest.mark.parametrize(("handler", "sentence"), NEVER.values(), ids=NEVER)
def test_refused_where_it_was_set_later(handler: Any, sentence: str) -> None:
    """Before anything is forked; and by a plain server that counts its requests."""
    for kind in (PreForkingTCPServer, ThreadingTCPServer):
        with kind(("127.0.0.1", 0), StreamRequestHandler) as server:
            server.RequestHandlerClass = handler
            with pytest.raises(ConfigError) as refused:
                server.serve_forever()
            assert str(refused.value).endswith(sentence)


@pytest.mark.parametrize("hook", ["worker_started", "process_request", "verify_request", "service_actions"])
def test_a_hook_that_is_async(hook: str) -> None:
    """It is a coroutine that nobody awaits; a verify_request() would even be true."""

    async def never(self: Any, *args: Any) -> None:
        """Never awaited."""

    kind = type("Hooked", (PreForkingTCPServer,), {hook: never})
    with pytest.raises(ConfigError, match=rf"could not serve with Hooked: its {hook}\(\) is async"):
        kind(("127.0.0.1", 0), StreamRequestHandler)


class Lines(StreamRequestHandler):
    def setup(self) -> None:
        super().setup()


@pytest.mark.parametrize(
    ("server", "handler", "sentence"),
    [
        (PreForkingUDPServer, Lines, "Lines: it is a handler for a stream, and the socket is one for datagrams"),
        (PreForkingUDPServer, http.server.SimpleHTTPRequestHandler, "one for datagrams"),
        (PreForkingUDPServer, socketserver.StreamRequestHandler, "one for datagrams"),
        (PreForkingTCPServer, DatagramRequestHandler, "a handler for datagrams, and the socket is one for a stream"),
    ],
)  # fmt: skip
def test_the_other_kind_of_socket(server: Any, handler: Any, sentence: str) -> None:
    """A handler for streams cannot work on datagrams, nor the other way round."""
    with pytest.raises(ConfigError) as refused:
        server(("127.0.0.1", 0), handler)
    assert str(refused.value).endswith(sentence)


class RunsItself(StreamRequestHandler):
    """Calls what it has by itself."""

    def __init__(self, request: Any, client_address: Any, server: Any) -> None:
        self.request = request

    async def handle(self) -> None:  # type: ignore[override]
        """Awaited by whoever made it."""


class Unpacks(StreamRequestHandler):
    def setup(self) -> None:
        self.rfile = self.request[0]


class Wraps(PreForkingUDPServer):
    """Makes a connection of each datagram."""

    def get_request(self) -> Any:
        return super().get_request()


def plainly(function: Any) -> Any:
    @functools.wraps(function)
    def call(self: Any) -> None:
        """Drive the coroutine."""

    return call


class Decorated(StreamRequestHandler):
    @plainly
    async def handle(self) -> None:
        """Driven by its decorator."""


@pytest.mark.parametrize(
    ("server", "handler"),
    [
        (PreForkingTCPServer, RunsItself), (PreForkingTCPServer, Decorated), (PreForkingTCPServer, None),
        (PreForkingTCPServer, lambda *args: None), (PreForkingTCPServer, BaseRequestHandler),
        (PreForkingUDPServer, Unpacks), (PreForkingUDPServer, BaseRequestHandler), (Wraps, Lines),
        (PreForkingTCPServer, functools.partial(http.server.SimpleHTTPRequestHandler, directory=".")),
    ],
)  # fmt: skip
def test_not_refused(server: Any, handler: Any) -> None:
    """What a program may have made to work is its own business."""
    server(("127.0.0.1", 0), handler).server_close()


@pytest.mark.parametrize("handler", [Awaited, GeneratedLater])
def test_a_function_that_makes_handlers(handler: Any) -> None:
    """Nobody can look into it before; so each request fails, by the name of its handler, instead of being ok."""
    server, client = socket.socketpair()
    with server, client, pytest.raises(TypeError, match=rf"{handler.__name__}\.handle\(\) is async, and nobody would"):
        handler(server, "", None)


def answers(self: Any) -> None:
    """Answer one request."""


async def awaits(self: Any) -> None:
    """Never awaited."""


def kept(*bases: type, **names: Any) -> type:
    return type("Kept", bases, {"handle_one_request": answers, **names})


STREAM = (prefork.KeepAliveMixIn, StreamRequestHandler)
WRONGLY_KEPT = {
    "after": (
        kept(StreamRequestHandler, prefork.KeepAliveMixIn),
        "KeepAliveMixIn must stand before StreamRequestHandler in its bases",
    ),
    "after the standard library's": (
        kept(http.server.SimpleHTTPRequestHandler, prefork.KeepAliveMixIn),
        "KeepAliveMixIn must stand before SimpleHTTPRequestHandler in its bases",
    ),
    "after, further below": (
        type("Below", (kept(StreamRequestHandler, prefork.KeepAliveMixIn),), {}),
        "KeepAliveMixIn must stand before Kept in its bases",
    ),
    "hidden": (
        kept(*STREAM, handle=answers),
        "its handle() hides that of KeepAliveMixIn; define handle_one_request() instead, which serves one request",
    ),
    "hidden by another": (
        kept(type("Other", (StreamRequestHandler,), {"handle": answers}), *STREAM),
        "its handle() hides that of KeepAliveMixIn; define handle_one_request() instead, which serves one request",
    ),
    "nothing to call": (
        type("Kept", STREAM, {}),
        "it has no handle_one_request(), which KeepAliveMixIn calls for each request",
    ),
    "async request": (kept(*STREAM, handle_one_request=awaits), f"its handle_one_request() is {ASYNC}"),
    "async beginning": (kept(*STREAM, connection_opened=awaits), f"its connection_opened() is {ASYNC}"),
    "async end": (kept(*STREAM, connection_closed=awaits), f"its connection_closed() is {ASYNC}"),
    "async complete": (kept(*STREAM, complete=staticmethod(awaits)), f"its complete() is {ASYNC}"),
    "complete of an object": (
        kept(*STREAM, complete=answers),
        "its complete() must be a staticmethod or a classmethod: it is asked before there is a handler",
    ),
    "complete that is none": (
        kept(*STREAM, complete=b"\n"),
        "its complete() must be a staticmethod or a classmethod: it is asked before there is a handler",
    ),
}


@pytest.mark.parametrize(("handler", "sentence"), WRONGLY_KEPT.values(), ids=WRONGLY_KEPT)
@pytest.mark.parametrize("server", [PreForkingTCPServer, prefork.PreForkingUnixStreamServer])
def test_a_handler_that_would_not_keep(server: Any, handler: Any, sentence: str) -> None:
    """Wrong use of KeepAliveMixIn is said before anything is bound, by what has to be done."""
    with pytest.raises(ConfigError) as refused:
        server("/nowhere/at/all" if "Unix" in server.__name__ else ("127.0.0.1", 0), functools.partial(handler))
    assert str(refused.value) == f"could not serve with {handler.__qualname__}: {sentence}"


def test_kept_datagrams() -> None:
    """There is no connection to keep."""
    with pytest.raises(ConfigError, match=r"it keeps connections \(KeepAliveMixIn\), and the socket is one for datag"):
        PreForkingUDPServer(("127.0.0.1", 0), kept(prefork.KeepAliveMixIn, BaseRequestHandler))


@pytest.mark.parametrize(
    "handler",
    [
        kept(*STREAM), kept(*STREAM, complete=staticmethod(answers)), kept(*STREAM, complete=classmethod(answers)),
        kept(*STREAM, complete=functools.partial(answers)), kept(type("Other", (StreamRequestHandler,), {}), *STREAM),
        type("Kept", (prefork.KeepAliveMixIn, http.server.SimpleHTTPRequestHandler), {}),
        type("Kept", (prefork.KeepAliveMixIn, wsgiref.simple_server.WSGIRequestHandler), {}),
        type("Kept", (prefork.KeepAliveMixIn, xmlrpc.server.SimpleXMLRPCRequestHandler), {}),
        type("Kept", (prefork.KeepAliveMixIn, type("Other", (StreamRequestHandler,), {"handle": answers})), {}),
    ],
)  # fmt: skip
def test_a_handler_that_keeps(handler: Any) -> None:
    """What can work is served."""
    PreForkingTCPServer(("127.0.0.1", 0), handler).server_close()


def test_a_handle_that_calls_the_next() -> None:
    """Is around the requests of a stay, and may be."""

    class Around(*STREAM):  # type: ignore[misc]
        handle_one_request = answers

        def handle(self) -> None:
            with open("/dev/null"):
                super().handle()

    PreForkingTCPServer(("127.0.0.1", 0), Around).server_close()


POOLS: tuple[Any, ...] = (
    PreForkingTCPServer,
    type("OverStandard", (PreForkingMixIn, socketserver.ThreadingTCPServer), {}),
    type("Datagrams", (PreForkingMixIn, socketserver.UDPServer), {}),
)


@pytest.mark.parametrize("handler", [None, "app:Handler", 7])
@pytest.mark.parametrize("base", POOLS)
def test_no_handler(handler: Any, base: Any) -> None:
    """A pool that has nothing to call is refused where it would begin to serve, and not before."""
    with base(("127.0.0.1", 0), handler) as server:
        with pytest.raises(ConfigError, match=f"its RequestHandlerClass is {handler!r}, .* as a class over "):
            server.serve_forever()
        server.RequestHandlerClass = BaseRequestHandler
        pool_of(server).check()


@pytest.mark.parametrize("hook", BEFORE_THE_HANDLER)
@pytest.mark.parametrize("base", POOLS)
def test_no_handler_where_a_hook_may_do_without(hook: str, base: Any) -> None:
    """A program's own hook, in its class or on the object, may serve by itself or set a handler later."""
    cls = type("Server", (base,), {hook: lambda self, *args: None})
    with cls(("127.0.0.1", 0), None) as server, base(("127.0.0.1", 0), None) as other:
        pool_of(server).check()
        setattr(other, hook, len)
        pool_of(other).check()
