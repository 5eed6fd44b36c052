"""SupervisedMixIn: what every mix-in stands on, in a plain server and in a pool.

Runs in the process that serves; children have the object too, and ask by it. Owns, for a server of one process, what
counting and supervising take: made lazily, at the first request, so that a constructor makes nothing that has to be
closed.
"""

import os
import socket
import sys
import threading
from collections.abc import Iterable
from math import inf
from time import monotonic, monotonic_ns
from typing import TYPE_CHECKING, Annotated, Any

from prefork.metrics.application.region import REGION_BYTES
from prefork.metrics.application.values import VALUES, adopt, release
from prefork.metrics.board import Board, Statistics
from prefork.metrics.facts import ChildKind
from prefork.metrics.scoreboard import DRAIN_ASKED, YES, Slot, SlotReader
from prefork.workers import user_forks
from prefork.workers.bootstrap import Birth
from prefork.workers.lanes import Accepted, Lane, Lanes
from prefork.workers.loop import Worker
from prefork.workers.wakeup import Wakeup

from .exporter.child import Exported, ExporterChild, bind_metrics
from .master.policy import NO_POOL
from .master.service import Service
from .master.supervisor import Supervisor
from .reload.handover import handed
from .server import BaseServer
from .serving_loop import _ServingLoop
from .settings.fields import Setting
from .sockets.listener import Listener, asked_for

if TYPE_CHECKING:
    _AnyServer = BaseServer  # what a mix-in is mixed into; at run time ours or the standard library's
else:
    _AnyServer = _ServingLoop

_ending = threading.RLock()  # whoever comes last ends the counting: server_close(), the loop, or a daemonic thread

LANES_AT_ONCE = 64  # how many lanes a plain threading server without a cap gets more of at a time


