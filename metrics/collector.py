"""Turns a snapshot into Prometheus metric families, by one table with a row for each metric. Pure.

Runs in the exporter, the only process that imports prometheus_client. REFERENCE.md is generated from the table. A value
that is absent (the kernel does not tell it, or the service has no such thing) yields no sample, and must never be zero.
Longer than most files: half of it is the table.
"""

import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from .application.sums import Merged
from .board import (
    BOOT,
    FORK_FAILURES,
    LISTENER_LOST,
    LISTENER_TIMED_OUT,
    LOOP_DELAY,
    QUEUE_LENGTH_MAX,
    SIGNAL_DEATHS,
    SIGNALS,
    TLS_EXPIRES_AT_S,
    Live,
    Snapshot,
    Word,
    control_requests,
    exit_word,
)
from .companions import CompanionCounts
from .connections import ConnectionCounts
from .facts import (
    AcceptError,
    ChildKind,
    Condition,
    ControlCommand,
    ControlResult,
    ExitReason,
    ForkFailure,
    Outcome,
    Refusal,
)
from .histogram import NS, Histogram
from .scoreboard import ACCEPTED, COMPLETED, COUNTS, DURATION, FAILED, LOST, QUEUE_WAIT, REJECTED


@dataclass(frozen=True, slots=True)
class Queue:
    """The kernel's figures for a listener at the moment of the scrape; None: absent."""

    length: int | None = None
    limit: int | None = None
    datagram_bytes: int | None = None
    datagram_drops: int | None = None
    datagrams: bool = False  # the listener takes them


@dataclass(frozen=True, slots=True)
class Namespace:
    """The kernel's figures for the network namespace at the moment of the scrape; None: absent."""

    overflows: int | None = None
    drops: int | None = None


@dataclass(frozen=True, slots=True)
class Scrape:
    """Everything that one scrape is made from."""

    snapshot: Snapshot
    namespace: Namespace
    version: str
    listeners: tuple[tuple[str, int, Queue], ...]  # of each: its name, its number, what the kernel tells
    pool: bool  # there is a master, with a pool and timers
    application: Merged  # the user's own metrics, added up
    companions: tuple[CompanionCounts, ...] = ()

    def word(self, word: int) -> int:
        return self.snapshot.words[word]


MetricValue = float | tuple[list[tuple[str, float]], float]  # a number; or a histogram's cumulative buckets and sum
MetricSample = tuple[tuple[str, ...], MetricValue]


@dataclass(frozen=True, slots=True)
class Spec:
    """One metric: its name, its meaning, and the function that gives its samples."""

    name: str
    kind: str  # gauge, counter, histogram
    labels: tuple[str, ...]
    help: str
    samples: Callable[[Scrape], Iterable[MetricSample]]
    alerts: tuple[str, ...]  # alerts of deploy/prometheus that use it; none: it explains what another metric reports


def families(scrape: Scrape) -> Iterator[Metric]:
    """Yield every family of the table that has a sample now."""
    classes = {"gauge": GaugeMetricFamily, "counter": CounterMetricFamily, "histogram": HistogramMetricFamily}
    for row in METRIC_TABLE:
        family = classes[row.kind](row.name, row.help, labels=row.labels)
        for labels, value in row.samples(scrape):
            family.add_metric(list(labels), *(value if isinstance(value, tuple) else (value,)))
        if family.samples:
            yield family


# The sources of samples.


def _one(value: Callable[[Scrape], float | None], pool: bool = False) -> Callable[[Scrape], Iterable[MetricSample]]:
    """Give a single sample without labels; none if the value is absent. `pool`: none if there is no pool, either."""

    def samples(scrape: Scrape) -> Iterator[MetricSample]:
        number = value(scrape) if scrape.pool or not pool else None
        if number is not None:
            yield (), number

    return samples


def _word(word: int, scale: float = 1, pool: bool = False) -> Callable[[Scrape], Iterable[MetricSample]]:
    return _one(lambda scrape: scrape.word(word) / scale if scale != 1 else scrape.word(word), pool)


