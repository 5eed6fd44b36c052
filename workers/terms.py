"""The terms of a worker: what it must know of its pool's settings and of the master.

Made by the master before the fork, read in the worker. Holds values and callbacks only.
"""

from collections.abc import Callable
from typing import NamedTuple

from .accepting import GetRequest
from .access_log import AccessLog
from .admission import Admission
from .kept import Queues
from .limits import WorkerLimits


class WorkerTerms(NamedTuple):
    """The pool's settings that a worker needs, passed on by the master."""

    limits: WorkerLimits
    graceful_timeout: float
    elsewhere: bool  # ThreadingMixIn: requests run in threads
    rehearsal: bool  # boot, report READY, leave
    one_request: bool  # ForkingMixIn: forked ahead of its one request
    hang_up: bool  # a drain ends the loop of a handler that keeps reading
    queue_waits: bool  # ask the kernel now and then how long a connection waited
    metrics: bool  # metrics are served: take the measurements that cost something too
    access_log: AccessLog | None
    get_request: Callable[[], GetRequest | None]  # makes a shorter one, where there is one
    admission: Admission | None
    on_drain: Callable[[], None] | None  # the program's hook; None if it has none
    set_title: Callable[[str], None]
    nudge: Callable[[], None]
    listener: int = 0  # its number, by which its requests are counted
    queues: Queues | None = None  # by which its connections are kept: `park_in` and `ready_out`; None: none is
