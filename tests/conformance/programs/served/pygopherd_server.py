"""pygopherd with its threads, and with its process for each request, from a pool; asked for a file as by gopher."""

import configparser
import socket
from typing import Any

from pygopherd import initialization
from pygopherd.server import ForkingTCPServer, GopherRequestHandler, ThreadingTCPServer

from prefork import PreForkingMixIn

from .shared_files import shared

HUNG = 30.0  # seconds; never reached unless something hangs


class Threaded(PreForkingMixIn, ThreadingTCPServer):
    pass


class Forked(PreForkingMixIn, ForkingTCPServer):
    pass


def threaded(address: tuple[str, int]) -> Any:
    return _served_by(Threaded, address)


def forked(address: tuple[str, int]) -> Any:
    return _served_by(Forked, address)


def _served_by(server: Any, address: tuple[str, int]) -> Any:
    shared("mime.types", "text/plain txt\n")
    folder = shared("file.txt", "of the hole\n")
    settings = configparser.ConfigParser()
    settings.read_dict({
        "pygopherd": {
            "root": str(folder), "mimetypes": str(folder / "mime.types"), "encoding": "[]", "tracebacks": "yes",
            "servername": "localhost", "abstract_headers": "off", "abstract_entries": "off",
        },
        "protocols.ProtocolMultiplexer": {"protocols": "[rfc1436.GopherProtocol]"},
        "logger": {"logmethod": "none"},
        "handlers.HandlerMultiplexer": {"handlers": "[file.FileHandler]"},
        "GopherEntry": {"eaexts": "{}", "mapping": "[['.*', '0']]"},
    })  # fmt: skip
    initialization.init_logger(settings, "none")
    initialization.init_exceptions(settings)
    initialization.init_mimetypes(settings)
    return server(settings, address, GopherRequestHandler)


def ask(host: str, port: int) -> None:
    with socket.create_connection((host, port), HUNG) as connection:
        connection.sendall(b"/file.txt\r\n")
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"of the hole"), answer