def _of_listener(value: Callable[[list[int]], MetricValue | None]) -> Callable[[Scrape], Iterable[MetricSample]]:
    """Give a sample for each listener, by the words of the board that are its own."""

    def samples(scrape: Scrape) -> Iterator[MetricSample]:
        for name, number, _ in scrape.listeners:
            found = value(scrape.snapshot.of_listener(number))
            if found is not None:
                yield (name,), found

    return samples


def _of_queues(value: Callable[[Queue], int | None]) -> Callable[[Scrape], Iterable[MetricSample]]:
    def samples(scrape: Scrape) -> Iterator[MetricSample]:
        for name, _, queue in scrape.listeners:
            number = value(queue)
            if number is not None:
                yield (name,), number

    return samples


def _cumulative(histogram: Histogram, words: list[int]) -> MetricValue:
    counts = words[: len(histogram.bounds_ns) + 1]
    bounds = [f"{bound / NS:g}" for bound in histogram.bounds_ns] + ["+Inf"]
    return list(zip(bounds, map(float, accumulate(counts)), strict=True)), words[-1] / NS


def _board_histogram(histogram: Histogram) -> Callable[[Scrape], Iterable[MetricSample]]:
    def samples(scrape: Scrape) -> Iterator[MetricSample]:
        if scrape.pool:
            yield (), _cumulative(histogram, scrape.snapshot.words[histogram.start : histogram.end])

    return samples


def _lane_histogram(histogram: Histogram) -> Callable[[Scrape], Iterable[MetricSample]]:
    start, end = histogram.start - COUNTS.start, histogram.end - COUNTS.start
    return _of_listener(lambda words: _cumulative(histogram, words[start:end]))


def _build_info(scrape: Scrape) -> Iterator[MetricSample]:
    yield (scrape.version, ".".join(map(str, sys.version_info[:3]))), 1


def _workers(scrape: Scrape) -> Iterator[MetricSample]:
    if scrape.pool:
        for state, number in scrape.snapshot.workers().items():
            yield (state,), number


def _outcomes(scrape: Scrape) -> Iterator[MetricSample]:
    for name, number, _ in scrape.listeners:
        words = scrape.snapshot.of_listener(number)
        found = {
            Outcome.OK: words[COMPLETED - COUNTS.start],
            Outcome.ERROR: words[FAILED - COUNTS.start],
            Outcome.TIMEOUT: words[LISTENER_TIMED_OUT],
            Outcome.LOST: words[LISTENER_LOST] + words[LOST - COUNTS.start],
        }
        for outcome, count in found.items():
            yield (name, outcome.label), count


def _rejected(scrape: Scrape) -> Iterator[MetricSample]:
    for name, number, _ in scrape.listeners:
        words = scrape.snapshot.of_listener(number)
        for refusal in Refusal:
            yield (name, refusal.label), words[REJECTED + refusal - COUNTS.start]


def _of_connections(value: Callable[[ConnectionCounts], int]) -> Callable[[Scrape], Iterable[MetricSample]]:
    """Give a sample for each listener whose connections are kept."""

    def samples(scrape: Scrape) -> Iterator[MetricSample]:
        for name, number, _ in scrape.listeners:
            if scrape.snapshot.keeps(number):
                yield (name,), value(scrape.snapshot.connections_of(number))

    return samples


def _by_what(pick: Callable[[ConnectionCounts], dict[str, int]]) -> Callable[[Scrape], Iterable[MetricSample]]:
    """Give a sample for each of these listeners, and each state or reason."""

    def samples(scrape: Scrape) -> Iterator[MetricSample]:
        for name, number, _ in scrape.listeners:
            if scrape.snapshot.keeps(number):
                for what, count in pick(scrape.snapshot.connections_of(number)).items():
                    yield (name, what), count

    return samples


