"""Handlers that hold the GIL in C: in a request, and in a thread that goes on after it; `Slow` answers datagrams."""

import ctypes
import json
import os
import signal
import sys
import threading
import time
from socketserver import DatagramRequestHandler

from tests.support.programs import served
from tests.support.programs.served import Told, Who, tell

DATAGRAM_S = 0.05
WHEN_IDLE_S = 0.2  # after the request


def hold_the_gil(seconds: float) -> None:
    """Tell `holding`, and sleep, both in C: from before the one until after the other no other thread runs."""
    sys.setswitchinterval(1000)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # a handler would end the sleep
    libc = ctypes.PyDLL(None)
    line = json.dumps({"event": "holding"}).encode() + b"\n"
    write, pipe, sleep = libc.write, served._pipe, libc.usleep
    write(pipe, line, len(line))
    sleep(int(seconds * 1e6))


class Holding(Who):
    def do_hold(self, seconds: str) -> None:
        hold_the_gil(float(seconds))

    def finish(self) -> None:
        super().finish()
        if hasattr(self.server, "hold_after"):
            threading.Timer(WHEN_IDLE_S, hold_the_gil, [self.server.hold_after]).start()

    def do_hold_after(self, seconds: str) -> None:
        self.server.hold_after = float(seconds)


class Slow(DatagramRequestHandler):
    def handle(self) -> None:
        time.sleep(DATAGRAM_S)
        self.wfile.write(b"%d" % os.getpid())


class Exporting(Told):
    """Tells where its metrics are."""

    _exported = False

    def service_actions(self) -> None:
        super().service_actions()
        if not self._exported and self.metrics_server_address is not None:
            self._exported = True
            tell("exporting", address=self.metrics_server_address)
