"""Run a real pool in tests of programs that use prefork: `with running(MyServer, MyHandler) as pool: …`.

The server is bound in the test's process, so that a mistake raises there and the address is known. Then a process
forked from the test serves it, in its own session. It is forked because handlers and servers may be defined inside a
test, and could not be pickled. Only the calling thread exists in the fork; a lock that another thread held at that
moment stays locked there. Nothing here needs pytest; fixtures.py does.

               creates   writes           EOF means
    life       test      test             the test has ended or died: the master drains and ends
    report     test      the master       no process of the pool is left
"""

import contextlib
import json
import logging
import multiprocessing
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
import warnings
from collections.abc import Iterator
from time import monotonic
from typing import Any

from prefork.metrics.board import Statistics

from . import logs
from .errors import ConfigError
from .pool import PreForkingMixIn, pool_of
from .settings.other_servers import called_here

__all__ = ["Running", "running"]

GENTLE = {"max_children": 2, "graceful_timeout": 5.0}  # defaults where neither the class nor the caller chose
SLACK_S = 5.0


class Running:
    """A running pool. `address` is the one to connect to; `pid` is the master's."""

    def __init__(self, address: Any, pid: int, log_fd: int, life: int, report: int, within: float) -> None:
        self.address = address
        self.pid = pid
        self._log_fd, self._life, self._report, self._within = log_fd, life, report, within
        self._buffer = b""

    @property
    def log(self) -> str:
        """Everything that the pool has logged and printed so far."""
        return os.pread(self._log_fd, os.fstat(self._log_fd).st_size, 0).decode(errors="replace")

    def statistics(self) -> Statistics:
        """Return the server's own `statistics()`.

        Raises RuntimeError if the pool is gone, TimeoutError if it does not answer within `within` seconds.
        """
        with contextlib.suppress(BrokenPipeError):
            os.write(self._life, b"?")
        return Statistics(**self._next("statistics"))

    def _next(self, event: str) -> Any:
        """Wait for the master's next report of this event and return its value. Reports of other events are dropped."""
        deadline = monotonic() + self._within
        while True:
            *lines, self._buffer = self._buffer.split(b"\n")
            for name, value in map(json.loads, lines):
                if name == event:
                    return value
            if not select.select([self._report], [], [], max(0.0, deadline - monotonic()))[0]:
                raise TimeoutError(f"the pool did not say {event!r} within {self._within:g} s")
            data = os.read(self._report, 65536)
            if not data:
                raise RuntimeError(f"the pool ended before it said {event!r}")
            self._buffer += data


@contextlib.contextmanager
def running(
    server: type, handler: type | None = None, address: Any = None, *, within: float = 30.0, log_level: str = "info",
    **settings: Any,
) -> Iterator[Running]:  # fmt: skip
    """Serve with these server and handler classes until the block ends. Call it in a program's own tests.

    `address` defaults to a free port of 127.0.0.1, or to a fresh Unix path. `settings` are class attributes of the
    server. PreForkingMixIn is put in front of a class that does not have it. `max_children` defaults to 2 and
    `graceful_timeout` to 5 seconds unless the class or the caller chose.

    The block is entered when a worker is ready. At its end the pool drains; if it ends with an exception, the pool is
    killed and its log is written to stderr.

    Raises ConfigError or BindError, TimeoutError if no worker is ready within `within` seconds, and RuntimeError if
    the pool ended by itself or with an error.
    """
    with contextlib.ExitStack() as stack:
        cls = _derived(server, settings)
        instance = _bound(cls, handler, address, stack)
        log_fd = os.memfd_create("prefork-log", os.MFD_CLOEXEC)
        stack.callback(os.close, log_fd)
        pipes = _Pipes()
        stack.callback(pipes.close)
        process = multiprocessing.get_context("fork").Process(target=_serve, args=(instance, pipes, log_fd, log_level))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: this process has threads; see above
                process.start()
        finally:
            instance.socket.close()
        pipes.keep_tests()
        assert process.pid is not None
        pool = Running(instance.server_address, process.pid, log_fd, pipes.life_write, pipes.report_read, within)
        try:
            pool._next("ready")
            yield pool
        except BaseException:
            _end(process, pipes, 0.0)
            sys.stderr.write(pool.log)
            raise
        status = _end(process, pipes, instance.graceful_timeout + SLACK_S)
        if status:
            sys.stderr.write(pool.log)
            raise RuntimeError(f"the pool ended with {status}")


