"""The first steps of a child, in reading order, from the fork to its body, and the one way out.

Runs in the child only, every signal still blocked, with a copy of everything the master had. Owns the watch on the
master. Never returns: a child leaves by `os._exit`, whatever happened, so that no line of the master's program after
`serve_forever()` runs twice.
"""

import contextlib
import ctypes
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn, TextIO

from prefork.metrics.facts import ExitReason
from prefork.metrics.scoreboard import LEAVING, Slot, Stacks

from . import ending, sinks

PR_SET_PDEATHSIG = 1
CRASHED = 1  # exit status of a child that ended by an exception

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Birth:
    """What the master hands to a child at the fork."""

    slot: Slot
    stacks: Stacks
    master_pid: int
    in_main_thread: bool  # PDEATHSIG follows the thread that forked: only the main one lives as long as the master
    forget: Callable[[], None]  # closes the child's copies of what is the master's alone
    mask: set[int]  # the signal mask to go back to


class Master:
    """The master as a child sees it: a pidfd that becomes readable when it dies."""

    def __init__(self, birth: Birth) -> None:
        self._pid = birth.master_pid
        self._in_main_thread = birth.in_main_thread
        self.pidfd = os.pidfd_open(self._pid)
        # Only a parent that is still there makes the pid, and so the pidfd, the master's.
        if self.gone():
            os._exit(CRASHED)

    def fileno(self) -> int:
        return self.pidfd

    def gone(self) -> bool:
        return os.getppid() != self._pid

    def tell_us_when_dying(self) -> None:
        """SIGTERM to this process when the master dies. A change of credentials clears it, so it is asked for twice."""
        if self._in_main_thread:
            _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def enter(birth: Birth, body: Callable[[Birth, Master], int]) -> NoReturn:
    """Become a child and run `body`; its result is the exit status.

    SystemExit of the user's code is the reason `exited`; any other exception is written to `stacks`, which the master
    logs, because the log may be what is broken here.
    """
    status = CRASHED
    try:
        ending.forget_master()
        _disown_output()
        master = Master(birth)
        sinks.begin_child(birth.slot.words)
        birth.forget()
        status = body(birth, master)
    except SystemExit as exc:
        birth.slot.words[LEAVING] = ExitReason.EXITED
        status = exit_status(exc)
    except BaseException:
        birth.stacks.write(traceback.format_exc())
    finally:
        leave(status)


def exit_status(exc: BaseException) -> int:
    """The status with which a process ends by this exception, as Python's own would."""
    if not isinstance(exc, SystemExit):
        return CRASHED
    return exc.code if isinstance(exc.code, int) else int(exc.code is not None)


def leave(status: int) -> NoReturn:
    """Flush what the user printed and logged, then end without running the master's program any further."""
    try:
        flush()
    finally:
        os._exit(status & 0xFF)


def flush() -> None:
    """Bring out what the user printed and logged: this image of the process ends without atexit. Never raises: what has
    no reader any more, or no room on its disk, is lost."""
    handlers = [reference() for reference in logging._handlerList]  # type: ignore[attr-defined]
    for each in (sys.stdout, sys.stderr, *handlers):  # logging.shutdown() would also close them
        try:
            if each is not None:
                each.flush()
        except Exception:
            pass


def _disown_output() -> None:
    """What the master printed and has not brought out yet is the master's: our copy of it goes nowhere."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # it is no file, or no descriptor is left
            _flush_into_nothing(stream)


def _flush_into_nothing(stream: TextIO) -> None:
    fd = stream.fileno()
    inheritable, kept = os.get_inheritable(fd), os.dup(fd)
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, fd, inheritable)
        os.close(null)
        stream.flush()
    finally:
        os.dup2(kept, fd, inheritable)
        os.close(kept)