def _of_holder(value: Callable[[Snapshot], int | None]) -> Callable[[Scrape], Iterable[MetricSample]]:
    """Give a single sample where a holder is needed."""
    return _one(
        lambda scrape: value(scrape.snapshot) if any(
            scrape.snapshot.needs_holder(number) for _, number, _ in scrape.listeners
        ) else None
    )  # fmt: skip


def _in_flight(scrape: Scrape) -> Iterator[MetricSample]:
    for name, number, _ in scrape.listeners:
        yield (name,), scrape.snapshot.in_flight(number)


def _exits(scrape: Scrape) -> Iterator[MetricSample]:
    if scrape.pool:
        for reason in ExitReason:
            yield (reason.label,), scrape.word(exit_word(reason))


def _signal_deaths(scrape: Scrape) -> Iterator[MetricSample]:
    for signum in range(1, SIGNALS):
        number = scrape.word(SIGNAL_DEATHS + signum)
        # The usual signals are shown before the first death, so that Prometheus sees it as an increase.
        if number or signum in (signal.SIGSEGV, signal.SIGBUS, signal.SIGKILL):
            name = signal.Signals(signum).name if signum in set(signal.Signals) else f"SIG{signum}"
            yield (name,), number


def _fork_failures(scrape: Scrape) -> Iterator[MetricSample]:
    for failure in ForkFailure:
        yield (failure.name if failure is not ForkFailure.OTHER else "other",), scrape.word(FORK_FAILURES + failure)


def _reloads(scrape: Scrape) -> Iterator[MetricSample]:
    if scrape.pool:
        yield ("ok",), scrape.word(Word.RELOADS_OK)
        yield ("failed",), scrape.word(Word.RELOADS_FAILED)


def _last_reload(word: int, scale: float = 1) -> Callable[[Scrape], Iterable[MetricSample]]:
    """Give a word about the last reload; absent until there has been one."""
    return _one(lambda scrape: scrape.word(word) / scale if scrape.word(Word.LAST_RELOAD_AT_NS) else None, pool=True)


def _control_requests(scrape: Scrape) -> Iterator[MetricSample]:
    for command in ControlCommand if scrape.word(Word.CONTROL_OPEN) else ():
        for result in ControlResult:
            yield (command.label, result.label), scrape.word(control_requests(command, result))


def _accept_errors(scrape: Scrape) -> Iterator[MetricSample]:
    for error in AcceptError:
        yield (error.label,), scrape.snapshot.accept_errors[error]


def _children(scrape: Scrape) -> list[Live]:
    return [live for live in scrape.snapshot.live if live.role is ChildKind.WORKER and live.report.open_fds]


def _private_memory(scrape: Scrape) -> Iterator[MetricSample]:
    sizes = [live.report.private_memory for live in _children(scrape)]
    if sizes:
        yield ("sum",), sum(sizes)
        yield ("max",), max(sizes)


def _cpu(scrape: Scrape) -> Iterator[MetricSample]:
    user = scrape.word(Word.CPU_USER_NS) + sum(live.report.cpu_user_ns for live in scrape.snapshot.live)
    system = scrape.word(Word.CPU_SYSTEM_NS) + sum(live.report.cpu_system_ns for live in scrape.snapshot.live)
    yield ("user",), user / NS
    yield ("system",), system / NS


def _of_companions(value: Callable[[CompanionCounts], float | None]) -> Callable[[Scrape], Iterable[MetricSample]]:
    def samples(scrape: Scrape) -> Iterator[MetricSample]:
        for each in scrape.companions:
            number = value(each)
            if number is not None:
                yield (each.name,), number

    return samples


def _runs(scrape: Scrape) -> Iterator[MetricSample]:
    for each in scrape.companions:
        if each.interval is not None:
            yield (each.name, Outcome.OK.label), each.runs_ok
            yield (each.name, Outcome.ERROR.label), each.runs_failed
            yield (each.name, Outcome.TIMEOUT.label), each.runs_timed_out
            yield (each.name, Outcome.LOST.label), each.runs_lost


