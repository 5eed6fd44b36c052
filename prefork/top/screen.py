"""The screen of `prefork top`, line by line. Pure: from two looks at a service to lines that fit.

Runs in `prefork top`. With a control socket there is a row per worker; with metrics, a table of the values that are not
in the header.
"""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..control.render import (
    closed_text,
    companion_states,
    companion_table,
    connections_text,
    duration,
    exits,
    holder_table,
    printable,
    size,
    states,
)
from .rates import Look, Span
from .rows import WorkerRow, fitted

__all__ = ["SORTS", "Chosen", "Line", "View", "lines", "ordered"]

SORTS = ("slot", "request", "requests", "cpu", "memory")
KEYS = "s sort  j/k select  d replace the worker  q quit"
KEYS_READ_ONLY = "read-only  q quit"
READ_ONLY = "metrics tell of all workers together: rows of each need --control PATH"
SENTENCE_LINES = 3

Chosen = tuple[int, int]  # a worker, by slot and pid


@dataclass(frozen=True, slots=True)
class Line:
    text: str
    style: str = ""


@dataclass(frozen=True, slots=True)
class View:
    """The user's choices, and the messages to show."""

    width: int
    height: int | None = None  # None: all lines, without the line of keys
    sort: str = "slot"
    chosen: Chosen | None = None
    notice: str = ""
    problem: str = ""


def lines(before: Look | None, look: Look, view: View) -> list[Line]:
    """Return the lines of the screen, no wider and no more than fit."""
    span = Span(before, look)
    top = [*_header(look, span), *_listeners(look), *_kept(look), *_alerts(look, view), Line("")]
    foot = _foot(look, view) if view.height is not None else []
    room = None if view.height is None else max(0, view.height - len(top) - len(foot))
    body = _metrics(look, span, view) if look.workers is None else _workers(look, before, span, view, room)
    found = [*top, *body[:room]]
    if view.height is not None:
        found = [*found[: view.height - len(foot)], *foot][: view.height]
    return [Line(printable(line.text)[: view.width], line.style) for line in found]


# The header.


def _header(look: Look, span: Span) -> list[Line]:
    status = look.status
    low, high = span.quantiles("duration", 0.5, 0.99)
    share = f" ({100 * status['lanes_busy'] / max(1, status['lanes']):.0f}%)" if status["lanes"] else ""
    queue = "-" if status["queue_length"] is None else f"{status['queue_length']} of {status['queue_limit']}"
    saturated = span.saturated()
    return [
        Line(_joined(
            status["name"], status["phase"], _with("generation", status["generation"]),
            _with("up", status["uptime_s"], duration), _with("pid", status["pid"]), _reload(status)), "bold"),
        Line(_joined(
            f"rate {_rate(span.accepted())}", f"p50 {duration(low)}", f"p99 {duration(high)}",
            f"lanes {status['lanes_busy']} of {status['lanes']}{share}", f"queue {queue}")),
        Line(_joined(
            None if saturated is None else f"saturated {100 * saturated:.0f}%", f"failed {_rate(span.failed())}",
            None if status["workers"] is None else f"workers {states(status)}")),
    ]  # fmt: skip


def _listeners(look: Look) -> list[Line]:
    """Return a line that names the listeners, with the clients that wait at each, where there are several."""
    found = look.status.get("listeners") or []
    named = (f"{each['address']} {each['queue_length'] or ''}".rstrip() for each in found)
    return [Line("at " + ", ".join(named))] if len(found) > 1 else []


def _kept(look: Look) -> list[Line]:
    """Return a line of the kept connections, where there are any."""
    found = connections_text(look.status)
    return [] if found is None else [Line(f"connections {found}")]


def _joined(*parts: str | None) -> str:
    return "  ".join(part for part in parts if part)


def _with(word: str, value: Any, text: Callable[[Any], str] = str) -> str | None:
    return None if value is None else f"{word} {text(value)}"


def _rate(each_second: float) -> str:
    return f"{each_second:.0f}/s" if each_second >= 100 else f"{each_second:.1f}/s"


def _reload(status: dict[str, Any]) -> str | None:
    if status["reloading"]:
        return "reloading"
    if status.get("last_reload_ok"):
        return f"reloaded {duration(status['last_reload_ago_s'])} ago"
    return None


def _alerts(look: Look, view: View) -> list[Line]:
    status = look.status
    found = []
    if view.problem:
        found.append(view.problem)
    if status["degraded"]:
        found.append(f"DEGRADED: {status['degraded']}")
    if status.get("last_reload_ok") is False:
        found.append(f"the last reload FAILED, {duration(status['last_reload_ago_s'])} ago")
    if status.get("hangs"):
        found.append("the master does not turn")
    if status["backing_off"]:
        found.append(f"BACK-OFF: workers die at boot{': ' if status['last_error'] else ''}{status['last_error'] or ''}")
    return [line for text in found for line in _filled(text, view.width, "bold red")]


def _filled(text: str, width: int, style: str) -> list[Line]:
    """Wrap a sentence into as many lines as needed, within reason."""
    return [Line(part, style) for part in textwrap.wrap(printable(text), width)[:SENTENCE_LINES]]


