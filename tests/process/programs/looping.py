"""Handlers whose connections would be kept, in a pool that cannot keep them."""

import http.server
from typing import Any

import prefork


class Lines(prefork.KeepAliveMixIn, prefork.StreamRequestHandler):
    """Answers each line by its number on this connection."""

    def handle_one_request(self) -> None:
        line = self.rfile.readline()
        self.state = (self.state or 0) + 1
        self.wfile.write(b"%d %b" % (self.state, line))


class Site(prefork.KeepAliveMixIn, http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Say nothing."""


class Server(prefork.PreForkingTCPServer):
    keepalive_timeout = 2.0

    def __init__(self, address: Any) -> None:
        super().__init__(address, Lines)
