"""The holder: a supervised child that has the idle connections."""

from collections.abc import Callable
from typing import NamedTuple

from prefork.workers.bootstrap import Birth, Master
from prefork.workers.connection_table import ConnectionTable
from prefork.workers.kept import Queues


class Held(NamedTuple):
    """The terms that the master passes on to a holder. Times are in seconds."""

    keepalive_timeout: float | None  # None: no limit
    max_idle_connections: int | None  # None: what its limit of descriptors allows
    incomplete_timeout: float
    graceful_timeout: float
    table: ConnectionTable | None  # where the number of connections is limited
    nudge: Callable[[], None]


def serve(held: Held, queues: Queues, birth: Birth, master: Master) -> int:
    """Run the holder; see `bootstrap.enter`. Return the exit status.

    Of `queues` it uses all ends but `ready_out`, which is closed. TERM, from anybody: it parks all that it has, for the
    next holder, and leaves. The signal to drain: the service ends, and it closes what is idle and what becomes so; it
    leaves on QUIT, which has it close all at once.
    """
    raise NotImplementedError
