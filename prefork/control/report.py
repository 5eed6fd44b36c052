"""The control socket's reports as plain data. Pure: from the facts of one moment to what JSON can hold.

Runs in the master. Every number has its unit in its name; an unknown value must be None, never zero.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from prefork.metrics.board import Snapshot, Word, exit_word
from prefork.metrics.companions import CompanionCounts
from prefork.metrics.connections import ConnectionCounts
from prefork.metrics.facts import ExitReason
from prefork.metrics.histogram import NS
from prefork.metrics.scoreboard import ACCEPTED, COMPLETED, COUNTS, DURATION, FAILED, HANDED_OVER


class WorkerFacts(NamedTuple):
    """The master's facts about one worker."""

    slot: int
    pid: int
    generation: int
    state: str
    age_s: float
    requests: int
    lanes: int
    busy_since_ns: tuple[int, ...]
    private_memory: int
    reason: ExitReason | None
    peers: tuple[str, ...] = ()
    cpu_s: float | None = None
    rss: int | None = None
    connections: int = 0  # kept ones that it has: a request of theirs is in hand, or they linger


class HolderFacts(NamedTuple):
    """The master's facts about one holder of idle connections."""

    pid: int
    generation: int
    state: str
    age_s: float
    held: int
    most: int  # connections that it may have; 0: unknown
    cpu_s: float | None = None
    rss: int | None = None


class CompanionFacts(NamedTuple):
    """The master's facts about one companion. Without a process, `pid` and what only a process has are None."""

    counts: CompanionCounts
    state: str  # of its process; waiting: it has none, and gets one
    starts_in_s: float | None = None  # in back-off
    pid: int | None = None
    generation: int | None = None
    age_s: float | None = None
    cpu_s: float | None = None
    rss: int | None = None
    private_memory: int = 0


class ListenerFacts(NamedTuple):
    """One listener: its address, and its accept queue where the kernel tells."""

    address: str
    number: int = 0
    queue_length: int | None = None
    queue_limit: int | None = None


class ServiceFacts(NamedTuple):
    """The service at one moment."""

    name: str
    pid: int
    version: str
    python: str
    phase: str
    generation: int
    reloading: bool
    degraded: str
    listeners: tuple[ListenerFacts, ...]
    min_children: int
    max_children: int
    last_error: str
    backing_off: bool
    reload_failed: str  # why the last reload has; empty if it has not
    wall_ns: int
    board: Snapshot
    workers: tuple[WorkerFacts, ...]
    companions: tuple[CompanionFacts, ...] = ()
    holders: tuple[HolderFacts, ...] = ()

    @property
    def keeps(self) -> bool:
        """True if connections that come by any listener are kept."""
        return any(self.board.keeps(each.number) for each in self.listeners)

    @property
    def needs_holder(self) -> bool:
        return any(self.board.needs_holder(each.number) for each in self.listeners)


def version(facts: ServiceFacts) -> dict[str, Any]:
    return {"prefork": facts.version, "python": facts.python}


def status_report(facts: ServiceFacts) -> dict[str, Any]:
    words = facts.board.words
    return {
        "name": facts.name, "pid": facts.pid, **version(facts), "phase": facts.phase, "generation": facts.generation,
        "reloading": facts.reloading, **_last_reload(facts), "degraded": facts.degraded or None,
        "address": ", ".join(each.address for each in facts.listeners),
        "uptime_s": round((facts.wall_ns - words[Word.STARTED_AT_NS]) / NS, 3),
        "min_children": facts.min_children, "max_children": facts.max_children,
        "workers": _by_state(facts.workers), "backing_off": facts.backing_off,
        "last_error": facts.last_error or None,
        "lanes": sum(w.lanes for w in facts.workers if w.state in ("idle", "busy")),
        "lanes_busy": sum(len(w.busy_since_ns) for w in facts.workers),
        "saturated_s": round(words[Word.SATURATED_NS] / NS, 3),
        "queue_length": _sum(each.queue_length for each in facts.listeners),
        "queue_limit": _sum(each.queue_limit for each in facts.listeners),
        "listeners": [_listener(each, facts.board) for each in facts.listeners],
        "requests": _requests(facts.board), "duration": _duration(facts.board),
        "exits": {reason.label: words[exit_word(reason)] for reason in ExitReason if words[exit_word(reason)]},
        "companions": [_companion(each, facts) for each in facts.companions],
        "connections": _connections(facts.board.connections) if facts.keeps else None,
        "holders": _holders(facts),
    }  # fmt: skip


def _connections(counts: ConnectionCounts) -> dict[str, Any]:
    return {"opened": counts.opened, **counts.open, "moves": counts.moves, "closed": counts.closed}


def _holders(facts: ServiceFacts) -> list[dict[str, Any]] | None:
    """Return the report of every holder; None where there is none, and none is needed."""
    return [_holder(each) for each in facts.holders] if facts.needs_holder or facts.holders else None


def _holder(holder: HolderFacts) -> dict[str, Any]:
    return {
        "pid": holder.pid, "generation": holder.generation, "state": holder.state, "age_s": _rounded(holder.age_s),
        "held": holder.held, "held_limit": holder.most or None, "cpu_s": holder.cpu_s, "rss_bytes": holder.rss,
    }  # fmt: skip


