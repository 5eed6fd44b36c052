"""A site whose clients keep their connections: who has answered, to GET; what came, to POST."""

import http.server
import os

from prefork import KeepAliveMixIn, PreForkingMixIn


class Page(KeepAliveMixIn, http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer is one packet

    def do_GET(self) -> None:
        self._answer(f"{os.getpid()} {self.path}\n".encode())

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Site(PreForkingMixIn, http.server.HTTPServer):
    RequestHandlerClass = Page
