"""PyWebDAV3's server with its threads, from a pool; asked what is in a folder."""

from typing import Any

from pywebdav.lib.WebDAVServer import DAVRequestHandler
from pywebdav.server.fshandler import FilesystemHandler
from pywebdav.server.server import ThreadedHTTPServer, setupDummyConfig

from prefork import PreForkingMixIn

from .http_questions import request
from .shared_files import shared


class Server(PreForkingMixIn, ThreadedHTTPServer):
    pass


def server(address: tuple[str, int]) -> Any:
    folder = shared("file", "of the folder")
    DAVRequestHandler.DO_AUTH = False
    DAVRequestHandler._config = setupDummyConfig(
        chunked_http_response=1,
        http_request_use_iterator=0,
        http_response_use_iterator=0,
    )
    DAVRequestHandler.IFACE_CLASS = FilesystemHandler(str(folder), "http://localhost/")
    DAVRequestHandler.IFACE_CLASS.mimecheck, DAVRequestHandler.IFACE_CLASS.baseurl = True, ""
    return Server(address, DAVRequestHandler)


def ask(host: str, port: int) -> None:
    status, body = request(host, port, "PROPFIND", "/", Depth="1")
    assert status == 207, status
    assert b"file" in body, body
