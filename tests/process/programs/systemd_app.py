"""Handlers that answer which of systemd's variables a process of theirs would have. Copied to where a test runs it, as
`app`. `OneByOne` are hooks of a service whose second worker boots when the gate, a FIFO, was opened and closed."""

import os
import subprocess
from pathlib import Path

import prefork
from tests.support.programs.served import Told, Who, tell


def variables() -> list[str]:
    found = subprocess.check_output(["env"], text=True) + repr(dict(os.environ))
    return [word for word in ("LISTEN_", "NOTIFY_", "WATCHDOG_") if word in found]


class Stream(prefork.StreamRequestHandler):
    def handle(self) -> None:
        for _ in self.rfile:
            self.wfile.write(f"{os.getpid()} {variables()}\n".encode())


class Datagram(prefork.DatagramRequestHandler):
    def handle(self) -> None:
        self.wfile.write(self.rfile.read().upper())


class Environment(Who):
    def do_env(self) -> list[str]:
        return variables()


class OneByOne(Told):
    def worker_started(self) -> None:
        super().worker_started()
        try:
            Path("first").touch(exist_ok=False)
        except FileExistsError:
            tell("second")
            Path("gate").read_bytes()
