"""The closed lists that cross process boundaries: memory holds the number, people read the name.

A number must keep its meaning once it has been used. Every process uses this module; it holds no state.
"""

from enum import IntEnum


class Fact(IntEnum):
    """A member of a closed list: `value` in shared memory, `label` for logs, statistics and Prometheus."""

    label: str

    def __init__(self, _value: int) -> None:
        self.label = self._name_.lower()


class Activity(Fact):
    """The activity of one lane."""

    IDLE = 0
    ACCEPTING = 1
    BUSY = 2


class Condition(Fact):
    """The state of a child, as the master sees it."""

    STARTING = 0
    READY = 1
    DRAINING = 2  # or being killed


class ChildKind(Fact):
    """The purpose of a child, or the owner of a slot, which may be the serving process itself."""

    WORKER = 0
    REQUEST = 1  # ForkingMixIn alone: one request, then gone
    SERVER = 2  # not a child: lanes of the serving process
    EXPORTER = 3  # serves the metrics
    REHEARSAL = 4  # tries out the code that a reload would put in service
    COMPANION = 5  # runs a function of the program's
    HOLDER = 6  # has the idle connections


class Outcome(Fact):
    """The way a request ended."""

    OK = 0
    ERROR = 1
    TIMEOUT = 2
    LOST = 3


class ForkFailure(Fact):
    """The errno with which a fork failed (fork(2))."""

    EAGAIN = 0
    ENOMEM = 1
    EMFILE = 2
    ENFILE = 3
    OTHER = 4


class ExitReason(Fact):
    """The reason why a child ended. The master decides; a child only hints (see `Report.leaving`)."""

    DRAINED = 1
    MAX_REQUESTS = 2
    MAX_LIFETIME = 3
    MAX_MEMORY = 4
    SCALED_DOWN = 5
    REPLACED = 6
    STOPPED = 7
    EXITED = 8
    TIMEOUT = 9
    BOOT_FAILED = 10
    CRASHED = 11
    OOM_SUSPECTED = 12
    KILLED = 13
    MASTER_DIED = 14
    STALLED = 15


class Refusal(Fact):
    """The reason why a connection was closed before a handler saw it."""

    VERIFY = 0  # verify_request() said no
    PROXY_HEADER = 1
    DENIED = 2  # by its address
    PER_CLIENT = 3
    OVERLOAD = 4
    TLS = 5
    FIRST_BYTE = 6  # it said nothing


class CloseReason(Fact):
    """The reason why a connection ended that could have gone on (KeepAliveMixIn)."""

    CLIENT = 0  # it hung up
    HANDLER = 1  # the handler said so, or raised
    IDLE_TIMEOUT = 2  # keepalive_timeout
    EVICTED = 3  # the longest idle of too many
    DRAINED = 4  # the service ended
    LOST = 5  # with the process that had it


class AcceptError(Fact):
    """The reason why `get_request()` returned no request although the listener had one (accept(2))."""

    EMFILE = 0
    ENFILE = 1
    NOMEM = 2
    ABORTED = 3
    OTHER = 4


class ControlCommand(Fact):
    """The commands of the control socket; OTHER stands for a request that is not a command."""

    OTHER = 0
    STATUS = 1
    DRAIN = 2
    STOP = 3
    RELOAD = 4
    RESTART = 5
    SCALE = 6
    REOPEN = 7
    WORKERS = 8
    STACKS = 9
    LOG_LEVEL = 10
    VERSION = 11
    RELOAD_TLS = 12


class ControlResult(Fact):
    """The result of a request on the control socket."""

    OK = 0
    DENIED = 1
    BAD = 2
