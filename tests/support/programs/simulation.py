"""The real supervisor over processes that are none, in a time that passes when told to.

Runs in the test's process, forks nothing, waits for nothing. `FakeProcesses` stands in the kernel's place
(processes.py: `Processes`) and passes the same contract tests. A fake worker does what a real one does where the
supervisor can see it: it writes its slot, nudges, obeys signals, and its pidfd, an eventfd, becomes readable when it
ends. The child table, the epoll, the slots and the board are the real ones; so is the queue, where the simulation has
one: a Unix listener at a path of its own, whose clients connect for good.
"""

import errno
import itertools
import os
import random
import select
import signal
import socket
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefork.commands import Command
from prefork.master.policy import Limits, Phase
from prefork.master.processes import End, Processes
from prefork.master.service import CompanionSpec, Service
from prefork.master.supervisor import Supervisor
from prefork.metrics.board import Board, Statistics
from prefork.metrics.facts import ExitReason
from prefork.metrics.scoreboard import (
    ACCEPTED,
    BUSY,
    COMPLETED,
    DRAIN_ASKED,
    DUE,
    IDLE,
    LEAVING,
    READY,
    STARTED_NS,
    STATE,
    YES,
    Slot,
    Stacks,
)
from prefork.reload.generations import Generations
from prefork.reload.handover import Handed
from prefork.reload.reloading import say
from prefork.sockets.listener import Listener
from prefork.workers.limits import JITTER
from prefork.workers.signals import DRAIN_SIGNAL
from prefork.workers.wakeup import Wakeup

# As documented, in seconds where the name says so: written out, so that a number cannot change unseen.
TICK_S = 1.0

NOTHING = (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU)  # a worker ignores these


MARK_BYTES = 64  # of the program's own metrics, by which a companion's slot is told from that of a rehearsal
TURNS_A_SECOND = 200  # more than any timer of the supervisor's asks for


@dataclass(eq=False)
class FakeProcess:
    """A worker from inside, as far as it shows. The test calls it; signals come from the supervisor."""

    pid: int
    pidfd: int
    slot: Slot
    stacks: Stacks
    now_ns: Callable[[], int]
    nudge: Callable[[], None] = lambda: None
    deaf: bool = False  # to TERM and QUIT: it hangs in a C call
    stopped: bool = False
    draining: bool = False
    end: End | None = None
    word: int = -1  # of a rehearsal: where it says whether it is ready
    told: list[tuple[int, int]] = field(default_factory=list)  # signals it was sent, and when
    started_ns: int = 0
    on_kill: Callable[["FakeProcess"], None] = lambda process: None
    on_leave: Callable[["FakeProcess"], None] = lambda process: None  # it was told by TERM
    _pending: list[int] = field(default_factory=list)

    @property
    def alive(self) -> bool:
        return self.end is None

    @property
    def rehearsal(self) -> bool:
        return self.slot.lanes == 0 and not self.companion

    @property
    def companion(self) -> bool:
        return self.slot.lanes == 0 and len(self.slot.application) > 0

    @property
    def ready(self) -> bool:
        return bool(self.slot.words[READY] == YES)

    @property
    def busy(self) -> list[int]:
        """The numbers of the lanes that hold a request."""
        return [index for index in range(self.slot.lanes) if self.slot.lane(index)[STATE] != IDLE]

    # Steps that the test has it take.

    def boot(self) -> None:
        """Become READY; a TERM that came before is obeyed then."""
        self.slot.words[READY] = YES
        self.nudge()
        self._leave_when_empty()

    def fail_to_boot(self, status: int = 1) -> None:
        self.stacks.write("RuntimeError: no database")
        self._end(End(status, None, 0.0, 0.0))

    def die(self, signum: int = signal.SIGKILL) -> None:
        self._end(End(None, signum, 0.0, 0.0))

    def hang(self) -> None:
        """Hear neither TERM nor QUIT from now on."""
        self.deaf = True

    def exit(self, status: int = 0, leaving: ExitReason | None = None) -> None:
        if leaving is not None:
            self.slot.words[LEAVING] = leaving
        self._end(End(status, None, 0.0, 0.0))

    def begin(self) -> None:
        """Take a request on a free lane."""
        index = next(index for index in range(self.slot.lanes) if index not in self.busy)
        lane = self.slot.lane(index)
        lane[STARTED_NS] = self.now_ns()
        lane[ACCEPTED] += 1
        lane[STATE] = BUSY

    def finish(self) -> None:
        """Finish the request on the first busy lane."""
        lane = self.slot.lane(self.busy[0])
        lane[COMPLETED] += 1
        lane[STATE] = IDLE
        self._leave_when_empty()

    def become_due(self, reason: ExitReason = ExitReason.MAX_REQUESTS) -> None:
        self.slot.words[DUE] = reason
        self.nudge()

    def say(self, **word: object) -> None:
        """The answer of the `serve_forever()` of a rehearsal."""
        say(self.word, **word)

    def ask_to_drain(self) -> None:
        self.slot.words[DRAIN_ASKED] = YES
        self.nudge()

    # What happens to it by the kernel.

    def receive(self, signum: int) -> None:
        if not self.alive:
            return
        self.told.append((signum, self.now_ns()))
        if signum == signal.SIGKILL:
            self.on_kill(self)
            self.die()
        elif signum == DRAIN_SIGNAL:
            self.on_leave(self)
            self._hear(signum)
        elif signum == signal.SIGSTOP:
            self.stopped = True
        elif signum == signal.SIGCONT:
            self.stopped = False
            pending, self._pending = self._pending, []
            for each in pending:
                self._obey(each)
        else:
            self._hear(signum)

    def _hear(self, signum: int) -> None:
        if self.stopped:
            self._pending.append(signum)
        else:
            self._obey(signum)

    def _obey(self, signum: int) -> None:
        if not self.alive or signum in NOTHING:
            self._try()
            return
        if signum == signal.SIGUSR1:
            self.stacks.write("Current thread (most recent call first):\n")
        elif signum == DRAIN_SIGNAL and not self.deaf and self.slot.told_to_drain:
            self.draining = True
            self._leave_when_empty()
        elif signum == signal.SIGQUIT and not self.deaf:
            self.exit(0, ExitReason.STOPPED)

    def _try(self) -> None:
        """Its wait was ended: a worker that is well tries to accept, in vain here."""
        free = [index for index in range(self.slot.lanes) if index not in self.busy]
        if self.alive and self.ready and free and not self.deaf:
            self.slot.lane(free[0])[STARTED_NS] = self.now_ns()

    def _leave_when_empty(self) -> None:
        if self.alive and self.draining and self.ready and not self.busy and not self.stopped:
            self.exit(0, ExitReason.DRAINED)

    def _end(self, end: End) -> None:
        self.end = end
        if self.word != -1:
            os.close(self.word)
            self.word = -1
        os.eventfd_write(self.pidfd, 1)


