"""One pool for three servers: lines over TCP and over a Unix socket, datagrams over UDP. Each has hooks of its own.

python -m tests.process.programs.several TCP-PORT [NAME=NUMBER ...] [threads|hooked|acting]
"""

import sys
from typing import Any

from prefork import (
    DatagramRequestHandler,
    PreForkingMixIn,
    PreForkingTCPServer,
    PreForkingUDPServer,
    PreForkingUnixStreamServer,
    ThreadingMixIn,
)
from tests.support.programs.served import Told, Who, log_everything, tell

THREADS, HOOKED = "threads", "hooked"  # the second: with a hook before the thread, so that the main thread accepts
ACTING = "acting"


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


class Acting:
    """Tells of each turn in whose server it was; one of them fails in each."""

    def service_actions(self) -> None:
        super().service_actions()  # type: ignore[misc]
        tell("acted", server=type(self).__name__)
        if isinstance(self, Datagrams):
            raise RuntimeError("what Datagrams does in a turn")


class Lines(Named, Told, PreForkingTCPServer):
    """The first."""


class Paths(Named, PreForkingUnixStreamServer):
    """At the path s."""


class Datagrams(Named, PreForkingUDPServer):
    """Answers in upper case."""


class Threaded(PreForkingMixIn, ThreadingMixIn):
    """Before the server class."""

    max_threads = 4


class Upper(DatagramRequestHandler):
    def handle(self) -> None:
        self.wfile.write(self.rfile.read().upper())


def main(port: str, *told: str) -> None:
    settings = told
    log_everything()
    classes: tuple[Any, ...] = (Lines, Datagrams, Paths)
    if THREADS in settings or HOOKED in settings:
        own = {"verify_request": lambda self, request, client_address: True} if HOOKED in settings else {}
        settings = tuple(each for each in settings if each not in (THREADS, HOOKED))
        classes = tuple(type(cls.__name__, (*cls.__bases__[:-1], Threaded, cls.__bases__[-1]), own) for cls in classes)
    if ACTING in settings:
        settings = tuple(each for each in settings if each != ACTING)
        classes = tuple(type(cls.__name__, (Acting, cls), {}) for cls in classes)
    lines, datagrams, paths = classes
    for setting in settings:
        name, _, value = setting.partition("=")
        if name == "metrics_port":
            lines.metrics_address = ("127.0.0.1", int(value))
            continue
        setattr(lines, name, value if name == "control_socket" else float(value) if "." in value else int(value))
    with lines(("127.0.0.1", int(port)), Who) as first:
        udp = datagrams(("127.0.0.1", 0), Upper)
        first.serve_also(udp)
        first.serve_also(paths("s", Who))
        tell("also", address=udp.server_address)
        first.serve_forever(0.05 if ACTING in told else 0.5)


if __name__ == "__main__":
    main(*sys.argv[1:])
