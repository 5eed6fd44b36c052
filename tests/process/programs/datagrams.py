"""Datagram handlers that answer from processes they fork, and that go on receiving on the server's socket."""

import contextlib
import multiprocessing
import os
import threading
from typing import Any

from prefork import BaseRequestHandler
from tests.support.programs.served import EndedByTerm, Told

forking = multiprocessing.get_context("fork")


def answer(request: Any, client_address: Any) -> None:
    request[1].sendto(request[0].upper(), client_address)


class Handler(BaseRequestHandler):
    """Does as the datagram says."""

    def handle(self) -> None:
        getattr(self, f"in_{self.request[0].decode().partition(' ')[0]}", lambda: answer(*self.told()))()

    def told(self) -> tuple[Any, Any]:
        return self.request, self.client_address

    def in_fork(self) -> None:
        if os.fork() == 0:
            answer(*self.told())
            os._exit(0)

    def in_returning(self) -> None:
        if os.fork() == 0:
            answer(*self.told())

    def in_process(self) -> None:
        forking.Process(target=answer, args=self.told()).start()

    def in_conversation(self) -> None:
        """A second datagram, without a timeout; then none for the third, within one."""
        server = self.request[1]
        server.sendto(b"go on", self.client_address)
        data, client = server.recvfrom(100)
        before = server.gettimeout()
        server.settimeout(0.01)
        with contextlib.suppress(TimeoutError):
            data, client = server.recvfrom(100)
        server.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            data, client = server.recvfrom(100)
        server.settimeout(before)
        server.sendto(data.upper(), client)


class Hooks(Told):
    def process_request(self: Any, request: Any, client_address: Any) -> None:
        """A process or a thread of the program's, where the datagram says so."""
        way = request[0].partition(b" ")[0]
        if way == b"finish":
            forking.Process(target=self.finish_request, args=(request, client_address)).start()
        elif way == b"thread":
            threading.Thread(target=self._fork, args=(request, client_address)).start()
        else:
            super().process_request(request, client_address)

    def _fork(self, request: Any, client_address: Any) -> None:
        if os.fork() == 0:
            answer(request, client_address)
            os._exit(0)


class Lasting(Told):
    """Each worker starts a process that lives as long as the test holds the other end of its pipe."""

    def worker_started(self: Any) -> None:
        super().worker_started()
        if os.fork() == 0:
            os.read(int(os.environ["HELD"]), 1)
            os._exit(0)


class Plain(Hooks, EndedByTerm):
    pass
