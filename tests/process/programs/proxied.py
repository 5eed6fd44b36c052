"""Datagram handlers that tell for whom a proxy has sent, and answer in each of the ways."""

import socketserver
from typing import Any

import prefork
from tests.process.programs.addressed import said


class Ours(prefork.DatagramRequestHandler):
    def handle(self) -> None:
        self.wfile.write(said(self.client_address, self.proxy) + b" " + self.packet)


class Standard(socketserver.DatagramRequestHandler):
    def handle(self) -> None:
        client: Any = self.client_address
        self.wfile.write(said(client, client.proxy) + b" " + self.packet)


class Plain(prefork.BaseRequestHandler):
    """Answers by the socket, and takes the address apart before."""

    def handle(self) -> None:
        data, sock = self.request
        host, port, *_ = self.client_address
        sock.sendto(said(self.client_address, self.proxy) + b" " + data, (host, port))
