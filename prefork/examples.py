"""Small working services, each short enough to serve as documentation.

    prefork run prefork.examples:Upper --bind 127.0.0.1:9999
    prefork run prefork.examples:UpperDatagram --bind udp://127.0.0.1:9999
    prefork run prefork.examples:Http --bind 127.0.0.1:8080

A handler is instantiated in a worker, once per connection or datagram.
"""

import os
from http.server import BaseHTTPRequestHandler

from setproctitle import getproctitle

from prefork import DatagramRequestHandler, StreamRequestHandler


class Upper(StreamRequestHandler):
    """Send back every line of a connection in upper case."""

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line.upper())


class UpperDatagram(DatagramRequestHandler):
    """Send back every datagram in upper case."""

    def handle(self) -> None:
        self.wfile.write(self.rfile.read().upper())


class Http(BaseHTTPRequestHandler):
    """Serve a page that names the worker that answered."""

    def do_GET(self) -> None:
        page = f"answered by process {os.getpid()}, {getproctitle()}\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)
