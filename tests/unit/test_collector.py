"""The collector: from a snapshot to families. Every name the service can know, its type, its labels, and when it is
absent; the arithmetic of each against numbers put in by hand."""

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics

from prefork.metrics.application.sums import Merged
from prefork.metrics.board import (
    BOOT,
    EXITS,
    FORK_FAILURES,
    KEEPS,
    LISTENER_LOST,
    LISTENER_TIMED_OUT,
    LOOP_DELAY,
    QUEUE_LENGTH_MAX,
    SIGNAL_DEATHS,
    TLS_EXPIRES_AT_S,
    Board,
    Live,
    Snapshot,
    Word,
    control_requests,
    listener_word,
)
from prefork.metrics.collector import METRIC_TABLE, Namespace, Queue, Scrape, families
from prefork.metrics.companions import CompanionCounts
from prefork.metrics.connections import Whereabouts
from prefork.metrics.facts import (
    AcceptError,
    ChildKind,
    CloseReason,
    Condition,
    ControlCommand,
    ControlResult,
    ExitReason,
    ForkFailure,
)
from prefork.metrics.scoreboard import (
    ACCEPTED,
    CLOSED,
    COMPLETED,
    COUNTS,
    DURATION,
    FAILED,
    MOVES,
    OPENED,
    QUEUE_WAIT,
    REJECTED,
    Report,
)

S = 1_000_000_000
NOW_NS = 1_000 * S
LISTENER = "127.0.0.1:9999"

# name, type, labels: what dashboards and alerts are written against.
NAMES = """
prefork_build_info gauge version python
prefork_start_time_seconds gauge
prefork_generation gauge
prefork_workers gauge state
prefork_workers_min gauge
prefork_workers_max gauge
prefork_lanes gauge
prefork_lanes_busy gauge
prefork_saturated_seconds_total counter
prefork_listen_queue_length gauge listener
prefork_listen_queue_limit gauge listener
prefork_listen_queue_length_max gauge listener
prefork_netns_listen_overflows_total counter
prefork_netns_listen_drops_total counter
prefork_datagram_receive_drops_total counter listener
prefork_datagram_queue_bytes gauge listener
prefork_datagrams_truncated_total counter listener
prefork_connections_accepted_total counter listener
prefork_tls_certificate_expiry_timestamp_seconds gauge listener
prefork_connections_rejected_total counter listener reason
prefork_connections gauge listener state
prefork_connections_opened_total counter listener
prefork_connections_closed_total counter listener reason
prefork_connection_moves_total counter listener
prefork_holder_up gauge
prefork_held_connections_limit gauge
prefork_accept_errors_total counter reason
prefork_requests_total counter listener outcome
prefork_request_duration_seconds histogram listener
prefork_queue_wait_seconds histogram listener
prefork_requests_in_flight gauge listener
prefork_oldest_request_age_seconds gauge
prefork_worker_exits_total counter reason
prefork_worker_signal_deaths_total counter signal
prefork_worker_spawns_total counter
prefork_fork_failures_total counter errno
prefork_worker_boot_seconds histogram
prefork_worker_backoff gauge
prefork_companion_up gauge companion
prefork_companion_restarts_total counter companion
prefork_companion_runs_total counter companion outcome
prefork_companion_interval_seconds gauge companion
prefork_companion_last_run_timestamp_seconds gauge companion
prefork_companion_last_run_duration_seconds gauge companion
prefork_reloads_total counter result
prefork_last_reload_successful gauge
prefork_last_reload_timestamp_seconds gauge
prefork_worker_private_memory_bytes gauge agg
prefork_worker_open_fds_max gauge
prefork_worker_fds_limit gauge
prefork_worker_cpu_seconds_total counter mode
prefork_master_loop_delay_seconds histogram
prefork_log_messages_dropped_total counter
prefork_application_series_dropped_total counter
prefork_slot_words_rejected_total counter
prefork_control_requests_total counter command result
"""


