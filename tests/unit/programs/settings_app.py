"""Servers whose settings are asked for, by a class, by a factory. Copied to where a test names them, as `app`."""

from typing import Any

import prefork

TRIED = prefork.rehearsing()


class Handler(prefork.StreamRequestHandler):
    def handle(self) -> None:
        pass


class Base(prefork.PreForkingTCPServer):
    RequestHandlerClass = Handler
    max_requests = 1000


class Server(Base):
    request_timeout = 30
    made = 0

    def __init__(self, *args: Any) -> None:
        raise AssertionError("a class need not be made to be asked")


def factory(address: Any) -> Base:
    server = Base(address, Handler)
    server.max_children = 3
    return server
