"""Signals to the children: drain, stop, kill, show stacks. Also collects the stacks.

Runs in the master. The effects of the plan, one function each: a mark in the child's record, and a signal. Must not
decide anything: when and which child is up to `policy.plan()`, and the loop is the supervisor's.
"""

import logging
import os
import signal
from collections.abc import Callable, Iterable

from prefork.metrics.facts import ChildKind, ExitReason
from prefork.metrics.log_events import LogEvent, event
from prefork.workers.signals import DRAIN_SIGNAL, STACKS_SIGNAL

from .children import CHILD_MAY_FOLLOW, Child, ChildState, ChildTable
from .guard import guarded
from .policy import STOP_GRACE_S, Plan
from .stacks import shortened
from .staying import why_it_stays

log = logging.getLogger("prefork.supervisor")

RETIRED_S = 10.0  # an exporter of an earlier image has this long to finish its scrapes
CUT_SHORT = "<freed thread state>"  # the faulthandler of CPython 3.15 ends so where a thread has just ended
ASKED_AGAIN_MAX = 3
STACKS_S = 0.1  # a stack is logged when nothing was added to it for this long
NO_PYTHON_S = 0.5  # a child that was asked for its stacks runs no Python if nothing has come by then,
NO_PYTHON_CUT_S = 0.1  # or by then, for soon it is told to leave
LOOK_SOON = -1  # stands for a size last seen, and differs from every real one
PEERS_SAID = 4  # in one line
Peers = Callable[[Child], tuple[str, ...]]  # the peers of a worker's connections
NO_PEERS: tuple[str, ...] = ()
POKE = signal.SIGHUP  # a worker's handler for it does nothing: the signal only ends a wait
POKED = (ChildKind.WORKER, ChildKind.EXPORTER)  # that have such a handler


def carry_out(
    plan: Plan, table: ChildTable, now: float, leave_by: float, slow_before_ns: int, peers: Peers = lambda child: ()
) -> None:
    """Carry out the plan for the children that exist. `leave_by`: the deadline of those that are told to drain."""
    for serial in plan.kill:
        kill(table, table[serial], now)
    for serial in plan.dump:
        cut(table[serial], now, peers)
    for serial in plan.stuck:
        cut_stuck(table[serial], now)
    for serial in plan.slow:
        show_slow(table[serial], now, slow_before_ns, peers)
    for serial in plan.stop:
        leave(table, table[serial], ExitReason.STOPPED, signal.SIGQUIT, now, now + STOP_GRACE_S)
    for serial, reason in plan.drain:
        leave(table, table[serial], reason, table[serial].drain_signal, now, leave_by)
    for serial in plan.remind:
        remind(table[serial], now)
    for serial in plan.rouse:
        rouse(table[serial], now)
    for serial in plan.poke:
        table[serial].signal(POKE)


def make_room(withdrawn: Iterable[Child], table: ChildTable, now: float, leave_by: float) -> None:
    """Tell withdrawn children to leave, so that the next generation has room: those not yet READY stop, others drain.

    Needed when the last generation could not fully start.
    """
    for child in withdrawn:
        if child.state is ChildState.STARTING:
            leave(table, child, ExitReason.REPLACED, signal.SIGQUIT, now, now + STOP_GRACE_S)
        else:
            leave(table, child, ExitReason.REPLACED, child.drain_signal, now, leave_by)


def leave(table: ChildTable, child: Child, reason: ExitReason, signum: int, now: float, deadline: float) -> None:
    """Drain or stop (QUIT) the child. A deadline that it already has is never put off. SIGCONT is for a process that
    was stopped."""
    child.reason, child.told = reason, now
    child.deadline = deadline if child.deadline is None else min(child.deadline, deadline)
    state = ChildState.STOPPING if signum == signal.SIGQUIT else ChildState.DRAINING
    if child.state in CHILD_MAY_FOLLOW[state]:
        table.set_state(child, state, now)
    child.signal(signum)
    child.signal(signal.SIGCONT)


def let_go(table: ChildTable, child: Child, now: float, deadline: float) -> None:
    """Note that the child leaves by itself, with a deadline: its threads and `atexit` functions may take time."""
    child.told, child.deadline = now, deadline
    table.set_state(child, ChildState.DRAINING, now)


def retire(child: Child, now: float) -> bool:
    """Tell an exporter to end that has a successor or is no longer wanted; it has RETIRED_S to finish its scrapes."""
    child.reason = ExitReason.REPLACED
    child.deadline = now + RETIRED_S
    return child.signal(child.drain_signal) and child.signal(signal.SIGCONT)


def remind(child: Child, now: float) -> None:
    """Tell a draining child again: its loop may have been between two checks the first time."""
    child.told = now
    child.signal(child.drain_signal)
    child.signal(signal.SIGCONT)


def rouse(child: Child, now: float) -> None:
    """Continue a draining child, which may have been stopped after it was told. Once, end the wait of an idle one: it
    looks at its slot then, whatever the program does with the signal to drain. A busy worker is told again: it may have
    written over the word just when it heard the signal, and over that with anything."""
    first, child.told = child.told == child.changed, now
    child.signal(signal.SIGCONT)
    if child.kind is ChildKind.WORKER and child.drain_signal == DRAIN_SIGNAL and child.report and child.report.busy:
        child.signal(DRAIN_SIGNAL)
    if first and child.kind in POKED and child.report is not None and not child.report.busy:
        child.signal(POKE)


