"""Targets, most of which cannot be served. Copied to where a test names them, as `app`."""

import functools
import socketserver
from typing import Any

import prefork


class Handler(prefork.StreamRequestHandler):
    def handle(self) -> None:
        pass


class Server(prefork.PreForkingTCPServer):
    RequestHandlerClass = Handler


class Standard(socketserver.TCPServer):
    RequestHandlerClass = Handler  # type: ignore[assignment]


class Bare(prefork.PreForkingTCPServer):
    """Wants a handler class that nobody gives it."""


class Modbus(prefork.PreForkingTCPServer):
    """Takes something else before the address, as servers of protocols do."""

    def __init__(self, context: Any, address: Any = ("127.0.0.2", 0)) -> None:
        super().__init__(address, prefork.BaseRequestHandler)


class Other:
    pass


def factory(address: Any) -> Any:
    raise OSError(2, "no such thing")


def leaving(address: Any) -> Any:
    raise SystemExit(3)


def nothing(address: Any) -> Any:
    return None


def plain(address: Any) -> Any:
    return prefork.TCPServer(address, Handler)


def alone() -> Any:
    return None


def unbindable(address: Any) -> Any:
    raise prefork.BindError(98, "could not bind that: address already in use")


def unbootable(address: Any) -> Any:
    raise prefork.BootError("no worker got ready")


def made_class(address: Any) -> Any:
    return Server


async def awaited(address: Any) -> Any:
    return nothing(address)


def generator(address: Any) -> Any:
    yield nothing(address)


number = 3
part = functools.partial(nothing, None)
instance = Handler.__new__(Handler)
closed = prefork.PreForkingTCPServer(("127.0.0.1", 0), Handler)
closed.server_close()
plain_instance = prefork.TCPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
plain_instance.server_close()
