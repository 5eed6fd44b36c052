"""The kernel's side of processes: the only fork and the only reap.

Runs in the process that serves: the master of a pool, or a plain forking server. Owns nothing; a pid is used only while
its pidfd says that the process is still ours. Must not know what a process is for: that is the child table's business.
"""

import _signal  # type: ignore[import-not-found]  # the C module that `signal` wraps, without its enums
import contextlib
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from prefork.metrics.late_imports import let_load, let_load_in_child, wait_for_load
from prefork.metrics.log_events import LogEvent, event
from prefork.metrics.scoreboard import Slot, Stacks
from prefork.workers import bootstrap, log_locks, signals
from prefork.workers.user_forks import NEXT

from .guard import guarded

with contextlib.suppress(ModuleNotFoundError):  # not on every system
    import resource  # noqa: F401  # os.wait4() imports it at its first call, when no descriptor may be free for that

log = logging.getLogger("prefork.supervisor")


class End(NamedTuple):
    """The end of a process, from wait4(2). CPU times are in seconds."""

    status: int | None  # exit status; None: it was ended by a signal, or the status is lost
    signum: int | None
    user_s: float
    system_s: float


def _fork_unwarned() -> int:
    """Fork without the warning that this process has threads: it comes when the child exists already.

    Where the program makes warnings errors it would be raised, and nobody would know the child.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


FORK = _fork_unwarned if sys.version_info >= (3, 12) else os.fork
STATUS_LOST = 1 << 8  # in place of an exit status: nobody knows it


class Processes:
    """The kernel's side of a child: the only fork, the only reap.

    A simulation has its own implementation, which passes the same contract tests.
    """

    def start(
        self, slot: Slot, stacks: Stacks, forget: Callable[[], None],
        body: Callable[[bootstrap.Birth, bootstrap.Master], int],
    ) -> tuple[int, int]:  # fmt: skip
        """Fork; return the pid, and a pidfd for the caller to close. Raises OSError; there is no process then."""
        master_pid = os.getpid()
        in_main_thread = threading.current_thread() is threading.main_thread()

        def enter(mask: set[int]) -> NoReturn:
            bootstrap.enter(
                bootstrap.Birth(slot, stacks, master_pid, in_main_thread, forget, mask - signals.HEARD), body
            )

        return self.fork(enter)

    def fork(self, enter: Callable[[set[int]], NoReturn], spare: Any = None) -> tuple[int, int]:
        """Fork; `enter` runs in the child, with every signal blocked, is given the mask of before, and never returns.

        `spare` is closed, if it can be, where no descriptor is left for the pidfd. Return and raise as `start()`. All
        in one function, but for what threads need: each that runs between two forks costs the pages that it writes.
        """
        held: list[Any] = []
        mask: set[int] = _signal.pthread_sigmask(_signal.SIG_SETMASK, signals.EVERY)
        undo, pid, apart = NEXT.undo, -1, False
        try:
            if not log_locks.is_alone():
                wait_for_load()  # which needs those locks
                apart = True
                log_locks.hold(held)
            NEXT.undo, NEXT.ours = None, True
            pid = FORK()
            if pid == 0:
                if apart:
                    let_load_in_child()
                enter(mask)
            try:
                return pid, os.pidfd_open(pid)
            except OSError:
                if not hasattr(spare, "close"):
                    raise
            spare.close()
            return pid, os.pidfd_open(pid)
        except OSError:
            if pid > 0:  # no free descriptor: a process that cannot be watched must not live
                self.abandon(pid)
            raise
        finally:
            if pid:
                NEXT.undo, NEXT.ours = undo, False
            if held:
                log_locks.release(held)
            if apart:
                let_load()
            _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)

    @staticmethod
    def abandon(pid: int) -> None:
        """Kill and reap a child that was just forked. It may have run meanwhile, even to the end of its request."""
        with contextlib.suppress(OSError):  # other code in this process that waits for any child has reaped it
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def reap(self, pid: int, pidfd: int) -> End | None:
        """Return how the process ended; None while it lives. The kernel gives a status once."""
        try:
            found, status, usage = os.wait4(pid, os.WNOHANG)
        except ChildProcessError:  # SIGCHLD is ignored in this process, or the program waits for any child
            return None if _alive(pidfd) else End(None, None, 0.0, 0.0)
        if found == 0:
            return None
        code = os.waitstatus_to_exitcode(status)
        exited = code >= 0
        return End(code if exited else None, None if exited else -code, usage.ru_utime, usage.ru_stime)

    def status_of(self, pid: int, pidfd: int) -> int | None:
        """Reap a process whose CPU time nobody asks for. Return its exit status, below 0 the signal that has ended it,
        or STATUS_LOST; None while it lives."""
        try:
            found, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            return None if _alive(pidfd) else STATUS_LOST
        return os.waitstatus_to_exitcode(status) if found else None

    def end_group(self, pid: int) -> None:
        """Kill the process group that this child leads, if it leads one; the child must not have been reaped."""
        with contextlib.suppress(OSError):  # there is none, or its last processes are another user's
            os.killpg(pid, signal.SIGKILL)

    def signal(self, pidfd: int, signum: int) -> None:
        """Send a signal, unless the process is gone. Raises OSError when it is out of our reach; see kill(2)."""
        try:
            signal.pidfd_send_signal(pidfd, signum)
        except ProcessLookupError:
            pass


KERNEL = Processes()


def _alive(pidfd: int) -> bool:
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it lives, and is out of our reach
        return True
    return True


def reap_unknown(pidfd: int) -> bool:
    """Reap a child of this process that no table knows; return True if it is gone."""
    try:
        return os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG) is not None
    except ChildProcessError:  # the program waits for any child
        return True


class OrphanReaper:
    """Reap orphans as PID 1: zombies for which nothing in this process waits, five seconds after they were first seen.

    `known` returns the pids that the child table waits for. The delay leaves a status to any other waiter, such as a
    Popen of the user's.
    """

    PATIENCE_S = 5.0
    LOOK_EVERY_S = 1.0  # a look reads the whole of /proc

    def __init__(self, known: Callable[[], set[int]]) -> None:
        self._known = known
        self._seen: dict[int, float] = {}
        self._next_look = float("-inf")

    def turn(self, now: float) -> float:
        """Look for orphans if it is time; return when to look again."""
        if now < self._next_look:
            return self._next_look
        self._next_look = now + self.LOOK_EVERY_S
        self._seen = {pid: self._seen.get(pid, now) for pid in _zombies() - self._known()}
        for pid, since in self._seen.items():
            if now - since >= self.PATIENCE_S:
                with contextlib.suppress(ChildProcessError):  # another thread of the program has reaped it
                    os.waitpid(pid, os.WNOHANG)
                    log.info("reaped an orphan pid=%d", pid, extra=event(LogEvent.ORPHAN_REAPED, pid=pid))
        return self._next_look


def _zombies() -> set[int]:
    """Return the pids of the children of this process that have ended and have not been reaped.

    Where /proc cannot be read (no free descriptor, hidepid), only the first of them, which waitid(2) tells.
    """
    try:
        first = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return set()
    return set() if first is None else {first.si_pid} | guarded("list the orphans", _zombies_of_proc, set[int]())


def _zombies_of_proc() -> set[int]:
    import psutil  # only as PID 1

    found = set()
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.status() == psutil.STATUS_ZOMBIE:
                found.add(child.pid)
    return found
