"""The worker's loop in the test's own process: a real listener whose clients have connected before, a real slot, and
a master that is none. The last handler tells it to leave, by the signal that a master sends."""

import contextlib
import faulthandler
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import pytest

from prefork import PreForkingMixIn, PreForkingTCPServer, StreamRequestHandler, TCPServer, ThreadingMixIn
from prefork.metrics.facts import ExitReason
from prefork.metrics.scoreboard import (
    ACCEPTED,
    CPU_USER_NS,
    DRAIN_ASKED,
    DUE,
    DURATION,
    FAILED,
    FDS_LIMIT,
    IDLE,
    LEAVING,
    OPEN_FDS,
    PRIVATE_MEMORY,
    QUEUE_WAIT,
    READY,
    REPLACE_ASKED,
    STATE,
    YES,
    Slot,
    Stacks,
)
from prefork.sockets.listener import prepared
from prefork.workers import lanes, loop, user_forks
from prefork.workers.bootstrap import Birth, Master
from prefork.workers.limits import WorkerLimits
from prefork.workers.loop import Worker, WorkerTerms
from prefork.workers.signals import DRAIN_SIGNAL
from tests.support.programs.serving import threads_end
from tests.support.tools.proc import no_descriptor_left


class NoMaster:
    """Dies when the test says so."""

    def __init__(self) -> None:
        self.pidfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.asked = 0  # to be told of its death
        self.dead = False

    def fileno(self) -> int:
        return self.pidfd

    def gone(self) -> bool:
        return self.dead

    def tell_us_when_dying(self, signum: int = signal.SIGTERM) -> None:
        self.asked += 1

    def die(self) -> None:
        self.dead = True
        os.eventfd_write(self.pidfd, 1)


class Handler(StreamRequestHandler):
    """Does what its client's line says."""

    server: "Server"

    def handle(self) -> None:
        line = self.rfile.readline().strip().decode()
        self.server.seen.append(line)
        self.wfile.write(b"answered\n")
        self.server.do(line)


class Server(PreForkingTCPServer):
    seen: list[str]
    master: NoMaster

    def worker_started(self) -> None:
        self.seen.append("started")

    def worker_stopping(self) -> None:
        self.seen.append("stopping")

    def do(self, line: str) -> None:
        match line:
            case "leave":
                os.kill(os.getpid(), DRAIN_SIGNAL)
            case "TERM":
                os.kill(os.getpid(), signal.SIGTERM)
            case "shut down":
                self.shutdown()
            case "die":
                self.master.die()
            case "nothing":
                for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU):
                    os.kill(os.getpid(), signum)


class Threaded(PreForkingMixIn, ThreadingMixIn, TCPServer):
    seen: list[str]
    master: NoMaster
    worker_started, worker_stopping, do = Server.worker_started, Server.worker_stopping, Server.do


TERMS = WorkerTerms(
    WorkerLimits(None, None), graceful_timeout=20.0, elsewhere=False, rehearsal=False, one_request=False,
    hang_up=False, queue_waits=False, metrics=False, on_drain=None, set_title=lambda title: None, nudge=lambda: None,
)  # fmt: skip


