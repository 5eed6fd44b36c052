"""The standard library's own classes: one process that accepts, whatever it does for a request."""

import http.server
import socketserver

from ..traffic import Address, Ready
from .answers import handler

BASES = {
    "unix": socketserver.UnixStreamServer,
    "udp": socketserver.UDPServer,
    "unixgram": socketserver.UnixDatagramServer,
    "http": http.server.HTTPServer,
}
MODELS = {"": (), "threading": (socketserver.ThreadingMixIn,), "forking": (socketserver.ForkingMixIn,)}


def plain(traffic: str, address: Address, workers: int, ready: Ready, model: str = "") -> None:
    base = BASES.get(traffic, socketserver.TCPServer)
    made = type("Server", (*MODELS[model], base), {"request_queue_size": 1024})
    with made(address, handler(socketserver, traffic)) as server:
        ready(server.server_address)
        server.serve_forever()
