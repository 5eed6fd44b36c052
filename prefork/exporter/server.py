"""The exporter: a supervised, unprivileged child that serves /metrics, /-/healthy and /-/ready.

Imported and run only in its own process, which the master forks, restarts, and sends every new slot to. Reads shared
memory and the kernel; must write nothing but its count of accepted connections, and must not hold a request of the
service. Owns the limits that protect it from scrapers: the number of connections, the time for each, and the choice of
the one to close first.
"""

import gzip
import io
import logging
import os
import signal
import socket
import socketserver
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any

import setproctitle
from prometheus_client import Metric
from prometheus_client.exposition import choose_encoder

from prefork.metrics import collector, kernel
from prefork.metrics.application.exposition import application_families, encoded
from prefork.metrics.application.summed import Shapes
from prefork.metrics.application.sums import Sums
from prefork.metrics.board import Word
from prefork.metrics.companions import CompanionTable
from prefork.metrics.feed import Slots
from prefork.metrics.log_events import LogEvent, event
from prefork.metrics.scoreboard import CONNECTIONS_TAKEN, Slot
from prefork.workers import sinks
from prefork.workers.bootstrap import Birth, Master
from prefork.workers.loop import IGNORED
from prefork.workers.privileges import Privileges, PrivilegesKept
from prefork.workers.signals import DRAIN_SIGNAL, SignalHandler, Signals, ignore, set_mask
from prefork.workers.wakeup import Wakeup

from ..inheritance.own import Own
from ..master.guard import say_failed
from ..master.signalling import POKE
from ..server import TCPServer
from ..serving_loop import ServingLoop
from ..version import __version__

log = logging.getLogger("prefork.exporter")

CONNECTIONS = 64
UNREAD = 48  # limit of connections that have not sent a request; beyond it the oldest is closed
SCRAPE_WITHIN_S = 5.0  # for a whole connection
STALE_NS = 5_000_000_000  # a master without a turn for so long is not healthy
NOBODY = 65534


@dataclass(frozen=True, slots=True)
class Scope:
    """The arguments that the exporter is forked with."""

    name: str
    metrics_listener: socket.socket
    listeners: tuple[tuple[str, int, socket.socket], ...]  # the service's, with name and number: examined only
    pool: bool
    companions: CompanionTable | None = None
    privileges: Privileges | None = None
    others: tuple[socket.socket, ...] = ()  # of the workers, where each has a socket of its own


class ExporterLoop(ServingLoop):
    """The loop of an exporter, which also waits for new slots and for the end of its master."""

    def has_room(self) -> bool:
        return len(self.server.open_requests) < CONNECTIONS

    def extra_fds(self) -> Iterable[int]:
        return self.server.slots.fileno(), self.server.master.fileno()

    def next_turn(self) -> float | None:
        again: float | None = self.server.slots.look_again_at
        return again


class Exporter(TCPServer):
    """The HTTP server. Every connection has a deadline; too many without a request, and the oldest is closed."""

    _prefork_: Any = Own(lambda: ExporterLoop)

    def __init__(self, scope: Scope, slots: Slots, master: Master, slot: Slot) -> None:
        super().__init__(scope.metrics_listener.getsockname(), MetricsHandler, bind_and_activate=False)
        self.socket.close()
        self.socket = scope.metrics_listener
        self.scope = scope
        self.slots = slots
        self.master = master
        self.slot = slot
        self.open_requests: set[socket.socket] = set()
        self._sums, self._summing = Sums(), threading.Lock()
        self._shapes = Shapes()
        self._unread: dict[socket.socket, None] = {}

    def serving_master(self) -> bool:
        """Return True if the master turns; always for a plain server, which only turns when it has work."""
        return not self.scope.pool or (time.monotonic_ns() - self.slots.snapshot().words[Word.TURNED_NS] < STALE_NS)

    def ready(self) -> bool:
        return bool(self.slots.snapshot().words[Word.SERVING])

    def collect(self) -> list[Metric]:
        """Return all metric families."""
        with self._summing:
            snapshot = self.slots.snapshot(application=True)
            merged = self._sums.merge(snapshot.application)
        scrape = collector.Scrape(
            snapshot,
            collector.Namespace(*kernel.listen_overflows_and_drops()),
            __version__,
            tuple((name, number, _queue(sock, self.scope.others)) for name, number, sock in self.scope.listeners),
            self.scope.pool,
            merged,
            () if self.scope.companions is None else self.scope.companions.read(),
        )
        return [*collector.families(scrape), *application_families(merged, self._shapes)]

    # Limits.

    def process_request(self, request: Any, client_address: Any) -> None:
        """Process a request in its own thread, by the standard library's steps.

        Raises RuntimeError if the system cannot start one.
        """
        self.open_requests.add(request)
        steps = socketserver.ThreadingMixIn.process_request_thread
        threading.Thread(target=steps, args=(self, request, client_address), daemon=True).start()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        self.slot.words[CONNECTIONS_TAKEN] += 1
        if len(self._unread) >= UNREAD:
            oldest = next(iter(self._unread))
            self.has_read(oldest)
            try:
                oldest.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it has just ended
        self._unread[request] = None
        return True

    def has_read(self, request: Any) -> None:
        self._unread.pop(request, None)

    def shutdown_request(self, request: Any) -> None:
        self.has_read(request)
        super().shutdown_request(request)
        self.open_requests.discard(request)
        self._prefork_.wake()  # the loop may be waiting for room

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a scrape did not end well", exc_info=True, extra=event(LogEvent.SCRAPE_FAILED))

    def finish(self) -> None:
        """Stop accepting, and wait for each connection to end, at the latest at its deadline."""
        self.socket.close()
        for thread in set(threading.enumerate()) - {threading.current_thread()}:
            thread.join(SCRAPE_WITHIN_S)

    def service_actions(self) -> None:
        if self.master.gone():
            os._exit(0)
        sinks.follow()
        self.slots.receive(time.monotonic())
        if self.slots.failed is not None:
            say_failed("take a slot", self.slots.failed, "the exporter starts again")
            os._exit(1)
        super().service_actions()


