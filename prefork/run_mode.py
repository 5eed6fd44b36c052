"""The run mode of this process: the purpose for which it runs a service.

Runs in the process that becomes the master, and in a rehearsal. Owns the mode, which the command line and a takeover
set, and which a program may ask for before it makes a server: so it stands apart from what serves.
"""

from enum import Enum, auto

__all__ = ["RunMode", "rehearsing", "run_as", "run_mode"]


class RunMode(Enum):
    """The purpose for which this process runs a service."""

    SERVE = auto()
    SINGLE = auto()  # serve without a pool, in this thread only (cli/single.py)
    REHEARSE = auto()  # try what a reload would put in service: a worker boots and exits
    CHECK = auto()  # try it beside a running service, bound to no address (cli/check.py, cli/config.py)


_mode = RunMode.SERVE


def run_mode() -> RunMode:
    """Return the purpose for which this process runs its service."""
    return _mode


def run_as(mode: RunMode) -> RunMode:
    """Set the run mode and return the previous one."""
    global _mode
    before, _mode = _mode, mode
    return before


def rehearsing() -> bool:
    """Return True if this process only tries a service, for a reload or for `prefork check`.

    Call it in a program that uses something that may exist only once: a second port, a pid file, a database migration.
    """
    return _mode in (RunMode.REHEARSE, RunMode.CHECK)
