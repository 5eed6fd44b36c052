"""Every kind of target that `prefork run` serves. Copied to where a test runs it, as `app`."""

import functools
import os
import socketserver
import threading
from typing import Any, Generic, TypeVar

import prefork


class Who(socketserver.StreamRequestHandler):  # the standard library's
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(b"%s %d %d\n" % (line.strip().upper(), os.getpid(), os.getppid()))


class Ours(prefork.PreForkingTCPServer):
    RequestHandlerClass = Who


class Own(prefork.PreForkingTCPServer):
    def __init__(self, address: Any) -> None:
        super().__init__(address, Who)


class Standard(socketserver.ThreadingTCPServer):
    RequestHandlerClass = Who


Kind = TypeVar("Kind")


class Kinds(Own, Generic[Kind]):
    pass


of_text = Kinds[str]


class Unix(socketserver.UnixStreamServer):
    RequestHandlerClass = Who


class Barrier(prefork.StreamRequestHandler):
    barrier = threading.Barrier(2, timeout=20)

    def handle(self) -> None:
        self.barrier.wait()
        self.wfile.write(b"together\n")


class Unbootable(Ours):
    def worker_started(self) -> None:
        raise RuntimeError("no database")


class Named(Who):
    def __init__(self, name: str, *request: Any) -> None:
        self.name = name
        super().__init__(*request)


named = functools.partial(functools.partial(Named), "somebody")


def factory(address: Any) -> prefork.PreForkingTCPServer:
    return prefork.PreForkingTCPServer(address, Who)


def alone() -> prefork.PreForkingTCPServer:
    return prefork.PreForkingTCPServer(("127.0.0.1", 0), Who)


class Inner:
    Handler = Who


class Maker:
    @staticmethod
    def make(address: Any) -> prefork.PreForkingTCPServer:
        return Ours(address, Who)

    def __call__(self, address: Any) -> prefork.PreForkingTCPServer:
        return self.make(address)


maker = Maker()
partly = functools.partial(prefork.PreForkingTCPServer, RequestHandlerClass=Who)