def _queue(sock: socket.socket, others: tuple[socket.socket, ...]) -> collector.Queue:
    if sock.fileno() == -1:
        return collector.Queue()
    if sock.type == socket.SOCK_DGRAM:
        queued, lost = kernel.datagram_queue(sock, *others)
        return collector.Queue(datagram_bytes=queued, datagram_drops=lost, datagrams=True)
    length, limit = kernel.accept_queue(sock)
    return collector.Queue(length=length, limit=limit)


class _Deadline(io.RawIOBase):
    """The read side of a connection whose deadline is `ends_at`, however slowly its bytes arrive."""

    def __init__(self, sock: socket.socket, ends_at: float) -> None:
        self._sock = sock
        self._ends_at = ends_at

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(max(0.001, self._ends_at - time.monotonic()))
        return self._sock.recv_into(buffer)


class MetricsHandler(BaseHTTPRequestHandler):
    """Answer GET and HEAD of /metrics, /-/healthy and /-/ready."""

    server: Exporter  # type: ignore[assignment]  # typeshed has the standard library's class
    server_version = "prefork"
    sys_version = ""

    def setup(self) -> None:
        super().setup()
        self.rfile = io.BufferedReader(_Deadline(self.connection, time.monotonic() + SCRAPE_WITHIN_S))

    def do_GET(self) -> None:
        self.server.has_read(self.request)
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self._metrics()
        elif path == "/-/healthy":
            self._say(self.server.serving_master(), "healthy", "the master does not turn")
        elif path == "/-/ready":
            self._say(self.server.ready(), "ready", "not ready")
        else:
            self.send_error(404)

    do_HEAD = do_GET  # noqa: N815  # http.server's name

    def _metrics(self) -> None:
        encoder, content_type = choose_encoder(self.headers.get("Accept", ""))
        body = encoded(self.server.collect(), encoder, content_type)
        encoding = None
        if "gzip" in self.headers.get("Accept-Encoding", ""):
            body, encoding = gzip.compress(body, 1), "gzip"
        self._answer(200, content_type, body, encoding)

    def _say(self, good: bool, yes: str, no: str) -> None:
        text = yes if good else no
        self._answer(200 if good else 503, "text/plain; charset=utf-8", f"{text}\n".encode())

    def _answer(self, status: int, content_type: str, body: bytes, encoding: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        if encoding is not None:
            self.send_header("Content-Encoding", encoding)
        self.end_headers()
        if self.command != "HEAD":
            self.connection.settimeout(SCRAPE_WITHIN_S)  # sendall() applies it to the whole body
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args, extra=event(LogEvent.SCRAPE))


def serve(scope: Scope, slots: Slots, birth: Birth, master: Master) -> int:
    """Run the exporter; see `bootstrap.enter`. Ends with the master or on its order. Return the exit status."""
    _drop_privileges(scope.privileges or Privileges())
    wakeup = Wakeup()
    signals = Signals(wakeup)
    exporter = Exporter(scope, slots, master, birth.slot)
    handlers: dict[int, SignalHandler] = dict.fromkeys((*IGNORED, signal.SIGQUIT, signal.SIGPIPE), ignore)
    handlers |= {
        POKE: lambda signum, frame: exporter._prefork_.wake(),
        DRAIN_SIGNAL: lambda signum, frame: exporter.shutdown_nowait() if birth.slot.told_to_drain else None,
        signal.SIGTERM: lambda signum, frame: exporter.shutdown_nowait() if master.gone() else None,
    }
    signals.take(handlers)
    setproctitle.setproctitle("prefork: exporter")
    master.tell_us_when_dying()
    set_mask(birth.mask)
    sinks.follow()  # it may have been reopened while signals were blocked
    exporter.serve_forever()
    exporter.finish()
    signals.close()
    return 0


def _drop_privileges(privileges: Privileges) -> None:
    """Become the user of the service, or nobody if we are root. Raises PrivilegesKept, unless nobody has asked for it.

    The exporter only reads shared memory that is already open. Where root may not change its ids (capabilities(7), a
    container without CAP_SETGID), there is nothing to drop.
    """
    asked = privileges.uid is not None
    if not asked and os.geteuid() == 0:
        privileges = privileges._replace(uid=NOBODY, gid=NOBODY, groups=())
    try:
        privileges.drop()
    except PrivilegesKept as exc:
        if asked or privileges.uid is None:
            raise
        log.warning(
            "the exporter stays root, without the rights of root: %s", exc, extra=event(LogEvent.PRIVILEGES_KEPT)
        )
