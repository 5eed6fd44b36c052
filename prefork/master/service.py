"""What is supervised: the server's side of a pool, or of a plain server with children, as the supervisor needs it.

A record of values and of calls back into the server; made by the server, read by the supervisor.
"""

import errno
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass

from prefork.workers.bootstrap import Birth, Master

from ..reload.handover import Record


def _nowhere(record: Record) -> None:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


@dataclass(frozen=True, slots=True)
class Service:
    name: str
    forget: Callable[[], None]  # in a new child: close the copies of what is this process's alone, but the memory
    drain_asked: Callable[[], None]  # a child asks to end the service
    # Of a pool only:
    work: Callable[[Birth, Master, int], int] | None = None  # the body of a worker
    lanes: int = 1  # of one worker
    listener: socket.socket | None = None
    max_lifetime: float | None = None
    application_bytes: int = 0  # for the user's own metrics
    pack: Callable[[Record], None] = lambda record: None  # what of it goes over to the next image
    no_reload: str | None = None  # why it cannot be reloaded
    asked: Callable[[], bool] = lambda: False  # whether there is a command that no turn has been told of
    execute: Callable[[Record], None] = _nowhere  # how the next image comes; returns only by an OSError
