"""What is supervised: the server's side of a pool, or of a plain server with children, as the supervisor needs it.

A record of values and of calls back into the server; made by the server, read by the supervisor.
"""

import socket
from collections.abc import Callable
from dataclasses import dataclass

from prefork.workers.bootstrap import Birth, Master


@dataclass(frozen=True, slots=True)
class Service:
    name: str
    forget: Callable[[], None]  # in a new child: close the copies of what is this process's alone, but the memory
    end: Callable[[], None] | None = None  # of a plain server: a child asks to end its loop; a pool obeys DRAIN
    # Of a pool only:
    work: Callable[[Birth, Master, int], int] | None = None  # the body of a worker
    lanes: int = 1  # of one worker
    listener: socket.socket | None = None
    max_lifetime: float | None = None
    application_bytes: int = 0  # for the user's own metrics