def _foot(look: Look, view: View) -> list[Line]:
    keys = KEYS_READ_ONLY if look.workers is None else f"by {view.sort}  {KEYS}"
    return [*_filled(view.notice, view.width, "bold"), Line(keys, "dim")]


# A row per worker.


def ordered(before: Look | None, look: Look, sort: str) -> list[WorkerRow]:
    """Sort workers by a column, highest value first, or by slot, lowest first."""
    cpu = _cpu_shares(before, look)
    by: dict[str, Callable[[WorkerRow], float]] = {
        "slot": lambda w: 0,
        "request": lambda w: -(w["request_age_s"] or 0),
        "requests": lambda w: -w["requests"],
        "cpu": lambda w: -(cpu.get(_chosen(w), 0.0) if cpu else w["cpu_s"] or 0),
        "memory": lambda w: -(w["private_memory_bytes"] or w["rss_bytes"] or 0),
    }
    return sorted(look.workers or [], key=lambda w: (by[sort](w), w["slot"], w["pid"]))


def _chosen(worker: WorkerRow) -> Chosen:
    return worker["slot"], worker["pid"]


def _cpu_shares(before: Look | None, look: Look) -> dict[Chosen, float]:
    """Return each worker's share of one CPU since the look before; for a new worker, since its start."""
    if before is None:
        return {}
    then = {_chosen(w): w["cpu_s"] or 0.0 for w in before.workers or []}
    seconds = max(0.001, look.at - before.at)
    return {
        _chosen(w): max(0.0, w["cpu_s"] - then.get(_chosen(w), 0.0)) / seconds
        for w in look.workers or []
        if w["cpu_s"] is not None
    }


def _workers(look: Look, before: Look | None, span: Span, view: View, room: int | None) -> list[Line]:
    workers = ordered(before, look, view.sort)
    head, *rows = fitted(workers, _cpu_shares(before, look), view.width)
    tables = companion_table(look.status.get("companions", ())), holder_table(look.status.get("holders"))
    others = [Line(text) for each in tables if each for text in ["", *each]][1:]
    if others and room is not None:
        others = others[: max(0, room - min(len(rows) + 1, room // 2) - 1)]
        room -= len(others) + 1 if others else 0
    found = [Line(text, "reverse" if _chosen(w) == view.chosen else "") for w, text in zip(workers, rows, strict=True)]
    if room is not None and len(found) > room - 1:
        found = _window(found, max(1, room - 2))
    return [Line(head, "bold"), *found, *([Line(""), *others] if others else [])]


def _window(rows: Sequence[Line], size: int) -> list[Line]:
    """Return the rows around the chosen one, and a line that numbers them."""
    at = next((number for number, row in enumerate(rows) if row.style), 0)
    first = max(0, min(at - size // 2, len(rows) - size))
    shown = rows[first : first + size]
    return [*shown, Line(f"workers {first + 1} to {first + len(shown)} of {len(rows)}", "dim")]


# The table of metrics.


def _metrics(look: Look, span: Span, view: View) -> list[Line]:
    status, requests, connections = look.status, look.status["requests"], look.status.get("connections")
    low, high = span.quantiles("queue_wait", 0.5, 0.99)
    pairs = (
        ("oldest request", duration(status["oldest_request_s"]) if status["lanes_busy"] else "-"),
        ("queue wait", status["queue_wait"] and f"p50 {duration(low)}, p99 {duration(high)}"),
        ("datagrams", None if status["datagram_bytes"] is None
            else f"{status['datagram_bytes']} bytes queued, {status['datagram_drops']} dropped by the kernel"),
        ("requests", f"{requests['accepted']} accepted, {requests['ok']} ok, {requests['rejected']} rejected"),
        ("", ", ".join(f"{requests[outcome]} {outcome}" for outcome in ("error", "timeout", "lost"))),
        ("connections", connections and f"{connections['opened']} opened, ended: {closed_text(connections)}"),
        ("exits", exits(status)),
        ("cpu", None if status["cpu_user_s"] is None  # no rate: workers report it every ten seconds
            else f"{duration(status['cpu_user_s'])} user, {duration(status['cpu_system_s'])} system"),
        ("memory", None if status["memory_sum_bytes"] is None
            else f"{size(status['memory_sum_bytes'])}, the largest worker {size(status['memory_max_bytes'])}"),
        ("descriptors", None if status["open_fds_max"] is None
            else f"at most {status['open_fds_max']} of {status['fds_limit']} in a worker"),
        ("companions", status.get("companions") and companion_states(status["companions"])),
        ("reloads", None if status["reloads_ok"] is None
            else f"{status['reloads_ok']} ok, {status['reloads_failed']} failed"),
        ("serving with", f"prefork {status['prefork']}, Python {status['python']}"),
    )  # fmt: skip
    found = [Line(f"{word:16}{text}".rstrip()) for word, text in pairs if text]
    return [*found, Line(""), Line(READ_ONLY, "dim")]
