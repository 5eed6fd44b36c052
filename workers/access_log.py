"""The access log: one record for each request if `access_log` asks for it, and no cost otherwise.

Runs in a worker. Wraps the request hooks on the server *instance*: around those of the class, inside the counting of
lanes.py. Reports only requests that ended here; the master reports those that died with a worker.
"""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic_ns
from typing import Any

from prefork.metrics.kernel import queue_wait_ns, tcp_bytes, unix_peer_text
from prefork.metrics.log_events import LogEvent, event

log = logging.getLogger("prefork.access")

_HARMLESS = re.compile(r"[!#-<>-\[\]-~]*")  # printable ASCII, except space, quote, equals sign and backslash


@dataclass(frozen=True, slots=True)
class LogContext:
    """The fields that are the same in every record of a worker, and how to write a client's address."""

    listener: str
    slot: int
    address_text: Callable[[Any], str]


def log_accesses(server: Any, place: LogContext) -> None:
    """Log each request that this server instance receives from now on."""
    log.setLevel(logging.INFO)
    book = _Book(place)
    server.verify_request = book.verifying(server.verify_request)
    elsewhere = hasattr(server, "process_request_thread")
    server.process_request = book.processing(server.process_request, elsewhere=elsewhere)
    server.finish_request = book.finishing(server.finish_request)
    server.close_request = book.closing(server.close_request)


class _Book:
    """The current requests by id: when each was accepted and how long it had waited, until its record is written."""

    def __init__(self, place: LogContext) -> None:
        self._place = place
        self._open: dict[int, tuple[int, int | None]] = {}

    def verifying(self, verify: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
        def verify_request(request: Any, client_address: Any) -> bool:
            self._open[id(request)] = (monotonic_ns(), queue_wait_ns(request))
            try:
                good = verify(request, client_address)
            except BaseException:
                self._record(request, client_address, "error")
                raise
            if not good:
                self._record(request, client_address, "rejected")
            return good

        return verify_request

    def processing(self, process: Callable[[Any, Any], None], *, elsewhere: bool) -> Callable[[Any, Any], None]:
        def process_request(request: Any, client_address: Any) -> None:
            try:
                process(request, client_address)
            except BaseException:
                self._record(request, client_address, "error")
                raise
            if not elsewhere:
                self._record(request, client_address, "handed_over")

        return process_request

    def finishing(self, finish: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
        def finish_request(request: Any, client_address: Any) -> None:
            try:
                finish(request, client_address)
            except BaseException:
                self._record(request, client_address, "error")
                raise
            self._record(request, client_address, "ok")

        return finish_request

    def closing(self, close: Callable[[Any], None]) -> Callable[[Any], None]:
        def close_request(request: Any) -> None:
            self._open.pop(id(request), None)  # no thread could be started for it
            close(request)

        return close_request

    def _record(self, request: Any, client_address: Any, outcome: str) -> None:
        """Write the record of a request, once; later calls for the same request do nothing."""
        begun = self._open.pop(id(request), None)
        if begun is None:
            return
        accepted_ns, waited_ns = begun
        received, sent = _bytes(request)
        fields = {
            "listener": self._place.listener,
            "peer": self._place.address_text(client_address) if client_address else unix_peer_text(request),
            "slot": self._place.slot, "outcome": outcome, "duration_ms": (monotonic_ns() - accepted_ns) // 1000 / 1000,
            "received": received, "sent": sent, "queue_wait_ms": None if waited_ns is None else waited_ns // 1_000_000,
        }  # fmt: skip
        log.info("request %s", Fields(fields), extra=event(LogEvent.REQUEST, **fields))


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


def _bytes(request: Any) -> tuple[int | None, int | None]:
    """Return the bytes received from and sent to the client: of TCP as the kernel counts, of a datagram its length."""
    if isinstance(request, tuple):
        return len(request[0]), None
    return tcp_bytes(request)
