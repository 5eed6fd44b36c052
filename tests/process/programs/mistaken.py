"""A service with every mistake that shows only under load. Copied to where a test runs it, as `mistaken`."""

import socket
import ssl
import threading
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