class FakeProcesses(Processes):
    """The kernel's place. `all` are the processes that live or wait to be reaped, by pid."""

    def __init__(self, now_ns: Callable[[], int] = lambda: 0) -> None:
        self.all: dict[int, FakeProcess] = {}
        self.refuse = False  # fork fails
        self.reach = True  # signals arrive; kill(2) refuses them to who has changed its user
        self.on_start: Callable[[FakeProcess], None] = lambda process: None
        self._now_ns = now_ns
        self._pids = itertools.count(1 << 23)  # above any real one
        self._by_pidfd: dict[int, int] = {}

    def end_group(self, pid: int) -> None:
        """No process here has started another."""

    def start(self, slot: Slot, stacks: Stacks, forget: Any, body: Any) -> tuple[int, int]:
        if self.refuse:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        pid, pidfd = next(self._pids), os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        process = self.all[pid] = FakeProcess(pid, pidfd, slot, stacks, self._now_ns)
        process.started_ns = self._now_ns()
        self._by_pidfd[pidfd] = pid
        self.on_start(process)
        return pid, pidfd

    def reap(self, pid: int, pidfd: int) -> End | None:
        if pid not in self.all:  # somebody else was faster
            return End(None, None, 0.0, 0.0)
        end = self.all[pid].end
        if end is not None:
            del self.all[pid]
        return end

    def signal(self, pidfd: int, signum: int) -> None:
        if not self.reach:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        process = self.all.get(self._by_pidfd[pidfd])
        if process is not None:
            process.receive(signum)


LIMITS = Limits(
    pool=True, max_children=2, min_children=2, min_spare_children=None, max_spare_children=None, request_timeout=None,
    slow_request_timeout=None, boot_timeout=10.0, graceful_timeout=5.0, max_restart_delay=4.0, stall_timeout=5.0,
)  # fmt: skip


