"""The orderly end of a worker, like that of any Python process: finish what the program began in it, and leave alone
what the master began.

Runs in a child: `forget_master()` right after the fork, a DrainHook when a drain begins, `finish()` at the end of it.
Must not impose a deadline: the master enforces that of a drain. A worker that is stopped or killed does none of this.
CPython's own forked children do the same (multiprocessing/popen_fork.py, gh-83856).
"""

import _thread  # `threading` starts and joins its threads with locks that a signal handler must not take
import atexit
import contextlib
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

# Exporters that resume by themselves in a forked process, but flush only through what they registered in the master.
FLUSHED: dict[str, Callable[[Any], Any]] = {
    "sentry_sdk": lambda module: module.flush,
    "opentelemetry.trace": lambda module: getattr(module.get_tracer_provider(), "force_flush", None),
    "opentelemetry.metrics": lambda module: getattr(module.get_meter_provider(), "force_flush", None),
    "opentelemetry._logs": lambda module: getattr(module.get_logger_provider(), "force_flush", None),
}
QUIETLY_S = 0.3  # grace before logging: threads that were told to end usually have by then


def forget_master() -> None:
    """Drop the clean-up that the master registered for its own exit: removing its files, ending its processes."""
    atexit._clear()
    if (coverage := _loaded("coverage")) is not None:
        atexit.register(_save_coverage, coverage.Coverage.current())  # first of all, so that it runs last
    for each in list(finalize._registry):  # type: ignore[attr-defined]
        each.atexit = False  # it can still be called, and still runs when its object is collected
    atexit.register(finalize._exitfunc)  # type: ignore[attr-defined]  # finalize registers it only once per process
    if (process := _loaded("multiprocessing.process")) is not None:
        process._children.clear()
    if (util := _loaded("multiprocessing.util")) is not None:
        util._finalizer_registry.clear()
        atexit.register(util._exit_function)
    # The threads of the master's executors did not survive the fork, their processes are not our children, and their
    # locks may be held for ever.
    if (thread := _loaded("concurrent.futures.thread")) is not None:
        thread._threads_queues.clear()
    if (executors := _loaded("concurrent.futures.process")) is not None:
        executors._threads_wakeups.clear()


def _save_coverage(measured: Any) -> None:
    """Save what coverage.py has measured in this worker, if it began in the master, to a file of the worker's own."""
    if measured is None:
        return
    try:
        data: Any = getattr(measured, "_data", None)
        if not getattr(data, "_suffix", True):
            data._suffix = True  # else each worker would write over the file of the others
        measured.stop()
        measured.save()
    except Exception:
        log.exception("could not save what coverage measured", extra=event(LogEvent.FLUSH_FAILED, module="coverage"))


def begin_anew() -> None:
    """Make multiprocessing's queues and managers forget the threads and connections that did not survive the fork."""
    if (util := _loaded("multiprocessing.util")) is not None:
        util._run_after_forkers()


def end_processes() -> None:
    """End what multiprocessing has started here, managers and their folders: for a process that leaves before its
    program does."""
    if (util := _loaded("multiprocessing.util")) is not None:
        with contextlib.suppress(Exception):
            util._run_finalizers()


def finish() -> None:
    """Join the program's threads and run its `atexit` functions, including those of executors and multiprocessing."""
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
    atexit._run_exitfuncs()  # exceptions go to sys.unraisablehook


def _flush(name: str, exporter: ModuleType, flush_of: Callable[[Any], Any]) -> None:
    try:
        if (flush := flush_of(exporter)) is not None:
            flush()
    except Exception:
        log.exception("could not flush %s", name, extra=event(LogEvent.FLUSH_FAILED, module=name))


def _waited_for() -> list[threading.Thread]:
    """Return the threads that have to end by themselves: those of an executor end when it is shut down."""
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
    """The program's `worker_draining()` hooks, of each of its servers, called once, in a thread of their own."""

    def __init__(self, *hooks: Callable[[], None]) -> None:
        self._hooks = hooks
        self._running = _thread.allocate_lock()
        self._begun = False

    def begin(self) -> None:
        """Start the hook without waiting for it. Safe in a signal handler, whatever that interrupts."""
        if not self._hooks or self._begun:
            return
        self._begun = True
        try:
            self._running.acquire()
            _thread.start_new_thread(self._run, ())
        except RuntimeError:  # no more threads: wait() calls the hook
            self._running.release()
            self._begun = False

    def wait(self) -> None:
        """Wait until the hook has returned. If it could not be started, call it now, in this thread."""
        if self._hooks and not self._begun:
            self._begun = True
            self._running.acquire()
            self._run()
        with self._running:
            pass

    def _run(self) -> None:
        try:
            for hook in self._hooks:
                self._call(hook)
        finally:
            self._running.release()

    @staticmethod
    def _call(hook: Callable[[], None]) -> None:
        try:
            hook()
        except Exception:
            log.exception("worker_draining() raised", extra=event(LogEvent.DRAIN_HOOK_FAILED))
