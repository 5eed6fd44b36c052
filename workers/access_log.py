"""The access log: one record for each request if `access_log` asks for it, and no cost otherwise.

Runs in a worker. Lanes tell it of each request that they begin and count, so that its outcome is the one in the
metrics. Reports only requests that ended here; the master reports those that died with a worker. Where connections are
kept, a record has the number of its request on the connection, and the bytes of that request alone.
"""

import logging
import re
from collections.abc import Callable
from time import monotonic_ns
from typing import Any, NamedTuple
from weakref import ref

from prefork.metrics.kernel import queue_wait_ns, tcp_bytes, tcp_bytes_read, unix_peer_text
from prefork.metrics.log_events import LogEvent, event
from prefork.metrics.scoreboard import COMPLETED, FAILED, HANDED_OVER

from .log_templates import LogTemplate
from .stay import KeptSocket

log = logging.getLogger("prefork.access")

FIELDS = ("listener", "peer", "slot", "outcome", "duration_ms", "received", "sent", "queue_wait_ms")
NUMBER = "request_number"  # the last field, where connections are kept
VARYING = tuple(name for name in FIELDS if name not in ("listener", "slot"))
MESSAGE = "request %s"
SHOWN_NS = 1_000_000  # a wait is shown in whole milliseconds
OUTCOME_WORDS = {COMPLETED: "ok", FAILED: "error", HANDED_OVER: "handed_over"}  # the others are rejected
_HARMLESS = re.compile(r"[!#-<>-\[\]-~]*")  # printable ASCII, except space, quote, equals sign and backslash

# The time of the accept, the wait before it, the client's address, the process of one that has none, the length of a
# datagram, the request, and what is known of one on a kept connection.
_Begun = tuple[int, int | None, Any, str | None, int | None, Callable[[], Any], "_OnConnection | None"]


class LogContext(NamedTuple):
    """The fields that are the same in every record of a worker, and how to write a client's address."""

    listener: str
    slot: int
    address_text: Callable[[Any], str]
    keeps: bool = False  # its connections may be kept
    in_order: bool = False  # one thread accepts them, and tells of each before it accepts the next


class _OnConnection(NamedTuple):
    """The number of a request on its connection, and the bytes read and written there when the request began."""

    number: int
    received: int = 0
    sent: int = 0

    def until(self, request: Any) -> tuple[int | None, int | None]:
        """Return the bytes read and written since then."""
        received, sent = tcp_bytes_read(request)
        return None if received is None else received - self.received, None if sent is None else sent - self.sent


class AccessLog:
    """The requests in hand by their lanes: when each was accepted, by whom it was sent, and how long it had waited."""

    def __init__(self, place: LogContext) -> None:
        log.setLevel(logging.INFO)
        self._place, self._address_text, self._keeps = place, place.address_text, place.keeps
        self._brief_until_ns = 0  # until then no wait can have been as long as a millisecond
        self._open: dict[int, _Begun] = {}
        more = (NUMBER,) * place.keeps
        self.fields, self.varying = FIELDS + more, VARYING + more
        self._template = LogTemplate(log, self.varying, self._record, _plain)

    def begin(self, lane: memoryview, request: Any, client_address: Any, number: int | None = None) -> None:
        """Note a request that was accepted on this lane, or has begun on a kept connection.

        `number`: which one it is of a connection that stays on its lane.
        """
        try:
            process = None if client_address else unix_peer_text(request)
        except Exception:  # an address can be any object of the program's
            process = None
        datagram = _length(request) if isinstance(request, tuple) else None
        accepted = _reference(request)
        kept = _on_connection(request, number) if type(request) is KeptSocket or number is not None else None
        now_ns = monotonic_ns()
        if kept is not None or datagram is not None:  # the wait is known of a connection, right after its accept
            waited_ns = None
        elif now_ns < self._brief_until_ns:
            waited_ns = 0
        else:
            waited_ns = queue_wait_ns(request)
            if self._place.in_order and waited_ns is not None:  # the next one has come after this one
                self._brief_until_ns = now_ns - waited_ns + SHOWN_NS
        self._open[id(lane)] = now_ns, waited_ns, client_address, process, datagram, accepted, kept

    def number_first(self, lane: memoryview) -> None:
        """Note that the request on this lane is the first of a connection that stays there."""
        if (begun := self._open.get(id(lane))) is not None:
            self._open[id(lane)] = (*begun[:-1], _OnConnection(1))

    def admit(self, lane: memoryview, request: Any, client_address: Any) -> None:
        """Note what admission has made of the request on this lane: another object, another client's address."""
        accepted_ns, waited_ns, _, process, datagram, accepted, kept = self._open[id(lane)]
        if datagram is None:
            accepted = _reference(request)
        if type(request) is KeptSocket:
            kept = _OnConnection(1)
        self._open[id(lane)] = accepted_ns, waited_ns, client_address, process, datagram, accepted, kept

    def end(self, lane: memoryview, outcome: int, request: Any = None) -> None:
        """Write the record of the request on this lane. `request` is what its handler was given, where one was."""
        begun = self._open.pop(id(lane), None)
        if begun is None:
            return
        accepted_ns, waited_ns, address, process, received, accepted, kept = begun
        request, sent = accepted() if request is None else request, None
        if kept is not None:
            received, sent = kept.until(request)
        elif received is None:
            received, sent = tcp_bytes(request)
        try:
            peer = self._address_text(address) if address else process
        except Exception:
            peer = object.__repr__(address)
        values: tuple[Any, ...] = (
            peer, OUTCOME_WORDS.get(outcome, "rejected"),
            (monotonic_ns() - accepted_ns) // 1000 / 1000, received, sent,
            None if waited_ns is None else waited_ns // SHOWN_NS,
        )  # fmt: skip
        if self._keeps:
            values += (None if kept is None else kept.number,)
        if not self._template.write(values):
            fields = self._fields(dict(zip(self.varying, values, strict=True)))
            log.info(MESSAGE, Fields(fields), extra=event(LogEvent.REQUEST, **fields))

    def _fields(self, varying: dict[str, Any]) -> dict[str, Any]:
        """Return the fields of a record in their order."""
        known = {**varying, "listener": self._place.listener, "slot": self._place.slot}
        return {name: known[name] for name in self.fields}

    def _record(self, shown: dict[str, Any], fields: dict[str, Any]) -> logging.LogRecord:
        """Return a sample for the template."""
        fields["outcome"] = str(fields["outcome"])  # in quotes, in JSON
        record = logging.LogRecord(
            log.name, logging.INFO, __file__, 0, MESSAGE, (Fields(self._fields(shown)),), None, "end"
        )
        vars(record).update(event(LogEvent.REQUEST, **self._fields(fields)))
        return record


def _on_connection(request: Any, number: int | None) -> _OnConnection:
    """Return what is to be known at the end of a request that begins now."""
    stay = getattr(request, "stay", None)
    if number is None:
        number = 1 if stay is None else stay.kept.requests + stay.begun
    received, sent = tcp_bytes_read(request)
    return _OnConnection(number, received or 0, sent or 0)


def _length(request: tuple[Any, ...]) -> int | None:
    """Return how long a datagram is; None for a pair that is none, but the program's own."""
    return len(request[0]) if request and isinstance(request[0], bytes | bytearray | memoryview) else None


def _reference(request: Any) -> Callable[[], Any]:
    """Return what leads to the request while it exists: we must not keep open what the program drops."""
    try:
        return ref(request)
    except TypeError:
        return _gone


def _gone() -> None:
    """Stand for a request of which nobody can tell how long it exists."""


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
