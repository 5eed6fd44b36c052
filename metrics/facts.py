"""The closed lists that cross process boundaries: the number is what stands in memory, the name what people read.

A number once used keeps its meaning. Every process uses this module; it holds no state.
"""

from enum import IntEnum


class Fact(IntEnum):
    """A member of a closed list: `value` in shared memory, `label` for logs, statistics and Prometheus."""

    @property
    def label(self) -> str:
        return self.name.lower()


class Activity(Fact):
    """What one lane is doing now."""

    IDLE = 0
    ACCEPTING = 1
    BUSY = 2


class Condition(Fact):
    """What the master holds a child to be."""

    STARTING = 0
    READY = 1
    DRAINING = 2  # and what is being killed


class ChildKind(Fact):
    """What a child is for; and what a slot belongs to, which may be the serving process itself."""

    WORKER = 0
    REQUEST = 1  # ForkingMixIn alone: one request, then gone
    SERVER = 2  # no child: lanes of the serving process
    EXPORTER = 3  # serves the metrics
    REHEARSAL = 4  # tries what a reload would put in service


class Outcome(Fact):
    """How a request ended."""

    OK = 0
    ERROR = 1
    TIMEOUT = 2
    LOST = 3


class ForkFailure(Fact):
    """Which errno a fork failed with."""

    EAGAIN = 0
    ENOMEM = 1
    EMFILE = 2
    ENFILE = 3
    OTHER = 4


class ExitReason(Fact):
    """Why a child ended. The master decides; a child only hints (see `Slot.leaving`)."""

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


class AcceptError(Fact):
    """Why `get_request()` gave no request although the listener had one."""

    EMFILE = 0
    ENFILE = 1
    NOMEM = 2
    ABORTED = 3
    OTHER = 4


class ControlCommand(Fact):
    """What was asked for on the control socket; OTHER is what is no command."""

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


class ControlResult(Fact):
    """What came of it."""

    OK = 0
    DENIED = 1
    BAD = 2