class SupervisedMixIn(_AnyServer):
    """What every mix-in stands on: children in one table, requests counted on lanes, one way to end.

    Call: `statistics()`. Extend: `server_close()`, `service_actions()`. May also be mixed into a plain server, which
    then counts its requests.
    """

    service_name: str | None = None  # what process titles and the log call this service; default module:Class

    metrics_address: Annotated[
        tuple[str, int] | str | None,
        Setting("serve Prometheus metrics there, by a process of its own", name="metrics", group="Watching",
                unit="address", kinds=("tcp", "unix")),
    ] = None  # fmt: skip

    _metrics_listener: Listener | None = None
    _supervisor: Supervisor | None = None
    _worker: Worker | None = None
    _board: Board | None = None
    _final: Statistics | None = None  # once the board is closed
    _lanes: Lanes | None = None
    _lane: Lane | None = None  # the one the next request goes on
    _own: tuple[tuple[int, Slot], ...] = ()  # the slots of this process itself, by serial on the board
    _turns_seen = 0
    _adopted: Slot | None = None  # where the program's own metrics of this process are
    _birth: Birth | None = None  # in a child that serves one request

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a class in which a server class would hide the mix-in.

        One hides it by a `serve_forever()` that comes first, its own or BaseServer's. Hooks that come first hide
        nothing: they are meant to be called; and a mix-in's `serve_forever()` goes on to the next.
        """
        super().__init_subclass__(**kwargs)
        for base in cls.__mro__[: cls.__mro__.index(SupervisedMixIn)]:
            if issubclass(base, SupervisedMixIn) or not hasattr(base, "finish_request"):
                continue
            if base is BaseServer or "serve_forever" in vars(base):
                first = next(direct for direct in cls.__bases__ if issubclass(direct, base))
                raise TypeError(
                    f"could not define {cls.__name__}: {first.__name__} comes before the mix-in and would hide it; "
                    f"write the mix-in first"
                )

    def _export(self, supervisor: Supervisor) -> None:
        """Have an exporter, where `metrics_address` asks for one. Raises BindError."""
        if self.metrics_address is None:
            return
        self._bind_metrics()
        assert self._metrics_listener is not None
        subject = Exported(self._service_name(), self.socket, supervisor.limits.pool, self._may_fork_exporter)
        supervisor.tasks.export(
            ExporterChild(
                subject, self._metrics_listener, self._scoreboard(), supervisor.fork, supervisor.forget_memory
            )
        )

    def _bind_metrics(self) -> None:
        """Listen where `metrics_address` says. Raises BindError."""
        if self.metrics_address is not None and self._metrics_listener is None:
            asked, given = asked_for(self.metrics_address, socket.SOCK_STREAM), handed()
            resumed = None if given is None else given.listener("metrics", asked)
            if resumed is not None:
                resumed.serve_by_pool(0.0)
            self._metrics_listener = resumed or bind_metrics(self.metrics_address, asked)
            self.metrics_address = self._metrics_listener.getsockname()
            self._adopt_application()

    def _application_bytes(self) -> int:
        """Room for the program's own metrics in a slot, where anybody may look."""
        return REGION_BYTES if self.metrics_address is not None else 0

    def _adopt_application(self) -> None:
        """What the program counts in this process goes to a slot too. One server of a process may have it."""
        slot = Slot(0, self._application_bytes())
        self._enter(slot, ChildKind.SERVER)
        self._adopted = slot if adopt(slot.application) else None
        if self._adopted is not None and VALUES in sys.modules:
            from prefork.metrics.application.exposition import (
                say_what_is_not_served,  # with prometheus_client, which is there
            )

            say_what_is_not_served()

    def _may_fork_exporter(self) -> bool:
        return self._lanes is None or not self._threaded() or self._lanes.all_free(held=self._lane)

    def statistics(self) -> Statistics:
        """What this service has done so far and does now, over all its processes, as an immutable record.

        Call it, from any thread, in the process that serves; also after `serve_forever()` has returned. Raises
        RuntimeError in a worker, which does not know its siblings.
        """
        if self._worker is not None or self._birth is not None:
            raise RuntimeError("statistics() is answered in the process that runs serve_forever(), not in its children")
        return self._final or self._scoreboard().snapshot().statistics()

    @property
    def draining(self) -> bool:
        """Whether this process is finishing what it has and takes nothing new."""
        return self._worker.draining if self._worker is not None else self._shutdown_requested

    def shutdown(self) -> None:
        """As BaseServer.shutdown; in a worker or a request's child it asks the serving process and does not wait."""
        if not self._ask_to_drain():
            super().shutdown()

    def shutdown_nowait(self) -> None:
        if not self._ask_to_drain():
            super().shutdown_nowait()

    def _ask_to_drain(self) -> bool:
        if self._worker is not None:
            self._worker.ask_to_drain()
        elif self._birth is not None and self._supervisor is not None:
            self._birth.slot.words[DRAIN_ASKED] = YES
            self._supervisor.nudge()
        else:
            return False
        return True

    def service_actions(self) -> None:
        """One turn of the supervisor: reaps, counts, cuts. Extend it; one that forgets `super()` leaks nothing."""
        if self._supervisor is not None:
            self._supervisor.turn()
        super().service_actions()

    def serve_forever(self, poll_interval: float | None = 0.5) -> None:
        """As BaseServer.serve_forever; with an exporter beside it where `metrics_address` asks for one."""
        supervisor = self._supervise()
        self._export(supervisor)
        try:
            super().serve_forever(poll_interval)  # type: ignore[arg-type]
        finally:
            supervisor.end_export()
            if self.fileno() < 0:  # it was closed before it was shut down
                self._end_counting()

    def server_close(self) -> None:
        """Close the listener, wait for requests as `block_on_close` says, give up what counting took. Extend it."""
        super().server_close()
        self._wait_for_requests()
        self._end_counting()
        if self._metrics_listener is not None:
            self._metrics_listener.unlink()
            self._metrics_listener.close()

    def _wait_for_requests(self) -> None:
        """Those that run elsewhere than in the serving thread."""

    # Counting in the serving process itself, where there is no pool.

    def _scoreboard(self) -> Board:
        if self._board is None:
            self._board = Board()
        return self._board

    def _enter(self, slot: Slot, role: ChildKind) -> int:
        """Put a slot of this process on the board."""
        serial = self._scoreboard().enter(role, SlotReader(slot))
        self._own = (*self._own, (serial, slot))
        return serial

    def _supervise(self) -> Supervisor:
        """The supervisor of this plain server, made at its first request."""
        if self._supervisor is None or self._supervisor.closed:
            service = Service(self._service_name(), forget=self._forget_supervisor, end=self.shutdown_nowait)
            self._supervisor = Supervisor(service, NO_POOL, self._scoreboard(), Wakeup())
        return self._supervisor

    def _service_name(self) -> str:
        return self.service_name or f"{type(self).__module__}:{type(self).__qualname__}"

    def _forget_supervisor(self) -> None:
        if self._supervisor is not None:
            self._supervisor.forget()

    def _counting(self) -> Lanes:
        """The lanes of this process, made at its first request."""
        if self._lanes is None:
            slot = self._first_slot()
            elsewhere = hasattr(self, "process_request_thread") or hasattr(self, "collect_children")
            self._enter(slot, ChildKind.SERVER)
            self._lanes = Lanes(
                slot,
                elsewhere=elsewhere,
                on_free=self._lane_is_free,
                more=self._more_lanes,
                queue_waits=self._counts_queue_waits(),
            )
            self._lanes.bind(self)
        return self._lanes

    def _counts_queue_waits(self) -> bool:
        """Only the kernel's TCP knows, and only where somebody may look."""
        tcp = self.socket.family != getattr(socket, "AF_UNIX", None) and self.socket.type == socket.SOCK_STREAM
        return tcp and self.metrics_address is not None

    def _first_slot(self) -> Slot:
        return Slot(getattr(self, "max_threads", None) or LANES_AT_ONCE if self._threaded() else 1)

    def _more_lanes(self) -> Slot | None:
        if not self._threaded() or getattr(self, "max_threads", None) is not None:
            return None
        slot = Slot(LANES_AT_ONCE)
        self._enter(slot, ChildKind.SERVER)
        return slot

    def _threaded(self) -> bool:
        """Whether a ThreadingMixIn, ours or the standard library's, is below."""
        return hasattr(self, "process_request_thread")

    def _lane_is_free(self) -> None:
        """In the thread that gave a lane back when there was none, or when the server had been closed."""
        if self._supervisor is not None:
            self._supervisor.wake()
        if self.fileno() < 0:
            self._end_counting()

    def _end_counting(self) -> None:
        """Of a closed server, once nobody serves and no request is left."""
        if self._worker is not None or self._birth is not None:
            return  # the supervisor is not ours
        with _ending:
            if self._done is not None or not self._end_lanes():
                return
            if self._adopted is not None:
                self._adopted = None
                release()
            self._fold_own()
            if self._supervisor is not None and not len(self._supervisor.table):
                self._supervisor.close()  # also one that was made for a serve_forever() to which no request ever came
            if self._board is not None and (self._supervisor is None or self._supervisor.closed):
                self._final = self._board.snapshot().statistics()
                self._board.forget()
                self._board = None

    def _leave_own_memory(self, birth: Birth) -> None:
        """In a child: the slots of the serving process are not its to write. The program's own metrics look into one
        until they have moved to the child's."""
        for _, slot in self._own:
            if slot is not birth.slot:
                user_forks.write_privately(slot.memory, slot.fd)
                os.close(slot.fd)

    def _leave_metrics_listener(self) -> None:
        """In a process that is forked from the serving one, and may outlive it: the address is not its to hold."""
        if self._metrics_listener is not None:
            self._metrics_listener.close()

    def _end_own_requests(self) -> None:
        """What `handle_request()` began in this process comes to its end before a pool serves in its place; what was
        counted stays on the board."""
        self._wait_for_requests()
        with _ending:
            if self._end_lanes():
                self._fold_own(but=self._adopted)
            if self._supervisor is not None and not self._supervisor.closed:
                self._supervisor.wait_for_children(ChildKind.REQUEST)
                self._supervisor.close()

    def _end_lanes(self) -> bool:
        """Whether no request is left in this process; daemonic threads go on, and go on counting."""
        if self._lanes is not None:
            if not self._lanes.all_free(held=self._lane):
                return False
            self._lanes.unbind(self)
            self._lanes, self._lane = None, None
        return True

    def _fold_own(self, but: Slot | None = None) -> None:
        for serial, slot in self._own:
            if slot is not but:
                self._scoreboard().fold(serial)
                slot.close()
        self._own = tuple(own for own in self._own if own[1] is but)

    def _has_room(self) -> bool:
        try:
            supervisor = self._supervise()
            if supervisor.turns == self._turns_seen:  # an override of service_actions forgot super()
                supervisor.turn()
            self._turns_seen = supervisor.turns
            if self._lane is None:
                self._lane = self._counting().take()
        except OSError as exc:  # descriptors are short
            self._pause_accepting(exc)
        return self._lane is not None

    def _extra_fds(self) -> Iterable[int]:
        return (self._supervise().fileno(),)

    def _next_turn(self) -> float | None:
        seconds = inf if self._supervisor is None else self._supervisor.until_next_turn()
        return None if seconds == inf else monotonic() + seconds

    def _handle_request_noblock(self) -> None:
        if self._has_room() and self._lane is not None:
            lanes, lane, self._lane = self._counting(), self._lane, None
            try:
                outcome = lanes.serve_one(self, lane, monotonic_ns())
            finally:
                if not lanes.elsewhere:
                    lanes.give_back(lane)
            if lanes.elsewhere and outcome in (Accepted.NOTHING, Accepted.NO_RESOURCES):
                self._lane = lane
            if outcome in (Accepted.NO_RESOURCES, Accepted.NOT_BEGUN):
                self._pause_accepting()
