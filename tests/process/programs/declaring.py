"""Targets of `prefork run` that declare a companion, each in another way; most ask for the end of the service."""

import socketserver
from typing import Any

import prometheus_client

from prefork import PreForkingTCPServer, StreamRequestHandler, ThreadingTCPServer, every

COUNTED = prometheus_client.Counter("companion_counted", "what a companion has counted")


class Silent(StreamRequestHandler):
    def handle(self) -> None:
        """Says nothing."""


def ends(server: Any) -> None:
    """Ends the service."""
    server.shutdown()
    server.wait_draining()


def counts(server: Any) -> None:
    COUNTED.inc()


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


class Counting(PreForkingTCPServer):
    RequestHandlerClass = Silent
    max_children = 1
    companions = {"counts": every(0.05, counts)}


class Plain(ThreadingTCPServer):
    companions = {"ends": ends}
