"""Servers of every composition for `--single`, and a handler that stops, loops, fails and leaves. Copied to where a
test runs it, as `app`."""

import os
import socketserver
import threading
from typing import Any

import prefork


class Handler(prefork.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            word = line.strip()
            if word == b"break":
                breakpoint()
            if word == b"loop":
                self.wfile.write(b"looping\n")
                while True:
                    pass
            if word == b"fail":
                raise ValueError("this request only")
            if word == b"exit":
                raise SystemExit(7)
            if word == b"end":
                self.server.shutdown()
            threads = threading.active_count()
            self.wfile.write(b"%s %d %d\n" % (word.upper(), os.getpid(), threads))


class Hooks:
    RequestHandlerClass = Handler

    def worker_started(self) -> None:
        print("started", os.getpid(), flush=True)

    def worker_stopping(self) -> None:
        print("stopping", os.getpid(), flush=True)


class Server(Hooks, prefork.PreForkingTCPServer):
    pass


class Threads(Hooks, prefork.PreForkingMixIn, prefork.ThreadingTCPServer):
    pass


class Forks(Hooks, prefork.PreForkingMixIn, prefork.ForkingTCPServer):
    pass


class Standard(Hooks, prefork.PreForkingMixIn, socketserver.ThreadingTCPServer):  # type: ignore[misc]
    pass


class Bounded(Standard):
    """Takes in `process_request()` what `process_request_thread()` gives back, as programs do that bound their threads
    themselves."""

    bound = threading.BoundedSemaphore(1)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.bound.acquire()
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.bound.release()
