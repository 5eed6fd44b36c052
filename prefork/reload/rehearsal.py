"""A rehearsal from inside: the program has reached its `serve_forever()`, and boots one worker that serves nothing.

Runs in the rehearsal of a reload, and in `prefork check`. Owns the one worker that it boots. Leaves by `os._exit`: what
follows `serve_forever()` in the program must not run in a rehearsal.
"""

import contextlib
import select
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

from prefork.metrics.board import Board
from prefork.metrics.facts import ChildKind
from prefork.metrics.loggers import impatient
from prefork.workers import ending
from prefork.workers.bootstrap import Birth, Master, leave
from prefork.workers.signals import Signals, held_up_after
from prefork.workers.wakeup import Wakeup

from .. import process
from ..errors import BootError
from ..master.exits import Exits
from ..master.supervisor import Supervisor
from ..sockets.listener import Listener
from .handover import handed
from .reloading import say


class Rehearsal(NamedTuple):
    """The service that is rehearsed, as the pool passes it here. `boot_timeout` is in seconds."""

    directory: str | None
    boot_timeout: float
    pool: Callable[[Wakeup], Supervisor]  # makes it as for serving; its workers boot and leave
    work: Callable[[Birth, Master, int], int]
    board: Callable[[], Board]
    refuse: Callable[[Mapping[str, Any]], None]  # raises ConfigError for what a reload cannot change
    listeners: Callable[[], tuple[socket.socket | None, ...]]


def rehearse(tried: Rehearsal) -> NoReturn:
    """Boot a worker, write the result on the pipe, and leave."""
    given = handed()
    assert given is not None, "only a rehearsal rehearses"
    failed = ""
    try:
        with impatient(held_up_after):
            tried.refuse(given.values["fixed"])
            boot_one(tried)
    except Exception as exc:
        failed = "\n".join([str(exc), *getattr(exc, "__notes__", ())])
    for listener in tried.listeners():
        if isinstance(listener, Listener):
            listener.unlink()  # a new path, bound for the rehearsal only
    say(given.values["pipe"], **({"failed": failed} if failed else {"ready": True}))
    ending.end_processes()
    leave(int(bool(failed)))


def boot_one(tried: Rehearsal) -> None:
    """Boot one worker through `worker_started()`; it leaves as soon as it is READY.

    Raises BootError, with the worker's last words as a note, or ConfigError.
    """
    process.enter(tried.directory)
    with contextlib.closing(Wakeup()) as wakeup:
        _boot_one(tried, wakeup)


def _boot_one(tried: Rehearsal, wakeup: Wakeup) -> None:
    if threading.current_thread() is threading.main_thread():
        Signals(wakeup).reap_ourselves()  # as a master does; else a worker that has ended at once could not be watched
    supervisor = tried.pool(wakeup)
    slot = supervisor.service.new_slot()
    child = supervisor.fork(ChildKind.WORKER, slot, tried.work)
    poll = select.poll()
    poll.register(child.pidfd, select.POLLIN)
    in_time = bool(poll.poll(tried.boot_timeout * 1000))
    if not in_time:
        child.signal(signal.SIGKILL)
        poll.poll()
    exit = supervisor.table.reap(child)
    death = Exits(tried.board()).settle(exit, None, supervisor.clock.stamp_ns()) if exit is not None else None
    supervisor.close()
    if death is None or not death.booted:
        how = str(exit) if in_time else f"not ready within {tried.boot_timeout:g} s (boot_timeout)"
        error = BootError(f"a worker could not start: {how}")
        if death is not None and death.text:
            error.add_note(death.text)
        raise error
