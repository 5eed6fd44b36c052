"""A server whose `process_request()` gives each request to an executor of the program's own."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.support.programs.served import Told


class InExecutor(Told):
    """Mixed in before all others."""

    def worker_started(self) -> None:
        super().worker_started()
        self.executor = ThreadPoolExecutor(4)

    def worker_stopping(self) -> None:
        self.executor.shutdown()
        super().worker_stopping()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.executor.submit(self.serve, request, client_address)

    def serve(self, request: Any, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        finally:
            self.shutdown_request(request)
