"""Servers and scripts that remove the path of their Unix socket themselves, as programs over the standard module do."""

import atexit
import contextlib
import logging
import os
import pathlib
import socketserver
from os import unlink
from typing import Any

from prefork import StreamRequestHandler


class Answer(StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(b"here")


class Removing(socketserver.UnixStreamServer):
    """Before it binds, and after it has closed; and sets the mode in between."""

    RequestHandlerClass: Any = Answer
    server_address: Any

    def server_bind(self) -> None:
        if os.path.exists(self.server_address):
            os.remove(self.server_address)
        super().server_bind()
        os.chmod(self.server_address, 0o660)

    def server_close(self) -> None:
        super().server_close()
        os.unlink(self.server_address)


class ByPathlib(Removing):
    """By the path that was asked for, and before it has closed."""

    def server_bind(self) -> None:
        self.path = pathlib.Path(str(self.server_address))
        self.path.unlink(missing_ok=True)
        socketserver.UnixStreamServer.server_bind(self)
        self.path.chmod(0o660)

    def server_close(self) -> None:
        self.path.unlink()
        socketserver.UnixStreamServer.server_close(self)


class ByName(Removing):
    """By a function that it has imported by its name."""

    def server_bind(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            unlink(self.server_address)
        super().server_bind()


class AtExit(Removing):
    """At the end of its process."""

    def server_bind(self) -> None:
        path = self.server_address
        atexit.register(pathlib.Path(path).unlink, missing_ok=True)
        super().server_bind()

    def server_close(self) -> None:
        socketserver.UnixStreamServer.server_close(self)


class Datagrams(socketserver.UnixDatagramServer):
    """Datagrams, whose path is moved out of the way."""

    server_address: Any

    class RequestHandlerClass(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            pass

    def server_bind(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.server_address, f"{self.server_address}.old")
        super().server_bind()

    def server_close(self) -> None:
        os.remove(self.server_address)
        super().server_close()


def script(path: str) -> Any:
    """A script that does all of it outside of its class."""
    from prefork import PreForkingUnixStreamServer

    pathlib.Path(path).unlink(missing_ok=True)
    with PreForkingUnixStreamServer(path, Answer) as server:
        os.chmod(path, 0o660)
        server.max_children, server.control_socket = 1, "c"
        server.serve_forever()
    os.unlink(path)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    script("s")
