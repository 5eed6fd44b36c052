"""A service with every mistake that shows only under load. Copied to where a test runs it, as `mistaken`."""

import socket
import ssl
import threading
from functools import partial
from typing import Any

import prefork

threading.Thread(target=threading.Event().wait, name="reaper", daemon=True).start()
socket.setdefaulttimeout(5)


class Handler(prefork.StreamRequestHandler):
    def __init__(self, request: Any) -> None:
        pass

    def handle(self) -> None:
        pass


class Server(prefork.PreForkingTCPServer):
    RequestHandlerClass = Handler  # type: ignore[assignment]
    max_threads = 4
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    def get_request(self) -> tuple[Any, Any]:
        connection, address = super().get_request()
        return self.context.wrap_socket(connection, server_side=True), address


class Wrapped(prefork.PreForkingTCPServer):
    RequestHandlerClass = prefork.StreamRequestHandler

    def server_bind(self) -> None:
        self.socket = Server.context.wrap_socket(self.socket, server_side=True)
        super().server_bind()


class OwnLoop(prefork.TCPServer):
    RequestHandlerClass = Wrapped.RequestHandlerClass

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        raise AssertionError("a pool has its own")


class Pairs(prefork.PreForkingTCPServer):
    """Wraps in other hooks than the first, and says what it need not say."""

    def verify_request(self, request: Any, client_address: Any) -> bool:
        request.do_handshake()
        return True

    def process_request(self, request: Any, client_address: Any) -> None:
        request = Server.context.wrap_socket(request, server_side=True, do_handshake_on_connect=True)
        super().process_request(request, client_address)


def pairs(address: Any) -> Any:
    return Pairs(address, partial(two_things, "a thing"))


def two_things(one: str, request: Any) -> None:
    pass


class Patient(prefork.PreForkingTCPServer):
    """Does all this as it should be done, and needs no handler class."""

    RequestHandlerClass = None  # type: ignore[assignment]

    def get_request(self) -> tuple[Any, Any]:
        connection, address = super().get_request()
        return Server.context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        request.settimeout(3)
        request.do_handshake()
        return True

    def finish_request(self, request: Any, client_address: Any) -> None:
        request.sendall(b"done")
