"""A server that gives each request to a thread of its own, in its own way. Imported by the program of
test_kept_connections.py."""

import threading
from typing import Any

from tests.support.programs.served import Told


class Hooks(Told):
    def process_request(self, *request: Any) -> None:
        threading.Thread(target=self.in_thread, args=request).start()

    def in_thread(self, request: Any, client_address: Any) -> None:
        server: Any = self
        try:
            server.finish_request(request, client_address)
        except Exception:
            server.handle_error(request, client_address)
        server.shutdown_request(request)
