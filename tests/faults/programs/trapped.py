"""Hooks with a trap, which is a file: whoever is about to take what is there, and is the one to remove it, sends itself
the signal `trap`."""

import os
import select
import signal
from typing import Any

from prefork import DatagramRequestHandler, PreForkingUDPServer, PreForkingUnixStreamServer
from tests.support.programs.served import Told, Who, tell


class Hooks(Told):
    serve_also: Any
    trap = "KILL"

    def get_request(self) -> Any:
        if (listener := self.fileno()) == -1:
            raise BlockingIOError  # closed, in a thread of a worker that leaves
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        if not poll.poll(0):
            raise BlockingIOError  # not on to an accept that has not looked at the trap
        if os.path.exists("trap"):
            try:
                os.unlink("trap")
            except FileNotFoundError:
                pass
            else:
                tell("trapped")
                self.spring()
                raise BlockingIOError
        return super().get_request()

    def spring(self) -> None:
        os.kill(os.getpid(), signal.Signals[f"SIG{self.trap}"])


class Unpoked(Hooks):
    """The master's poke is not felt: nobody makes a lost wake-up good. What the trap sends counts as the master's."""

    _prefork_: Any

    def spring(self) -> None:
        self._prefork_.worker.birth.slot.tell_to_drain()
        super().spring()

    def worker_started(self) -> None:
        super().worker_started()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


class Datagram(DatagramRequestHandler):
    def handle(self) -> None:
        self.wfile.write(b"%d" % os.getpid())


class Beside(Hooks):
    """Serves two more: a path, and datagrams. Each has the trap."""

    def serve_forever(self, *args: Any) -> None:
        path = TrappedPath("beside", Who)
        datagrams = TrappedDatagrams(("127.0.0.1", 0), Datagram)
        for other in (path, datagrams):
            self._trapped(other)
        tell("beside", address=datagrams.server_address)
        super().serve_forever(*args)

    def _trapped(self, other: Any) -> None:
        type(other).trap = self.trap
        self.serve_also(other)


class TrappedPath(Hooks, PreForkingUnixStreamServer):
    """Lines at a path."""


class TrappedDatagrams(Hooks, PreForkingUDPServer):
    """Answers with the pid."""
