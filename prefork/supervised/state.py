"""Supervised: the state behind SupervisedMixIn, the base of every mix-in, in a plain server and in a pool.

Runs in the serving process. Children have a copy of the object, and use it to ask the serving process. Owns the
supervisor of a single-process server, created lazily at the first request: a constructor must not create anything that
has to be closed.
"""

import os
import socket
import threading
from collections.abc import Iterable, Mapping
from functools import partial
from math import inf
from threading import Event
from time import monotonic, monotonic_ns
from typing import TYPE_CHECKING, Any

from prefork.metrics.application.region import REGION_BYTES
from prefork.metrics.board import Statistics
from prefork.metrics.facts import ChildKind
from prefork.metrics.scoreboard import DRAIN_ASKED, YES, Slot
from prefork.workers.accepting import NO_RESOURCES, NOT_BEGUN, NOTHING
from prefork.workers.bootstrap import Birth
from prefork.workers.contexts import Lane
from prefork.workers.lanes import Lanes
from prefork.workers.straight import ServeOne
from prefork.workers.wakeup import Wakeup

from ..errors import BindError
from ..exporter.child import Exported, ExporterChild, bind_metrics
from ..log_formats import escaped
from ..master.policy import NO_POOL
from ..master.service import Service
from ..master.supervisor import Supervisor
from ..reload.handover import handed
from ..serving_loop import ServingLoop
from ..settings.companions import refuse_without_pool
from ..settings.in_force import InForce, value_of
from ..settings.sources import SLOT_VARIABLE
from ..sockets.listener import Listener, asked_for
from ..sockets.of_server import is_closed, socket_of
from .counting import ENDING, Counting

if TYPE_CHECKING:  # of a pool
    from prefork.workers.access_log import AccessLog
    from prefork.workers.admission import Admission
    from prefork.workers.loop import Worker

LANES_AT_ONCE = 64  # lanes added at a time to a plain threading server without max_threads


