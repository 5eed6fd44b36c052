"""Hooks whose process_request() gives each request to a thread of the program's own, in one of three ways."""

import concurrent.futures
import queue
import threading
from typing import Any

from tests.support.programs.served import Told, tell


class Hooks(Told):
    by = "executor"
    stopped = False

    def worker_started(self) -> None:
        super().worker_started()
        self.executor = concurrent.futures.ThreadPoolExecutor(2)
        self.requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self.take, daemon=True).start()

    def take(self) -> None:
        while True:
            self.finish(*self.requests.get())

    def finish(self, request: Any, client_address: Any) -> None:
        self.finish_request(request, client_address)
        self.shutdown_request(request)
        tell("finished", stopped=self.stopped)

    def worker_stopping(self) -> None:
        super().worker_stopping()
        self.stopped = True

    def process_request(self, *args: Any) -> None:
        if self.by == "executor":
            self.executor.submit(self.finish, *args)
        elif self.by == "thread":
            threading.Thread(target=self.finish, args=args, daemon=True).start()
        else:
            self.requests.put(args)
