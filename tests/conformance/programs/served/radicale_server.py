"""Radicale's own server, from a pool, and a CalDAV question.

Radicale accepts in a loop of its own, which counts connections by `worker_sockets` and closes them there; under any
`serve_forever()` but that loop they pile up, so they are let go of here.
"""

import socket
from typing import Any

from radicale import Application, config
from radicale.server import ParallelHTTPServer, RequestHandler

from prefork import PreForkingMixIn

from .http_questions import request

CALENDAR = b"BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:x\r\nEND:VCALENDAR\r\n"


class Server(PreForkingMixIn, ParallelHTTPServer):
    def get_request(self) -> Any:
        found = super().get_request()
        while self.worker_sockets:
            self.worker_sockets.pop().close()
        return found


def server(address: tuple[str, int]) -> Any:
    settings = config.load()
    settings.update({"auth": {"type": "none"}, "storage": {"filesystem_folder": "collections"}}, "here")
    settings.update({"server": {"_internal_server": "True"}}, "here", privileged=True)
    made = Server(settings, socket.AF_INET, address, RequestHandler)
    made.set_app(Application(settings))
    return made


def ask(host: str, port: int) -> None:
    status, body = request(host, port, "PROPFIND", "/", Depth="0", Authorization="Basic YTph")
    assert status == 207, status
    assert b"multistatus" in body, body