def live(
    condition: Condition, *busy_since_ns: int, role: ChildKind = ChildKind.WORKER, memory: int = 0, fds: int = 0
) -> Live:
    report = Report(
        ready=True, due=None, leaving=None, drain_asked=False, replace_asked=False, private_memory=memory, open_fds=fds,
        fds_limit=1024 if fds else 0, cpu_user_ns=S, cpu_system_ns=2 * S, lanes=2, busy_since_ns=busy_since_ns,
        accepted=0, tried_ns=0, busy_at=(0,) * len(busy_since_ns),
    )  # fmt: skip
    return Live(role, condition, report)


def whole_scrape() -> Scrape:
    """A pool with four workers in different states, and a different number in every word."""
    board = Board()
    words, counts = board.snapshot().words, [0] * (COUNTS.stop - COUNTS.start)
    board.forget()
    for word, value in {
        Word.GENERATION: 3,
        Word.STARTED_AT_NS: 17 * S,
        Word.MIN_CHILDREN: 2,
        Word.MAX_CHILDREN: 8,
        Word.BACKING_OFF: 1,
        listener_word(0, QUEUE_LENGTH_MAX): 90,
        listener_word(0, LISTENER_LOST): 5,
        listener_word(0, LISTENER_TIMED_OUT): 6,
        Word.SPAWNED: 40,
        Word.LOST: 5,
        Word.TIMED_OUT: 6,
        Word.SATURATED_NS: 7 * S // 2,
        Word.CPU_USER_NS: 10 * S,
        Word.CPU_SYSTEM_NS: 20 * S,
        Word.LOG_DROPPED: 9,
        Word.RELOADS_OK: 11,
        Word.RELOADS_FAILED: 12,
        Word.LAST_RELOAD_OK: 1,
        Word.LAST_RELOAD_AT_NS: 99 * S,
        Word.LOGS_COUNTED: 1,
        Word.CONTROL_OPEN: 1,
        listener_word(0, TLS_EXPIRES_AT_S): 1_800_000_000,
        listener_word(0, KEEPS): 1,
        Word.DATAGRAMS_TRUNCATED: 35,
        EXITS + ExitReason.CRASHED: 13,
        SIGNAL_DEATHS + 6: 14,
        FORK_FAILURES + ForkFailure.EAGAIN: 15,
        control_requests(ControlCommand.RELOAD, ControlResult.DENIED): 16,
    }.items():
        words[word] = value
    kept = {OPENED: 400, MOVES: 170, **{CLOSED + reason: 10 + reason for reason in CloseReason}}
    for word, value in {ACCEPTED: 100, COMPLETED: 70, FAILED: 20, REJECTED: 3, **kept}.items():
        counts[word - COUNTS.start] = value
    for histogram, into, start in ((DURATION, counts, COUNTS.start), (QUEUE_WAIT, counts, COUNTS.start),
                                   (BOOT, words, 0), (LOOP_DELAY, words, 0)):  # fmt: skip
        into[histogram.start - start] = 4  # in the first bucket
        into[histogram.end - 2 - start] = 1  # beyond the last bound
        into[histogram.end - 1 - start] = 5 * S // 2  # the sum
    errors = [0] * len(AcceptError)
    errors[AcceptError.EMFILE] = 21
    children = (
        live(Condition.READY, memory=100, fds=10),
        live(Condition.READY, NOW_NS - 2 * S, NOW_NS - 3 * S, memory=300, fds=30),
        live(Condition.STARTING),
        live(Condition.DRAINING, NOW_NS - 5 * S, memory=200, fds=20),
        live(Condition.STARTING, role=ChildKind.EXPORTER, fds=99),
        live(Condition.READY, NOW_NS - 9 * S, role=ChildKind.HOLDER, fds=98),
    )
    where = {0: Whereabouts(2, 3, 300)}
    snapshot = Snapshot(
        words, counts, errors, 22, children, (), frozenset(), NOW_NS, {0: counts}, where, 36
    )  # fmt: skip
    return Scrape(snapshot, NAMESPACE, "1.2.3", ((LISTENER, 0, QUEUE),), True, Merged({}, 23, 24), COMPANIONS)


