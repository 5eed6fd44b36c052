"""Handlers that fork: by os.fork(), by multiprocessing, by subprocess."""

import multiprocessing
import os
import socket
import subprocess
import sys
from typing import Any

from prefork import BaseRequestHandler
from tests.support.programs.served import Who, tell

SHOW = "import os; print(*[os.readlink(f.path) for f in os.scandir('/proc/self/fd') if os.path.lexists(f.path)])"


def listens() -> bool:
    """Has this process a socket that listens?"""
    for name in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(name))) as sock:
                if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    return True
        except OSError:
            pass
    return False


class Quiet(BaseRequestHandler):
    def handle(self) -> None:
        pass


def serve_one(server: Any) -> None:
    ours, theirs = socket.socketpair()
    server.RequestHandlerClass = Quiet
    server.finish_request(ours, "elsewhere")
    server.process_request(theirs, "elsewhere")
    tell("forked", listens=listens())


class Handler(Who):
    def do_fork(self) -> None:
        pid = os.fork()
        if pid == 0:
            serve_one(self.server)
            os._exit(0)
        os.waitpid(pid, 0)

    def do_multiprocessing(self) -> int | None:
        process = multiprocessing.get_context("fork").Process(target=serve_one, args=(self.server,))
        process.start()
        process.join()
        return process.exitcode

    def do_subprocess(self) -> int:
        done = subprocess.run([sys.executable, "-c", SHOW], capture_output=True, text=True, close_fds=False)
        return done.stdout.count("socket:")

    def do_sleeper(self) -> int:
        return subprocess.Popen(["sleep", "60"], close_fds=False).pid

    def do_status(self) -> int:
        return subprocess.run(["sh", "-c", "exit 7"]).returncode
