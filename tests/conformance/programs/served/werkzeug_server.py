"""Werkzeug's development server with its threads, from a pool; asked for a page."""

from typing import Any

from werkzeug import Request, Response
from werkzeug.serving import ThreadedWSGIServer

from prefork import PreForkingMixIn

from .http_questions import request


@Request.application
def page(request: Request) -> Response:
    return Response(f"hello {request.args['name']}")


class Server(PreForkingMixIn, ThreadedWSGIServer):
    pass


def server(address: tuple[str, int]) -> Any:
    return Server(*address, page)


def ask(host: str, port: int) -> None:
    assert request(host, port, "GET", "/?name=world") == (200, b"hello world")