QUEUE, NAMESPACE = Queue(30, 1024, 31, 32, datagrams=True), Namespace(33, 34)
COMPANIONS = (
    CompanionCounts("indexer", None, False, 51, *[0] * 9),
    CompanionCounts("tidy", 60.0, True, 52, 53, 54, 55 * S, 11 * S // 2, 57, 58, 59, 60, 61),
)


@pytest.fixture
def scrape() -> Scrape:
    return whole_scrape()


class _Once:
    def __init__(self, scrape: Scrape) -> None:
        self._scrape = scrape

    def collect(self) -> Iterator[object]:
        return families(self._scrape)


def registry(scrape: Scrape) -> CollectorRegistry:
    found = CollectorRegistry(auto_describe=False)
    found.register(_Once(scrape))  # type: ignore[arg-type]
    return found


def samples(scrape: Scrape) -> dict[str, float]:
    lines = generate_latest(registry(scrape)).decode().splitlines()
    pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs}


def names(scrape: Scrape) -> set[str]:
    return {family.name for family in families(scrape)}


def test_every_name() -> None:
    """The table has every name with its type and labels, and no other."""
    written = {
        " ".join((row.name + ("_total" if row.kind == "counter" else ""), row.kind, *row.labels))
        for row in METRIC_TABLE
    }
    assert written == set(NAMES.strip().splitlines())
    assert len(METRIC_TABLE) == len(written)


def test_rules_of_names() -> None:
    """One prefix, base units, no `_total` twice, no label that could have values without end, a sentence as help."""
    for row in METRIC_TABLE:
        assert re.fullmatch(r"prefork_[a-z_]+", row.name)
        assert not row.name.endswith(("_total", "_ms", "_milliseconds", "_kilobytes"))
        assert not {"pid", "client", "address", "path", "slot"} & set(row.labels)
        assert row.help[0].isupper() or row.help.startswith(("min_children", "max_children"))
        assert row.help.endswith(".")


