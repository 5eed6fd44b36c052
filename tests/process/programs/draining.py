"""Services that tell how they drain: `Exporting` and `Unwrapping` are hooks, `Slow` is a handler."""

import socket
import time
from typing import Any

from tests.support.programs.served import Told, Who, tell


class Exporting(Told):
    """Tells where its metrics are, and in each turn that it drains."""

    _told: Any = None

    def service_actions(self) -> None:
        super().service_actions()
        if self._told != self.metrics_server_address:
            self._told = self.metrics_server_address
            tell("exporting", address=self.metrics_server_address)
        if self.draining:
            tell("draining")


class Slow(Who):
    def do_raise(self) -> None:
        tell("in_hand")
        super().do_raise()

    def do_draining(self) -> str:
        tell("told")
        while not self.server.draining:
            time.sleep(0.001)  # a poll of the public attribute: nothing else may end it
        return "True"


class Wrapped(socket.socket):
    """Stands for any subclass with a shutdown() of its own, as ssl.SSLSocket's, which unwraps."""

    def shutdown(self, how: int) -> None:
        tell("unwrapped", how=int(how))
        super().shutdown(how)


class Unwrapping(Told):
    def get_request(self) -> tuple[socket.socket, Any]:
        sock, address = super().get_request()
        return Wrapped(fileno=sock.detach()), address