class Supervised(ServingLoop):
    """State of a server whose requests are counted and whose children are supervised."""

    target: str | None = None  # what `prefork run` has made it of

    def __init__(self, server: Any) -> None:
        super().__init__(server)
        self.counting = Counting()
        self.supervisor: Supervisor | None = None
        self.worker: Worker | None = None  # in a worker of a pool
        self.collecting = threading.RLock()  # held by the thread that reaps outside the loop; it ends the counting
        self.in_place = False  # requests run in the thread that accepts them, even below another mix-in
        self.birth: Birth | None = None  # in a child that serves one request
        self._supervises: int | None = None  # the process that has children of a plain server
        self.slot: int | None = None  # in a worker of a pool: its number
        self.origins: Mapping[str, str] = {}  # of settings, where the command line has them from elsewhere
        self.metrics_listener: Listener | None = None
        self.metrics_bound: Any = None  # its address
        self._turns_seen = 0
        self._turn_at: float | None = None  # monotonic; what `next_turn()` has returned
        self.collects = False  # the program has a collect_children() of its own, which the loop calls for the turn
        self.turn_owed = True  # to the supervisor; False while our loop knows that there is nothing to do

    # Metrics.

    def begin(self) -> None:
        supervisor = self.supervise()
        if not supervisor.tasks.exported:
            self.export(supervisor)

    def end(self) -> None:
        if self.is_copy():
            return
        with ENDING:  # whoever closes the server meanwhile may be reaping the exporter
            if self.supervisor is not None:
                self.supervisor.end_export()

    def export(self, supervisor: Supervisor) -> None:
        """Add an exporter if `metrics_address` is set. Raises BindError."""
        if value_of(self.server, "metrics_address") is None:
            return
        self.bind_metrics()
        assert self.metrics_listener is not None
        board, pool, companions = self.counting.board, supervisor.limits.pool, supervisor.companions.table
        subject = Exported(self.service_name(), self.sockets(), pool, self._may_fork_exporter, companions,
                           supervisor.service.privileges, supervisor.service.others)  # fmt: skip
        supervisor.tasks.paths.add(self.metrics_listener)
        supervisor.tasks.export(
            ExporterChild(subject, self.metrics_listener, board, supervisor.fork, supervisor.forget_memory)
        )

    def sockets(self) -> tuple[Any, ...]:
        """Return the sockets of this service that it listens on. Extend it where there may be several."""
        own = socket_of(self.server)
        return () if own is None else (own,)

    def statistics(self) -> Statistics:
        """Return the counts of this service so far."""
        return self.counting.statistics()

    def bind_metrics(self) -> None:
        """Listen on `metrics_address`, if set. Raises BindError."""
        address = value_of(self.server, "metrics_address")
        if address is not None and self.metrics_listener is None:
            asked, given = asked_for(address, socket.SOCK_STREAM), handed()
            resumed = None if given is None else given.metrics(asked)
            if resumed is not None:
                resumed.serve_by_pool(0.0)
            try:
                self.metrics_listener = resumed or bind_metrics(address, asked)
            except BindError as exc:
                raise exc.named(self.origin_of("metrics_address")) from exc.__cause__
            self.metrics_bound = self.metrics_listener.getsockname()
            self.counting.adopt_application(self.application_bytes())

    def origin_of(self, name: str) -> str:
        """Return what has set this setting, in words."""
        return self.origins.get(name, name)

    def application_bytes(self) -> int:
        """Return the bytes to reserve in a slot for the program's own metrics; 0 if metrics are not served."""
        return REGION_BYTES if value_of(self.server, "metrics_address") is not None else 0

    def _may_fork_exporter(self) -> bool:
        return not self.threaded() or self.counting.at_rest()

    def close_metrics(self) -> None:
        if self.metrics_listener is not None:
            if not self.is_copy():
                self.metrics_listener.unlink()
            self.metrics_listener.close()

    def leave_metrics_listener(self) -> None:
        """Close this forked process's copy of the metrics listener: it may outlive us and must not hold the address."""
        if self.metrics_listener is not None:
            self.metrics_listener.close()

    def check_companions(self) -> None:
        """Check what the program declares. Extend it where companions can run. Raises ConfigError."""
        refuse_without_pool(self.server)

    def take_slot(self, number: int) -> None:
        """Note that this process is the worker of that number, and tell what it starts."""
        self.slot = number
        os.environ[SLOT_VARIABLE] = str(number)

    # The end.

    def ask_to_drain(self) -> bool:
        """Ask the serving process to drain, if this is a child. Return True if it is."""
        if self.worker is not None:
            self.worker.ask_to_drain()
        elif self.birth is not None and self.supervisor is not None:
            self.birth.slot.words[DRAIN_ASKED] = YES
            self.supervisor.nudge()
        else:
            return False
        return True

    def shutdown(self, *, wait: bool) -> None:
        if not self.ask_to_drain():
            super().shutdown(wait=wait)

    def wait(self, done: Event | None, timeout: float | None = None) -> bool:
        in_child = self.worker is not None or self.birth is not None  # whose copy of the event nobody sets
        return not in_child and super().wait(done, timeout)

    def is_to_end(self) -> bool:
        return self.worker.draining if self.worker is not None else super().is_to_end()

    def wait_for_requests(self) -> None:
        """Wait for requests that run outside the serving thread. Extend it."""

    def end_counting(self) -> None:
        """Stop counting for a closed server, once it no longer serves and no request is left."""
        if self.worker is not None or self.is_copy():
            return  # the supervisor is not ours
        with ENDING:
            if self.done is not None or not self.collecting.acquire(blocking=False):
                return
            try:
                if not self.counting.end_lanes(self.server):
                    return
                self.counting.fold_everything()
                if self.supervisor is not None and not len(self.supervisor.table):
                    self.supervisor.close()  # even if it was made for a serve_forever() that got no request
                if self.supervisor is None or self.supervisor.closed:
                    self.counting.close_board()
            finally:
                self.collecting.release()

    def end_own_requests(self) -> None:
        """Finish the requests that `handle_request()` began in this process, before a pool takes over.

        What they counted stays on the board.
        """
        self.wait_for_requests()
        with ENDING:
            if self.counting.end_lanes(self.server):
                self.counting.fold_own(but_adopted=True)
            if self.supervisor is not None and not self.supervisor.closed:
                self.supervisor.wait_for_children(ChildKind.REQUEST)
                self.supervisor.close()

    # Requests of this process.

    def supervise(self) -> Supervisor:
        """Return the supervisor of this plain server, created at its first request."""
        if self.supervisor is None or self.supervisor.closed:
            service = Service(
                self.service_name(), forget=self.forget_supervisor, end=partial(self.shutdown, wait=False)
            )
            self._supervises = os.getpid()
            self.supervisor = Supervisor(service, NO_POOL, self.counting.board, Wakeup())
        return self.supervisor

    def service_name(self) -> str:
        kind, name = type(self.server), self.server.service_name
        if not isinstance(name, str) or not name:  # a program may have something else for itself under this name
            name = self.target or f"{kind.__module__}:{kind.__qualname__}"
        return escaped(name).replace("\n", "\\n")  # it is shown in titles and status lines

    def is_copy(self) -> bool:
        """Return True in a process that was forked from a plain server's, by us or by the program: children, board and
        paths are its parent's, whatever ends or is closed here."""
        return self.birth is not None or self._supervises not in (None, os.getpid())

    def forget_supervisor(self) -> None:
        if self.supervisor is not None:
            self.supervisor.forget()

    def lanes(self) -> Lanes:
        """Return the lanes of this process, created at its first request."""
        return self.counting.lanes or self.counting.begin(
            self.server, self.first_slot(), more=self.more_lanes, on_free=self._lane_is_free,
            queue_waits=self.counts_queue_waits(), way=self.way, admission=self.admission(),
            access_log=self.access_log(),
        )  # fmt: skip

    def way(self, lanes: Lanes) -> ServeOne:
        """Return what accepts a request and processes it. Extend it where there is a straighter way."""
        return lanes.serve_one

    def admission(self) -> "Admission | None":
        """Return what each connection must show before the program sees it: what a pool has settings for."""
        return None

    def access_log(self) -> "AccessLog | None":
        """Return what writes a record of each request of this process: what a pool has a setting for."""
        return None

    def counts_queue_waits(self) -> bool:
        """Return True if the wait in the accept queue is measured: TCP reports it, and metrics show it."""
        return self.takes_tcp() and value_of(self.server, "metrics_address") is not None

    def takes_tcp(self) -> bool:
        if (sock := socket_of(self.server)) is None:
            return False
        return bool(sock.family != getattr(socket, "AF_UNIX", None) and sock.type == socket.SOCK_STREAM)

    def first_slot(self) -> Slot:
        return Slot(getattr(InForce(self.server), "max_threads", None) or LANES_AT_ONCE if self.threaded() else 1)

    def more_lanes(self) -> Slot | None:
        if not self.threaded() or getattr(InForce(self.server), "max_threads", None) is not None:
            return None
        slot = Slot(LANES_AT_ONCE)
        self.counting.enter(slot, ChildKind.SERVER)
        return slot

    def threaded(self) -> bool:
        """Return True if the server has a ThreadingMixIn, ours or the standard library's."""
        return hasattr(self.server, "process_request_thread")

    def _lane_is_free(self) -> None:
        """Wake the supervisor. Runs in the thread that returned a lane when none was free or the server was closed."""
        if self.supervisor is not None:
            self.supervisor.wake()
        if is_closed(self.server):
            self.end_counting()

    def has_room(self) -> bool:
        try:
            supervisor = self.supervisor
            if supervisor is None or supervisor.closed:
                supervisor = self.supervise()
            if (
                self.turn_owed and supervisor.turns == self._turns_seen
            ):  # an override of service_actions() called no super()
                supervisor.turn()
            self._turns_seen, self.turn_owed = supervisor.turns, True
            if self.counting.lane is None:
                self.counting.lane = self.next_lane()
        except OSError as exc:  # out of descriptors
            self.pause_accepting(exc)
        return self.counting.lane is not None

    def next_lane(self) -> Lane | None:
        return (self.counting.lanes or self.lanes()).take()

    def extra_fds(self) -> Iterable[int]:
        return (self.supervise().fileno(),)

    def note_heard(self, others: bool) -> None:
        """See whether a turn has anything to do. Three polls a request were a fifth of what its thread costs."""
        self.turn_owed = others or (self._turn_at is not None and self._turn_at <= monotonic())

    def next_turn(self) -> float | None:
        supervisor, lanes = self.supervisor, self.counting.lanes
        turn = inf if supervisor is None or supervisor.wake_at == inf else supervisor.until_next_turn()
        looks = lanes is not None and lanes.contexts.patience is not None
        seconds = min(turn, self.counting.look() if looks else inf)
        self._turn_at = None if seconds == inf else monotonic() + seconds
        return self._turn_at

    def accept(self) -> None:
        counting = self.counting
        if counting.lane is None and not self.has_room():
            return
        lanes, lane, serve_one, counting.lane = counting.lanes, counting.lane, counting.serve_one, None
        assert lanes is not None
        assert lane is not None
        assert serve_one is not None
        try:
            outcome = serve_one(self._server(), lane, monotonic_ns())
        finally:
            if not lanes.elsewhere:
                lanes.give_back(lane)
        if lanes.elsewhere and outcome in (NOTHING, NO_RESOURCES):
            counting.lane = lane
        if outcome in (NO_RESOURCES, NOT_BEGUN):
            self.pause_accepting()
