"""From the text of /metrics to what `prefork top` shows."""

import pytest

from prefork.top.rates import Look
from prefork.top.scrape import NotOurs, status_of
from prefork.top.screen import View, lines

PLAIN = """\
# HELP prefork_build_info Identity; always 1.
# TYPE prefork_build_info gauge
prefork_build_info{version="1.2.3",python="3.12.1"} 1.0
# TYPE prefork_start_time_seconds gauge
prefork_start_time_seconds 1000.0
# TYPE prefork_lanes gauge
prefork_lanes 4.0
# TYPE prefork_lanes_busy gauge
prefork_lanes_busy 1.0
# TYPE prefork_connections_accepted_total counter
prefork_connections_accepted_total{listener="127.0.0.1:9999"} 60.0
# TYPE prefork_requests_total counter
prefork_requests_total{listener="127.0.0.1:9999",outcome="ok"} 50.0
prefork_requests_total{listener="127.0.0.1:9999",outcome="error"} 7.0
prefork_requests_total{listener="127.0.0.1:9999",outcome="lost"} 2.0
# TYPE prefork_request_duration_seconds histogram
prefork_request_duration_seconds_bucket{le="0.1",listener="127.0.0.1:9999"} 10.0
prefork_request_duration_seconds_bucket{le="1",listener="127.0.0.1:9999"} 30.0
prefork_request_duration_seconds_bucket{le="+Inf",listener="127.0.0.1:9999"} 31.0
prefork_request_duration_seconds_count{listener="127.0.0.1:9999"} 31.0
prefork_request_duration_seconds_sum{listener="127.0.0.1:9999"} 12.0
"""
POOL = """\
# TYPE prefork_generation gauge
prefork_generation 3.0
# TYPE prefork_workers gauge
prefork_workers{state="starting"} 0.0
prefork_workers{state="idle"} 3.0
prefork_workers{state="busy"} 1.0
prefork_workers{state="draining"} 2.0
# TYPE prefork_workers_min gauge
prefork_workers_min 2.0
# TYPE prefork_workers_max gauge
prefork_workers_max 8.0
# TYPE prefork_worker_exits_total counter
prefork_worker_exits_total{reason="crashed"} 0.0
prefork_worker_exits_total{reason="max_requests"} 4.0
# TYPE prefork_reloads_total counter
prefork_reloads_total{result="ok"} 1.0
prefork_reloads_total{result="failed"} 1.0
# TYPE prefork_last_reload_successful gauge
prefork_last_reload_successful 0.0
# TYPE prefork_last_reload_timestamp_seconds gauge
prefork_last_reload_timestamp_seconds 1080.0
# TYPE prefork_worker_backoff gauge
prefork_worker_backoff 0.0
# TYPE prefork_saturated_seconds_total counter
prefork_saturated_seconds_total 25.0
"""


KEPT = """\
# TYPE prefork_connections gauge
prefork_connections{listener="127.0.0.1:9999",state="active"} 2.0
prefork_connections{listener="127.0.0.1:9999",state="lingering"} 1.0
prefork_connections{listener="127.0.0.1:9999",state="held"} 40.0
prefork_connections{listener="127.0.0.1:9998",state="held"} 2.0
prefork_connections{listener="127.0.0.1:9999",state="queued"} 0.0
# TYPE prefork_connections_opened_total counter
prefork_connections_opened_total{listener="127.0.0.1:9999"} 60.0
# TYPE prefork_connections_closed_total counter
prefork_connections_closed_total{listener="127.0.0.1:9999",reason="client"} 15.0
prefork_connections_closed_total{listener="127.0.0.1:9999",reason="lost"} 0.0
# TYPE prefork_connection_moves_total counter
prefork_connection_moves_total{listener="127.0.0.1:9999"} 9.0
# TYPE prefork_holder_up gauge
prefork_holder_up 1.0
# TYPE prefork_held_connections_limit gauge
prefork_held_connections_limit 1000.0
"""


def shown(text: str) -> str:
    return "\n".join(line.text for line in lines(None, Look(0.0, status_of(text, 1100.0), None), View(80)))


def test_a_pool() -> None:
    """Header, workers by state, the last reload, and one sentence about what is not there."""
    found = shown(PLAIN + POOL)
    assert "127.0.0.1:9999  generation 3  up 1m40s" in found
    assert "rate 0.6/s  p50 348ms  p99 1.0s  lanes 1 of 4 (25%)  queue -" in found
    assert "saturated 25%  failed 0.1/s  workers 6 (2 to 8): 3 idle, 1 busy, 2 draining" in found
    assert "the last reload FAILED, 20.0s ago" in found
    assert "4 max_requests" in found
    assert "crashed" not in found
    assert "metrics tell of all workers together" in found


def test_a_server_without_a_pool() -> None:
    """A server without a pool has no line for generation, workers, saturation and reloads."""
    found = shown(PLAIN)
    assert "lanes 1 of 4" in found
    assert not any(word in found for word in ("None", "generation", "workers 0", "saturated", "reload"))


def test_kept_connections() -> None:
    """Where they are, of all listeners, and how they have ended; that no holder runs. Where none are kept, nothing."""
    found = shown(PLAIN + POOL + KEPT)
    assert "connections 45 open: 2 active, 1 lingering, 42 held of 1000, 0 queued" in found
    assert "connections     60 opened, ended: 15 client" in found
    alone = KEPT.replace("holder_up 1", "holder_up 0")
    assert "42 held, 0 queued; no holder runs" in shown(PLAIN + POOL + alone)
    assert "held" not in shown(PLAIN + POOL)
    assert status_of(PLAIN + KEPT, 0.0)["connections"]["moves"] == 9


def test_buckets_are_counts_between_bounds() -> None:
    """The samples are cumulative; what is beyond the last bound has none."""
    assert status_of(PLAIN, 0.0)["duration"] == {"at_most_s": [0.1, 1.0], "counts": [10.0, 20.0, 1.0]}


def test_listeners_are_added_up() -> None:
    """Requests and buckets of all listeners count."""
    other = PLAIN.replace("127.0.0.1:9999", "127.0.0.1:9998").partition("# TYPE prefork_connections")[2]
    found = status_of(f"{PLAIN}# TYPE prefork_connections{other}", 0.0)
    assert found["name"] == "127.0.0.1:9999, 127.0.0.1:9998"
    assert found["requests"]["accepted"] == 120
    assert found["duration"]["counts"] == [20.0, 40.0, 2.0]


@pytest.mark.parametrize("text", ["", "<html>no</html>", "# TYPE node_load1 gauge\nnode_load1 0.1\n", "prefork_x{ 1\n"])
def test_not_ours(text: str) -> None:
    """What no exporter of ours serves is told from what one does."""
    with pytest.raises(NotOurs):
        status_of(text, 0.0)


def test_the_programs_own_metrics_are_passed_over() -> None:
    """However many there are, and whatever stands in them."""
    assert status_of(PLAIN + "mine{a=\n" * 3, 0.0)["prefork"] == "1.2.3"
