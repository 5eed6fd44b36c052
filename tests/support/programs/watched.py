"""Hooks of a service that Prometheus watches: it tells where its metrics are. The others bring it into a state that an
alert is for."""

import os
import resource
import socket
import threading

from prefork import BaseRequestHandler
from tests.support.programs.served import Told, tell


class Hooks(Told):
    _told = False

    def service_actions(self) -> None:
        super().service_actions()
        if not self._told:
            self._told = True
            tell("metrics", address=self.metrics_server_address)


class Short(Hooks):
    """Its workers have room for 20 descriptors more."""

    def worker_started(self) -> None:
        self.kept = [os.dup(2) for _ in range(200)]
        most = self.kept[-1] + 20
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        super().worker_started()


class Narrow(Hooks):
    """Its datagram socket holds little."""

    def server_bind(self) -> None:
        super().server_bind()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)


class Busy(BaseRequestHandler):
    """Busy with its first request for ever."""

    def handle(self) -> None:
        tell("busy")
        threading.Event().wait()
