"""A service that keeps so many MB of objects from before the fork: under prefork, gunicorn and a bare loop.

    python -m tests.benchmarks.servers.keeping FD WORKERS      the bare loop; `Handler` and `application` are the others

KEPT_MB in the environment says how much. All answer `GET /` with the pid of the process that answers; before `/collect`
it makes a full collection, as happens by itself in any worker that lives long enough.
"""

import gc
import os
import socket
import sys
from collections.abc import Callable, Iterable
from typing import Any

DEVICE_BYTES = 375


class Device:
    def __init__(self, number: int) -> None:
        self.number = number
        self.name = f"device {number}"
        self.seen = [number + 1000]


TABLE = [Device(number) for number in range(int(os.environ.get("KEPT_MB", "0")) * 2**20 // DEVICE_BYTES)]
BLANK = (b"\r\n", b"\n", b"")


class Handling:
    rfile: Any
    wfile: Any

    def handle(self) -> None:
        request = self.rfile.readline()
        while self.rfile.readline() not in BLANK:
            pass
        if b"/collect" in request:
            gc.collect()
        self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n%d" % os.getpid())


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    if environ["PATH_INFO"] == "/collect":
        gc.collect()
    start_response("200 OK", [])
    return [b"%d" % os.getpid()]


def bare(listener: socket.socket, workers: int) -> None:
    """What one writes by hand, with the advice of the gc module's documentation."""
    import socketserver

    handler = type("Handler", (Handling, socketserver.StreamRequestHandler), {})
    gc.collect()
    gc.freeze()
    for _ in range(workers):
        if os.fork() == 0:
            while True:
                connection, address = listener.accept()
                handler(connection, address, None)
                connection.close()
    os.wait()


def __getattr__(name: str) -> Any:
    """Make the handler of ours where it is asked for: the other servers must not have prefork in memory."""
    if name != "Handler":
        raise AttributeError(name)
    from prefork import StreamRequestHandler

    return type(name, (Handling, StreamRequestHandler), {})


if __name__ == "__main__":
    bare(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