def test_values(scrape: Scrape) -> None:
    """Each number comes out where it belongs, in base units."""
    found = samples(scrape)
    expected = f"""
    prefork_start_time_seconds 17
    prefork_generation 3
    prefork_workers{{state="starting"}} 1
    prefork_workers{{state="idle"}} 1
    prefork_workers{{state="busy"}} 1
    prefork_workers{{state="draining"}} 1
    prefork_workers_min 2
    prefork_workers_max 8
    prefork_lanes 6
    prefork_lanes_busy 3
    prefork_saturated_seconds_total 3.5
    prefork_listen_queue_length{{listener="{LISTENER}"}} 30
    prefork_listen_queue_limit{{listener="{LISTENER}"}} 1024
    prefork_listen_queue_length_max{{listener="{LISTENER}"}} 90
    prefork_datagram_queue_bytes{{listener="{LISTENER}"}} 31
    prefork_datagram_receive_drops_total{{listener="{LISTENER}"}} 32
    prefork_datagrams_truncated_total{{listener="{LISTENER}"}} 35
    prefork_netns_listen_overflows_total 33
    prefork_netns_listen_drops_total 34
    prefork_connections_accepted_total{{listener="{LISTENER}"}} 100
    prefork_connections_rejected_total{{listener="{LISTENER}",reason="verify"}} 3
    prefork_tls_certificate_expiry_timestamp_seconds{{listener="{LISTENER}"}} 1800000000
    prefork_connections{{listener="{LISTENER}",state="active"}} 2
    prefork_connections{{listener="{LISTENER}",state="lingering"}} 3
    prefork_connections{{listener="{LISTENER}",state="held"}} 300
    prefork_connections{{listener="{LISTENER}",state="queued"}} 20
    prefork_connections_opened_total{{listener="{LISTENER}"}} 400
    prefork_connections_closed_total{{listener="{LISTENER}",reason="client"}} 10
    prefork_connections_closed_total{{listener="{LISTENER}",reason="handler"}} 11
    prefork_connections_closed_total{{listener="{LISTENER}",reason="idle_timeout"}} 12
    prefork_connections_closed_total{{listener="{LISTENER}",reason="evicted"}} 13
    prefork_connections_closed_total{{listener="{LISTENER}",reason="drained"}} 14
    prefork_connections_closed_total{{listener="{LISTENER}",reason="lost"}} 15
    prefork_connection_moves_total{{listener="{LISTENER}"}} 170
    prefork_holder_up 1
    prefork_held_connections_limit 36
    prefork_accept_errors_total{{reason="emfile"}} 21
    prefork_accept_errors_total{{reason="other"}} 0
    prefork_requests_total{{listener="{LISTENER}",outcome="ok"}} 70
    prefork_requests_total{{listener="{LISTENER}",outcome="error"}} 20
    prefork_requests_total{{listener="{LISTENER}",outcome="timeout"}} 6
    prefork_requests_total{{listener="{LISTENER}",outcome="lost"}} 5
    prefork_requests_in_flight{{listener="{LISTENER}"}} 3
    prefork_oldest_request_age_seconds 5
    prefork_worker_exits_total{{reason="crashed"}} 13
    prefork_worker_exits_total{{reason="drained"}} 0
    prefork_worker_signal_deaths_total{{signal="SIGABRT"}} 14
    prefork_worker_signal_deaths_total{{signal="SIGSEGV"}} 0
    prefork_worker_spawns_total 40
    prefork_fork_failures_total{{errno="EAGAIN"}} 15
    prefork_worker_backoff 1
    prefork_companion_up{{companion="indexer"}} 0
    prefork_companion_up{{companion="tidy"}} 1
    prefork_companion_restarts_total{{companion="indexer"}} 51
    prefork_companion_runs_total{{companion="tidy",outcome="ok"}} 53
    prefork_companion_runs_total{{companion="tidy",outcome="error"}} 54
    prefork_companion_runs_total{{companion="tidy",outcome="timeout"}} 60
    prefork_companion_runs_total{{companion="tidy",outcome="lost"}} 61
    prefork_companion_interval_seconds{{companion="tidy"}} 60
    prefork_companion_last_run_timestamp_seconds{{companion="tidy"}} 55
    prefork_companion_last_run_duration_seconds{{companion="tidy"}} 5.5
    prefork_reloads_total{{result="ok"}} 11
    prefork_reloads_total{{result="failed"}} 12
    prefork_last_reload_successful 1
    prefork_last_reload_timestamp_seconds 99
    prefork_worker_private_memory_bytes{{agg="sum"}} 600
    prefork_worker_private_memory_bytes{{agg="max"}} 300
    prefork_worker_open_fds_max 30
    prefork_worker_fds_limit 1024
    prefork_worker_cpu_seconds_total{{mode="user"}} 16
    prefork_worker_cpu_seconds_total{{mode="system"}} 32
    prefork_log_messages_dropped_total 9
    prefork_control_requests_total{{command="reload",result="denied"}} 16
    prefork_control_requests_total{{command="other",result="bad"}} 0
    prefork_application_series_dropped_total 23
    prefork_slot_words_rejected_total 46
    """
    for line in expected.split("\n")[1:-1]:
        name, _, value = line.strip().rpartition(" ")
        assert found[name] == float(value), name
    assert not [name for name in found if 'companion="indexer"' in name and re.search("run|interval", name)]