class Run:
    """A worker that has run: what was seen of it in which order, its slot, and what its clients were answered."""

    def __init__(self, server_class: type[Any] = Server, lanes: int = 1, **terms: Any) -> None:
        self.seen: list[str] = []
        self.measured: list[bool] = []  # whether it was, at each nudge
        self.slot, self.master = Slot(lanes), NoMaster()
        self.server = server_class(("127.0.0.1", 0), Handler)
        self.server.seen, self.server.master = self.seen, self.master
        self._clients: list[socket.socket] = []
        self.terms = replace(TERMS, set_title=lambda title: self.seen.append(f"title {title}".strip()),
                             nudge=self._nudge, **terms)  # fmt: skip
        self.birth = Birth(self.slot, Stacks(self.slot), 0, False, lambda: None, set())

    def _nudge(self) -> None:
        words = self.slot.words
        self.measured.append(bool(words[PRIVATE_MEMORY]))
        self.seen.append(f"nudge{' due' * bool(words[DUE])}{' ready' * bool(words[READY])}")

    def come(self, *lines: str) -> None:
        """Clients, each with a line to say, in the queue."""
        for line in lines:
            client = socket.create_connection(self.server.server_address, 10)
            client.sendall(line.encode() + b"\n")
            self._clients.append(client)

    def run(self) -> int:
        signals = (DRAIN_SIGNAL, signal.SIGTERM, signal.SIGQUIT, *loop.IGNORED, signal.SIGALRM)
        before, mask = {each: signal.getsignal(each) for each in signals}, signal.pthread_sigmask(signal.SIG_BLOCK, [])
        wakeup = signal.set_wakeup_fd(-1)
        try:
            # The end of Python is this process's own.
            with prepared(self.server.socket, lambda: True), pytest.MonkeyPatch.context() as patch:
                patch.setattr("prefork.workers.ending.finish", lambda: self.seen.append("finish"))
                worker = Worker(self.server, self.terms, self.birth, cast(Master, self.master))
                self.server._prefork_.worker = worker
                return worker.run()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.set_wakeup_fd(wakeup)
            for each, handler in before.items():
                signal.signal(each, handler)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            faulthandler.unregister(signal.SIGUSR1)
            user_forks.on_fork_by_user(None)

    @property
    def answered(self) -> list[bool]:
        found = []
        for client in self._clients:
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError, ConnectionResetError):
                found.append(client.recv(100) == b"answered\n")
                continue
            found.append(False)
        return found

    def close(self) -> None:
        worker = self.server._prefork_.worker
        if worker is not None:
            worker._wakeup.close()
        self.server._prefork_.worker = None
        self.server.socket.close()
        for client in self._clients:
            client.close()
        os.close(self.master.pidfd)
        self.slot.close()


@pytest.fixture
def runs() -> Iterator[Callable[..., Run]]:
    """Makes them, and closes them."""
    with contextlib.ExitStack() as stack:

        def make(server_class: type[Any] = Server, **terms: Any) -> Run:
            run = Run(server_class, **terms)
            stack.callback(run.close)
            return run

        yield make


def test_from_boot_to_end(runs: Callable[..., Run]) -> None:
    """What is seen of a worker, in its order: title, hook, READY with a nudge, requests, draining, the end with its
    reason; and it asks to be told of its master's death twice, for the hook may have changed its user."""
    run = runs()
    run.come("one", "two", "leave")
    assert run.run() == 0
    assert run.seen == [
        "title starting", "started", "title", "nudge ready", "one", "two", "leave", "title draining", "nudge ready",
        "stopping", "finish",
    ]  # fmt: skip
    assert run.answered == [True] * 3
    assert run.slot.words[LEAVING] == ExitReason.DRAINED
    assert run.slot.words[DUE] == run.slot.words[DRAIN_ASKED] == 0
    assert run.slot.lane(0)[ACCEPTED] == 3
    assert run.master.asked == 2
    assert run.server.socket.fileno() == -1


def test_one_more_before_it_leaves(runs: Callable[..., Run]) -> None:
    """For a connection that it alone was woken for: one, however many wait, and none where nobody does."""
    run = runs()
    with socket.socket(fileno=os.dup(run.server.fileno())) as siblings:
        run.come("leave", "last", "not mine", "nor this")
        run.run()
        assert run.answered == [True, True, False, False]
        assert [line for line in run.seen if line in ("leave", "last", "not mine")] == ["leave", "last"]
        siblings.accept()[0].close()


def test_signals_that_do_nothing(runs: Callable[..., Run]) -> None:
    """INT, HUP, USR2, TTIN and TTOU are the master's to hear."""
    run = runs()
    run.come("nothing", "after it", "leave")
    run.run()
    assert run.answered == [True] * 3


def test_a_term_from_elsewhere(runs: Callable[..., Run]) -> None:
    """TERM while the master lives is passed on to it, and the worker serves until it is told to drain."""
    run = runs()
    run.come("TERM", "after it", "leave")
    run.run()
    assert run.answered == [True] * 3
    assert run.slot.words[REPLACE_ASKED] == YES
    assert run.seen.index("TERM") < len(run.seen) - 1 - run.seen[::-1].index("nudge ready")
    assert run.seen.count("nudge ready") == 3, "for READY, to pass it on, when it has drained"


