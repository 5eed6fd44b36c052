"""What a program may do to its worker: event loops, children that it forgets, a get_request() that raises. `NoThreads`
is refused another thread while there is a file `full`."""

import asyncio
import os
import signal
import socket
import sys
import threading
from typing import Any

from tests.support.programs.served import EndedByTerm, Told, Who, tell


class Bad(Exception):
    pass


class Handler(Who):
    def do_loop(self, name: str) -> None:
        async def main() -> None:
            asyncio.get_running_loop().add_signal_handler(getattr(signal, name), int)

        asyncio.run(main())

    def do_wakeup(self) -> None:
        signal.set_wakeup_fd(-1)

    def do_fork(self) -> None:
        if os.fork() == 0:
            tell("forked")
            raise RuntimeError("of the child")

    def do_leave(self) -> None:
        if os.fork() == 0:
            tell("forked")
            sys.exit()

    def handle(self) -> None:
        if self.rfile.peek(5)[:5] == b"child" and os.fork() == 0:  # type: ignore[attr-defined]
            tell("forked")
            return
        super().handle()

    def do_child(self) -> None:
        """Only say who answers, in the parent."""


class Hooks(Told):
    def get_request(self) -> tuple[Any, Any]:
        request, address = super().get_request()
        if request.recv(1, socket.MSG_PEEK) == b"!":
            request.recv(2)
            raise Bad("a header that is none")
        return request, address


class NoThreads(Told):
    def process_request(self, request: Any, client_address: Any) -> None:
        start = threading.Thread.start
        if os.path.exists("full"):
            threading.Thread.start = no_more  # type: ignore[method-assign, assignment]
        try:
            super().process_request(request, client_address)
        finally:
            threading.Thread.start = start  # type: ignore[method-assign]


class PlainNoThreads(NoThreads, EndedByTerm):
    pass


def no_more(thread: threading.Thread) -> None:
    tell("refused")
    raise RuntimeError("can't start new thread")
