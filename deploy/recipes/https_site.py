r"""A site over HTTPS that knows its clients by their certificates, on http.server.

    prefork run https_site:Site --bind 127.0.0.1:8443 --tls-certificate cert.pem --tls-key key.pem \
        --tls-client-ca clients.pem --tls-verify-client optional --tls-alpn http/1.1 --max-threads 20

    curl --cacert cert.pem https://localhost:8443/
    curl --cacert cert.pem --cert me.pem --key me-key.pem https://localhost:8443/

A certificate to try it with:

    openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -addext subjectAltName=DNS:localhost \
        -days 30 -keyout key.pem -out cert.pem

The handshake is done when a request begins, and `self.connection` is an `ssl.SSLSocket`: its certificate, cipher and
protocol are there to be read. A new certificate is put in service by `prefork ctl reload-tls`, or by a reload, and the
old one stays where the new one is bad. Sessions are resumed by any worker, since all have one key for their tickets.
`http.server` checks little of what it is sent: in front of what faces the internet put a proxy that parses strictly.
"""

from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from prefork import PreForkingMixIn, ThreadingMixIn


class Handler(BaseHTTPRequestHandler):
    timeout = 10.0  # for a client that sends no request

    def do_GET(self) -> None:
        page = f"hello, {self.client_name()}, over {self.connection.version()}\n".encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        self.send_header("Strict-Transport-Security", "max-age=31536000")
        self.end_headers()
        self.wfile.write(page)

    def client_name(self) -> str:
        """The common name in the certificate that the client has shown; it was checked in the handshake."""
        certificate = self.connection.getpeercert() or {}
        return next((name for (key, name), *_ in certificate.get("subject", ()) if key == "commonName"), "stranger")

    def log_message(self, format: str, *args: Any) -> None:
        """prefork's own access log has a line for each request."""


class Site(PreForkingMixIn, ThreadingMixIn, HTTPServer):
    RequestHandlerClass = Handler
