"""A WSGI application over the standard library's wsgiref, from a pool: no other dependency.

    prefork run wsgi_site:Site --bind 127.0.0.1:8080 --request-timeout 30s

    curl http://127.0.0.1:8080/hello

Put your own application in `Site.application`. As with gunicorn's sync workers a request has a process of its own
while it runs, and a connection carries one request: keep a proxy that buffers (nginx, HAProxy) in front of it for slow
clients, TLS and keep-alive. `python -m tests.benchmarks http` compares the two.
"""

import os
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prefork import PreForkingMixIn


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    page = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']} answered by process {os.getpid()}\n".encode()
    start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(page)))])
    return [page]


class Handler(WSGIRequestHandler):
    timeout = 10.0  # for a client that sends no request; request_timeout bounds the whole

    def address_string(self) -> str:
        return str(self.client_address[0])

    def log_message(self, format: str, *args: Any) -> None:
        """A line for each request is the proxy's to write, or prefork's own access log."""


class Site(PreForkingMixIn, WSGIServer):
    RequestHandlerClass = Handler
    application = staticmethod(application)
