"""Settling a child that has ended: find the reason, fold its numbers into the totals, log the end.

Runs in the process that serves. Owns the last count of the kernel's out-of-memory kills, and nothing else. Must not
decide what a death means for the pool: that is the supervisor's and policy's business.
"""

import logging
import signal
from typing import NamedTuple

from prefork.metrics.board import SIGNAL_DEATHS, Board, Word, exit_word
from prefork.metrics.facts import ChildKind, ExitReason, Outcome
from prefork.metrics.kernel import oom_kills
from prefork.metrics.log_events import LogEvent, event

from .children import Child, Exit
from .guard import guarded
from .processes import STATUS_LOST

log = logging.getLogger("prefork.supervisor")


class Death(NamedTuple):
    """Why a child ended, and its last words. Workers, companions and holders have a reason; other kinds have none."""

    reason: ExitReason | None
    booted: bool  # it has been READY
    text: str
    asked: bool  # it had been told to leave, for another reason than a failed boot
    said_nothing: bool = False  # it has not said why it leaves

    @property
    def at_boot(self) -> bool:
        """True if it died before READY without having been told to leave."""
        unasked = (ExitReason.BOOT_FAILED, ExitReason.KILLED, ExitReason.OOM_SUSPECTED)
        return not self.booted and not self.asked and self.reason in unasked


WITH_REASON = (ChildKind.WORKER, ChildKind.COMPANION, ChildKind.HOLDER)

# The reasons that a child may give itself, and that are believed if it ended with status 0, or nobody knows its status.
HINTS = (ExitReason.DRAINED, ExitReason.STOPPED, ExitReason.MAX_REQUESTS, ExitReason.MASTER_DIED)


# Ends that somebody asked for, if not the master: a terminal's QUIT comes to a worker before the master can say it.
ASKED = (ExitReason.DRAINED, ExitReason.STOPPED, ExitReason.MAX_REQUESTS)


# What a worker that the master kills has done, or left undone; the reasons of a drain count as KILLED at its deadline.
KILLED_FOR = (
    ExitReason.TIMEOUT, ExitReason.STALLED, ExitReason.BOOT_FAILED, ExitReason.STOPPED, ExitReason.EXITED,
    ExitReason.CRASHED,
)  # fmt: skip
OF_ITS_OWN = (ExitReason.EXITED, ExitReason.CRASHED)


def exit_reason(
    told: ExitReason | None, *, booted: bool, status: int | None, signum: int | None, hint: ExitReason | None
) -> ExitReason:
    """Return why a worker ended.

    Decided from `told` (why it was told to leave), `booted` (it has been READY), its status or signal, and `hint` (the
    reason that it gave itself). Where the status is gone, taken by a reaper of the program's own, its word is believed.
    """
    if signum == signal.SIGKILL:
        return told if told in KILLED_FOR else ExitReason.KILLED
    gone = status is None and signum is None
    if gone and hint is None and told in KILLED_FOR:
        return told
    ended_well = (signum is None and status == 0) or (gone and hint in HINTS)
    if ended_well and told is not None:
        return told
    if booted and hint is ExitReason.EXITED:
        return hint
    if ended_well and hint in HINTS:
        return hint
    if not booted:
        return ExitReason.BOOT_FAILED
    return ExitReason.EXITED if ended_well else ExitReason.CRASHED


