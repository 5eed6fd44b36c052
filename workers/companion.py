"""A companion from inside: run the program's function until it ends, or each time that its interval has passed.

Runs in a companion's process only. Owns its signals, its slot, and the record of its runs, which it alone writes. Must
not serve a request: it has no listener. It learns from its master's signal that it is to end, and can only ask for the
end of the service. When it is started, and started again, is the master's business.
"""

import _thread  # no thread that the program would see
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from time import monotonic, monotonic_ns, time_ns
from types import FrameType
from typing import Any, NamedTuple

from prefork.metrics.application.values import begin
from prefork.metrics.companions import (
    NEXT_RUN_NS,
    RUN_ENDED_AT_NS,
    RUN_LATE_NS,
    RUN_STARTED_NS,
    RUN_TOOK_NS,
    RUNS_FAILED,
    RUNS_OK,
)
from prefork.metrics.facts import ExitReason
from prefork.metrics.histogram import NS
from prefork.metrics.log_events import LogEvent, event
from prefork.metrics.scoreboard import LEAVING, READY, REPLACE_ASKED, YES

from . import ending, sinks, strays, user_forks
from .bootstrap import Birth, Master, note_failure
from .identity import Descriptors
from .latch import Latch
from .limits import SAMPLE_EVERY_S, record
from .loop import IGNORED
from .signals import DRAIN_SIGNAL, Signals, ignore, set_mask
from .wakeup import Wakeup

log = logging.getLogger("prefork.server")

KEEP_UP_EVERY_S = 60.0  # in a wait without an end: else a log file that was renamed would be kept for as long


class CompanionTerms(NamedTuple):
    """The terms that the master passes on to a companion. `interval` and `timeout`, in seconds, are those of a periodic
    job."""

    name: str
    run: Callable[[], object]  # the program's function
    interval: float | None
    timeout: float | None
    graceful_timeout: float
    measured: bool  # as workers are: its memory is told
    set_title: Callable[[str], None]
    nudge: Callable[[], None]


