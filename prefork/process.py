"""The state of a whole process: how it runs, and what a service changes of it while it serves (directory, title,
garbage collector).

Runs in the process that becomes the master, and in a rehearsal. Each is put back when the service ends. The directory
is the one that `working_directory` names, gone to by its name, so that every new image follows a release symlink that
has moved: by `prefork run` before it reads its file and imports anything, by `serve_forever()` where only the class
knew, and by whoever execs a new image. Signals are pool.py's, because a takeover hands them over.
"""

import contextlib
import gc
import logging
import os
from collections.abc import Iterator
from enum import Enum, auto

import setproctitle

from prefork.metrics.log_events import LogEvent, event
from prefork.workers.lazy_imports import import_lazy

from .errors import ConfigError

__all__ = [
    "RunMode", "enter", "frozen", "go", "import_all", "inside", "rehearsing", "run_as", "run_mode", "titled",
]  # fmt: skip

log = logging.getLogger("prefork.supervisor")


class RunMode(Enum):
    """What this process runs a service for."""

    SERVE = auto()
    SINGLE = auto()  # to serve without a pool, in this thread alone (cli/single.py)
    REHEARSE = auto()  # to try what a reload would put in service: a worker boots, and leaves
    CHECK = auto()  # to try it beside whatever serves, bound to no address (cli/check.py, cli/config.py)


_mode = RunMode.SERVE
_entered: str | None = None


def run_mode() -> RunMode:
    """Return what this process runs its service for."""
    return _mode


def run_as(mode: RunMode) -> RunMode:
    """Set it; return what it was."""
    global _mode
    before, _mode = _mode, mode
    return before


def rehearsing() -> bool:
    """Return True where this process only tries what a reload would put in service, or what `prefork check` is asked
    about.

    Ask it in a program that has what may exist only once: a second port, a pid file, a migration of a database.
    """
    return _mode in (RunMode.REHEARSE, RunMode.CHECK)


def go(path: str, origin: str = "") -> None:
    """Change to it. `origin`: who says so, in words. Raises ConfigError."""
    global _entered
    try:
        os.chdir(path)
    except OSError as exc:
        said_by = f" (from {origin})" if origin else ""
        reason = os.strerror(exc.errno or 0).lower()
        raise ConfigError(f"could not change to the directory {path}{said_by}: {reason}") from None
    _entered = path


def enter(path: str | None, origin: str = "working_directory") -> None:
    """Change to it, unless that was done: a symlink that moves later is a reload's to follow. Raises ConfigError."""
    if path is not None and path != _entered:
        go(path, origin)


@contextlib.contextmanager
def inside(path: str | None) -> Iterator[None]:
    """In it while a service runs; then where we were. Raises ConfigError."""
    global _entered
    before, here = _entered, None
    if path not in (None, before):
        with contextlib.suppress(OSError):  # it may be gone
            here = os.open(".", os.O_PATH | os.O_DIRECTORY)
    try:
        enter(path)
        yield
    finally:
        _entered = before
        if here is not None:
            os.fchdir(here)
            os.close(here)


# Title and memory.


@contextlib.contextmanager
def titled(name: str) -> Iterator[None]:
    """`prefork: master NAME` in ps."""
    before = setproctitle.getproctitle()
    setproctitle.setproctitle(f"prefork: master {name}")
    try:
        yield
    finally:
        setproctitle.setproctitle(before)


def import_all() -> None:
    """What the program imports lazily is imported now, so that the workers share it. A check fails with what cannot be;
    a start does not: nobody may ever use it."""
    for name, error in import_lazy():
        log.warning(
            "could not import %s, which is imported lazily: %s",
            name,
            error,
            extra=event(LogEvent.IMPORT_FAILED, module=name),
        )


@contextlib.contextmanager
def frozen() -> Iterator[None]:
    """What is there before the first fork is no work for the workers' garbage collectors: its memory stays shared."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
