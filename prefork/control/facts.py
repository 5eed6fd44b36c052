"""The facts that the reports of the control socket are made of, as the master knows them at this moment.

Runs in the master's turns and must not wait: a look at the processes themselves ends after LOOKING_S.
"""

import os
import socket
import sys
from collections.abc import Iterator, Sequence
from time import monotonic, time_ns

from prefork.metrics.facts import ChildKind
from prefork.metrics.kernel import accept_queue

from ..master.children import Child, ChildState
from ..master.supervisor import Supervisor
from ..reload.generations import Generations
from ..sockets.listener import names_of, number_of
from ..sockets.peers import PEERS_MAX
from ..version import __version__
from . import proc, report

LOOKING_S = 0.02  # longest time that a question about workers holds up the master


class Facts:
    """Gathers them from the supervisor and its generations."""

    def __init__(self, supervisor: Supervisor, generations: Generations) -> None:
        self._supervisor = supervisor
        self._generations = generations

    def _facts(self, *, look: bool = False, slot: int | str | None = None) -> report.ServiceFacts:
        supervisor = self._supervisor
        until, board = monotonic() + LOOKING_S, supervisor.board.snapshot()
        workers = tuple(self._worker(child, until if look else 0.0, slot is not None) for child in self._chosen(slot))
        generations, limits, pool = self._generations, supervisor.limits, supervisor.pool
        return report.ServiceFacts(
            supervisor.service.name, os.getpid(), __version__, sys.version.split()[0],
            supervisor.phase.name.lower(), generations.current, generations.reloading, generations.degraded,
            tuple(_listeners(supervisor.service.listeners)), limits.min_children, limits.max_children,
            supervisor.last_error,
            pool.backing_off, generations.failure, time_ns(), board, workers,
            tuple(self._companions(until if look else 0.0)), tuple(self._holders(until if look else 0.0)),
        )  # fmt: skip

    def _workers(self) -> list[Child]:
        return [child for child in self._supervisor.table if child.kind is ChildKind.WORKER]

    def _worker(self, child: Child, until: float, every_peer: bool) -> report.WorkerFacts:
        slot = child.reader.look(self._supervisor.clock.stamp_ns())
        busy = "busy" if slot.busy else "idle"
        state = busy if child.state is ChildState.READY else child.state.name.lower()
        listeners = self._supervisor.service.listeners
        most = None if every_peer else PEERS_MAX
        seen = proc.look(child.pid, child.pidfd, listeners, busy=bool(slot.busy), until=until, at_most=most)
        return report.WorkerFacts(
            child.number, child.pid, child.generation, state, self._supervisor.clock.now() - child.started,
            slot.accepted, slot.lanes, slot.busy_since_ns, slot.private_memory, child.reason, seen.peers,
            seen.cpu_s, seen.rss, sum(in_hand + idle for _, in_hand, idle in child.reader.connections()),
        )  # fmt: skip

    def _holders(self, until: float) -> Iterator[report.HolderFacts]:
        for child in self._supervisor.table:
            if child.kind is ChildKind.HOLDER:
                seen = proc.look(child.pid, child.pidfd, (), busy=False, until=until)
                yield report.HolderFacts(
                    child.pid, child.generation,
                    "running" if child.state is ChildState.READY else child.state.name.lower(),
                    self._supervisor.clock.now() - child.started,
                    sum(idle for _, _, idle in child.reader.connections()), child.reader.held_most(),
                    seen.cpu_s, seen.rss,
                )  # fmt: skip

    def _companions(self, until: float) -> Iterator[report.CompanionFacts]:
        """Yield the facts of each process of a companion, and of each companion that has none."""
        supervisor, now = self._supervisor, self._supervisor.clock.now()
        living = self._companions_living()
        table, back_off = supervisor.companions.table, supervisor.companions.back_off
        for counts in () if table is None else table.read():
            child = living.get(counts.name)
            if child is None:
                after = back_off.get(counts.name)
                waits = max(0.0, after.next_start - now) if after is not None and after.ends else None
                yield report.CompanionFacts(counts, "waiting", waits)
            else:
                seen = proc.look(child.pid, child.pidfd, (), busy=False, until=until)
                yield report.CompanionFacts(
                    counts, "running" if child.state is ChildState.READY else child.state.name.lower(), None,
                    child.pid, child.generation, now - child.started, seen.cpu_s, seen.rss,
                    child.reader.look(self._supervisor.clock.stamp_ns()).private_memory,
                )  # fmt: skip

    def _chosen(self, which: int | str | None) -> list[Child]:
        return [child for child in self._workers() if which is None or child.number == which]

    def _companions_living(self) -> dict[str, Child]:
        return {child.name: child for child in self._supervisor.table if child.kind is ChildKind.COMPANION}


def _listeners(socks: Sequence[socket.socket]) -> Iterator[report.ListenerFacts]:
    still_open = [sock for sock in socks if sock.fileno() != -1]
    for sock, name in zip(still_open, names_of(still_open), strict=True):
        queue = accept_queue(sock) if sock.type == socket.SOCK_STREAM else (None, None)
        yield report.ListenerFacts(name, number_of(sock), *queue)
