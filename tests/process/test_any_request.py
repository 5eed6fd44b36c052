"""A request, and a client's address, may be any object of the program's: in each kind of server, whatever is logged."""

import socketserver
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from tests.process.test_precedence import LOOPBACK, MIXINS
from tests.support.clients.connections import ask
from tests.support.programs.serving import serving


class Pair(NamedTuple):
    sock: Any
    note: str


class Hostile:
    """Answers to nothing but `sock`."""

    __hash__ = None  # type: ignore[assignment]
    __slots__ = ("sock",)

    def __init__(self, sock: Any) -> None:
        object.__setattr__(self, "sock", sock)

    def _refuse(self, *args: object) -> Any:
        raise LookupError("asked for what it is not")

    __bool__ = __eq__ = __len__ = __repr__ = __str__ = __getattr__ = __getitem__ = __iter__ = _refuse


# How it is made of a connection, and what that is in it.
REQUESTS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "pair": (lambda sock: (sock, "note"), lambda request: request[0]),
    "named": (lambda sock: Pair(sock, "note"), lambda request: request.sock),
    "nested": (lambda sock: ((sock, 1), 2), lambda request: request[0][0]),
    "list": (lambda sock: [sock], lambda request: request[0]),
    "hostile": (Hostile, lambda request: request.sock),
}
ADDRESSES: dict[str, Callable[[Any], Any]] = {
    "its own": lambda address: address, "none": lambda address: None, "hostile": Hostile, "list": list,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "address"),
    [*zip(REQUESTS, ["its own", "none", "list", "its own", "hostile"], strict=True), ("pair", "hostile")],
)
@pytest.mark.parametrize("mixins", [name for name in MIXINS if "standard" not in name])
def test_any_object(mixins: str, kind: str, address: str) -> None:
    """It is served, logged and counted as any other; nobody asks of it what it need not have."""
    make, of = REQUESTS[kind]

    class Base(socketserver.TCPServer):
        access_log, max_children = True, 1

        def get_request(self) -> Any:
            sock, client_address = super().get_request()
            return make(sock), ADDRESSES[address](client_address)

        def shutdown_request(self, request: Any) -> None:
            super().shutdown_request(of(request))

        def close_request(self, request: Any) -> None:
            super().close_request(request if hasattr(type(request), "detach") else of(request))

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            of(self.request).sendall(of(self.request).recv(100))

    server: Any = type("Server", (*MIXINS[mixins], Base), {})(LOOPBACK, Handler)
    with serving(server):
        assert ask(server.server_address, b"word") == b"word"
    told = server.statistics()
    assert (told.completed, told.failed, told.exits.get("crashed")) == (1, 0, None)
