"""Run socketserver programs in production: the standard library's model, under a supervisor.

    connection ─▶ Listener ─▶ worker loop ─▶ handler ─▶ Slot             data goes right
                  shared fd    accept         yours       counters
                                                            │
    statistics ◀───────────────────────────── Scoreboard ◀─┘            numbers come back left

    signal ─┐
    CLI ────┴─▶ Command ─▶ Supervisor ─▶ policy.plan() ─▶ ChildTable ─▶ signal ─▶ worker
                one table    one loop       pure             data
                                 ▲
    worker ── nudge (an eventfd: "look at the slots") ┘

Every public name of the standard library's `socketserver` is here with the same meaning, so that
`import prefork as socketserver` works. The PreForking classes add the pool.

This package is the master and the public interface. `prefork.workers` runs after the fork; `prefork.metrics` is the
memory that the two share. What only a pool needs is loaded when the program first names one of its classes, and what
other servers need to serve when the first of them is made.
"""

from typing import TYPE_CHECKING, Any

from prefork.metrics.application.hook import install_hook as _install_hook
from prefork.metrics.late_imports import apart_from_forks as _apart_from_forks

from .errors import BindError, BootError, ConfigError, PreforkError
from .handlers import BaseRequestHandler, DatagramRequestHandler, StreamRequestHandler
from .handlers import _SocketWriter as _SocketWriter
from .mixins import (
    ForkingMixIn,
    ForkingTCPServer,
    ForkingUDPServer,
    ForkingUnixDatagramServer,
    ForkingUnixStreamServer,
    SupervisedMixIn,
    ThreadingMixIn,
    ThreadingTCPServer,
    ThreadingUDPServer,
    ThreadingUnixDatagramServer,
    ThreadingUnixStreamServer,
)
from .reload.start_context import START as _START  # noqa: F401  # read before the program changes how it was started
from .run_mode import rehearsing
from .server import BaseServer, TCPServer, UDPServer, UnixDatagramServer, UnixStreamServer
from .settings.companions import every
from .surroundings.at_import import open_standard_descriptors as _open_standard_descriptors
from .version import __version__ as __version__

if TYPE_CHECKING:
    from prefork.metrics.board import Statistics

    from .keepalive import KeepAliveMixIn
    from .pool import (
        PreForkingMixIn,
        PreForkingTCPServer,
        PreForkingUDPServer,
        PreForkingUnixDatagramServer,
        PreForkingUnixStreamServer,
    )

_open_standard_descriptors()
_install_hook()

__all__ = [
    "BaseRequestHandler",
    "BaseServer",
    "BindError",
    "BootError",
    "ConfigError",
    "DatagramRequestHandler",
    "ForkingMixIn",
    "ForkingTCPServer",
    "ForkingUDPServer",
    "ForkingUnixDatagramServer",
    "ForkingUnixStreamServer",
    "KeepAliveMixIn",
    "PreForkingMixIn",
    "PreForkingTCPServer",
    "PreForkingUDPServer",
    "PreForkingUnixDatagramServer",
    "PreForkingUnixStreamServer",
    "PreforkError",
    "Statistics",
    "StreamRequestHandler",
    "SupervisedMixIn",
    "TCPServer",
    "ThreadingMixIn",
    "ThreadingTCPServer",
    "ThreadingUDPServer",
    "ThreadingUnixDatagramServer",
    "ThreadingUnixStreamServer",
    "UDPServer",
    "UnixDatagramServer",
    "UnixStreamServer",
    "every",
    "rehearsing",
]

_OF_A_POOL = ["KeepAliveMixIn", *(name for name in __all__ if name.startswith("PreForking"))]

if not TYPE_CHECKING:  # to a type checker every name would be there

    def __getattr__(name: str) -> Any:
        """Return a class of a pool (PEP 562), the class of what `statistics()` returns, or what the standard module has
        beside its classes: programs take its private `_ServerSelector`, and its modules. Asked for ours as well, where
        every import is lazy (PEP 810)."""
        if name in _OF_A_POOL:
            with _apart_from_forks():
                from . import pool

            globals().update({each: getattr(pool, each) for each in _OF_A_POOL})
        elif name == "Statistics":
            with _apart_from_forks():
                from prefork.metrics import board

            globals()[name] = board.Statistics
        else:
            from .inheritance.standard_classes import beside_classes  # which is loaded

            return beside_classes(name, __all__)
        return globals()[name]

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