def test_enough_requests(runs: Callable[..., Run]) -> None:
    """One that has served as many as it may says so, once, and serves on until it is told to leave."""
    run = runs(limits=WorkerLimits(2, None))
    run.come("one", "two", "three", "leave")
    run.run()
    assert run.slot.words[DUE] == ExitReason.MAX_REQUESTS
    asked = run.seen.index("nudge due ready")
    assert run.seen.index("two") < asked < run.seen.index("three")
    assert run.seen.count("nudge due ready") == 2, "and when it has drained"
    assert run.slot.words[LEAVING] == ExitReason.DRAINED


def test_a_few_fewer(runs: Callable[..., Run]) -> None:
    """Workers that began together do not leave together: up to a tenth fewer, never none."""
    run = runs(limits=WorkerLimits(1000, None))
    run.come("leave")
    run.run()
    worker = run.server._prefork_.worker
    assert 900 <= worker._limits.max_requests <= 1000


def test_too_much_memory(runs: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen three times in a row, and only then."""
    monkeypatch.setattr(loop, "LOOK_EVERY_NS", 0)
    monkeypatch.setattr("prefork.workers.limits.CONFIRM_EVERY_S", 0.0)
    run = runs(limits=WorkerLimits(None, 1))
    run.come("one", "two", "three", "four", "leave")
    run.run()
    assert run.slot.words[DUE] == ExitReason.MAX_MEMORY
    assert run.seen.index("three") < run.seen.index("nudge due ready") < run.seen.index("four")


@pytest.mark.parametrize("metrics", [True, False])
def test_what_it_costs(metrics: bool, runs: Callable[..., Run]) -> None:
    """Where somebody may look it is measured when it is READY; else never."""
    run = runs(metrics=metrics)
    run.come("leave")
    run.run()
    words = run.slot.words
    seen = [bool(words[word]) for word in (PRIVATE_MEMORY, OPEN_FDS, FDS_LIMIT, CPU_USER_NS)]
    assert seen == [metrics] * 4
    assert run.measured[0] is metrics
    if metrics:
        assert words[PRIVATE_MEMORY] > 1 << 20
        assert words[CPU_USER_NS] < 3600 * 1e9


@pytest.mark.parametrize("asked", [True, False])
def test_how_long_it_waited(asked: bool, runs: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel is asked for one connection in a while, where that is wanted."""
    monkeypatch.setattr(lanes, "QUEUE_WAIT_EVERY_NS", 3600 * 10**9)  # the two may come minutes apart on a busy machine
    run = runs(queue_waits=asked)
    run.come("one", "two", "leave")
    run.run()
    lane = run.slot.lane(0)
    assert sum(lane[QUEUE_WAIT.start : QUEUE_WAIT.end - 1]) == asked
    assert lane[QUEUE_WAIT.end - 1] < 10e9


@pytest.mark.parametrize("hook", ["verify_request", "finish_request"])
def test_a_handler_that_exits(hook: str, runs: Callable[..., Run]) -> None:
    """SystemExit leaves the loop: that request has failed, its connection is closed, and no lane is busy; the worker
    tells the master, and ends in good order, with that status."""
    run = runs()

    def leave(request: object, client_address: object) -> bool:
        sys.exit(3)

    setattr(run.server, hook, leave)
    run.come("never answered")
    assert run.run() == 3
    assert run.seen[-3:] == ["nudge ready", "stopping", "finish"]
    assert run.slot.words[LEAVING] == ExitReason.EXITED
    lane = run.slot.lane(0)
    assert (lane[ACCEPTED], lane[FAILED], lane[STATE]) == (1, 1, IDLE)
    assert sum(lane[DURATION.start : DURATION.end - 1]) == (hook == "finish_request")
    assert run.answered == [False]


def test_a_loop_that_crashes(runs: Callable[..., Run]) -> None:
    """Whatever no `except Exception` stops ends it: its last words are kept, and it ends as Python does, unhooked."""
    run = runs()

    def crash(request: object, client_address: object) -> bool:
        raise KeyboardInterrupt("of a program")

    run.server.verify_request = crash
    run.come("never answered")
    assert run.run() == 1
    assert run.seen[-2:] == ["nudge ready", "finish"]
    assert run.slot.words[LEAVING] == ExitReason.CRASHED
    assert "KeyboardInterrupt: of a program" in run.birth.stacks.take()


def test_forked_for_one_request(runs: Callable[..., Run]) -> None:
    """A worker forked for one request serves that one and leaves, for the reason that it has served enough."""
    run = runs(one_request=True)
    with socket.socket(fileno=os.dup(run.server.fileno())):
        run.come("mine", "not mine")
        run.run()
    assert run.answered == [True, False]
    assert run.slot.words[LEAVING] == ExitReason.MAX_REQUESTS


def test_a_rehearsal(runs: Callable[..., Run]) -> None:
    """Boots, says READY, and leaves without having accepted anybody."""
    run = runs(rehearsal=True)
    with socket.socket(fileno=os.dup(run.server.fileno())):
        run.come("leave")
        run.run()
    assert run.seen == ["title starting", "started", "title", "nudge ready", "stopping"]
    assert (run.slot.words[READY], run.answered) == (YES, [False])
    assert run.server.socket.fileno() != -1


def test_shutdown_in_a_handler(runs: Callable[..., Run]) -> None:
    """Asks the master, by the slot and a nudge, and goes on until it is told."""
    run = runs()
    run.come("shut down", "leave")
    run.run()
    assert run.slot.words[DRAIN_ASKED] == YES
    assert run.seen.index("shut down") < run.seen.index("nudge ready", run.seen.index("shut down"))
    assert run.answered == [True, True]


def test_the_master_dies(runs: Callable[..., Run]) -> None:
    """The port is free at once: what waits is not served, and the end has its bound and its reason."""
    run = runs()
    left: list[float] = []
    run.server.worker_stopping = lambda: left.append(signal.getitimer(signal.ITIMER_REAL)[0])
    with socket.socket(fileno=os.dup(run.server.fileno())):
        run.come("die", "too late", "too late")
        run.run()
    assert run.slot.words[LEAVING] == ExitReason.MASTER_DIED
    assert run.answered.count(True) <= 2
    assert 15 < left[0] <= 20


def test_the_masters_death_by_signal(runs: Callable[..., Run]) -> None:
    """PDEATHSIG is a TERM: where the master is gone by then, the port is freed in the handler."""
    run = runs()
    run.master.dead = True
    run.come("TERM")
    run.run()
    assert run.slot.words[LEAVING] == ExitReason.MASTER_DIED


@pytest.mark.parametrize("lanes", [1, 3])
def test_in_threads(lanes: int, runs: Callable[..., Run]) -> None:
    """With threads as many requests run at once as there are lanes, and a drain waits for each."""
    run = runs(Threaded, lanes=lanes, elsewhere=True)
    run.come(*["x"] * 6, "leave")
    with threads_end():
        run.run()
    assert run.seen[-3:] == ["nudge ready", "stopping", "finish"]
    assert run.seen.count("x") == 6
    assert run.answered == [True] * 7
    assert sum(run.slot.lane(number)[ACCEPTED] for number in range(lanes)) == 7


def test_without_a_descriptor(runs: Callable[..., Run]) -> None:
    """An accept that fails for lack of one is tried again after a while, not at once, and TERM is heard meanwhile."""
    run = runs()
    run.come("never")
    signal.signal(signal.SIGALRM, lambda signum, frame: os.kill(os.getpid(), DRAIN_SIGNAL))
    run.server.worker_started = lambda: signal.setitimer(signal.ITIMER_REAL, 0.3)
    tries: list[None] = []
    accept = run.server.get_request

    def count() -> Any:
        tries.append(None)
        with no_descriptor_left(os.getpid()):
            return accept()

    run.server.get_request = count
    run.run()
    assert run.answered == [False]
    assert 3 <= len(tries) <= 5, "every tenth of a second, and one before it leaves"
