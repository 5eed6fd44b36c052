"""pypiserver over wsgiref's server, which it takes by default, from a pool; asked for its list of packages."""

import wsgiref.simple_server
from typing import Any

import pypiserver

from prefork import PreForkingMixIn, ThreadingMixIn

from .http_questions import request
from .shared_files import shared


class Server(PreForkingMixIn, ThreadingMixIn, wsgiref.simple_server.WSGIServer):
    pass


def server(address: tuple[str, int]) -> Any:
    packages = shared("example-1.0.tar.gz", "")
    made = Server(address, wsgiref.simple_server.WSGIRequestHandler)
    made.set_app(pypiserver.app(roots=[packages], disable_fallback=True))
    return made


def ask(host: str, port: int) -> None:
    status, body = request(host, port, "GET", "/simple/example/")
    assert status == 200, status
    assert b"example-1.0.tar.gz" in body, body
