"""PyWebDAV3's server with its threads, from a pool; asked what is in a folder."""

from pathlib import Path
from typing import Any

from pywebdav.lib.WebDAVServer import DAVRequestHandler
from pywebdav.server.fshandler import FilesystemHandler
from pywebdav.server.server import ThreadedHTTPServer, setupDummyConfig

from prefork import PreForkingMixIn

from .http_questions import request


class Server(PreForkingMixIn, ThreadedHTTPServer):
    pass


def server(address: tuple[str, int]) -> Any:
    folder = Path("shared")
    folder.mkdir(exist_ok=True)
    (folder / "file").write_text("of the folder")
    DAVRequestHandler.DO_AUTH = False
    DAVRequestHandler._config = setupDummyConfig(
        chunked_http_response=1, http_request_use_iterator=0, http_response_use_iterator=0,
    )
    DAVRequestHandler.IFACE_CLASS = FilesystemHandler(str(folder.resolve()), "http://localhost/")
    return Server(address, DAVRequestHandler)


def ask(host: str, port: int) -> None:
    assert request(host, port, "GET", "/file") == (200, b"of the folder")
    status, body = request(host, port, "PROPFIND", "/", Depth="1")
    assert status == 207, status
    assert b"file" in body, body
