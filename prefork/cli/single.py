"""`prefork run --single`: no fork; requests run one after another in this process, for a debugger.

Runs in the process of the command line, in its main thread. `breakpoint()` in a handler has the terminal. Ctrl-C raises
KeyboardInterrupt wherever the program is, also after `continue` in pdb, unless that runs the whole program. `quit` ends
the service, with status 0, or 1 since Python 3.14, where pdb asks first and then exits. There is no supervisor, hence
no timeouts, no recycling, no metrics and no reload.
"""

import contextlib
import logging
import signal
import sys
from bdb import Bdb, BdbQuit
from collections.abc import Callable, Iterator
from pdb import Pdb
from typing import TYPE_CHECKING, Any

from prefork.metrics.log_events import LogEvent, event
from prefork.workers.definitions import evaluated, hook, put
from prefork.workers.privileges import PrivilegesKept
from prefork.workers.signals import UNHANDLED, SignalHandler, Signals
from prefork.workers.wakeup import Wakeup

from .. import process
from ..errors import BootError, ConfigError
from ..inheritance.standard_classes import process_in_place
from ..pool import pool_of
from ..run_mode import RunMode, rehearsing, run_as
from ..settings.in_force import value_of
from ..settings.users import privileges_of
from ..sockets.addresses import address_text
from ..sockets.of_server import socket_of

if TYPE_CHECKING:
    from ..pool import PreForkingMixIn

log = logging.getLogger("prefork.server")


def _unless_left(handle_error: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    """Wrap `handle_error()`: `quit` in the debugger ends the program, not only the request."""

    def handle(request: Any, client_address: Any) -> None:
        if isinstance(sys.exception(), BdbQuit):
            raise KeyboardInterrupt
        handle_error(request, client_address)

    return handle


def _stopping(server: "PreForkingMixIn") -> None:
    hook(server, "worker_stopping")()
    log.info("stopped", extra=event(LogEvent.STOPPED))


@contextlib.contextmanager
def _ctrl_c_ends() -> Iterator[None]:
    """Have Ctrl-C end the service after `continue` in a debugger that a handler has called.

    pdb would come back to its prompt, wherever the service is by then. One that runs the whole program (python -m pdb)
    is left as it is.
    """
    if sys.gettrace() is not None or isinstance(getattr(signal.getsignal(signal.SIGINT), "__self__", None), Bdb):
        yield
        return
    theirs = Pdb.sigint_handler
    Pdb.sigint_handler = lambda self, signum, frame: signal.default_int_handler(signum, frame)  # type: ignore[method-assign]
    try:
        yield
    finally:
        Pdb.sigint_handler = theirs  # type: ignore[method-assign]


def serve_single(server: "PreForkingMixIn") -> None:
    """Serve until Ctrl-C, SIGTERM or `shutdown()`. Call `worker_started()` before it and `worker_stopping()` after.

    A SystemExit raised by a handler or by pdb ends it too, and propagates.
    """
    if rehearsing():  # which says by name that a reload cannot make it so, and leaves
        server.serve_forever()
    own = pool_of(server)
    if own.others:
        raise ConfigError("could not serve with --single: it serves one address, and there are several")
    process.enter(value_of(server, "working_directory"))
    run_as(RunMode.SINGLE)
    process_in_place(server)
    put(server, "handle_error", _unless_left(evaluated(server, "handle_error")))
    if value_of(server, "metrics_address") is not None:
        log.warning("metrics are not served: their server would be another process", extra=event(LogEvent.METRICS_OFF))
        server.metrics_address = None
    if companions := ", ".join(spec.name for spec in own.companions()):
        log.warning(
            "the companions do not run: %s; each would be another process",
            companions,
            extra=event(LogEvent.COMPANIONS_OFF, companions=companions.split(", ")),
        )
    own.check()  # it reads the keys
    if (privileges := privileges_of(server)) is not None:
        try:
            privileges.drop()
        except PrivilegesKept as exc:
            raise BootError(f"could not serve: {exc}") from None
    own.take_slot(1)  # the only worker that there is
    wakeup = Wakeup()
    signals = Signals(wakeup)
    taken: dict[int, SignalHandler] = {}
    if signal.getsignal(signal.SIGTERM) in UNHANDLED:  # else it is the program's, as in a pool
        taken[signal.SIGTERM] = lambda signum, frame: own.shutdown(wait=False)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # inherited, and Python leaves it so
        taken[signal.SIGINT] = signal.default_int_handler
    signals.take(taken)
    try:
        hook(server, "worker_started")()
        sock = socket_of(server)
        where = address_text(server.server_address if sock is None else sock.getsockname())
        log.info("in this process alone, listening on %s", where, extra=event(LogEvent.LISTENING, address=where))
        with _ctrl_c_ends():
            server.serve_forever()
        _stopping(server)
    except (KeyboardInterrupt, BdbQuit):
        _stopping(server)
    except SystemExit:
        _stopping(server)
        raise
    finally:
        signals.put_back()
        wakeup.close()
