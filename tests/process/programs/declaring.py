"""Targets of `prefork run` that declare a companion, each in another way; most ask for the end of the service."""

import socketserver
from typing import Any

from prefork import PreForkingTCPServer, StreamRequestHandler, ThreadingTCPServer


class Silent(StreamRequestHandler):
    def handle(self) -> None:
        """Says nothing."""


def ends(server: Any) -> None:
    """Ends the service."""
    server.shutdown()
    server.wait_draining()


async def waits(server: Any) -> None:
    """Cannot be a companion."""


class OfTheClass(PreForkingTCPServer):
    RequestHandlerClass = Silent
    companions = {"ends": ends}


class OfTheStandardLibrary(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    companions = {"ends": ends}

    def __init__(self, address: Any, handler: Any = Silent) -> None:
        super().__init__(address, handler)


def of_the_instance(address: Any) -> PreForkingTCPServer:
    server = PreForkingTCPServer(address, Silent)
    server.companions = {"ends": ends}
    return server


class Wrong(PreForkingTCPServer):
    RequestHandlerClass = Silent
    companions = {"waits": waits}


class Plain(ThreadingTCPServer):
    companions = {"ends": ends}
