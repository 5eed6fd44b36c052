"""Handlers that tell for whom a proxy has connected, and hooks that are given the client's address."""

import socketserver
from typing import Any

import prefork


def said(client_address: Any, proxy: Any) -> bytes:
    additions = [value.hex() for _, value in proxy.tlvs]
    return repr([list(client_address), list(proxy.peer or ()), proxy.version, additions]).encode()


class Ours(prefork.StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(said(self.client_address, self.proxy) + b" " + self.rfile.readline())


class Standard(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(said(self.client_address, self.client_address.proxy) + b" " + self.rfile.readline())


class NoHooks:
    pass


class Verifies:
    def verify_request(self, request: Any, client_address: Any) -> bool:
        return bool(client_address[0] != "203.0.113.66")
