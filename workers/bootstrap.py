"""The first steps of a child, in the order they happen, from the fork to its body, and the only way out.

Runs in the child only, with every signal still blocked and a copy of everything the master had. Owns the pidfd by which
a child notices the master's death. Must never return: a child always leaves by `os._exit`, so that no line of the
master's program after `serve_forever()` runs twice.
"""

import contextlib
import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from prefork.metrics.facts import ExitReason
from prefork.metrics.loggers import be_patient
from prefork.metrics.scoreboard import LEAVING, Slot, Stacks

from . import ending, sinks
from .flushing import disown_output, disown_records, flush_briefly, flush_last, given_up_sentence
from .identity import DescriptorsLost
from .last_words import LastWords
from .privileges import PrivilegesKept

PR_SET_PDEATHSIG = 1
CRASHED = 1  # exit status of a child that ended with an exception

# Not on every system. Looked up here: in each child that would take a dozen pages of its own.
_prctl: Any = getattr(ctypes.CDLL(None, use_errno=True), "prctl", None)


class Birth(NamedTuple):
    """The things that the master hands to a child at the fork."""

    slot: Slot
    stacks: Stacks
    master_pid: int
    in_main_thread: bool  # PDEATHSIG is bound to the thread that forked; only the main one lives as long as the master
    forget: Callable[[], None]  # closes the child's copies of descriptors that only the master uses
    mask: set[int]  # the signal mask to restore


class Master:
    """The master, seen from a child: a pidfd that becomes readable when it dies (pidfd_open(2))."""

    def __init__(self, birth: Birth) -> None:
        self._pid = birth.master_pid
        self._in_main_thread = birth.in_main_thread
        self.pidfd = os.pidfd_open(self._pid)
        # The pid could have been reused before the open: the pidfd is the master's only if it is still our parent.
        if self.gone():
            os._exit(CRASHED)

    def fileno(self) -> int:
        return self.pidfd

    def gone(self) -> bool:
        return os.getppid() != self._pid

    def tell_us_when_dying(self, signum: int = signal.SIGTERM) -> None:
        """Have the kernel send this signal to this process when the master dies (prctl(2), PR_SET_PDEATHSIG).

        A change of credentials clears that, so it is called twice.
        """
        if self._in_main_thread:
            _prctl(PR_SET_PDEATHSIG, signum, 0, 0, 0)


def enter(birth: Birth, body: Callable[[Birth, Master], int]) -> NoReturn:
    """Become a child, run `body`, and exit with the status that it returns.

    An exception that leaves `body` is told by `note_failure()`.
    """
    status = CRASHED
    try:
        be_patient()
        ending.forget_master()
        disown_output()
        disown_records()
        master = Master(birth)
        sinks.begin_child(birth.slot.words)
        birth.forget()
        status = body(birth, master)
    except BaseException as exc:
        status = note_failure(birth, exc)
    finally:
        leave(status, birth.stacks.write)


def enter_briefly(
    body: Callable[..., int], words: LastWords, disowned: bool, arguments: tuple[Any, ...], mask: set[int]
) -> NoReturn:  # fmt: skip
    """Become a child that serves one request and shares its slot, and exit with the status that `body` returns.

    `disowned`: there is nothing of the parent's in the standard streams. `body` gets `mask`, that of before the fork,
    and the arguments.

    Each line here costs the pages of memory that it writes, which are copied for this child alone. What another child
    forgets of its parent, for an end like Python's, it need not forget: it ends by `os._exit`.
    """
    status = CRASHED
    try:
        if "multiprocessing.process" in sys.modules:
            ending.forget_master()
        if not disowned:
            disown_output()
        if "logging.handlers" in sys.modules:
            disown_records()
        status = body(mask, *arguments)
    except BaseException as exc:
        status = exit_status(exc)
        words.write(last_words(exc))
    finally:
        if flush_briefly():
            os._exit(status & 0xFF)
        leave(status, words.write)


def last_words(exc: BaseException) -> str:
    """Return what is to be told of the exception that ends this child."""
    if not isinstance(exc, SystemExit):
        return "".join(traceback.format_exception(exc))
    return "" if isinstance(exc.code, int | None) else f"{exc.code}\n"  # Python would print it


def note_failure(birth: Birth, exc: BaseException) -> int:
    """Tell the master why this child ends, and return its exit status.

    SystemExit raised by the user's code counts as the exit reason `exited`. The traceback of any other exception is
    written to `stacks`, from where the master logs it: logging may be what is broken in this process.
    """
    if isinstance(exc, DescriptorsLost):
        birth.slot.words[LEAVING] = ExitReason.CRASHED
        with contextlib.suppress(OSError):  # there is no /proc, or the program has changed its user
            birth.stacks.fd = os.open(f"/proc/{birth.master_pid}/fd/{birth.stacks.fd}", os.O_WRONLY | os.O_APPEND)
            birth.stacks.write(f"{exc}\n")
    elif isinstance(exc, PrivilegesKept):
        birth.slot.words[LEAVING] = ExitReason.CRASHED
        birth.stacks.write(f"{exc}\n")
    elif not isinstance(exc, SystemExit):
        birth.slot.words[LEAVING] = ExitReason.CRASHED  # first: what follows are its last words
        birth.stacks.write(last_words(exc))
    else:
        birth.slot.words[LEAVING] = ExitReason.EXITED
        birth.stacks.write(last_words(exc))
    return exit_status(exc)


def exit_status(exc: BaseException) -> int:
    """Return the status with which Python would end a process for this exception."""
    if not isinstance(exc, SystemExit):
        return CRASHED
    return exc.code if isinstance(exc.code, int) else int(exc.code is not None)


def leave(status: int, tell: Callable[[str], object] | None = None) -> NoReturn:
    """Flush what the user printed and logged, then exit without running the master's program any further.

    `tell` is called with a sentence about what could not be flushed.
    """
    try:
        given_up = flush_last()
        if given_up and tell is not None:
            tell(given_up_sentence(given_up))
    finally:
        os._exit(status & 0xFF)