def _listener(listener: ListenerFacts, board: Snapshot) -> dict[str, Any]:
    words = board.of_listener(listener.number)
    return {
        "address": listener.address, "queue_length": listener.queue_length, "queue_limit": listener.queue_limit,
        "accepted": words[ACCEPTED - COUNTS.start], "in_flight": board.in_flight(listener.number),
        "connections": _connections(board.connections_of(listener.number)) if board.keeps(listener.number) else None,
    }  # fmt: skip


def _sum(found: Iterable[int | None]) -> int | None:
    """Return the sum of what is known; None if nothing is."""
    known = [each for each in found if each is not None]
    return sum(known) if known else None


def _last_reload(facts: ServiceFacts) -> dict[str, Any]:
    words = facts.board.words
    at_ns = words[Word.LAST_RELOAD_AT_NS]
    return {
        "last_reload_ok": bool(words[Word.LAST_RELOAD_OK]) if at_ns else None,
        "last_reload_ago_s": _rounded(max(0, facts.wall_ns - at_ns) / NS if at_ns else None),
        "last_reload_error": facts.reload_failed or None,
    }


def _companion(companion: CompanionFacts, facts: ServiceFacts) -> dict[str, Any]:
    counts = companion.counts
    job, ran = counts.interval is not None, counts.run_ended_at_ns != 0
    return {
        "name": counts.name, "pid": companion.pid, "generation": companion.generation, "state": companion.state,
        "age_s": _rounded(companion.age_s), "starts_in_s": _rounded(companion.starts_in_s),
        "restarts": counts.restarts, "interval_s": counts.interval,
        "runs_ok": counts.runs_ok if job else None, "runs_failed": counts.runs_failed if job else None,
        "runs_timed_out": counts.runs_timed_out if job else None, "runs_lost": counts.runs_lost if job else None,
        "run_age_s": _rounded(_age(counts.run_started_ns, facts)),
        "last_run_ago_s": _rounded(max(0, facts.wall_ns - counts.run_ended_at_ns) / NS if ran else None),
        "last_run_took_s": _rounded(counts.run_took_ns / NS if ran else None),
        "next_run_in_s": _rounded(_next_run(counts, facts.board.now_ns)),
        "cpu_s": companion.cpu_s, "rss_bytes": companion.rss, "private_memory_bytes": companion.private_memory or None,
    }  # fmt: skip


def _next_run(counts: CompanionCounts, now_ns: int) -> float | None:
    """Return in how many seconds the next run is due; None if one is on that takes longer than until then."""
    left_ns = counts.next_run_ns - now_ns
    known = counts.next_run_ns and (left_ns >= 0 or not counts.run_started_ns)
    return max(0, left_ns) / NS if known else None


def _age(started_ns: int, facts: ServiceFacts) -> float | None:
    return max(0, facts.board.now_ns - started_ns) / NS if started_ns else None


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _by_state(workers: Sequence[WorkerFacts]) -> dict[str, int]:
    found = {"starting": 0, "idle": 0, "busy": 0, "draining": 0, "stopping": 0, "killing": 0}
    for worker in workers:
        found[worker.state] += 1
    return found


def _requests(board: Snapshot) -> dict[str, int]:
    return {
        "accepted": board.count(ACCEPTED), "ok": board.count(COMPLETED), "error": board.count(FAILED),
        "timeout": board.words[Word.TIMED_OUT], "lost": board.words[Word.LOST], "rejected": board.refused,
        "handed_over": board.count(HANDED_OVER),
    }  # fmt: skip


def _duration(board: Snapshot) -> dict[str, Any]:
    """Return the histogram of finished requests: a count per bucket, and one for those beyond the last bound."""
    found = board.histogram(DURATION)
    return {"at_most_s": [bound / NS for bound in DURATION.bounds_ns], "counts": found[:-1], "sum_s": found[-1] / NS}


def workers(facts: ServiceFacts, slot: int | str | None = None) -> dict[str, Any]:
    """Return the report of every worker, companion and holder, or of the worker `slot` alone."""
    ordered = sorted(facts.workers, key=lambda worker: (worker.slot, worker.pid))
    companions = facts.companions if slot is None else ()
    return {
        "slot": slot,
        "workers": [_worker(worker, facts) for worker in ordered],
        "companions": [_companion(each, facts) for each in companions],
        "holders": _holders(facts) if slot is None else None,
    }


def _worker(worker: WorkerFacts, facts: ServiceFacts) -> dict[str, Any]:
    return {
        "slot": worker.slot, "pid": worker.pid, "generation": worker.generation, "state": worker.state,
        "age_s": round(worker.age_s, 3), "requests": worker.requests, "lanes": worker.lanes,
        "lanes_busy": len(worker.busy_since_ns),
        "request_age_s": _rounded(_age(min(worker.busy_since_ns, default=0), facts)),
        "peers": list(worker.peers), "cpu_s": worker.cpu_s, "rss_bytes": worker.rss,
        "private_memory_bytes": worker.private_memory or None,
        "reason": None if worker.reason is None else worker.reason.label,
        "connections": worker.connections if facts.keeps else None,
    }  # fmt: skip
