"""The standard library's handler classes with connections that are kept, and a server beside another one."""

import http.server
import wsgiref.simple_server
import xmlrpc.server
from typing import Any

from prefork import KeepAliveMixIn, PreForkingUnixStreamServer
from tests.support.programs.kept import Handler
from tests.support.programs.served import Told


class Site(KeepAliveMixIn, http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Calls(KeepAliveMixIn, xmlrpc.server.SimpleXMLRPCRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Gateway(KeepAliveMixIn, wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Length", "1")])
    return [b"x"]


class Powers(Told):
    """Of an XML-RPC server: has a function to call."""

    register_function: Any

    def server_activate(self) -> None:
        super().server_activate()
        self.register_function(pow)


class Wsgi(Told):
    """Of a WSGI server: has an application."""

    set_app: Any

    def server_activate(self) -> None:
        super().server_activate()
        self.set_app(application)


class _Beside(Told, PreForkingUnixStreamServer):
    pass


class Beside(Told):
    """Serves a path beside."""

    serve_also: Any

    def serve_forever(self, *args: Any) -> None:
        self.serve_also(_Beside("beside", Handler))
        super().serve_forever(*args)
