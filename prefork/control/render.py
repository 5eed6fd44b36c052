"""Render answers of the control socket for a terminal. Pure: from the data of report.py to lines of text.

Runs in `prefork ctl` and `prefork top`; `--json` shows the data itself.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from ..commands import Command, Row

_MAPPED = re.compile(r"^\[::ffff:([0-9.]+)\](?=:)")
COMPANION_COLUMNS = (
    "companion", "pid", "gen", "state", "age", "restarts", "runs", "failed", "run", "last", "took", "next", "cpu",
    "memory",
)  # fmt: skip
HOLDER_COLUMNS = ("holder", "gen", "state", "age", "held", "most", "cpu", "memory")
COLUMNS = ("slot", "pid", "gen", "state", "age", "requests", "busy", "request", "cpu", "memory", "peer")


def text(row: Row, result: dict[str, Any]) -> str:
    """Return what `prefork ctl` prints, with a newline at the end."""
    return "\n".join(_BY_COMMAND[row.command](result)) + "\n"


def duration(seconds: float | None) -> str:
    """Format a duration briefly: 0.4ms, 12ms, 3.4s, 5m12s, 2h03m, 4d7h."""
    if seconds is None:
        return "-"
    if 0 < seconds < 0.00995:
        return f"{seconds * 1000:.1f}ms"
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if hours < 1:
        return f"{minutes}m{int(seconds % 60):02}s"
    return f"{hours}h{minutes % 60:02}m" if days < 1 else f"{days}d{hours % 24}h"


def size(value: int | None) -> str:
    if value is None:
        return "-"
    return f"{value / 1048576:.0f}M" if value < 1 << 30 else f"{value / (1 << 30):.1f}G"


def memory(process: dict[str, Any]) -> str:
    """Format what a process has for its own, if it has measured that, else what is resident."""
    return size(process.get("private_memory_bytes") or process["rss_bytes"])


def table(rows: Sequence[Sequence[str]], left: frozenset[int] = frozenset(), gap: int = 2) -> list[str]:
    """Align rows in columns as wide as their cells. Columns in `left` are left-aligned, the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append((" " * gap).join(cells).rstrip())
    return lines


def worker_cells(worker: dict[str, Any]) -> list[str]:
    peers = worker["peers"]
    others = max(len(peers), worker["lanes_busy"]) - 1  # of many peers not all are told
    more = f" +{others}" if others > 0 else ""
    cpu = worker["cpu_s"]
    return [
        str(worker["slot"]), str(worker["pid"]), str(worker["generation"]), worker["state"],
        duration(worker["age_s"]), str(worker["requests"]), f"{worker['lanes_busy']}/{worker['lanes']}",
        duration(worker["request_age_s"]), "-" if cpu is None else f"{cpu:.1f}s",
        memory(worker), peer_text(peers[0]) + more if peers else "-",
    ]  # fmt: skip


def companion_table(companions: Sequence[dict[str, Any]]) -> list[str]:
    """Return a heading and a line for each companion; nothing where there is none."""
    return table([COMPANION_COLUMNS, *map(_companion_cells, companions)], left=frozenset({0, 3})) if companions else []


def _companion_cells(companion: dict[str, Any]) -> list[str]:
    ok, bad = companion["runs_ok"], runs_bad(companion)
    cpu, due = companion["cpu_s"], companion["next_run_in_s"] if companion["pid"] else companion["starts_in_s"]
    return [
        companion["name"], *("-" if companion[key] is None else str(companion[key]) for key in ("pid", "generation")),
        companion["state"], duration(companion["age_s"]), str(companion["restarts"]),
        *(("-", "-") if ok is None else (str(ok + bad), str(bad))), duration(companion.get("run_age_s")),
        duration(companion["last_run_ago_s"]), duration(companion["last_run_took_s"]), duration(due),
        "-" if cpu is None else f"{cpu:.1f}s", memory(companion),
    ]  # fmt: skip


