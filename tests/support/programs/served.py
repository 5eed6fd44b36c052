"""The facts that a served program tells the test that runs it: one JSON line each, on an inherited pipe.

Runs in the service's processes, imported by the program that `Service` starts. Owns the write end of the pipe; every
process that user code or prefork forks holds it too, so EOF there means that none is left. Uses public API only.
"""

import json
import logging
import os
import signal
import sys
from socketserver import BaseServer
from time import monotonic
from types import FrameType
from typing import TYPE_CHECKING, Any

from prefork import PreForkingMixIn, StreamRequestHandler, rehearsing

FACTS = "TEST_PREFORK_FACTS"  # the environment's name for the descriptor
LOOK = signal.SIGRTMIN  # to the serving process: tell your statistics

RELOADS = "TEST_PREFORK_IS_RELOADED"  # set: the program is reloaded, and goes on to tell after the exec

_pipe = int(os.environ.pop(FACTS, "-1"))
if _pipe != -1:
    os.set_inheritable(_pipe, RELOADS in os.environ)


def tell(event: str, **values: Any) -> None:
    """Write one fact. One write(2) below PIPE_BUF, so that lines of several processes never mix."""
    if rehearsing():
        return
    fact = {"event": event, "pid": os.getpid(), "at": monotonic(), **values}
    if _pipe != -1:
        os.write(_pipe, json.dumps(fact, default=str).encode() + b"\n")


def log_everything() -> None:
    """To stderr, in the form in which the test judges it."""
    form = "%(asctime)s.%(msecs)03d %(levelname)s %(message)s"
    logging.basicConfig(level=logging.DEBUG, format=form, datefmt="%H:%M:%S")


class Told(BaseServer if TYPE_CHECKING else object):  # type: ignore[misc]
    """Mixed in before everything else: tells `listening`, `worker_started`, `worker_stopping`, `pool`, `ended`.

    `pool` is what the serving process knows of its children, told in the turn in which it changed. The override of
    `service_actions()` that this takes must not become a poll in a pool, hence the long `poll_interval`; a plain
    server, which takes no signals, would not hear LOOK then.
    """

    _last: tuple[Any, ...] = ()
    _look = False

    def serve_forever(self, poll_interval: float | None = None) -> None:
        before = signal.getsignal(LOOK)
        if _in_main_thread():
            signal.signal(LOOK, self._note_look)
        tell("listening", address=self.server_address)
        try:
            super().serve_forever(poll_interval or (3600 if isinstance(self, PreForkingMixIn) else 0.02))
        finally:
            if _in_main_thread():
                signal.signal(LOOK, before)
            tell("ended", **self.statistics()._asdict())

    def worker_started(self) -> None:
        super().worker_started()
        tell("worker_started")

    def worker_stopping(self) -> None:
        super().worker_stopping()
        tell("worker_stopping")

    def service_actions(self) -> None:
        super().service_actions()
        now = self.statistics()
        workers = {name: now.workers.get(name, 0) for name in ("starting", "idle", "busy", "draining")}
        ready = workers["idle"] + workers["busy"]
        last = (now.spawned, now.exits, workers["starting"], ready, workers["draining"], now.fork_failures, now.reloads)
        if last != self._last:
            self._last = last
            spawned, exits, starting, ready, draining, failures, reloads = last
            tell("pool", spawned=spawned, exits=exits, starting=starting, ready=ready, draining=draining,
                 fork_failures=failures, reloads=reloads)  # fmt: skip
        if self._look:
            self._look = False
            tell("statistics", **self.statistics()._asdict())  # not `now`: that may be older than the signal

    def _note_look(self, signum: int, frame: FrameType | None) -> None:
        self._look = True


class EndedByTerm(Told):
    """Of a plain server, which takes no signals."""

    def serve_forever(self, *args: Any) -> None:
        signal.signal(signal.SIGTERM, lambda signum, frame: self.shutdown_nowait())
        super().serve_forever(*args)


def _in_main_thread() -> bool:
    import threading

    return threading.current_thread() is threading.main_thread()


class Who(StreamRequestHandler):
    """Obeys a command per line, and answers with the pid that did. An open connection keeps its worker busy."""

    def handle(self) -> None:
        for line in self.rfile:
            word, *rest = line.decode().split()
            answer = getattr(self, f"do_{word}")(*rest)
            self.wfile.write(b"%d\n" % os.getpid() if answer is None else f"{answer}\n".encode())

    def do_pid(self) -> None:
        """Only say who answers."""

    def do_raise(self) -> None:
        raise RuntimeError("asked to raise")

    def do_exit(self, status: str) -> None:
        sys.exit(int(status))

    def do_spin(self) -> None:
        """Busy in Python for ever."""
        tell("spinning")
        while True:
            pass

    def do_shutdown(self) -> None:
        self.server.shutdown()
