"""A client of the control socket, which reads answers line by line.

Runs in the processes of `prefork ctl` and `prefork top`. Owns its connection and the pidfd of the service whose end it
waits for.
"""

import contextlib
import json
import os
import select
import socket
from collections.abc import Iterator
from typing import Any

from prefork.metrics.kernel import unix_peer

from ..commands import Row
from ..errors import PreforkError, reason_of
from . import protocol

GONE_S = 5.0  # longest time from the end of the service to the exit of its process


class Refused(PreforkError):
    """The master answered with an error. `output` is what a rehearsal printed."""

    output = ""


class Client:
    """A connection to a master. Raises PreforkError if it cannot be made, or ends early.

    `timeout` is in seconds of silence, after which the connection counts as ended; None waits for ever.
    """

    def __init__(self, path: str, timeout: float | None = None) -> None:
        self._path = path
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.settimeout(timeout)
        try:
            self._sock.connect(path)
        except OSError as exc:
            self._sock.close()
            raise PreforkError(f"could not reach the control socket {path}: {reason_of(exc)}") from None
        self._file = self._sock.makefile("rb")
        self._pidfd: int | None = None

    def ask(self, row: Row, argument: int | str | None = None) -> Iterator[dict[str, Any]]:
        """Send a request and yield each line of the answer. The last one has `ok`. Raises PreforkError without that."""
        if row.ends:
            self._watch()
        try:
            with contextlib.suppress(ConnectionError):  # a rejected client is sent the reason at once
                self._sock.sendall(protocol.ask(row, argument))
            for line in self._file:
                message = json.loads(line)
                yield message
                if "ok" in message:
                    return
        except OSError as exc:
            raise PreforkError(f"could not hear from {self._path}: {reason_of(exc)}") from None
        raise PreforkError(f"could not hear from {self._path}: the service closed the connection")

    def result(self, row: Row, argument: int | str | None = None) -> dict[str, Any]:
        """Return the result only. Raises Refused if the answer is an error."""
        for message in self.ask(row, argument):
            if message.get("ok"):
                return dict(message["result"])
            if "error" in message:
                refused = Refused(message["error"])
                refused.output = message.get("output", "")
                raise refused
        raise AssertionError("an answer ends with a result or an error")

    def _watch(self) -> None:
        """Open a pidfd of the listening process; see SO_PEERCRED in unix(7). In another pid namespace it has no pid."""
        found = unix_peer(self._sock)
        if found is not None and found[0] > 0:
            with contextlib.suppress(OSError):
                self._pidfd = os.pidfd_open(found[0])

    def wait_gone(self) -> None:
        """Wait until the service is gone. Call it after the answer to a request that ends the service."""
        with contextlib.suppress(OSError):
            while self._file.readline():
                pass
        if self._pidfd is not None:
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            poll.poll(GONE_S * 1000)

    def close(self) -> None:
        if self._pidfd is not None:
            os.close(self._pidfd)
        self._file.close()
        self._sock.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