def next_run(due_ns: int, now_ns: int, interval_ns: int) -> int:
    """Return the first moment after now that is a whole number of intervals from `due_ns`: what was missed is left."""
    return due_ns + ((now_ns - due_ns) // interval_ns + 1) * interval_ns


def first_run(kept_ns: int, now_ns: int, interval_ns: int) -> int:
    """Return when a new process runs the job: when the one before it would have, if there was one, else now."""
    return min(kept_ns, now_ns + interval_ns) if kept_ns else now_ns


class Companion:
    """One companion process."""

    def __init__(self, terms: CompanionTerms, birth: Birth, master: Master, row: memoryview) -> None:
        """`row`: its words in the table of the companions."""
        self.terms = terms
        self.row = row
        self.birth = birth
        self.master = master
        self.draining = False
        self._next_sample_ns = 0
        self._orphan = False
        self._forked = False  # this is a process that user code forked from the companion
        self._told = Latch()
        self._wakeup = Wakeup()
        self._signals = Signals(self._wakeup)
        self._descriptors = Descriptors(self._wakeup.fileno(), self._wakeup.write_fileno(), birth.slot.fd)

    def run(self) -> int:
        """Run the function until it ends. Return the exit status."""
        self._take_signals()
        self.master.tell_us_when_dying(DRAIN_SIGNAL)  # TERM is one that the function may handle itself, or ignore
        if not self.birth.in_main_thread:  # then the kernel cannot tell
            _thread.start_new_thread(self._watch_master, ())  # with every signal blocked, as here
        set_mask(self.birth.mask)
        if self.master.gone():  # before the kernel was asked to tell
            self._on_drain(DRAIN_SIGNAL, None)
        self.terms.set_title("")
        ending.begin_anew()
        if self.birth.slot.application:
            begin(self.birth.slot.application)
        self.birth.slot.words[READY] = YES
        self.terms.nudge()
        status = 0
        try:
            self._run()
        except BaseException as exc:
            self._end_stray()
            status = note_failure(self.birth, self._descriptors.told(exc))
            self.terms.nudge()  # the master holds the deadline
        self._end_stray()
        ending.finish()
        if not status:
            self.birth.slot.words[LEAVING] = self._leaving()
        return status

    def _run(self) -> None:
        interval = self.terms.interval
        if interval is not None:
            self._run_every(round(interval * NS))
        elif not self.draining:
            self.terms.run()

    def _leaving(self) -> ExitReason:
        if self._orphan:
            return ExitReason.MASTER_DIED
        return ExitReason.DRAINED if self.draining else ExitReason.EXITED

    # A periodic job.

    def _run_every(self, interval_ns: int) -> None:
        words = self.row
        due_ns = first_run(words[NEXT_RUN_NS], monotonic_ns(), interval_ns)
        while not self.wait_draining(max(0, due_ns - monotonic_ns()) / NS):
            # Noted first: a run that kills its process is not begun again before its time.
            words[NEXT_RUN_NS] = next_run(due_ns, monotonic_ns(), interval_ns)
            self._run_once()
            self._signals.keep()  # an event loop may have run in it
            due_ns = words[NEXT_RUN_NS] = next_run(due_ns, monotonic_ns(), interval_ns)
            self.terms.nudge()

    def _run_once(self) -> None:
        words, began_ns, outcome = self.row, monotonic_ns(), RUNS_FAILED
        timeout = self.terms.timeout
        words[RUN_LATE_NS] = 0 if timeout is None else began_ns + round(timeout * NS)  # before a reader may ask for it
        words[RUN_STARTED_NS] = began_ns
        self.terms.set_title("running")
        if timeout is not None:
            self.terms.nudge()  # the master ends a run that is over its time
        try:
            self.terms.run()
            outcome = RUNS_OK
        except Exception:
            self._end_stray()
            log.exception(
                "companion %s: a run raised; the next one begins when it is due",
                self.terms.name,
                extra=event(LogEvent.RUN_FAILED, companion=self.terms.name),
            )
        finally:
            self._end_stray()
            words[RUN_STARTED_NS] = 0
            words[outcome] += 1
            words[RUN_TOOK_NS] = monotonic_ns() - began_ns
            words[RUN_ENDED_AT_NS] = time_ns()
        self.terms.set_title("")

    def _keep_up(self) -> None:
        """Do where the program's function is at rest what a worker does between two requests."""
        if self._forked:
            return
        sinks.follow()
        self._look_for_master()
        if self.terms.measured and monotonic_ns() >= self._next_sample_ns:
            self._next_sample_ns = monotonic_ns() + round(SAMPLE_EVERY_S * NS)
            record(self.birth.slot.words)

    # The end.

    def wait_draining(self, seconds: float | None) -> bool:
        """Wait until the companion is told to end, at most `seconds`; return whether it is. In any thread."""
        main = threading.current_thread() is threading.main_thread() and not self._forked
        until = None if seconds is None else monotonic() + seconds
        while True:
            self._keep_up()
            left = KEEP_UP_EVERY_S if until is None else max(0.0, until - monotonic())
            if self._told.wait(min(left, KEEP_UP_EVERY_S), self._wakeup if main else None):
                return True
            if until is not None and monotonic() >= until:
                return False

    def _take_signals(self) -> None:
        handlers: dict[int, Callable[[int, FrameType | None], Any]] = dict.fromkeys(IGNORED, ignore)
        handlers |= {DRAIN_SIGNAL: self._on_drain, signal.SIGTERM: self._on_term, signal.SIGQUIT: self._on_quit}
        self._signals.take(handlers)
        self._signals.write_stacks(self.birth.stacks.fd)
        user_forks.on_fork_by_user(self._forked_by_user)

    def _on_drain(self, signum: int, frame: FrameType | None) -> None:
        """Note that the master has said so, or that it is gone: then this is PDEATHSIG. From others it is nothing."""
        if not self._orphan and self.master.gone():
            self._orphan = True
            self._signals.kill_me_after(self.terms.graceful_timeout)
        elif not self._orphan and not self.birth.slot.told_to_drain:
            return
        self.draining = True
        self._told.set()

    def _on_term(self, signum: int, frame: FrameType | None) -> None:
        """Ask the master for a replacement, which says by DRAIN_SIGNAL when."""
        self.birth.slot.words[REPLACE_ASKED] = YES
        self.terms.nudge()

    def _look_for_master(self) -> None:
        """Have the kernel tell again when it dies: a function that changes its user has undone that (prctl(2))."""
        self.master.tell_us_when_dying(DRAIN_SIGNAL)
        if self.master.gone() and not self._orphan:
            os.kill(os.getpid(), DRAIN_SIGNAL)

    def _on_quit(self, signum: int, frame: FrameType | None) -> None:
        self.birth.slot.words[LEAVING] = ExitReason.STOPPED
        os._exit(0)

    def _watch_master(self) -> None:
        poll = select.poll()
        poll.register(self.master.pidfd, select.POLLIN)
        poll.poll()
        os.kill(os.getpid(), DRAIN_SIGNAL)

    def _forked_by_user(self) -> None:
        """Let go of everything of ours, in a process that user code forked from this companion: it is none."""
        self._forked = True
        slot = self.birth.slot
        user_forks.make_private(slot.memory, slot.words.nbytes)
        self._signals.put_back()

    def _end_stray(self) -> None:
        """Leave, in a process that user code forked and in which the function has returned or raised."""
        if self._forked:
            strays.end(sys.exception())
