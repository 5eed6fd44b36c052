"""The servers that are compared: each answers one line in upper case and closes the connection.

    python -m tests.benchmarks.contenders NAME STYLE WORKERS READY_FD CGROUP_PROCS

Runs as a process of its own, the root of one server tree; `started()` makes it, from the harness. It enters its control
group first, then every process of it that serves writes the port, as one line, to READY_FD. A *style* is a handler
class: `recv` (BaseRequestHandler, recv and sendall) or `stream` (StreamRequestHandler).
"""

import contextlib
import os
import signal
import socket
import socketserver
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import prefork
from prefork import logs

from .meter import Meter

ADDRESS = ("127.0.0.1", 0)
STYLES = ("recv", "stream")
ROOT = Path(__file__).parents[2]

Handler = Callable[[Any, Any, Any], Any]
Ready = Callable[[socket.socket], None]


class Recv(prefork.BaseRequestHandler):
    def handle(self) -> None:
        self.request.sendall(self.request.recv(1024).upper())


class Stream(prefork.StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(self.rfile.readline().upper())


class StandardRecv(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.sendall(self.request.recv(1024).upper())


class StandardStream(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(self.rfile.readline().upper())


OURS = {"recv": Recv, "stream": Stream}
STANDARD = {"recv": StandardRecv, "stream": StandardStream}


class PreForkingThreadingTCPServer(prefork.PreForkingMixIn, prefork.ThreadingTCPServer):
    """A pool of workers, each with threads."""


@dataclass(frozen=True)
class Contender:
    """`pool`: several processes serve; `most`: as many connections as one measurement needs to be exact."""

    name: str
    run: Callable[[str, int, Ready], None]
    pool: bool = False
    most: int = 1000
    styles: tuple[str, ...] = STYLES


def plain(server_class: Any, handlers: dict[str, Any]) -> Callable[[str, int, Ready], None]:
    """One serving process, whatever it does for a request."""

    def run(style: str, workers: int, ready: Ready) -> None:
        with server_class(ADDRESS, handlers[style]) as server:
            ready(server.socket)
            server.serve_forever()

    return run


def pool(server_class: Any, **settings: Any) -> Callable[[str, int, Ready], None]:
    def run(style: str, workers: int, ready: Ready) -> None:
        with server_class(ADDRESS, OURS[style]) as server:
            vars(server).update(settings)
            server.max_children = workers
            server.worker_started = lambda: ready(server.socket)
            server.serve_forever()

    return run


def logged(format: str) -> Callable[[str, int, Ready], None]:
    """The pool with an access log, as `prefork run` sets it up, to a file that lies in memory."""

    def run(style: str, workers: int, ready: Ready) -> None:
        file = os.memfd_create("access-log")
        logs.set_up("warning", format, f"/proc/{os.getpid()}/fd/{file}")
        pool(prefork.PreForkingTCPServer, access_log=True)(style, workers, ready)

    return run


def bare(loop: Callable[[socket.socket, Handler], None]) -> Callable[[str, int, Ready], None]:
    """What one writes by hand: a listener, as many forks as the pool has workers, and a blocking accept in each."""

    def run(style: str, workers: int, ready: Ready) -> None:
        listener = socket.create_server(ADDRESS, backlog=1024)
        for _ in range(workers):
            if os.fork() == 0:
                ready(listener)
                loop(listener, OURS[style])
        os.wait()

    return run


def accept_and_handle(listener: socket.socket, handler: Handler) -> None:
    while True:
        connection, address = listener.accept()
        handler(connection, address, None)
        connection.close()


def accept_and_answer(listener: socket.socket, handler: Handler) -> None:
    """Without any handler class: the floor."""
    while True:
        connection, _ = listener.accept()
        connection.sendall(connection.recv(1024).upper())
        connection.close()


CONTENDERS = (
    Contender("bare loop, no handler", bare(accept_and_answer), pool=True, styles=("recv",)),
    Contender("bare loop", bare(accept_and_handle), pool=True),
    Contender("PreForkingTCPServer", pool(prefork.PreForkingTCPServer), pool=True),
    Contender("PreForkingTCPServer, metrics", pool(prefork.PreForkingTCPServer, metrics_address=ADDRESS), pool=True),
    Contender("PreForkingTCPServer, access log", logged("text"), pool=True, styles=("recv",)),
    Contender("PreForkingTCPServer, access log as JSON", logged("json"), pool=True, styles=("recv",)),
    Contender("PreForking + Threading", pool(PreForkingThreadingTCPServer), pool=True, most=500),
    Contender("prefork TCPServer", plain(prefork.TCPServer, OURS)),
    Contender("prefork ThreadingTCPServer", plain(prefork.ThreadingTCPServer, OURS), most=500),
    Contender("prefork ForkingTCPServer", plain(prefork.ForkingTCPServer, OURS), most=80),
    Contender("standard TCPServer", plain(socketserver.TCPServer, STANDARD)),
    Contender("standard ThreadingTCPServer", plain(socketserver.ThreadingTCPServer, STANDARD), most=500),
    Contender("standard ForkingTCPServer", plain(socketserver.ForkingTCPServer, STANDARD), most=80),
)


@dataclass(frozen=True)
class Started:
    """A running contender, as the harness holds it."""

    contender: Contender
    style: str
    pid: int
    port: int
    meter: Meter


@contextlib.contextmanager
def started(contender: Contender, style: str, workers: int) -> Iterator[Started]:
    """Run a contender with this interpreter; serving when entered, all of it killed and reaped on leaving."""
    name = f"benchmark-{os.getpid()}-{CONTENDERS.index(contender)}-{style}"
    with Meter(name) as meter, contextlib.ExitStack() as stack:
        read, write = os.pipe()
        lines = stack.enter_context(open(read))
        command = [sys.executable, "-m", __spec__.name, contender.name, style, str(workers), str(write), meter.procs]
        process = subprocess.Popen(command, cwd=ROOT, pass_fds=[write], start_new_session=True)
        stack.callback(process.wait)
        stack.callback(os.killpg, process.pid, signal.SIGKILL)  # a group of its own: the root and all it forked
        os.close(write)
        ports = {int(lines.readline()) for _ in range(workers if contender.pool else 1)}
        yield Started(contender, style, process.pid, ports.pop(), meter)


def main(name: str, style: str, workers: str, ready_fd: str, procs: str) -> None:
    if procs:
        Path(procs).write_text("0")  # this process, and so all that it forks

    def ready(listener: socket.socket) -> None:
        os.write(int(ready_fd), b"%d\n" % listener.getsockname()[1])

    contender = next(each for each in CONTENDERS if each.name == name)
    contender.run(style, int(workers), ready)


if __name__ == "__main__":
    main(*sys.argv[1:])
