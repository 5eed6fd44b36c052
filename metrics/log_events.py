"""The log events: a closed list with a permanent name for each kind of record that we log.

Used in every process, at every call that logs: `log.info("listening on %s", where, extra=event(LogEvent.LISTENING,
address=where))`. With `--log-format json` the name is the field `event`, with the other fields beside it. The message
is for people and may change; a name must keep its meaning once it has been used. Holds no state.
"""

from enum import Enum
from typing import Any


class LogEvent(Enum):
    """An event; its value is the description in the reference, with the fields in backticks."""

    # The service.
    LISTENING = "the service listens at `address`"
    METRICS_LISTENING = "metrics are served at `address`"
    CONTROL_LISTENING = "the control socket is at `address`"
    LISTENER_KEPT = "the service goes on with a listener that the service manager kept, at `address`"
    LISTENER_GIVEN_UP = "after a reload the program no longer asks for `address`"
    STALE_SOCKET_REMOVED = "a socket that nobody listened on was removed, at `address`"
    SOCKET_LEFT = "a socket of ours could not be removed, at `address`"
    PATH_LOST = "the Unix path `address` was removed or replaced: no new client can connect there until a reload"
    LISTENER_SHUT = "a process of the service has shut down the listener at `address`; `reason` says what follows"
    PATH_FOUND = "the Unix path `address` leads to the service again"
    QUEUE_CUT = "the kernel cuts the listen queue: `asked`, `limit`"
    OPTION_CUT = "an option of the listener is not as it was asked for: `setting`, `reason`"
    SIGNAL_LEFT_TO_PROGRAM = "the program handles `signal` itself"
    ENDED_EARLY = "a signal asked for the end before the service served"
    TIMER_STOPPED = "an inherited interval timer was stopped, whose `signal` nobody handles"
    METRICS_OFF = "`prefork run --single` serves no metrics"
    RUNNING = "the first worker is ready"
    DRAINING = "the service ends: it finishes what it has"
    STOPPING = "the service ends: its children are told to leave now"
    STOPPED = "the service has ended"
    COMMAND = "the master obeys `command`"
    CONTROL_REQUEST = "`peer` asked for `verb` on the control socket"
    CONTROL_DENIED = "`peer` may not do that on the control socket"
    FULL = "every lane is busy and clients have been waiting for `waited_s`, `queued` of them"
    FULL_ENDED = "the service is no longer full, as it was for `lasted_s`; at most `queued` clients waited at once"
    DATAGRAMS_DROPPED = "the kernel has begun to drop datagrams for want of room, `dropped` of them"
    DATAGRAMS_DROPPED_ENDED = "the kernel drops no more datagrams: `dropped` in `lasted_s`"
    DATAGRAM_CUT = "a datagram from `peer` is longer than max_packet_size: its first `taken` bytes are"
    NO_EFFECT = "the setting or hook `name` has no effect here, and `why`"
    POOL_RESIZED = "`min_children` and `max_children` were changed"
    MASTER_PAUSED = "the master was stopped or kept busy for `late_s`; deadlines move by `moved_s`"
    STEP_FAILED = "something the master does could not be done: `step`"
    PROGRAM_LEAVES = "the program leaves serve_forever() by `error`; the service drains first"
    DRAIN_ASKED = "a worker asked to end the service: shutdown() was called in it"
    TERM_PASSED_ON = "a worker was sent TERM by somebody else than its master, and is to be replaced"
    # Children: each has `kind` and `pid`, and if known `slot` and `gen`.
    CHILD_READY = "a child is ready"
    CHILD_DRAINING = "a child was told to leave when it has finished"
    CHILD_STOPPING = "a child was told to leave now"
    CHILD_ENDED = "a child has ended: `reason`, and what it had to say as `detail`"
    CHILD_KILLED = "a child was killed at its deadline, `after_s` in `state`; `why` it had not left, if that is known"
    CHILD_LEFT_BEHIND = "a child could not be killed and reaped in time"
    REQUESTS_DIED = "requests ended with their worker: `requests` of `outcome`"
    REQUEST_TIMEOUT = "a request has run for longer than request_timeout: that of one of `peers`"
    WORKER_STALLED = "a worker was idle beside a queue for longer than stall_timeout"
    SLOW_REQUEST = "a request has run for longer than slow_request_timeout: that of one of `peers`"
    STACKS = "what the threads of a worker were doing, as `detail`"
    FORK_FAILED = "the kernel refused a fork"
    LEFT_OVER_TOLD = "processes that the program of an earlier image had started were told to end: `pids`"
    ORPHAN_REAPED = "as PID 1: a process of nobody's was reaped, `pid`"
    RUNS_AS_ROOT = "handlers run as root, because no `user` is set"
    PRIVILEGES_KEPT = "the exporter could not change its user"
    EXPORTER_GIVEN_UP = "the exporter hangs and is killed"
    HOLDER_GIVEN_UP = "the holder of idle connections hangs and is killed, with `connections`"
    CONNECTIONS_DIED = "kept connections ended with the process that had them: `connections`"
    # Reloads.
    RELOAD_PROGRESS = "a step of a reload: `step`"
    RELOAD_EXEC = "the new image begins"
    RELOADED = "the new generation is in service"
    RELOAD_FAILED = "a reload failed: `reason`, and what the rehearsal printed as `detail`"
    RELOAD_TLS_FAILED = "a new TLS certificate could not be put in service: `reason`"
    TOTALS_PARTLY_READ = "the previous image's totals could not be read whole"
    FILES_CHANGED = "reload_on_change: `files` have changed"
    # Requests.
    REQUEST = "the access log's record of a request"
    KEPT_REFUSED = "a kept connection could not be taken over from another process, and is closed; `reason`"
    NOTHING_READ = "a `handler` with KeepAliveMixIn reads nothing of what its clients send: it waits for more"
    REQUEST_FAILED = "a handler raised; `peer`"
    CONNECTION_LOST = "the client broke the connection; `peer`"
    HANDSHAKE_FAILED = "the TLS handshake with a client failed; `peer`, `reason`"
    CONNECTION_REFUSED = "a connection was closed before the program saw it; `peer`, `reason`"
    ACCEPT_FAILED = "nothing can be accepted for the moment"
    THREAD_REFUSED = "a worker could not start one more thread, and serves with those that it has"
    GET_REQUEST_FAILED = "the program's get_request() raised"
    SCRAPE = "a scrape of the exporter"
    SCRAPE_FAILED = "a scrape did not end well"
    # Companions.
    RUN_FAILED = "a periodic job raised, and goes on: `companion`"
    RUN_TIMEOUT = "a run of a periodic job has taken longer than its timeout"
    RUN_DIED = "a run of a periodic job ended with its process, by `outcome`"
    COMPANIONS_OFF = "`prefork run --single` runs no companions: `companions`"
    # Workers, at boot and at their end.
    IMPORT_FAILED = "a `module` that would be imported lazily could not be imported"
    MEASURE_FAILED = "a worker or companion could not measure itself"
    STRAY_FAILED = "a process that the program forked returned into a call of ours by an exception"
    THREADS_AWAITED = "a worker that leaves waits for `threads` of the program's"
    THREADS_FAILED = "the program's threads could not be ended"
    FLUSH_FAILED = "an exporter of the program's could not be flushed"
    DRAIN_HOOK_FAILED = "worker_draining() raised"
    # Logs, the service manager, the program's own metrics.
    NOTHING_TO_REOPEN = "there is no log file to reopen"
    LOG_HANDING_SHUT = "a process of the service has shut down what hands on a new log file; its children are replaced"
    REOPEN_FAILED = "the log file could not be reopened"
    LOG_DROPPED = "`dropped` log messages were given up so that service goes on"
    HANDLER_FAILED = "a log handler of the program's raised, or took too long"
    FLUSH_GIVEN_UP = "what the program has printed or logged could not be flushed in time: `streams`"
    LOG_HANDLER_REMOVED = "the program has taken prefork's log handler away"
    LOG_UNFORMATTED = "a log call whose arguments do not fit its message"
    NOTIFY_FAILED = "the service manager could not be told something"
    METRIC_REFUSED = "a `metric` of the program's cannot be served"
    METRIC_VALUE_REFUSED = "a value of the program's `metric` cannot be summed"
    METRICS_FULL = "there is no room for more series of the program's"
    METRIC_FAILED = "a `metric` of the program's could not be collected"
    METRICS_ELSEWHERE = "prometheus_client keeps the program's metrics in a way of its own"
    METRICS_EARLY = "`metrics` were made before prefork was imported, and are not summed"
    METRICS_OF_EXPORTER = "`metrics` are evaluated in the exporter only"
    # A record that the program itself logs without an `event` in `extra`.
    MESSAGE = "a record of the program's own"

    @property
    def label(self) -> str:
        return self.name.lower()


def event(which: LogEvent, **fields: Any) -> dict[str, Any]:
    """Return the `extra` of a log record for the event `which`. A field's name means the same thing in every event."""
    return {"event": which, "fields": fields}