def holder_table(holders: Sequence[dict[str, Any]] | None) -> list[str]:
    """Return a heading and a line for each holder; nothing where there is none."""
    return table([HOLDER_COLUMNS, *map(_holder_cells, holders)], left=frozenset({2})) if holders else []


def _holder_cells(holder: dict[str, Any]) -> list[str]:
    cpu, most = holder["cpu_s"], holder["held_limit"]
    return [
        str(holder["pid"]), str(holder["generation"]), holder["state"], duration(holder["age_s"]), str(holder["held"]),
        "-" if most is None else str(most), "-" if cpu is None else f"{cpu:.1f}s", memory(holder),
    ]  # fmt: skip


def connections_text(status: dict[str, Any]) -> str | None:
    """Summarize the kept connections by where they are; None where none are kept."""
    found = status.get("connections")  # an image of an earlier version tells of none
    if not found:
        return None
    limits = [each["held_limit"] for each in status["holders"] or () if each["held_limit"] is not None]
    held = f"{found['held']} held" + (f" of {max(limits)}" if limits else "")
    missing = "; no holder runs" if status["holders"] == [] else ""
    open_now = sum(found[where] for where in ("active", "lingering", "held", "queued"))
    return (
        f"{open_now} open: {found['active']} active, {found['lingering']} lingering, {held}, "
        f"{found['queued']} queued{missing}"
    )


def closed_text(found: dict[str, Any]) -> str:
    """Summarize how kept connections have ended."""
    return ", ".join(f"{count} {why.replace('_', ' ')}" for why, count in found["closed"].items() if count) or "none"


def runs_bad(companion: dict[str, Any]) -> int:
    """Return how many runs of a periodic job did not end well."""
    return sum(companion.get(key) or 0 for key in ("runs_failed", "runs_timed_out", "runs_lost"))


def peer_text(peer: str) -> str:
    """Format a peer. An IPv4 client of a dual-stack listener is shown with its IPv4 address."""
    return printable(_MAPPED.sub(r"\1", peer))


def printable(found: str) -> str:
    """Escape a name chosen by a client, which must not move the cursor."""
    return found if found.isprintable() else ascii(found)


def states(status: dict[str, Any]) -> str:
    """Summarize the workers: their number, the limits, and how many are in each state."""
    workers = status["workers"]
    counts = ", ".join(f"{count} {state}" for state, count in workers.items() if count or state in ("idle", "busy"))
    return f"{sum(workers.values())} ({status['min_children']} to {status['max_children']}): {counts}"


def companion_states(companions: Sequence[dict[str, Any]]) -> str:
    """Summarize the companions: their number, and by name those that do not run."""
    up = sum(each["state"] != "waiting" for each in companions)
    missing = ", ".join(each["name"] for each in companions if each["state"] == "waiting")
    failed = ", ".join(f"{each['name']} {runs_bad(each)}" for each in companions if runs_bad(each))
    running = [each for each in companions if each["state"] != "waiting" and each.get("next_run_in_s") is not None]
    soonest = min(running, key=lambda each: each["next_run_in_s"], default=None)
    parts = (
        f"{up} of {len(companions)} run", missing and f"waiting: {missing}", failed and f"failed runs: {failed}",
        soonest and f"next run: {soonest['name']} in {duration(soonest['next_run_in_s'])}",
    )  # fmt: skip
    return ", ".join(part for part in parts if part)


def exits(status: dict[str, Any]) -> str:
    return ", ".join(f"{count} {why}" for why, count in status["exits"].items()) or "none"