@pytest.mark.parametrize(("name", "labels", "first"), [
    ("prefork_request_duration_seconds", f',listener="{LISTENER}"', "0.0005"),
    ("prefork_queue_wait_seconds", f',listener="{LISTENER}"', "0.01"),
    ("prefork_worker_boot_seconds", "", "0.005"),
    ("prefork_master_loop_delay_seconds", "", "0.001"),
])  # fmt: skip
def test_histograms_are_cumulative(scrape: Scrape, name: str, labels: str, first: str) -> None:
    """Buckets count everything below their bound; the last is the count; the sum is in seconds."""
    found = samples(scrape)
    buckets = [value for sample, value in found.items() if sample.startswith(name + "_bucket")]
    assert buckets == sorted(buckets)
    assert found[f'{name}_bucket{{le="{first}"{labels}}}'] == 4
    assert found[f'{name}_bucket{{le="+Inf"{labels}}}'] == 5
    bare = "{" + labels.lstrip(",") + "}" if labels else ""
    assert (found[f"{name}_count{bare}"], found[f"{name}_sum{bare}"]) == (5, 2.5)


def test_queue_seen_now_is_a_maximum_too(scrape: Scrape) -> None:
    """The longest queue is never shorter than the one of this scrape."""
    longer = replace(scrape, listeners=((LISTENER, 0, replace(QUEUE, length=91)),))
    assert samples(longer)[f'prefork_listen_queue_length_max{{listener="{LISTENER}"}}'] == 91


def test_what_the_kernel_does_not_tell_is_absent(scrape: Scrape) -> None:
    """Without a figure of the kernel's there is no sample, not a zero; everything else is there."""
    kernel = {name for name in names(scrape) if re.match("prefork_(listen|netns|datagrams?)_", name)}
    assert len(kernel) == 8
    assert names(scrape) - names(replace(scrape, listeners=((LISTENER, 0, Queue()),), namespace=Namespace())) == kernel


def test_without_a_pool(scrape: Scrape) -> None:
    """A server without a master has nothing of a pool, and all the rest."""
    pool = names(scrape) - names(replace(scrape, pool=False))
    assert pool == {
        "prefork_generation", "prefork_workers", "prefork_workers_min", "prefork_workers_max",
        "prefork_saturated_seconds", "prefork_worker_exits", "prefork_worker_boot_seconds", "prefork_worker_backoff",
        "prefork_master_loop_delay_seconds", "prefork_reloads", "prefork_last_reload_successful",
        "prefork_last_reload_timestamp_seconds", "prefork_datagrams_truncated",
    }  # fmt: skip


@pytest.mark.parametrize(("word", "absent"), [
    (Word.LOGS_COUNTED, {"prefork_log_messages_dropped"}),
    (listener_word(0, TLS_EXPIRES_AT_S), {"prefork_tls_certificate_expiry_timestamp_seconds"}),
    (Word.CONTROL_OPEN, {"prefork_control_requests"}),
    (Word.LAST_RELOAD_AT_NS, {"prefork_last_reload_successful", "prefork_last_reload_timestamp_seconds"}),
])  # fmt: skip
def test_feature_that_is_off_is_absent(scrape: Scrape, word: int, absent: set[str]) -> None:
    """What a service does not have gives no sample."""
    before = names(scrape)
    scrape.snapshot.words[word] = 0
    assert before - names(scrape) == absent


OF_KEPT = {
    "prefork_connections", "prefork_connections_opened", "prefork_connections_closed", "prefork_connection_moves",
    "prefork_holder_up", "prefork_held_connections_limit",
}  # fmt: skip
OF_HOLDER = {"prefork_holder_up", "prefork_held_connections_limit"}


def test_where_no_connection_is_kept(scrape: Scrape) -> None:
    """Nothing is said of kept connections, unless some were: their totals go on when they are kept no more. Nothing of
    a holder then."""
    keeps, opened = listener_word(0, KEEPS), scrape.snapshot.by_listener[0]
    for said, opened_now, told in ((0, 1, OF_KEPT - OF_HOLDER), (0, 0, set()), (1, 0, OF_KEPT)):
        scrape.snapshot.words[keeps], opened[OPENED - COUNTS.start] = said, opened_now
        assert names(scrape) & OF_KEPT == told


