"""The handlers of every contender, over whichever library's handler classes: what is compared is all around them."""

import http.server
from typing import Any

from ..traffic import BODY


class Recv:
    request: Any

    def handle(self) -> None:
        self.request.sendall(self.request.recv(1024).upper())


class Stream:
    rfile: Any
    wfile: Any

    def handle(self) -> None:
        self.wfile.write(self.rfile.readline().upper())


class Line:
    rfile: Any
    wfile: Any

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line.upper())


class OneLine:
    """A line of a connection that is kept; `once` of one that is not."""

    rfile: Any
    wfile: Any
    close_connection: bool
    once = False

    def handle_one_request(self) -> None:
        line = self.rfile.readline()
        self.wfile.write(line.upper())
        self.close_connection = self.once or not line


class Datagram:
    request: Any
    client_address: Any

    def handle(self) -> None:
        data, sock = self.request
        sock.sendto(data.upper(), self.client_address)


class Http(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, format: str, *args: Any) -> None:
        pass  # a line on stderr a request is no server's cost


def handler(module: Any, traffic: str) -> Any:
    """The handler class for this traffic; `module` is socketserver or prefork."""
    if traffic == "http":
        return Http
    base = module.StreamRequestHandler if traffic in ("stream", "line") else module.BaseRequestHandler
    kinds = {"stream": Stream, "line": Line, "udp": Datagram, "unixgram": Datagram}
    own = kinds.get(traffic, Recv)
    return type(own.__name__, (own, base), {})


def kept_handler(module: Any, traffic: str) -> Any:
    """The same with connections that are kept; `module` is prefork."""
    if traffic == "http":
        return type("Http", (module.KeepAliveMixIn, Http), {"protocol_version": "HTTP/1.1"})
    return type("OneLine", (OneLine, module.KeepAliveMixIn, module.StreamRequestHandler), {"once": traffic == "stream"})