def _derived(server: type, settings: dict[str, Any]) -> Any:
    bases = (server,) if issubclass(server, PreForkingMixIn) else (PreForkingMixIn, server)
    names: dict[str, Any] = {name: getattr(server, name) for name in ("__module__", "__qualname__", "__doc__")}
    cls: Any = type(server.__name__, bases, names)
    for name, value in settings.items():
        if not hasattr(cls, name) and name != "companions":  # that one has no value where none are declared
            near = called_here(name, dir(cls))
            raise ConfigError(f"could not set {name}: {server.__name__} has no such setting{near}")
        setattr(cls, name, value)
    for name, value in GENTLE.items():
        if name not in settings and getattr(cls, name) == getattr(PreForkingMixIn, name):
            setattr(cls, name, value)
    return cls


def _bound(cls: Any, handler: type | None, address: Any, stack: contextlib.ExitStack) -> Any:
    if address is None:
        address = ("127.0.0.1", 0)
        if cls.address_family == getattr(socket, "AF_UNIX", None):
            directory = tempfile.mkdtemp(prefix="prefork-")
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
            address = os.path.join(directory, "socket")
    handler = handler or getattr(cls, "RequestHandlerClass", None)
    return cls(address) if handler is None else cls(address, handler)


class _Pipes:
    """The two pipes between the test and the master. Each side closes the other side's ends."""

    def __init__(self) -> None:
        self.life_read, self.life_write = os.pipe()
        self.report_read, self.report_write = os.pipe()
        self._ours = {self.life_read, self.life_write, self.report_read, self.report_write}

    def close(self, *fds: int) -> None:
        """Close these descriptors, or all that are still open."""
        for fd in fds or tuple(self._ours):
            if fd in self._ours:
                self._ours.remove(fd)
                os.close(fd)

    def keep_tests(self) -> None:
        self.close(self.life_read, self.report_write)

    def keep_masters(self) -> None:
        self.close(self.life_write, self.report_read)


def _end(process: Any, pipes: _Pipes, within: float) -> int | None:
    """Let the pool drain for `within` seconds, kill what is left of its session, and return the exit status."""
    pipes.close(pipes.life_write)
    if within:
        process.join(within)
    drained = process.exitcode is not None
    if not drained:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # fails before it has called setsid()
        process.kill()
    process.join()
    status: int | None = process.exitcode
    process.close()
    # EOF: every worker is gone too. One that left the session ends by itself when its master dies.
    while select.select([pipes.report_read], [], [], SLACK_S)[0] and os.read(pipes.report_read, 65536):
        pass
    return status


# In the process that serves.


def _serve(server: Any, pipes: _Pipes, log_fd: int, log_level: str) -> None:
    os.setsid()  # Ctrl-C at a terminal is for the test: it ends the block, and so the pool
    pipes.keep_masters()
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115  # the test's stdout may be captured
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    logging.getLogger().handlers.clear()
    logs.set_up(log_level)
    pool_of(server).refusal = "a reload would run the tests again"
    server.service_actions = _Answering(server, pipes).turn
    with server:
        server.serve_forever(poll_interval=3600)


class _Answering:
    """Part of the master's turn: report once that it is ready, answer each question, drain at EOF."""

    def __init__(self, server: Any, pipes: _Pipes) -> None:
        self._server = server
        self._pipes = pipes
        self._turn = server.service_actions
        self._watched = self._ready = False
        os.set_blocking(pipes.life_read, False)

    def turn(self) -> None:
        self._turn()
        if not self._watched:
            self._watched = True
            pool_of(self._server).watch(self._pipes.life_read)
        if not self._ready:
            now = self._server.statistics().workers
            if now.get("idle", 0) + now.get("busy", 0):
                self._ready = True
                self._say("ready", None)
        self._answer()

    def _answer(self) -> None:
        if self._pipes.life_read < 0:
            return
        with contextlib.suppress(BlockingIOError):
            asked = os.read(self._pipes.life_read, 64)
            for _ in asked:
                self._say("statistics", self._server.statistics()._asdict())
            if not asked:
                pool_of(self._server).unwatch(self._pipes.life_read)
                self._pipes.life_read = -1
                self._server.shutdown_nowait()

    def _say(self, event: str, value: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # the test is gone
            os.write(self._pipes.report_write, json.dumps([event, value]).encode() + b"\n")
