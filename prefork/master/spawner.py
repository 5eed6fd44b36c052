"""Starting children for the supervisor: memory, the fork, a place in the table and in the wait.

Runs in the process that serves: the master, or the one process of a plain server. Owns when a failed fork was last
logged. Must not decide whether to start a child. The fork itself is in processes.py, by way of the child table.
"""

import errno
import logging
import os
from collections.abc import Callable
from functools import partial

from prefork.metrics.board import FORK_FAILURES, Board, Word
from prefork.metrics.facts import ChildKind, ForkFailure
from prefork.metrics.log_events import LogEvent, event
from prefork.metrics.scoreboard import Slot
from prefork.workers import descriptor_limit, sinks, user_forks
from prefork.workers.bootstrap import Birth, Master
from prefork.workers.connection_table import ConnectionTable
from prefork.workers.limits import jittered
from prefork.workers.privileges import Privileges, PrivilegesKept

from ..errors import reason_of
from .children import Child, ChildTable
from .companions import Companions
from .policy import FORK_RETRY_S
from .service import Service
from .waiting import Waiting

log = logging.getLogger("prefork.supervisor")

FORK_LOG_EVERY_S = 10.0
COUNTING = (ChildKind.WORKER, ChildKind.HOLDER)  # connections, whose number is limited
UNPRIVILEGED = (ChildKind.WORKER, ChildKind.COMPANION, ChildKind.HOLDER)


def _drop(privileges: Privileges, kept: list[PrivilegesKept]) -> None:
    try:
        privileges.drop()
    except PrivilegesKept as exc:
        kept.append(exc)  # what raises in a hook of the fork is only printed


class Spawner:
    """Starts the children of one service. `any_served`: True once a child that serves has been started."""

    def __init__(
        self, service: Service, table: ChildTable, board: Board, waiting: Waiting, companions: Companions,
        connections: ConnectionTable | None = None,
    ) -> None:  # fmt: skip
        self._service = service
        self._table = table
        self._board = board
        self._waiting = waiting
        self._companions = companions
        self._connections = connections
        self._jittered = jittered
        self._logged_at = float("-inf")
        self.any_served = False

    def worker(self, generation: int, now: float, instead_of: int | None = None) -> Child:
        """Start a worker, perhaps in the place of one that it is to replace. Raises OSError; nothing is left behind
        then."""
        assert self._service.work is not None, "only a pool is told to spawn"
        slot = self._service.new_slot()
        if self._connections is not None:
            self._connections.expect({child.number for child in self._table if child.number})
        try:
            child = self.start(ChildKind.WORKER, slot, self._service.work, generation, now, instead_of=instead_of)
        except BaseException:
            slot.close()
            raise
        if self._service.max_lifetime is not None:
            child.lifetime = self._jittered(self._service.max_lifetime)
        return child

    def companion(self, name: str, generation: int, now: float) -> Child:
        """Start a companion. Raises OSError; nothing is left behind then."""
        slot = Slot(0, self._service.application_bytes)

        def body(birth: Birth, master: Master, number: int) -> int:
            return self._companions.specs[name].body(birth, master, self._companions.keep_only(name))

        try:
            return self.start(ChildKind.COMPANION, slot, body, generation, now, name=name)
        except BaseException:
            slot.close()
            raise

    def start(
        self, kind: ChildKind, slot: Slot, body: Callable[[Birth, Master, int], int], generation: int, now: float,
        serial: int | None = None, name: str = "", instead_of: int | None = None,
    ) -> Child:  # fmt: skip
        """Start a child of this kind; its slot is folded into the totals when it is reaped. Raises OSError."""

        def body_without_memory(birth: Birth, master: Master, number: int) -> int:
            place = f"name={name} " if name else f"slot={number} " if number else ""
            sinks.name_child(f"{kind.label} {place}gen={generation} pid={os.getpid()}", self._waiting.nudge)
            self._table.close_memory()
            if not name:
                self._companions.close()
            if self._connections is not None:
                self._connections.keep_memory() if kind in COUNTING else self._connections.close()
            if kind is not ChildKind.HOLDER:
                descriptor_limit.give_back()
            if kept:
                raise kept[0]
            return body(birth, master, number)

        def body_of_its_own(birth: Birth, master: Master, number: int) -> int:
            if self._service.kept is not None:
                self._service.kept.keep_ends_of(kind)
            return (body if kind is ChildKind.EXPORTER else body_without_memory)(birth, master, number)

        kept: list[PrivilegesKept] = []  # in the child
        if self._service.privileges is not None and kind in UNPRIVILEGED:
            user_forks.first_in_child(partial(_drop, self._service.privileges, kept))
        try:
            child = self._table.fork(
                kind, slot, generation=generation, now=now, forget=self._service.forget,
                body=body_of_its_own, serial=serial, name=name, instead_of=instead_of,
            )  # fmt: skip
        finally:
            user_forks.first_in_child(None)
        try:
            self._waiting.add(child.pidfd)
        except OSError:
            self._table.abandon(child, withdrawn=serial is None)
            raise
        if kind in (ChildKind.WORKER, ChildKind.REQUEST):
            self.any_served = True
            self._board.add(Word.SPAWNED)
        return child

    def note_failure(self, exc: OSError, now: float, what: str = "worker") -> None:
        """Count a failed fork, and log it at most once in FORK_LOG_EVERY_S."""
        kind = ForkFailure.__members__.get(errno.errorcode.get(exc.errno or 0, ""), ForkFailure.OTHER)
        self._board.add(FORK_FAILURES + kind)
        if now - self._logged_at >= FORK_LOG_EVERY_S:
            self._logged_at = now
            log.error(
                "could not fork a %s: %s; trying again every %.1f s",
                what,
                reason_of(exc),
                FORK_RETRY_S,
                extra=event(LogEvent.FORK_FAILED),
            )
