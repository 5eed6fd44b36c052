"""A real service under test: a program in a process of its own, the facts it tells, and the certainty that it is gone.

Runs in the test's process. Waits only for events (a fact on the pipe, EOF, an exit), each under the one timeout HUNG,
which means that something hangs. Owns the session in which the program runs: whatever is left of it at the end is
killed, one pid at a time, and is a failure.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from fcntl import F_SETPIPE_SZ, fcntl
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Self

import psutil

from tests.support.clients.connections import Connection, connect
from tests.support.programs.served import FACTS, LOOK
from tests.support.tools.complaints import Judged

HUNG = 30.0  # seconds; never reached unless something hangs
ROOT = Path(__file__).parents[3]
LOG_TAIL = 200  # lines of the server's log that a failure shows

Fact = dict[str, Any]

SCRIPT = """\
from tests.support.programs.scripted import *
{definitions}
class Server(Hooks, Told, {bases}):
    RequestHandlerClass = Handler
serve(Server, {address!r}, {settings!r}, __name__)
"""

# Definitions of a plain server: it takes no signals.
ENDED_BY_TERM = "from tests.support.programs.served import EndedByTerm as Hooks\n"


def script(
    definitions: str = "", *, bases: str = "PreForkingTCPServer", address: Any = ("127.0.0.1", 0), **settings: Any
) -> str:
    """A program that serves. `definitions` may define `Handler`, and `Hooks`, a class mixed in before all others; what
    is longer than a few lines is a file, and `definitions` import it."""
    return SCRIPT.format(definitions=definitions, bases=bases, settings=settings, address=address)


class Service(Judged):
    """A running program; use as a context manager. Left alone it is ended by TERM and must exit with 0. So must one
    that ended by itself, unless the test has asked for its status or killed it.

    Every ERROR and traceback in its log must be asked for: `expect()`, `allow()`, and `signal()`, which asks for the
    death that it sends.
    `argv` instead of `source` runs that command; `before` is put in front of it (unshare, a shell that sets limits).
    `fds` are passed on under their numbers.
    At the end every accepted request must be accounted for, unless the test spoils the books (`accounts=False`).
    """

    def __init__(
        self,
        tmp_path: Path,
        source: str | None = None,
        *,
        argv: Sequence[str] | None = None,
        before: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        accounts: bool = True,
        fds: Sequence[int] = (),
        **popen: Any,
    ) -> None:
        super().__init__()
        self.facts: list[Fact] = []
        self._accounts = accounts
        self._ends_with = 0
        self.directory = tmp_path
        self.log_path = tmp_path / f"log-{len(list(tmp_path.glob('log-*')))}"
        program = tmp_path / "program.py"
        if source is not None:
            program.write_text(source)
        command = [sys.executable, *(argv if argv is not None else [str(program)])]
        self._pipe, write = os.pipe()
        fcntl(write, F_SETPIPE_SZ, 1 << 20)
        self._buffer = b""
        self._eof = False
        environ = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", FACTS: str(write), **(env or {})}
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [*before, *command], cwd=tmp_path, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                pass_fds=[write, *fds], start_new_session=True, **popen,
            )  # fmt: skip
        os.close(write)

    # The program.

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        """For a claim about the log; never to wait for something."""
        return self.log_path.read_text(errors="replace")

    @property
    def address(self) -> Any:
        """The address at which it listens, as a client needs it."""
        address = self.wait("listening")["address"]
        return tuple(address) if isinstance(address, list) else os.path.relpath(self.directory / address)

    def workers(self) -> list[int]:
        """The pids of the worker processes, by their titles."""
        found = []
        for child in psutil.Process(self.pid).children():
            with contextlib.suppress(psutil.Error, IndexError):
                if child.cmdline()[0].startswith("prefork: worker"):
                    found.append(child.pid)
        return found

    def signal(self, signum: int, pid: int | None = None) -> float:
        """Send a signal, to the master unless told otherwise; when it was sent."""
        os.kill(self.pid if pid is None else pid, signum)
        if pid is not None:
            self.allow(rf"pid={pid}: \w+ \((killed by {signal.Signals(signum).name}|exit status 0)\)")
        elif signum == signal.SIGKILL:
            self._ends_with = -signum
        return monotonic()

    def connect(self) -> Connection:
        return connect(self.address)

    def hold(self) -> Connection:
        """A connection that keeps a worker busy until it is closed; `.pid` is the worker's. The handler is a Who."""
        held = self.connect()
        held.pid = int(held.ask(b"pid"))
        return held

    # Events.

    def wait(self, event: str, where: Callable[[Fact], bool] = lambda fact: True, *, after: int = 0) -> Fact:
        """The first such fact since `after` (a `mark()`), when it has come."""
        deadline = monotonic() + HUNG
        seen = after
        while True:
            for fact in self.facts[seen:]:
                if fact["event"] == event and where(fact):
                    return fact
            seen = max(after, len(self.facts))
            self._read(deadline, f"for the fact {event!r}")

    def wait_each(self, event: str, count: int, *, after: int = 0) -> list[Fact]:
        """The first so many such facts since `after`, when they have come."""
        found: list[Fact] = []
        for _ in range(count):
            found.append(self.wait(event, after=after))
            after = next(number for number, fact in enumerate(self.facts) if fact is found[-1]) + 1
        return found

    def wait_pool(self, where: Callable[[Fact], bool]) -> Fact:
        """The last fact about the pool, as soon as `where` is true of it. Ask for counts that only grow."""
        deadline = monotonic() + HUNG
        while True:
            self.mark()
            for fact in reversed(self.facts):
                if fact["event"] == "pool":
                    if where(fact):
                        return fact
                    break
            self._read(deadline, "for the pool")

    def wait_ready(self, workers: int, **exits: int) -> Fact:
        """Until the master counts so many workers READY and none STARTING, after at least these `exits` by reason."""
        return self.wait_pool(
            lambda pool: (
                pool["ready"] == workers
                and not pool["starting"]
                and all(pool["exits"].get(reason, 0) >= count for reason, count in exits.items())
            )
        )

    def mark(self) -> int:
        """The number of facts that have come until now."""
        while not self._eof and select.select([self._pipe], [], [], 0)[0]:
            self._fill()
        return len(self.facts)

    def statistics(self) -> Fact:
        """The counts of the serving process now; once it has ended, its last ones."""
        if self.process.poll() is None:
            after = self.mark()
            self.signal(LOOK)
            return self.wait("statistics", after=after)
        return self.wait("ended")

    def settled(self, in_flight: int = 0) -> Fact:
        """The statistics once so many requests run: a client may have its answer before the worker has counted it."""
        deadline = monotonic() + HUNG
        while (found := self.statistics())["in_flight"] != in_flight:
            assert monotonic() < deadline, f"hung: waited {HUNG} s for {in_flight} requests in flight: {found}"
        return found

    def wait_exit(self) -> int:
        """The exit status of the program (negative: a signal's number)."""
        deadline = monotonic() + HUNG
        if self.process.returncode is None:
            # The pipe is emptied meanwhile: a full one blocks the service.
            with readable(os.pidfd_open(self.pid)) as pidfd:
                while not select.select([pidfd], [], [], 0)[0]:
                    if monotonic() > deadline:
                        raise AssertionError(f"hung: waited {HUNG} s for the exit")
                    self._wait_for([pidfd], deadline)
        status = self._ends_with = self.process.wait(HUNG)
        self.mark()
        return status

    def wait_gone(self) -> None:
        """Until no process holds the pipe: not the program, no worker, nothing that they forked."""
        deadline = monotonic() + HUNG
        while not self._eof:
            self._read(deadline, "until every process is gone", eof_is_fine=True)

    def _wait_for(self, fds: list[int], deadline: float) -> None:
        pipe = [] if self._eof else [self._pipe]
        if self._pipe in select.select([*fds, *pipe], [], [], max(0.0, deadline - monotonic()))[0]:
            self._fill()

    def _read(self, deadline: float, what: str, *, eof_is_fine: bool = False) -> None:
        if self._eof and not eof_is_fine:
            raise AssertionError(f"waited {what}, but the service is gone; the last facts: {self.facts[-5:]}")
        if not select.select([self._pipe], [], [], max(0.0, deadline - monotonic()))[0]:
            raise AssertionError(f"hung: waited {HUNG} s {what}; the last facts: {self.facts[-5:]}")
        self._fill()

    def _fill(self) -> None:
        data = os.read(self._pipe, 1 << 16)
        self._eof = not data
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        self.facts += map(json.loads, lines)

    # The end.

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if exc is None:
                should = self._ends_with
                if self.process.poll() is None:
                    self.signal(signal.SIGTERM)
                status = self.wait_exit()
                assert status == should, f"the service ended with {status}"
        finally:
            left = kill_session(self.pid)
            self.process.wait(HUNG)
            os.close(self._pipe)
            sys.stderr.write("".join(self.log.splitlines(keepends=True)[-LOG_TAIL:]))  # pytest shows it on failure
        if exc is None:
            self.judge()
            assert not left, f"left behind in the session of the service: {left}"
            for fact in self.facts:
                if fact["event"] == "ended" and self._accounts:
                    assert_accounted(fact)


