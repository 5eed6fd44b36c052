"""One pool for three servers: lines over TCP and over a Unix socket, datagrams over UDP. Each has hooks of its own.

python -m tests.process.programs.several TCP-PORT [NAME=NUMBER ...]
"""

import sys
from typing import Any

from prefork import (
    DatagramRequestHandler,
    PreForkingTCPServer,
    PreForkingUDPServer,
    PreForkingUnixStreamServer,
)
from tests.support.programs.served import Told, Who, log_everything, tell


class Named:
    """Tells of each hook in whose server it ran."""

    def worker_started(self) -> None:
        super().worker_started()  # type: ignore[misc]
        tell("started", server=type(self).__name__)

    def worker_stopping(self) -> None:
        super().worker_stopping()  # type: ignore[misc]
        tell("stopping", server=type(self).__name__)

    def server_close(self) -> None:
        super().server_close()  # type: ignore[misc]
        tell("closed", server=type(self).__name__)

    def handle_error(self, request: Any, client_address: Any) -> None:
        tell("failed", server=type(self).__name__)


class Lines(Named, Told, PreForkingTCPServer):
    """The first."""


class Paths(Named, PreForkingUnixStreamServer):
    """Refuses nobody but by its own hook."""

    refuses = False

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return not self.refuses


class Datagrams(Named, PreForkingUDPServer):
    """Answers in upper case."""


class Upper(DatagramRequestHandler):
    def handle(self) -> None:
        self.wfile.write(self.rfile.read().upper())


def main(port: str, *settings: str) -> None:
    log_everything()
    for setting in settings:
        name, _, value = setting.partition("=")
        if name == "metrics_port":
            Lines.metrics_address = ("127.0.0.1", int(value))
            continue
        setattr(Lines, name, value if name == "control_socket" else float(value) if "." in value else int(value))
    with Lines(("127.0.0.1", int(port)), Who) as first:
        udp = Datagrams(("127.0.0.1", 0), Upper)
        first.serve_also(udp)
        first.serve_also(Paths("s", Who))
        tell("also", address=udp.server_address)
        first.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