def test_connections_of_each_listener(scrape: Scrape) -> None:
    """Each has its own, and one whose connections are not kept has none."""
    two = replace(scrape, listeners=((LISTENER, 0, QUEUE), ("other", 1, Queue())))
    kept = re.compile(r'prefork_connection(s|s_opened_total|s_closed_total|_moves_total){listener="other"')
    assert not list(filter(kept.match, samples(two)))
    two.snapshot.words[listener_word(1, KEEPS)] = 1
    found = samples(two)
    assert len(list(filter(kept.match, found))) == 4 + 1 + len(CloseReason) + 1
    assert found['prefork_connections{listener="other",state="held"}'] == 0
    assert found['prefork_connections_closed_total{listener="other",reason="lost"}'] == 0
    assert found[f'prefork_connections{{listener="{LISTENER}",state="held"}}'] == 300


def test_without_a_holder(scrape: Scrape) -> None:
    """That there is none is 0; of its limit nothing is known then."""
    workers = tuple(live for live in scrape.snapshot.live if live.role is not ChildKind.HOLDER)
    bare = replace(scrape, snapshot=scrape.snapshot._replace(live=workers, held_most=0))
    assert samples(bare)["prefork_holder_up"] == 0
    assert names(scrape) - names(bare) == {"prefork_held_connections_limit"}


def test_more_is_seen_than_was_opened(scrape: Scrape) -> None:
    """A connection that changes hands between two looks is seen twice: none is queued, and not fewer than none."""
    seen = scrape.snapshot._replace(whereabouts={0: Whereabouts(0, 0, 999)})
    assert samples(replace(scrape, snapshot=seen))[f'prefork_connections{{listener="{LISTENER}",state="queued"}}'] == 0


def test_no_worker_has_sampled_itself(scrape: Scrape) -> None:
    """Before the first sample memory and descriptors are absent."""
    bare = replace(scrape, snapshot=scrape.snapshot._replace(live=()))
    assert names(scrape) - names(bare) == {
        "prefork_worker_private_memory_bytes", "prefork_worker_open_fds_max", "prefork_worker_fds_limit",
    }  # fmt: skip
    assert samples(bare)["prefork_oldest_request_age_seconds"] == 0


def test_pure(scrape: Scrape) -> None:
    """The same scrape twice gives the same text."""
    assert generate_latest(registry(scrape)) == generate_latest(registry(scrape))


def test_statistics_are_of_the_same_snapshot(scrape: Scrape) -> None:
    """`statistics()` and the families say the same of one snapshot."""
    statistics, found = scrape.snapshot.statistics(), samples(scrape)
    listener = f'listener="{LISTENER}"'
    assert statistics.accepted == found[f"prefork_connections_accepted_total{{{listener}}}"]
    assert statistics.in_flight == found[f"prefork_requests_in_flight{{{listener}}}"]
    assert statistics.lanes == found["prefork_lanes"]
    assert statistics.workers == {
        state: found[f'prefork_workers{{state="{state}"}}'] for state in ("starting", "idle", "busy", "draining")
    }
    for field, outcome in (("completed", "ok"), ("failed", "error"), ("timed_out", "timeout"), ("lost", "lost")):
        assert getattr(statistics, field) == found[f'prefork_requests_total{{{listener},outcome="{outcome}"}}']


def test_openmetrics_too(scrape: Scrape) -> None:
    """The stricter format takes every family."""
    text = openmetrics(registry(scrape)).decode()  # type: ignore[no-untyped-call]
    assert text.endswith("# EOF\n")
    assert text.count("# TYPE ") == len(METRIC_TABLE)