OUTCOMES = ("completed", "failed", "timed_out", "rejected", "handed_over", "lost", "in_flight")


def assert_accounted(statistics: Fact) -> None:
    """Every accepted request has come to one of the ends there are, or runs still. One that is counted is in flight for
    another moment, until its lane is idle."""
    too_many = sum(statistics[outcome] for outcome in OUTCOMES) - statistics["accepted"]
    assert 0 <= too_many <= statistics["in_flight"], statistics


@contextlib.contextmanager
def readable(fd: int) -> Iterator[int]:
    """A descriptor that is closed at the end of the block."""
    try:
        yield fd
    finally:
        os.close(fd)


class Watch:
    """Deaths as events: pidfds of processes that are no children of ours, opened while they live."""

    def __init__(self, *pids: int) -> None:
        self._pidfds = {pid: os.pidfd_open(pid) for pid in pids}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for pidfd in self._pidfds.values():
            os.close(pidfd)

    def wait_dead(self) -> float:
        """Until all are dead; when the last one was seen to be."""
        for pid, pidfd in self._pidfds.items():
            assert select.select([pidfd], [], [], HUNG)[0], f"hung: pid {pid} does not end"
        return monotonic()

    def wait_one_dead(self) -> float:
        """Until one of them is dead; when it was seen to be."""
        assert select.select(list(self._pidfds.values()), [], [], HUNG)[0], f"hung: none of {[*self._pidfds]} ends"
        return monotonic()

    def alive(self) -> list[int]:
        return [pid for pid, pidfd in self._pidfds.items() if not select.select([pidfd], [], [], 0)[0]]


def in_session(session: int) -> list[int]:
    """The pids of the living processes of a session."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session and fields[0] not in "ZX":
                    found.append(int(name))
    return found


def kill_session(session: int) -> list[str]:
    """Kill what is left of a session; the titles of what was. Who is at its end already is only waited for."""
    left = []
    while pids := in_session(session):  # the next round finds those forked meanwhile
        for pid in pids:
            with contextlib.suppress(OSError), readable(os.pidfd_open(pid)) as pidfd:
                title = Path(f"/proc/{pid}/cmdline").read_bytes()  # empty once the memory is given back, proc(5)
                if title:
                    left.append(f"{pid} {title.decode(errors='replace')}"[:100])
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                select.select([pidfd], [], [], HUNG)
    return left