class Exits:
    """Settle each child that has ended, once."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._oom_kills = oom_kills()

    def settle(self, exit: Exit, request_timeout: float | None, now_ns: int) -> Death:
        """Fold a child's slot into the totals, close the slot, log the end, and return the reason.

        `request_timeout`, in seconds, separates its requests that were cut from those that were lost.
        """
        child = exit.child
        report = child.reader.look(now_ns)
        booted = child.booted or report.ready
        reason = self._reason(exit, booted, report.leaving) if child.kind in WITH_REASON else None
        death = Death(reason, booted, _last_words(child), child.reason not in (None, ExitReason.BOOT_FAILED),
                      report.leaving is None)  # fmt: skip
        self._fold(exit, reason if child.kind is ChildKind.WORKER else None, request_timeout, now_ns)
        child.slot.close()
        _log(exit, death)
        return death

    def _reason(self, exit: Exit, booted: bool, hint: ExitReason | None) -> ExitReason:
        told = exit.child.reason
        reason = exit_reason(told, booted=booted, status=exit.status, signum=exit.signum, hint=hint)
        suspect = exit.signum == signal.SIGKILL and told is None and self._oom_killed()
        return ExitReason.OOM_SUSPECTED if suspect else reason

    def _oom_killed(self) -> bool:
        before, self._oom_kills = self._oom_kills, oom_kills()
        return before is not None and self._oom_kills is not None and self._oom_kills > before

    def _fold(self, exit: Exit, reason: ExitReason | None, request_timeout: float | None, now_ns: int) -> None:
        """Fold the child in one change of the board: a reader finds it alive or folded, never both or neither."""
        overdue_ns = None
        if reason is ExitReason.TIMEOUT and request_timeout is not None:
            overdue_ns = now_ns - int(request_timeout * 1e9)
        connections = sum(number for _, number in exit.child.reader.left_open())
        with self._board.change() as words:
            before = words[Word.LOST], words[Word.TIMED_OUT]
            # A child for one request that ends with status 0, by os._exit() in its handler, has served it.
            of_one = exit.child.kind is ChildKind.REQUEST or reason is ExitReason.MAX_REQUESTS
            self._board.fold(exit.child.serial, overdue_ns, ended_well=of_one and exit.status == 0)
            gone = words[Word.LOST] - before[0], words[Word.TIMED_OUT] - before[1]
            words[Word.CPU_USER_NS] += int(exit.user_s * 1e9)
            words[Word.CPU_SYSTEM_NS] += int(exit.system_s * 1e9)
            if reason is not None:
                words[exit_word(reason)] += 1
                if exit.signum is not None:
                    words[SIGNAL_DEATHS + exit.signum] += 1
        if connections:
            fields = {**exit.child.fields, "connections": connections}
            log.warning("%s: kept connections that ended with it: %d", exit.child, connections,
                        extra=event(LogEvent.CONNECTIONS_DIED, **fields))  # fmt: skip
        for number, outcome in zip(gone, (Outcome.LOST, Outcome.TIMEOUT), strict=True):
            if number:
                _log_died(exit.child, number, outcome)


def settle_briefly(child: Child, status: int, *, lost: bool, text: str) -> None:
    """Log the end of a child that has no slot of its own; `status` is that of Processes.status_of()."""
    if lost:
        _log_died(child, 1, Outcome.LOST)
    known = None if status == STATUS_LOST or status < 0 else status
    _log(Exit(child, known, -status if status < 0 else None, 0.0, 0.0), Death(None, False, text, False))


def _log_died(child: Child, number: int, outcome: Outcome) -> None:
    fields = {**child.fields, "outcome": outcome.label, "requests": number}
    log.warning("%s: requests that ended with it: %d %s", child, number, outcome.label,
                extra=event(LogEvent.REQUESTS_DIED, **fields))  # fmt: skip


def _last_words(child: Child) -> str:
    return guarded(f"read what {child.kind.label}s leave to say", child.stacks.take, "").rstrip()


def _log(exit: Exit, death: Death) -> None:
    if death.reason is None:
        unasked = exit.child.reason is None and exit.signum is not None
        level = logging.WARNING if unasked or death.text else logging.DEBUG
        what = str(exit)
    else:
        asked = exit.child.reason not in (None, *OF_ITS_OWN) or death.reason in ASKED
        level = logging.INFO if asked else logging.ERROR
        what = f"{death.reason.label} ({exit})"
        if death.reason is ExitReason.EXITED and death.said_nothing:
            what += " by the program, as os._exit() in a handler does, with all that it had in hand"
    log.log(
        level,
        "%s: %s%s",
        exit.child,
        what,
        "\n" + death.text if death.text else "",
        extra=event(
            LogEvent.CHILD_ENDED,
            **exit.child.fields,
            reason=death.reason and death.reason.label,
            detail=death.text or None,
        ),
    )
