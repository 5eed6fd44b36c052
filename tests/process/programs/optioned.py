"""A handler that tells the options of the connection it was given, as the kernel has them."""

import json
import socket
from typing import Any

from prefork import DatagramRequestHandler, StreamRequestHandler
from prefork.sockets.options import OPTIONS


def options(sock: Any) -> dict[str, Any]:
    found = {"alive": sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)}
    for name, option in OPTIONS.items():
        if sock.type == socket.SOCK_STREAM or not option.tcp:
            length = (16,) if name == "bind_to_device" else ()
            value = sock.getsockopt(option.level, option.number, *length)
            found[name] = value.rstrip(b"\0").decode() if isinstance(value, bytes) else value
    return found


class Handler(StreamRequestHandler):
    def handle(self) -> None:
        self.rfile.readline()
        self.wfile.write(json.dumps(options(self.request)).encode() + b"\n")


class DatagramHandler(DatagramRequestHandler):
    def handle(self) -> None:
        self.wfile.write(json.dumps(options(self.socket)).encode())
