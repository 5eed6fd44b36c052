"""A service whose workers change their user at their start: they could open no file of the master's folder."""

import contextlib
import os
import socket

from tests.process.programs.shutting import found
from tests.support.programs.served import Told, Who, tell

USER = 54321


class Handler(Who):
    def do_open(self, path: str) -> str:
        try:
            os.close(os.open(path, os.O_WRONLY))
        except OSError as exc:
            return type(exc).__name__
        return "opened"

    def do_shut(self) -> str:
        """Shut down, shutdown(2), every pair of sockets that is here; the kinds of all sockets."""
        sockets = found(self.server, self.connection)
        for kind, sock in sockets:
            with sock, contextlib.suppress(OSError):
                if kind != "listener":
                    sock.shutdown(socket.SHUT_RDWR)
        return ", ".join(sorted(kind for kind, _ in sockets))


class Hooks(Told):
    def worker_started(self) -> None:
        os.setgroups([])
        os.setgid(USER)
        os.setuid(USER)
        super().worker_started()
        tell("exporting", address=self.metrics_server_address)
