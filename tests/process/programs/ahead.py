"""Servers of two kinds whose workers each serve one request: for a pool that has both."""

import time

from prefork import ForkingMixIn, PreForkingMixIn, StreamRequestHandler, TCPServer, UnixStreamServer


class When(StreamRequestHandler):
    """Waits for the client's end, and says when that was."""

    def handle(self) -> None:
        self.rfile.read()
        self.wfile.write(b"%d\n" % time.monotonic_ns())


class Tcp(PreForkingMixIn, ForkingMixIn, TCPServer):
    RequestHandlerClass = When


class Unix(PreForkingMixIn, ForkingMixIn, UnixStreamServer):
    RequestHandlerClass = When
