"""Convert the text of /metrics to a status in the form of control/report.py. Pure.

Runs in `prefork top --url`, so it may import prometheus_client, for its parser only. Values that the exporter does not
serve, for this kind of service or on this kernel, are None.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from ..errors import PreforkError

__all__ = ["NotOurs", "status_of"]

STATES = ("starting", "idle", "busy", "draining")
WHERE = ("active", "lingering", "held", "queued")
OUTCOMES = ("ok", "error", "timeout", "lost")
RUNS_BAD = {"runs_failed": "error", "runs_timed_out": "timeout", "runs_lost": "lost"}
OUR_LINES = ("prefork_", "# TYPE prefork_")  # skips the program's own series, perhaps thousands


class NotOurs(PreforkError):
    """The text was not served by a prefork exporter."""


class _Samples:
    def __init__(self, text: str) -> None:
        lines = [line for line in text.splitlines() if line.startswith(OUR_LINES)]
        self._by_name: dict[str, list[Sample]] = defaultdict(list)
        try:
            for family in text_string_to_metric_families("\n".join(lines) + "\n"):
                for sample in family.samples:
                    self._by_name[sample.name].append(sample)
        except (ValueError, KeyError, IndexError) as exc:
            raise NotOurs(f"what it serves is no Prometheus text ({exc})") from None
        if "prefork_build_info" not in self._by_name:
            raise NotOurs("it is no exporter of a prefork service, there is no prefork_build_info")

    def total(self, name: str, **labels: str) -> float | None:
        """Return the sum of all samples with these labels."""
        values = [s.value for s in self._by_name[name] if labels.items() <= s.labels.items()]
        return sum(values) if values else None

    def whole(self, name: str, **labels: str) -> int | None:
        total = self.total(name, **labels)
        return None if total is None else round(total)

    def labels(self, name: str, label: str) -> list[str]:
        return list(dict.fromkeys(s.labels.get(label, "") for s in self._by_name[name]))

    def histogram(self, name: str) -> dict[str, Any] | None:
        """Return bounds and the counts between them, the last one unbounded. The samples are cumulative."""
        buckets: dict[float, float] = defaultdict(float)
        for sample in self._by_name[f"{name}_bucket"]:
            buckets[float(sample.labels["le"])] += sample.value
        if not buckets:
            return None
        bounds = sorted(buckets)
        counts = [buckets[b] - (buckets[bounds[i - 1]] if i else 0.0) for i, b in enumerate(bounds)]
        return {"at_most_s": bounds[:-1], "counts": counts}


def status_of(text: str, now: float) -> dict[str, Any]:
    """Return the status. `now` is the time by the exporter's wall clock. Raises NotOurs."""
    found = _Samples(text)
    started = found.total("prefork_start_time_seconds")
    (prefork,), (python,) = (found.labels("prefork_build_info", label)[:1] for label in ("version", "python"))
    backing_off = found.total("prefork_worker_backoff")
    return {
        "name": ", ".join(found.labels("prefork_connections_accepted_total", "listener")) or "-",
        "pid": None, "phase": None, "prefork": prefork, "python": python,
        "generation": found.whole("prefork_generation"), "reloading": False, "degraded": None,
        "uptime_s": None if started is None else max(0.0, now - started),
        "min_children": found.whole("prefork_workers_min"), "max_children": found.whole("prefork_workers_max"),
        "workers": _counts((state, found.whole("prefork_workers", state=state)) for state in STATES),
        "backing_off": bool(backing_off), "last_error": None,
        "lanes": found.whole("prefork_lanes"), "lanes_busy": found.whole("prefork_lanes_busy"),
        "saturated_s": found.total("prefork_saturated_seconds_total"),
        "queue_length": found.whole("prefork_listen_queue_length"),
        "queue_limit": found.whole("prefork_listen_queue_limit"),
        "requests": _requests(found), "duration": found.histogram("prefork_request_duration_seconds"),
        "exits": _exits(found), "companions": _companions(found),
        "connections": _connections(found), "holders": _holders(found),
        **_only_here(found, now),
    }  # fmt: skip


def _counts(pairs: Iterable[tuple[str, int | None]]) -> dict[str, int] | None:
    return {name: count for name, count in pairs if count is not None} or None


def _requests(found: _Samples) -> dict[str, int]:
    return {
        "accepted": found.whole("prefork_connections_accepted_total") or 0,
        **{outcome: found.whole("prefork_requests_total", outcome=outcome) or 0 for outcome in OUTCOMES},
        "rejected": found.whole("prefork_connections_rejected_total") or 0,
    }


def _exits(found: _Samples) -> dict[str, int]:
    name = "prefork_worker_exits_total"
    counts = {reason: found.whole(name, reason=reason) for reason in found.labels(name, "reason")}
    return {reason: count for reason, count in counts.items() if count}


def _companions(found: _Samples) -> list[dict[str, Any]]:
    """Return what the summary of the companions needs; the rest is only on the control socket."""
    runs = "prefork_companion_runs_total"
    return [
        {
            "name": name, "state": "running" if found.total("prefork_companion_up", companion=name) else "waiting",
            **{key: found.whole(runs, companion=name, outcome=outcome) for key, outcome in RUNS_BAD.items()},
            "next_run_in_s": None,
        }
        for name in found.labels("prefork_companion_up", "companion")
    ]  # fmt: skip


def _connections(found: _Samples) -> dict[str, Any] | None:
    opened, closed = found.whole("prefork_connections_opened_total"), "prefork_connections_closed_total"
    if opened is None:
        return None
    return {
        "opened": opened, **{state: found.whole("prefork_connections", state=state) or 0 for state in WHERE},
        "moves": found.whole("prefork_connection_moves_total") or 0,
        "closed": {reason: found.whole(closed, reason=reason) or 0 for reason in found.labels(closed, "reason")},
    }  # fmt: skip


def _holders(found: _Samples) -> list[dict[str, Any]] | None:
    """Return what the summary of the connections needs; the rest is only on the control socket."""
    runs = found.total("prefork_holder_up")
    if runs is None:
        return None
    return [{"held_limit": found.whole("prefork_held_connections_limit")}] if runs else []


def _only_here(found: _Samples, now: float) -> Mapping[str, Any]:
    """Return the values that the control socket reports per worker, or not at all."""
    reloaded = found.total("prefork_last_reload_timestamp_seconds")
    return {
        "queue_wait": found.histogram("prefork_queue_wait_seconds"),
        "datagram_bytes": found.whole("prefork_datagram_queue_bytes"),
        "datagram_drops": found.whole("prefork_datagram_receive_drops_total"),
        "oldest_request_s": found.total("prefork_oldest_request_age_seconds"),
        "cpu_user_s": found.total("prefork_worker_cpu_seconds_total", mode="user"),
        "cpu_system_s": found.total("prefork_worker_cpu_seconds_total", mode="system"),
        "memory_sum_bytes": found.whole("prefork_worker_private_memory_bytes", agg="sum"),
        "memory_max_bytes": found.whole("prefork_worker_private_memory_bytes", agg="max"),
        "open_fds_max": found.whole("prefork_worker_open_fds_max"),
        "fds_limit": found.whole("prefork_worker_fds_limit"),
        "reloads_ok": found.whole("prefork_reloads_total", result="ok"),
        "reloads_failed": found.whole("prefork_reloads_total", result="failed"),
        "last_reload_ok": None if reloaded is None else bool(found.total("prefork_last_reload_successful")),
        "last_reload_ago_s": None if reloaded is None else max(0.0, now - reloaded),
    }
