"""Targets, most of which cannot be served. Copied to where a test names them, as `app`."""

import functools
import socketserver
import threading
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


class Named(prefork.PreForkingTCPServer):
    def __init__(self, *, tag: str, server_address: Any) -> None:
        super().__init__(server_address, Handler)


class Apart(prefork.PreForkingTCPServer):
    def __init__(self, hostname: str, port: int, tag: str) -> None:
        super().__init__((hostname, port), Handler)


class Later(prefork.PreForkingTCPServer):
    def __init__(self, tag: str, listen_address: Any) -> None:
        super().__init__(listen_address, Handler)


def handles(request: Any, client_address: Any, server: Any) -> None:
    pass


class Asking(prefork.PreForkingTCPServer):
    RequestHandlerClass = Handler

    @property
    def max_children(self) -> int:  # type: ignore[override]
        raise LookupError("no such file")


def serving(address: Any = ("127.0.0.1", 0)) -> Any:
    with Server(address, Handler) as server:
        server.serve_forever()


def pools_elsewhere(address: Any) -> Any:
    """A factory that a thread of the program's is no part of: what that serves is its own affair."""
    said: list[str] = []

    def serve() -> None:
        with Server(("127.0.0.1", 0), Handler, bind_and_activate=False) as other:
            other.max_children = 0
            try:
                other.serve_forever()
            except prefork.ConfigError as exc:
                said.append(str(exc))

    thread = threading.Thread(target=serve)
    thread.start()
    thread.join()
    raise prefork.ConfigError(said[0])


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