def _oldest_age(scrape: Scrape) -> float:
    started = scrape.snapshot.busy_since_ns
    return max(0, scrape.snapshot.now_ns - min(started)) / NS if started else 0.0


def _lanes(scrape: Scrape) -> int:
    return sum(live.report.lanes for live in scrape.snapshot.serving if live.condition is not Condition.DRAINING)


def _most(pick: Callable[[Live], int]) -> Callable[[Scrape], float | None]:
    return lambda scrape: max(map(pick, _children(scrape)), default=None)


def _queue_max(scrape: Scrape) -> Iterator[MetricSample]:
    for name, number, queue in scrape.listeners:
        if queue.length is not None:
            yield (name,), max(queue.length, scrape.snapshot.of_listener(number)[QUEUE_LENGTH_MAX])


def _truncated(scrape: Scrape) -> Iterator[MetricSample]:
    """Give the count of a pool under the names of all listeners for datagrams: it is not kept for each."""
    names = [name for name, _, queue in scrape.listeners if queue.datagrams]
    if scrape.pool and names:
        yield (", ".join(names),), scrape.word(Word.DATAGRAMS_TRUNCATED)


LISTENER = ("listener",)
COMPANION = ("companion",)

METRIC_TABLE = (
    Spec("prefork_build_info", "gauge", ("version", "python"), "Identity; always 1.", _build_info, ()),
    Spec("prefork_start_time_seconds", "gauge", (), "When the master started, as Unix time.",
        _word(Word.STARTED_AT_NS, NS), ()),
    Spec("prefork_generation", "gauge", (), "The generation of workers in service.", _word(Word.GENERATION, pool=True),
        ()),
    Spec("prefork_workers", "gauge", ("state",), "Workers by what they do now.", _workers,
        ("PreforkNoIdleWorker", "PreforkWorkersBelowMinimum")),
    Spec("prefork_workers_min", "gauge", (), "min_children in force.", _word(Word.MIN_CHILDREN, pool=True),
        ("PreforkWorkersBelowMinimum",)),
    Spec("prefork_workers_max", "gauge", (), "max_children in force.", _word(Word.MAX_CHILDREN, pool=True), ()),
    Spec("prefork_lanes", "gauge", (), "Requests that can run at once now.", _one(_lanes),
        ("PreforkNearlyFull", "PreforkNoIdleWorker")),
    Spec("prefork_lanes_busy", "gauge", (), "Requests that run now.",
        _one(lambda scrape: len(scrape.snapshot.busy_since_ns)), ("PreforkNearlyFull", "PreforkNoIdleWorker")),
    Spec("prefork_saturated_seconds", "counter", (), "Time with no idle lane at max_children.",
        _word(Word.SATURATED_NS, NS, pool=True), ("PreforkSaturated",)),
    Spec("prefork_listen_queue_length", "gauge", LISTENER, "Connections the kernel holds for us.",
        _of_queues(lambda queue: queue.length), ("PreforkQueueFilling",)),
    Spec("prefork_listen_queue_limit", "gauge", LISTENER, "Most connections the kernel would hold.",
        _of_queues(lambda queue: queue.limit), ("PreforkQueueFilling",)),
    Spec("prefork_listen_queue_length_max", "gauge", LISTENER, "Longest queue seen since the start.",
        _queue_max, ()),
    Spec("prefork_netns_listen_overflows", "counter", (), "Full accept queues, in the whole network namespace.",
        _one(lambda scrape: scrape.namespace.overflows), ("PreforkListenOverflows",)),
    Spec("prefork_netns_listen_drops", "counter", (), "Connections dropped, in the whole network namespace.",
        _one(lambda scrape: scrape.namespace.drops), ("PreforkListenOverflows",)),
    Spec("prefork_datagram_receive_drops", "counter", LISTENER, "Datagrams the kernel had no room for.",
        _of_queues(lambda queue: queue.datagram_drops), ("PreforkDatagramsDropped",)),
    Spec("prefork_datagram_queue_bytes", "gauge", LISTENER, "Bytes of datagrams the kernel holds for us.",
        _of_queues(lambda queue: queue.datagram_bytes), ()),
    Spec("prefork_datagrams_truncated", "counter", LISTENER, "Datagrams longer than max_packet_size, which were cut.",
        _truncated, ("PreforkDatagramsTruncated",)),
    Spec("prefork_connections_accepted", "counter", LISTENER,
        "Connections and datagrams accepted; where connections are kept, requests that began.",
        _of_listener(lambda words: words[ACCEPTED - COUNTS.start]), ("PreforkNoTraffic",)),
    Spec("prefork_tls_certificate_expiry_timestamp_seconds", "gauge", LISTENER, "When the certificate expires.",
        _of_listener(lambda words: words[TLS_EXPIRES_AT_S] or None), ("PreforkCertificateExpires",)),
    Spec("prefork_connections_rejected", "counter", ("listener", "reason"), "Refused before a handler saw them.",
        _rejected, ("PreforkRejections",)),
    Spec("prefork_connections", "gauge", ("listener", "state"),
        "Kept connections that are open: with a request in hand, in a worker, in the holder, on the way.",
        _by_what(lambda counts: counts.open), ("PreforkHeldNearLimit",)),
    Spec("prefork_connections_opened", "counter", LISTENER, "Connections accepted that may be kept.",
        _of_connections(lambda counts: counts.opened), ()),
    Spec("prefork_connections_closed", "counter", ("listener", "reason"), "How they ended; lost: with a process.",
        _by_what(lambda counts: counts.closed), ("PreforkConnectionsEvicted", "PreforkConnectionsLost")),
    Spec("prefork_connection_moves", "counter", LISTENER, "Times that a worker got one from the holder.",
        _of_connections(lambda counts: counts.moves), ()),
    Spec("prefork_holder_up", "gauge", (), "Whether the process runs that has the idle connections.",
        _of_holder(lambda snapshot: min(1, snapshot.holders)), ("PreforkNoHolder",)),
    Spec("prefork_held_connections_limit", "gauge", (), "Connections that the holder may have.",
        _of_holder(lambda snapshot: snapshot.held_most or None), ("PreforkHeldNearLimit",)),
    Spec("prefork_accept_errors", "counter", ("reason",), "Accepts that failed.", _accept_errors,
        ("PreforkDescriptorsExhausted",)),
    Spec("prefork_requests", "counter", ("listener", "outcome"), "Requests that ended; lost: died with their worker.",
        _outcomes, ("PreforkBadRequests", "PreforkRequestsLost")),
    Spec("prefork_request_duration_seconds", "histogram", LISTENER, "Time from the accept to the end of the handler.",
        _lane_histogram(DURATION), ("PreforkSlowRequests",)),
    Spec("prefork_queue_wait_seconds", "histogram", LISTENER, "Time a connection waited in the kernel's accept queue.",
        _lane_histogram(QUEUE_WAIT), ("PreforkSlowAccept",)),
    Spec("prefork_requests_in_flight", "gauge", LISTENER, "Requests that run now.",
        _in_flight, ()),
    Spec("prefork_oldest_request_age_seconds", "gauge", (), "Age of the oldest request that runs now.",
        _one(_oldest_age), ("PreforkRequestNearTimeout",)),
    Spec("prefork_worker_exits", "counter", ("reason",), "Why workers ended.", _exits, ("PreforkWorkersEndedBadly",)),
    Spec("prefork_worker_signal_deaths", "counter", ("signal",), "Workers ended by a signal.", _signal_deaths,
        ("PreforkWorkersKilled",)),
    Spec("prefork_worker_spawns", "counter", (), "Workers started, and children of requests.", _word(Word.SPAWNED), ()),
    Spec("prefork_fork_failures", "counter", ("errno",), "Forks that the kernel refused.", _fork_failures,
        ("PreforkForkFailures",)),
    Spec("prefork_worker_boot_seconds", "histogram", (), "Time from fork to READY.", _board_histogram(BOOT),
        ("PreforkSlowBoot",)),
    Spec("prefork_worker_backoff", "gauge", (), "Workers that wait in back-off to be started.",
        _word(Word.BACKING_OFF, pool=True), ("PreforkCrashLoop",)),
    Spec("prefork_companion_up", "gauge", COMPANION, "Whether a process of this companion runs.",
        _of_companions(lambda each: each.up), ("PreforkCompanionDown",)),
    Spec("prefork_companion_restarts", "counter", COMPANION, "Ends of it that nobody had asked for.",
        _of_companions(lambda each: each.restarts), ("PreforkCompanionRestarts",)),
    Spec("prefork_companion_runs", "counter", ("companion", "outcome"),
        "Runs of a periodic job that ended; lost: died with its process.", _runs, ("PreforkRunsFailed",)),
    Spec("prefork_companion_interval_seconds", "gauge", COMPANION, "The interval of a periodic job.",
        _of_companions(lambda each: each.interval), ("PreforkRunOverdue",)),
    Spec("prefork_companion_last_run_timestamp_seconds", "gauge", COMPANION, "When its last run ended, as Unix time.",
        _of_companions(lambda each: each.run_ended_at_ns / NS or None), ("PreforkRunOverdue",)),
    Spec("prefork_companion_last_run_duration_seconds", "gauge", COMPANION, "How long its last run took.",
        _of_companions(lambda each: each.run_took_ns / NS if each.run_ended_at_ns else None), ()),
    Spec("prefork_reloads", "counter", ("result",), "Reloads that were asked for.", _reloads, ("PreforkReloadFailed",)),
    Spec("prefork_last_reload_successful", "gauge", (), "Whether the last reload put new code in service.",
        _last_reload(Word.LAST_RELOAD_OK), ("PreforkReloadFailed",)),
    Spec("prefork_last_reload_timestamp_seconds", "gauge", (), "When the last reload ended, as Unix time.",
        _last_reload(Word.LAST_RELOAD_AT_NS, NS), ()),
    Spec("prefork_log_messages_dropped", "counter", (), "Log lines given up so that service goes on.",
        _one(lambda scrape: scrape.word(Word.LOG_DROPPED) if scrape.word(Word.LOGS_COUNTED) else None),
        ("PreforkLogDropped",)),
    Spec("prefork_control_requests", "counter", ("command", "result"), "Requests on the control socket.",
        _control_requests, ("PreforkControlDenied",)),
    Spec("prefork_worker_private_memory_bytes", "gauge", ("agg",), "Memory of the workers' own, shared with nobody.",
        _private_memory, ("PreforkMemoryNearLimit",)),
    Spec("prefork_worker_open_fds_max", "gauge", (), "Most descriptors open in one worker.",
        _one(_most(lambda live: live.report.open_fds)), ("PreforkDescriptorsShort",)),
    Spec("prefork_worker_fds_limit", "gauge", (), "Descriptors a worker may open.",
        _one(_most(lambda live: live.report.fds_limit)), ("PreforkDescriptorsShort",)),
    Spec("prefork_worker_cpu_seconds", "counter", ("mode",), "CPU time of the children, living and dead.", _cpu, ()),
    Spec("prefork_master_loop_delay_seconds", "histogram", (), "How late the master's timers run.",
        _board_histogram(LOOP_DELAY), ("PreforkMasterSlow",)),
    Spec("prefork_application_series_dropped", "counter", (), "New series of the program's own without room.",
        _one(lambda scrape: scrape.application.dropped), ("PreforkSeriesDropped",)),
    Spec("prefork_slot_words_rejected", "counter", (), "Implausible words in the shared memory of a child.",
        _one(lambda scrape: scrape.snapshot.words_rejected + scrape.application.rejected),
        ("PreforkSlotWordsRejected",)),
)  # fmt: skip
