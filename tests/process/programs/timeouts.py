"""Hooks that tell which timeout the listener has at the end; `OfListener` and `InWorker` give it one."""

import os
from typing import Any

from tests.support.programs.served import Told, Who, tell

LONG_S = 40.0  # what the program has its sockets wait


class Handler(Who):
    def do_timeout(self) -> str:
        return repr(self.connection.gettimeout())


class Hooks(Told):
    def serve_forever(self, *args: Any) -> None:
        super().serve_forever(*args)
        tell("after", timeout=self.socket.gettimeout(), blocking=os.get_blocking(self.socket.fileno()))


class OfListener(Hooks):
    def server_activate(self) -> None:
        super().server_activate()
        self.socket.settimeout(LONG_S)


class InWorker(Hooks):
    def worker_started(self) -> None:
        super().worker_started()
        self.socket.settimeout(LONG_S)
