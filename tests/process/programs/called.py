"""Services with a `service_name` of their own, and a program that has something else under this name."""

from typing import Any

from prefork import PreForkingTCPServer, StreamRequestHandler


class Said(StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(repr(self.server.service_name).encode())


class Mine(PreForkingTCPServer):
    RequestHandlerClass = Said
    service_name = "mine"


class Empty(PreForkingTCPServer):
    RequestHandlerClass = Said
    service_name = ""


class Other(PreForkingTCPServer):
    RequestHandlerClass = Said
    service_name: Any = ("upper", 1)  # the name and version of what it announces, say


def make(address: Any) -> Mine:
    return Mine(address, Said)


def other(address: Any) -> Other:
    return Other(address, Said)
