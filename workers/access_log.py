"""The access log: one record for each request if `access_log` asks for it, and no cost otherwise.

Runs in a worker. Lanes tell it of each request that they begin and count, so that its outcome is the one in the
metrics. Reports only requests that ended here; the master reports those that died with a worker.
"""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic_ns
from typing import Any, NamedTuple
from weakref import ref

from prefork.metrics.kernel import queue_wait_ns, tcp_bytes, unix_peer_text
from prefork.metrics.log_events import LogEvent, event
from prefork.metrics.scoreboard import COMPLETED, FAILED, HANDED_OVER, REJECTED

log = logging.getLogger("prefork.access")

OUTCOME_WORDS = {COMPLETED: "ok", FAILED: "error", REJECTED: "rejected", HANDED_OVER: "handed_over"}
_HARMLESS = re.compile(r"[!#-<>-\[\]-~]*")  # printable ASCII, except space, quote, equals sign and backslash


class _Request(NamedTuple):
    accepted_ns: int
    waited_ns: int | None
    client_address: Any
    process: str | None  # of a client without an address
    datagram: int | None  # its length
    request: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class LogContext:
    """The fields that are the same in every record of a worker, and how to write a client's address."""

    listener: str
    slot: int
    address_text: Callable[[Any], str]


class AccessLog:
    """The requests in hand by their lanes: when each was accepted, by whom it was sent, and how long it had waited."""

    def __init__(self, place: LogContext) -> None:
        log.setLevel(logging.INFO)
        self._place = place
        self._open: dict[int, _Request] = {}

    def begin(self, lane: memoryview, request: Any, client_address: Any) -> None:
        """Note a request that was accepted on this lane."""
        process = None if client_address else unix_peer_text(request)
        datagram = len(request[0]) if isinstance(request, tuple) else None
        self._open[id(lane)] = _Request(
            monotonic_ns(), queue_wait_ns(request), client_address, process, datagram, _weakly(request)
        )

    def end(self, lane: memoryview, outcome: int, request: Any = None) -> None:
        """Write the record of the request on this lane. `request` is what its handler was given, where one was."""
        begun = self._open.pop(id(lane), None)
        if begun is None:
            return
        request = begun.request() if request is None else request
        received, sent = (begun.datagram, None) if begun.datagram is not None else tcp_bytes(request)
        waited_ns = begun.waited_ns
        fields = {
            "listener": self._place.listener,
            "peer": self._place.address_text(begun.client_address) if begun.client_address else begun.process,
            "slot": self._place.slot, "outcome": OUTCOME_WORDS[outcome],
            "duration_ms": (monotonic_ns() - begun.accepted_ns) // 1000 / 1000, "received": received, "sent": sent,
            "queue_wait_ms": None if waited_ns is None else waited_ns // 1_000_000,
        }  # fmt: skip
        log.info("request %s", Fields(fields), extra=event(LogEvent.REQUEST, **fields))


def _weakly(request: Any) -> Callable[[], Any]:
    """Return a function that returns the request while it exists: we must not keep open what the program drops."""
    try:
        return ref(request)
    except TypeError:
        return lambda: None


class Fields:
    """Fields of an event as `name=value`: an unknown value is `-`, an ambiguous one is in quotes."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self._fields = fields

    def __str__(self) -> str:
        texts = ((name, "-" if value is None else _plain(str(value))) for name, value in self._fields.items())
        return " ".join(f"{name}={text}" for name, text in texts)


def _plain(text: str) -> str:
    if _HARMLESS.fullmatch(text):
        return text
    return '"' + "".join(_escaped(c) for c in text) + '"'


def _escaped(c: str) -> str:
    if c in '"\\':
        return "\\" + c
    return c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode()
