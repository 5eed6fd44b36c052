"""State of the whole process: what a service changes while it serves (directory, title, garbage collector), and whether
a program is only loaded. Its run mode is in run_mode.py.

Runs in the process that becomes the master, and in a rehearsal. Every change is undone when the service ends. The
working directory is entered by the name that `working_directory` gives, so that every new image follows a release
symlink that has moved. `prefork run` enters it before it reads its file and imports anything, `serve_forever()` if only
the class sets it, and the code that execs a new image does so too. Must not touch signals, which belong to pool.py
because a takeover hands them over.
"""

import contextlib
import gc
import logging
import os
import sys
from collections.abc import Iterator
from functools import partial
from threading import get_ident
from typing import Any

import setproctitle

from prefork.metrics.log_events import LogEvent, event
from prefork.metrics.loggers import impatient
from prefork.workers.flushing import flush_here
from prefork.workers.lazy_imports import import_lazy
from prefork.workers.signals import held_up_after, interrupted_after

from . import logs
from .errors import ConfigError, PreforkError, reason_of
from .master.guard import attempt
from .settings.in_force import InForce
from .surroundings.at_import import open_standard_descriptors

__all__ = [
    "alone", "enter", "frozen", "go", "import_all", "inside", "loading", "not_loading", "titled", "unharmed",
]  # fmt: skip

log = logging.getLogger("prefork.supervisor")


_entered: str | None = None


def go(path: str, origin: str = "") -> None:
    """Change to the directory. `origin` names the source of the setting. Raises ConfigError."""
    global _entered
    try:
        os.chdir(path)
    except OSError as exc:
        said_by = f" (from {origin})" if origin else ""
        raise ConfigError(f"could not change to the directory {path}{said_by}: {reason_of(exc)}") from None
    _entered = path


def enter(path: str | None, origin: str = "working_directory") -> None:
    """Change to the directory unless done before; only a reload follows a symlink that moves. Raises ConfigError."""
    if path is not None and path != _entered:
        go(path, origin)


@contextlib.contextmanager
def inside(path: str | None) -> Iterator[None]:
    """Change to the directory for the block, then back to the previous one. Raises ConfigError."""
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
            attempt("go back to the directory of before", partial(os.fchdir, here))
            os.close(here)


# One pool.

_pool: tuple[int, str] | None = None  # the process that serves from a pool, and the name of the service


@contextlib.contextmanager
def alone(name: str) -> Iterator[None]:
    """Serve from the only pool of this process, for the block. Raises PreforkError while another one serves here.

    Each would hold the listener of the other in its workers, and reap, reload and end what is not its own.
    """
    global _pool
    if _pool is not None and _pool[0] == os.getpid():
        error = PreforkError(f"could not serve {name} from a pool: {_pool[1]} is served by this process already")
        error.add_note("A process has one pool: have it serve the other server as well, by server.serve_also(other) "
                       "before serve_forever(), or run each service as a process of its own.")  # fmt: skip
        raise error
    _pool = os.getpid(), name
    try:
        yield
    finally:
        _pool = None


# A program that is loaded.

_loading: tuple[int, int, str] | None = None  # the process and the thread that load it, and what they could not do then


@contextlib.contextmanager
def loading(could_not: str) -> Iterator[None]:
    """Run code of the program's in the block that is to make a server, which is then the command's to serve.

    `could_not` begins the sentence about what goes wrong.
    """
    global _loading
    before, _loading = _loading, (os.getpid(), get_ident(), could_not)
    try:
        yield
    finally:
        _loading = before


def not_loading() -> None:
    """Raise ConfigError in a program that serves while it is loaded: its command would wait for the end of that, and
    then serve once more."""
    if _loading is not None and _loading[:2] == (os.getpid(), get_ident()):
        error = ConfigError(f"{_loading[2]}: it serves by itself, which is for the command to do")
        error.add_note('Call serve_forever() below if __name__ == "__main__", and not in what makes the server.')
        raise error


# Streams, title and memory.


@contextlib.contextmanager
def unharmed() -> Iterator[None]:
    """Serve in the block whatever the program has done to its streams and to logging; flush both at the end."""
    open_standard_descriptors()  # the program may have closed them, to detach from its terminal
    with impatient(held_up_after):
        logs.note_removed()
        try:
            yield
        finally:
            flush_here(interrupted_after, discard=True)


def _title() -> str:
    """Return the title of this process: its command line, until it was changed. What is no UTF-8 in it is escaped."""
    try:
        return setproctitle.getproctitle()
    except UnicodeDecodeError:
        return " ".join(sys.orig_argv).encode(errors="backslashreplace").decode()


@contextlib.contextmanager
def titled(name: str) -> Iterator[None]:
    """Show `prefork: master NAME` in ps(1) for the block."""
    before = _title()
    setproctitle.setproctitle(f"prefork: master {name}")
    try:
        yield
    finally:
        setproctitle.setproctitle(before)


def import_psutil(server: Any) -> None:
    """Import it before the fork, if workers need it: they share its memory, and may change to a user who cannot."""
    setting = InForce(server)
    if setting.metrics_address is not None or setting.max_memory is not None:
        import psutil  # noqa: F401


def import_all() -> None:
    """Import now what the program imports lazily, so that the workers share it.

    A failed import makes a check fail, but not a start, because the module may never be used.
    """
    for name, error in import_lazy():
        log.warning(
            "could not import %s, which is imported lazily: %s",
            name,
            error,
            extra=event(LogEvent.IMPORT_FAILED, module=name),
        )


@contextlib.contextmanager
def frozen() -> Iterator[None]:
    """Hide the objects made before the first fork from the workers' garbage collectors; their memory stays shared."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
