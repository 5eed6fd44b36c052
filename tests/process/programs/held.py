"""A handler whose connections are kept, and a program that forks in the master. Imported by the programs of
test_held.py."""

import os
import signal

from prefork import KeepAliveMixIn, StreamRequestHandler
from tests.support.programs.served import Told, tell


class Handler(KeepAliveMixIn, StreamRequestHandler):
    """Answers each line with the number of bytes that its connection has sent."""

    def handle_one_request(self) -> None:
        self.state = (self.state or 0) + len(self.rfile.readline())
        self.wfile.write(f"{self.state}\n".encode())


class Forking(Told):
    """Forks a process in the master, once, which stays until it is killed."""

    forked = False

    def service_actions(self) -> None:
        super().service_actions()
        if not Forking.forked:
            Forking.forked = True
            if not (pid := os.fork()):
                while True:
                    signal.pause()
            tell("forked", child=pid)