class Simulation:
    """A pool whose supervisor is real. `advance()` lets time pass: the supervisor turns whenever it said it would.

    Call it, or extend it: `checks` are called after every turn.
    """

    def __init__(
        self, limits: Limits = LIMITS, *, lanes: int = 1, max_lifetime: float | None = None, queue: bool = False,
        companions: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """`queue`: it listens, and `connect()` is a client."""
        self.ns = 1_000_000_000_000
        self._folder = tempfile.TemporaryDirectory(prefix="pf.") if queue else None
        self.listener = None if self._folder is None else _listener(self._folder.name + "/s")
        self._clients: list[socket.socket] = []
        self.checks: list[Callable[[], None]] = []
        self.pauses: list[tuple[int, float]] = []  # when, and for how long
        self.processes = FakeProcesses(self.now_ns)
        self.board, self.wakeup = Board(), Wakeup()
        self.service = Service(
            "simulated", forget=lambda: None, work=lambda birth, master, number: 0, lanes=lanes,
            max_lifetime=max_lifetime, listeners=tuple(filter(None, [self.listener])),
            application_bytes=MARK_BYTES if companions else 0,
            companions=tuple(CompanionSpec(name, None, lambda birth, master, number: 0) for name in companions),
        )  # fmt: skip
        self.supervisor = self.image(self.service, limits)
        self.processes.on_start = self._nudging
        self._statistics: Statistics | None = None

    def succession(self, handed: Handed | None, failed: str) -> Generations:
        """Extend it: the generations of the next image."""
        return Generations(pack=lambda record: None, refusal="this simulation has one image")

    def image(self, service: Service, limits: Limits, handed: Handed | None = None, failed: str = "") -> Supervisor:
        """A supervisor, as an image of the master has one."""
        self.generations = self.succession(handed, failed)
        supervisor = Supervisor(
            service, limits, self.board, self.wakeup, self.generations, processes=self.processes, stamp_ns=self.now_ns
        )
        self.generations.arrive()  # as its loop begins
        rng = random.Random(0)
        supervisor.spawner._jittered = lambda limit: limit * (1 - JITTER * rng.random())  # the same in every run
        return supervisor

    def _nudging(self, process: FakeProcess) -> None:
        process.nudge = self.supervisor.nudge

    def now_ns(self) -> int:
        return self.ns

    @property
    def now(self) -> float:
        """Seconds since whenever; no pause of the master is taken off."""
        return self.ns / 1e9

    @property
    def phase(self) -> Phase:
        return self.supervisor.phase

    def command(self, command: Command) -> None:
        """Ask the master; it wakes up for it."""
        self._note(command)
        self.turn()

    def _note(self, command: Command) -> None:
        self.supervisor.mailbox.post(command)

    def turn(self) -> None:
        self.supervisor.turn()
        for check in self.checks:
            check()

    def advance(self, seconds: float) -> None:
        """Let so much time pass, with a turn when the supervisor hears something, and when it wanted one."""
        until = self.ns + round(seconds * 1e9)
        at_most = self.supervisor.turns + TURNS_A_SECOND * (seconds + 1)
        self._hear()
        while self.ns < until and self.phase is not Phase.STOPPED:
            # Rounded up: what is not due yet would be asked for again without end.
            step = int(self.supervisor.until_next_turn() * 1e9) + 1000
            self.ns = min(until, self.ns + step)
            self.turn()
            self._hear()
            assert self.supervisor.turns < at_most, "the supervisor spins"

    def _hear(self) -> None:
        """As the master's wait, which returns at once."""
        for _ in range(100):
            if self.phase is Phase.STOPPED or not select.select([self.supervisor.fileno()], [], [], 0)[0]:
                return
            self.turn()
        raise AssertionError("the supervisor's wait ends again and again")

    def pause(self, seconds: float) -> None:
        """The master is stopped for so long; nobody else is."""
        self.pauses.append((self.ns, seconds))
        self.ns += round(seconds * 1e9)
        self.turn()

    def since(self, ns: int) -> float:
        """Seconds since then in which the master was there."""
        paused = sum(seconds for at, seconds in self.pauses if at >= ns)
        return (self.ns - ns) / 1e9 - paused

    def living(self, where: Callable[[FakeProcess], bool] = lambda process: True) -> list[FakeProcess]:
        """The workers that live, the oldest first."""
        found = [process for process in self.processes.all.values() if process.alive and process.slot.lanes]
        return [process for process in found if where(process)]

    def companions(self) -> list[FakeProcess]:
        """Those that live, the oldest first."""
        return [process for process in self.processes.all.values() if process.alive and process.companion]

    @property
    def rehearsal(self) -> FakeProcess | None:
        """The one that lives, if one does."""
        return next((process for process in self.processes.all.values() if process.alive and process.rehearsal), None)

    # Its clients, where there is a queue.

    def connect(self) -> bool:
        """A client comes; whether it was let in."""
        assert self._folder is not None
        client = socket.socket(socket.AF_UNIX)
        self._clients.append(client)
        return client.connect_ex(self._folder.name + "/s") == 0

    @property
    def queued(self) -> bool:
        return self.listener is not None and bool(select.select([self.listener], [], [], 0)[0])

    def accept(self, process: FakeProcess) -> bool:
        """Let this worker take the one that waits for the longest; False where nobody does."""
        if not self.queued or self.listener is None:
            return False
        self.listener.accept()[0].close()
        process.begin()
        return True

    def settle(self, turns: int = 100) -> None:
        """Let everybody boot, for as long as somebody is started; then the pool is at rest."""
        for _ in range(turns):
            self.turn()
            starting = self.living(lambda process: not process.ready and not process.stopped)
            if not starting:
                return
            for process in starting:
                process.boot()
            self.advance(0.05)
        raise AssertionError(f"the pool does not come to rest: {[*map(str, self.supervisor.table)]}")

    def statistics(self) -> Statistics:
        return self.board.snapshot().statistics() if self._statistics is None else self._statistics

    def close(self) -> None:
        for process in filter(None, [*self.living(), *self.companions(), self.rehearsal]):
            process.die()
        self.supervisor.close()
        self._statistics = self.statistics()
        self.wakeup.close()
        self.board.forget()
        for client in self._clients:
            client.close()
        if self.listener is not None and self._folder is not None:
            self.listener.close()
            self._folder.cleanup()


def _listener(path: str) -> Listener:
    listener = Listener(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(100)
    listener.setblocking(False)
    return listener