def abandon(child: Child) -> None:
    """Tell a child to end by its pid, where the pidfd is lost; that is ours as long as nobody has reaped it."""
    child.slot.tell_to_drain()
    os.kill(child.pid, signal.SIGKILL if child.kind is ChildKind.REHEARSAL else child.drain_signal)


def kill(table: ChildTable, child: Child, now: float) -> None:
    """Kill a child past its deadline. One that cannot be signalled stays what it is, and a later turn kills it."""
    why = why_it_stays(child)
    if not child.signal(signal.SIGKILL):
        return
    if child.cut_at is not None:
        child.reason = child.cut_for
    elif child.reason is None and child.booted and child.ends_by_itself and child.report is not None:
        child.reason = child.report.leaving
    elif child.reason is None:
        child.reason = ExitReason.BOOT_FAILED
    log.warning(
        "%s: killed after %.1f s in state %s%s",
        child,
        now - child.changed,
        child.state.name.lower(),
        f"; {why}" if why else "",
        extra=event(
            LogEvent.CHILD_KILLED,
            **child.fields,
            after_s=round(now - child.changed, 1),
            state=child.state.name.lower(),
            why=why or None,
        ),
    )
    table.set_state(child, ChildState.KILLING, now)


def cut(child: Child, now: float, peers: Peers) -> None:
    """Cut a child with a request over its time, and say for whom that is; or a run of a periodic job."""
    found = () if child.name else guarded("look for peers", lambda: peers(child), NO_PEERS)
    _cut(child, ExitReason.TIMEOUT, now)
    if child.name:
        log.error(
            "%s: a run has taken longer than its timeout", child, extra=event(LogEvent.RUN_TIMEOUT, **child.fields)
        )
        return
    log.error(
        "%s: a request has run for longer than request_timeout%s",
        child,
        _for_whom(found),
        extra=event(LogEvent.REQUEST_TIMEOUT, **child.fields, peers=list(found)),
    )


def _for_whom(peers: tuple[str, ...]) -> str:
    more = f" and {len(peers) - PEERS_SAID} more" if len(peers) > PEERS_SAID else ""
    which = "; peer " if len(peers) == 1 else "; of one of the peers "
    return f"{which}{', '.join(peers[:PEERS_SAID])}{more}" if peers else ""


def cut_stuck(child: Child, now: float) -> None:
    """Cut a child that is stuck outside a request."""
    _cut(child, ExitReason.STALLED, now)
    child.cut_tried_ns = 0 if child.report is None else child.report.tried_ns
    log.error(
        "%s: idle beside a queue for longer than stall_timeout; it is stuck outside a request, and is replaced",
        child,
        extra=event(LogEvent.WORKER_STALLED, **child.fields),
    )


def _cut(child: Child, reason: ExitReason, now: float) -> None:
    """Ask for a child's stacks before it is told to leave. SIGCONT is for a process that was stopped."""
    child.cut_at, child.cut_for = now, reason
    _ask_for_stacks(child, now)
    child.signal(signal.SIGCONT)


def _ask_for_stacks(child: Child, now: float) -> None:
    child.stacks_asked, child.stacks_seen = now, LOOK_SOON
    child.signal(signal.SIGUSR1)


def show_slow(child: Child, now: float, before_ns: int, peers: Peers) -> None:
    """Ask for the stacks of requests that began at or before `before_ns`, once for each request."""
    if child.report is None:
        return
    fresh = {since for since in child.report.busy_since_ns if since <= before_ns} - child.slow_seen
    child.slow_seen &= set(child.report.busy_since_ns)
    if fresh:
        child.slow_seen |= fresh
        found = guarded("look for peers", lambda: peers(child), NO_PEERS)
        log.warning(
            "%s: a request has run for longer than slow_request_timeout%s",
            child,
            _for_whom(found),
            extra=event(LogEvent.SLOW_REQUEST, **child.fields, peers=list(found)),
        )
        _ask_for_stacks(child, now)


def show_stacks(child: Child, now: float) -> None:
    """Ask for a child's stacks on behalf of a client.

    A later turn puts them in `child.stacks_text`, and resets `stacks_wanted`.
    """
    child.stacks_wanted, child.stacks_text = True, ""
    _ask_for_stacks(child, now)


def note_stacks(child: Child, now: float) -> None:
    """Log a child's stacks once they are complete, or hand them to the client that asked for them; ask by the other
    signal if none come. The last words of a child that fails are left for its end, which is logged with them."""
    if child.ends_by_itself:
        return
    size = guarded("look for stacks", child.stacks.size, 0)
    if size:
        child.stacks_asked = None
    elif child.stacks_asked is not None:
        size = LOOK_SOON
        if now >= child.stacks_asked + (NO_PYTHON_S if child.cut_at is None else NO_PYTHON_CUT_S):
            child.stacks_asked = None
            child.signal(STACKS_SIGNAL)
    if size > 0 and size == child.stacks_seen:
        text = guarded("read stacks", child.stacks.take, "").rstrip()
        if CUT_SHORT in text and child.stacks_asked_again < ASKED_AGAIN_MAX:
            child.stacks_asked_again += 1
            _ask_for_stacks(child, now)
            return
        child.stacks_asked_again, text = 0, shortened(text)
        if child.stacks_wanted:
            child.stacks_wanted, child.stacks_text = False, text
        if text and (not child.stacks_text or child.cut_at is not None):
            log.warning(
                "%s: stacks of its threads\n%s", child, text, extra=event(LogEvent.STACKS, **child.fields, detail=text)
            )
        size = 0
    child.stacks_seen = size