def _status(status: dict[str, Any]) -> list[str]:
    requests = {what: count for what, count in status["requests"].items() if count or what != "handed_over"}
    lines = [
        f"{status['name']}  pid {status['pid']}  {status['phase']}  generation {status['generation']}"
        f"  up {duration(status['uptime_s'])}  prefork {status['prefork']}, Python {status['python']}",
        *_listening(status),
        f"workers    {states(status)}",
        f"lanes      {status['lanes_busy']} of {status['lanes']} busy, saturated for {duration(status['saturated_s'])}",
        "requests   " + ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in requests.items()),
        f"exits      {exits(status)}",
    ]
    if kept := connections_text(status):
        lines += [f"kept       {kept}", f"ended      {closed_text(status['connections'])}"]
    if companions := status.get("companions"):  # an image of an earlier version has none
        lines.append(f"companions {companion_states(companions)}")
    if status["reloading"]:
        lines.append("reload     on its way")
    elif status.get("last_reload_ok") is False and not status["degraded"]:
        lines.append(f"reload     failed {duration(status['last_reload_ago_s'])} ago: {status['last_reload_error']}")
    if status["degraded"]:
        lines.append(f"degraded   {status['degraded']}")
    if status["backing_off"]:
        lines.append(f"back-off   workers die at boot: {status['last_error']}")
    return lines


def _listening(status: dict[str, Any]) -> list[str]:
    """Return a line for each listener; an image of an earlier version has one, and tells of no others."""
    found = status.get("listeners") or [status]
    words = ["listening", *[""] * (len(found) - 1)]
    return [f"{word:9}  {each['address'] or '-'}{_queue(each)}{_accepted(each) if len(found) > 1 else ''}"
            for word, each in zip(words, found, strict=True)]  # fmt: skip


def _accepted(listener: dict[str, Any]) -> str:
    return f", {listener['accepted']} accepted"


def _queue(listener: dict[str, Any]) -> str:
    if listener["queue_length"] is None:
        return ""
    return f", {listener['queue_length']} of {listener['queue_limit']} queued"


def _workers(result: dict[str, Any]) -> list[str]:
    companions = companion_table(result.get("companions", ()))
    workers = table([COLUMNS, *map(worker_cells, result["workers"])], left=frozenset({3, 10}))
    asked = result["workers"] if result.get("slot") is not None else ()
    peers = [f"  {peer_text(peer)}" for worker in asked for peer in worker["peers"]]
    holders = holder_table(result.get("holders"))
    further = [["peers", *peers] if peers else [], companions, holders]
    return [*workers, *(line for each in further if each for line in ["", *each])]


def _stacks(result: dict[str, Any]) -> list[str]:
    lines = []
    for worker in result["workers"]:
        lines += [f"worker {worker['slot']} pid {worker['pid']}", worker["stacks"], ""]
    for companion in result.get("companions", ()):
        lines += [f"companion {companion['name']} pid {companion['pid']}", companion["stacks"], ""]
    return lines[:-1]


def _restarted(result: dict[str, Any]) -> list[str]:
    if "companion" in result:
        return [f"companion {result['companion']} restarted"]
    return [f"{result['replaced']} worker{'s' * (result['replaced'] != 1)} replaced"]


_BY_COMMAND: dict[Command, Callable[[dict[str, Any]], list[str]]] = {
    Command.STATUS: _status,
    Command.WORKERS: _workers,
    Command.STACKS: _stacks,
    Command.RELOAD: lambda result: [f"reloaded: {result['reason']}"],
    Command.RESTART: _restarted,
    Command.RELOAD_TLS: _restarted,
    Command.SCALE: lambda result: [f"min_children {result['min_children']}, max_children {result['max_children']}"],
    Command.REOPEN: lambda result: [
        result["reopened"],
        *(f"{child} is busy, and does so with its next line" for child in result["late"]),
    ],
    Command.DRAIN: lambda result: [result["phase"]],
    Command.STOP: lambda result: [result["phase"]],
    Command.LOG_LEVEL: lambda result: [f"logging from {result['level']} on"],
    Command.VERSION: lambda result: [f"prefork {result['prefork']}, Python {result['python']}"],
}
