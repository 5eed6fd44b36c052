"""A worker's end as Python's: what the program began in it is finished, what the master had begun is the master's.

Runs in a child: `forget_master()` first of all, a DrainHook where a drain begins, `finish()` at its end. Bounds
nothing: the master holds the deadline of a drain, and whoever is stopped or killed does nothing of this. CPython's own
forked children do the same (multiprocessing/popen_fork.py, gh-83856).
"""

import _thread  # the threads of `threading` are begun and joined with locks that a signal handler may not take
import atexit
import logging
import sys
import threading
from collections.abc import Callable
from time import monotonic
from types import ModuleType
from typing import Any
from weakref import finalize

from prefork.metrics.log_events import LogEvent, event

log = logging.getLogger("prefork.server")

# Exporters that go on in a forked process by themselves, and flush by what they registered in the master.
FLUSHED: dict[str, Callable[[Any], Any]] = {
    "sentry_sdk": lambda module: module.flush,
    "opentelemetry.trace": lambda module: getattr(module.get_tracer_provider(), "force_flush", None),
    "opentelemetry.metrics": lambda module: getattr(module.get_meter_provider(), "force_flush", None),
    "opentelemetry._logs": lambda module: getattr(module.get_logger_provider(), "force_flush", None),
}
QUIETLY_S = 0.3  # threads that were told to end need no line in the log


def forget_master() -> None:
    """What the master would do at its own end is not ours to do: remove its files, end its processes."""
    atexit._clear()
    for each in list(finalize._registry):  # type: ignore[attr-defined]
        each.atexit = False  # still to be called, or to run when its object goes
    atexit.register(finalize._exitfunc)  # type: ignore[attr-defined]  # it registers once a process
    if (process := _loaded("multiprocessing.process")) is not None:
        process._children.clear()
    if (util := _loaded("multiprocessing.util")) is not None:
        util._finalizer_registry.clear()
        atexit.register(util._exit_function)
    # Its executors' threads ended at the fork, and their processes are not ours; their locks may be held for ever.
    if (thread := _loaded("concurrent.futures.thread")) is not None:
        thread._threads_queues.clear()
    if (executors := _loaded("concurrent.futures.process")) is not None:
        executors._threads_wakeups.clear()


def begin_anew() -> None:
    """Queues and managers that came over the fork forget the threads and connections that did not."""
    if (util := _loaded("multiprocessing.util")) is not None:
        util._run_after_forkers()


def finish() -> None:
    """Join the program's threads and run its `atexit` functions, those of executors and multiprocessing with them."""
    until = monotonic() + QUIETLY_S
    for thread in _waited_for():
        thread.join(max(0.0, until - monotonic()))
    if threads := _waited_for():
        log.info(
            "leaving: waiting for what the program runs in %s; end it in worker_draining() or worker_stopping()",
            ", ".join(thread.name for thread in threads),
            extra=event(LogEvent.THREADS_AWAITED, threads=[thread.name for thread in threads]),
        )
    try:
        threading._shutdown()  # type: ignore[attr-defined]
    except Exception:
        log.exception("could not end the program's threads", extra=event(LogEvent.THREADS_FAILED))
    for name, flush_of in FLUSHED.items():
        if (exporter := sys.modules.get(name)) is not None:
            _flush(name, exporter, flush_of)
    atexit._run_exitfuncs()  # what one raises goes to sys.unraisablehook


def _flush(name: str, exporter: ModuleType, flush_of: Callable[[Any], Any]) -> None:
    try:
        if (flush := flush_of(exporter)) is not None:
            flush()
    except Exception:
        log.exception("could not flush %s", name, extra=event(LogEvent.FLUSH_FAILED, module=name))


def _waited_for() -> list[threading.Thread]:
    """Threads that no executor ends at our word."""
    ended: list[threading.Thread] = []
    if (thread := _loaded("concurrent.futures.thread")) is not None:
        ended += thread._threads_queues
    return [
        each
        for each in threading.enumerate()
        if not each.daemon and each is not threading.current_thread() and each not in ended
    ]


def _loaded(name: str) -> ModuleType | None:
    return sys.modules.get(name)


class DrainHook:
    """The program's `worker_draining()`, called once, in a thread of its own."""

    def __init__(self, hook: Callable[[], None] | None) -> None:
        self._hook = hook
        self._running = _thread.allocate_lock()
        self._begun = False

    def begin(self) -> None:
        """Call it, at once. May be called in a signal handler, wherever that interrupts the program."""
        if self._hook is None or self._begun:
            return
        self._begun = True
        try:
            self._running.acquire()
            _thread.start_new_thread(self._run, ())
        except RuntimeError:  # there are no more threads
            self._running.release()
            self._begun = False

    def wait(self) -> None:
        """Until it has returned. One that could not be called yet is called now, in this thread."""
        if self._hook is not None and not self._begun:
            self._begun = True
            self._running.acquire()
            self._run()
        with self._running:
            pass

    def _run(self) -> None:
        assert self._hook is not None
        try:
            self._hook()
        except Exception:
            log.exception("worker_draining() raised", extra=event(LogEvent.DRAIN_HOOK_FAILED))
        finally:
            self._running.release()
