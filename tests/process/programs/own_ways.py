"""Hooks that process each request in the way that its first word asks for, as programs do that people have written."""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from prefork import StreamRequestHandler
from tests.support.programs.served import EndedByTerm, Told

executor = ThreadPoolExecutor(2)


class Handler(StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(b"served")


class Hooks(Told):
    def process_request(self, request: Any, client_address: Any) -> None:
        way = request.recv(20).decode().strip()
        getattr(self, f"in_{way}")(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        request.close()

    def in_wrapped(self, request: Any, client_address: Any) -> None:
        """As TLS does it."""
        super().process_request(socket.socket(fileno=request.detach()), client_address)

    def in_shed(self, request: Any, client_address: Any) -> None:
        request.close()

    def in_dropped(self, request: Any, client_address: Any) -> None:
        pass

    def in_thread(self, request: Any, client_address: Any) -> None:
        threading.Thread(target=self._serve, args=(request, client_address)).start()

    def in_body(self, request: Any, client_address: Any) -> None:
        threading.Thread(target=self._serve_by_handler, args=(request, client_address)).start()

    def in_executor(self, request: Any, client_address: Any) -> None:
        executor.submit(self.process_request_thread, request, client_address)

    def in_raised(self, request: Any, client_address: Any) -> None:
        """Raises after it has handed the request on."""
        super().process_request(request, client_address)
        raise RuntimeError("raised after it was handed on")

    def _serve(self, request: Any, client_address: Any) -> None:
        self.finish_request(request, client_address)
        self.shutdown_request(request)

    def _serve_by_handler(self, request: Any, client_address: Any) -> None:
        Handler(request, client_address, self)
        request.close()


class Plain(Hooks, EndedByTerm):
    pass
