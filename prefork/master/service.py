"""The service that is supervised: the server's side of a pool, or of a plain server with children.

A record of values and callbacks into the server; made by the server, read by the supervisor, in the process that
serves.
"""

import socket
from collections.abc import Callable
from typing import NamedTuple

from prefork.metrics.scoreboard import Slot
from prefork.workers.bootstrap import Birth, Master
from prefork.workers.privileges import Privileges

from ..sockets.listener import number_of
from .kept_queues import KeptQueues


class CompanionSpec(NamedTuple):
    """A companion that the program declares. `interval`, in seconds, is that of a periodic job."""

    name: str
    interval: float | None
    body: Callable[[Birth, Master, memoryview], int]  # given its row of the table


class Service(NamedTuple):
    name: str
    forget: Callable[[], None]  # in a new child: close its copies of what is the master's alone, except the memory
    end: Callable[[], None] | None = None  # a child of a plain server asks to end its loop; a pool obeys DRAIN
    # For a pool only:
    work: Callable[[Birth, Master, int], int] | None = None  # the body of a worker
    lanes: int = 1  # in one worker
    lanes_open: int = 0  # at first; 0: all
    listeners: tuple[socket.socket, ...] = ()
    others: tuple[socket.socket, ...] = ()  # beside the listener, where each worker has a socket of its own
    max_lifetime: float | None = None
    renew_tls: Callable[[], None] | None = None  # make the TLS context anew; raises ConfigError, and keeps the old one
    application_bytes: int = 0  # for the user's own metrics
    counts_connections: bool = False  # their number is limited, in the pool or of a client
    companions: tuple[CompanionSpec, ...] = ()
    kept: KeptQueues | None = None  # of connections that are kept, by this image or the one before
    privileges: Privileges | None = None  # that each child which serves is left with; None: its own

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of the listeners, by which their requests are counted."""
        return tuple(map(number_of, self.listeners)) or (0,)

    def new_slot(self) -> Slot:
        """Return a slot for a worker. Raises OSError."""
        return Slot(self.lanes, self.application_bytes, self.lanes_open, sum(1 << number for number in self.numbers))
