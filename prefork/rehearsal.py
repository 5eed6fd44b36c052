"""A rehearsal from inside: the program has come to its `serve_forever()`, and boots one worker that serves nothing.

Runs in the trial process of a reload, and in `prefork check`. Leaves by `os._exit`: what stands behind
`serve_forever()` in the program is not for a trial.
"""

import select
import signal
from typing import TYPE_CHECKING, NoReturn

from prefork.metrics.scoreboard import Slot
from prefork.workers.bootstrap import leave
from prefork.workers.signals import Signals
from prefork.workers.wakeup import Wakeup

from . import directory
from .children import ChildKind
from .config import refuse_changes
from .errors import BootError
from .exits import Exits
from .handover import handed
from .listeners import Listener
from .reload import say

if TYPE_CHECKING:
    from .pool import PreForkingMixIn


def rehearse(server: "PreForkingMixIn") -> NoReturn:
    """Boot a worker, say on the pipe how that went, and leave."""
    given = handed()
    assert given is not None, "only a rehearsal rehearses"
    failed = ""
    try:
        refuse_changes(given.values["fixed"], server, server._launch, same_listener=server._first.resumed)
        boot_one(server)
    except Exception as exc:
        failed = "\n".join([str(exc), *getattr(exc, "__notes__", ())])
    for listener in (server.socket, server._metrics_listener, server._control_listener):
        if isinstance(listener, Listener):
            listener.unlink()  # a new path, which is bound for this moment only
    say(given.values["pipe"], **({"failed": failed} if failed else {"ready": True}))
    leave(int(bool(failed)))


def boot_one(server: "PreForkingMixIn") -> None:
    """Boot one worker through `worker_started()`; it leaves as soon as it is READY. Raises BootError with its words, or
    ConfigError."""
    server._serves = False
    directory.enter(server.working_directory)
    wakeup = Wakeup()
    supervisor = server._supervisor = server._pool(wakeup, Signals(wakeup))
    slot = Slot(supervisor.service.lanes, supervisor.service.application_bytes)
    child = supervisor.fork(ChildKind.WORKER, slot, server._work)
    poll = select.poll()
    poll.register(child.pidfd, select.POLLIN)
    in_time = bool(poll.poll(server.boot_timeout * 1000))
    if not in_time:
        child.signal(signal.SIGKILL)
        poll.poll()
    exit = supervisor.table.reap(child)
    death = Exits(server._scoreboard()).settle(exit, None, supervisor.clock.stamp_ns()) if exit is not None else None
    supervisor.close()
    wakeup.close()
    if death is None or not death.booted:
        how = str(exit) if in_time else f"not ready within {server.boot_timeout:g} s (boot_timeout)"
        error = BootError(f"a worker could not start: {how}")
        if death is not None and death.text:
            error.add_note(death.text)
        raise error
