"""The worker's loop in the test's own process: a real listener whose clients have connected before, a real slot, and
a master that is none. The last handler tells it to leave, by the signal that a master sends."""

import contextlib
import errno
import faulthandler
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, cast

import pytest

from prefork import (
    DatagramRequestHandler,
    PreForkingMixIn,
    PreForkingTCPServer,
    PreForkingUDPServer,
    StreamRequestHandler,
    TCPServer,
    ThreadingMixIn,
)
from prefork.metrics.facts import ExitReason
from prefork.metrics.scoreboard import (
    ACCEPTED,
    BUSY,
    CPU_SYSTEM_NS,
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
from prefork.sockets.shared import prepared
from prefork.workers import ending, hangup, lanes, limits, loop, sinks, user_forks, waiters
from prefork.workers.bootstrap import Birth, Master
from prefork.workers.limits import CostSample, WorkerLimits
from prefork.workers.loop import Worker
from prefork.workers.signals import DRAIN_SIGNAL, STACKS_SIGNAL
from prefork.workers.terms import WorkerTerms
from tests.support.programs.inside import NoMaster, Stray, as_a_child
from tests.support.programs.serving import threads_end
from tests.support.tools.proc import no_descriptor_left

HUNG_S = 20.0


def drain(server: Any) -> None:
    """Tell this worker to drain, as its master does."""
    server._prefork_.worker.birth.slot.tell_to_drain()
    os.kill(os.getpid(), DRAIN_SIGNAL)


class Handler(StreamRequestHandler):
    """Does what its client's line says."""

    server: "Server"

    def handle(self) -> None:
        line = self.rfile.readline().strip().decode()
        self.server.seen.append(line)
        self.wfile.write(b"answered\n")
        self.server.do(line.removesuffix(", then read"))
        if line.endswith("then read"):
            self.connection.settimeout(HUNG_S)
            self.server.seen.append(f"read {self.rfile.readline()!r}")


class Server(PreForkingTCPServer):
    seen: list[str]
    master: NoMaster
    held: threading.Event

    def worker_started(self) -> None:
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self.seen.append("started")

    def worker_stopping(self) -> None:
        self.seen.append("stopping")

    def do(self, line: str) -> None:
        match line:
            case "leave":
                drain(self)
            case "told":
                self._prefork_.worker.birth.slot.tell_to_drain()
            case "URG":
                os.kill(os.getpid(), DRAIN_SIGNAL)
            case "TERM":
                os.kill(os.getpid(), signal.SIGTERM)
            case "QUIT":
                os.kill(os.getpid(), signal.SIGQUIT)
            case "stacks":
                os.kill(os.getpid(), signal.SIGUSR1)
            case "fork":  # as in the new process
                user_forks._after_fork()
            case "event loop":  # which has ended
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
            case "hold":
                self.seen.append(f"held {self.held.wait(HUNG_S)}")
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
    held: threading.Event
    worker_started, worker_stopping, do = Server.worker_started, Server.worker_stopping, Server.do


class Packets(PreForkingUDPServer):
    """Leaves with the first packet."""

    seen: list[str]
    master: NoMaster
    held: threading.Event

    def __init__(self, address: Any, handler: object) -> None:
        super().__init__(address, Packet)


class Packet(DatagramRequestHandler):
    def handle(self) -> None:
        self.wfile.write(b"answered\n")
        drain(self.server)


TERMS = WorkerTerms(
    WorkerLimits(None, None), graceful_timeout=20.0, elsewhere=False, rehearsal=False, one_request=False,
    hang_up=False, queue_waits=False, metrics=False, access_log=None, admission=None, on_drain=None,
    set_title=lambda title: None, nudge=lambda: None, get_request=lambda: None,
)  # fmt: skip


REST = Worker._rest


class Run:
    """A worker that has run: what was seen of it in which order, its slot, and what its clients were answered."""

    def __init__(
        self, server_class: type[Any] = Server, lanes: int = 1, application_bytes: int = 0, **terms: Any
    ) -> None:
        self.seen: list[str] = []
        self.measured: list[bool] = []  # whether it was, at each nudge
        self.asked: list[tuple[bool, bool]] = []  # for a replacement, for a drain, at each nudge
        self.titled: list[tuple[str, bool, bool]] = []  # with whether it was READY, and had a listener
        self.rested: list[float | None] = []  # for at most so many milliseconds
        self.slot, self.master = Slot(lanes, application_bytes), NoMaster()
        self.server = server_class(("127.0.0.1", 0), Handler)
        self.server.seen, self.server.master, self.server.held = self.seen, self.master, threading.Event()
        self._clients: list[socket.socket] = []
        self.terms = TERMS._replace(set_title=self._title, nudge=self._nudge, **terms)
        self.birth = Birth(self.slot, Stacks(self.slot), 0, False, lambda: None, set())

    def _nudge(self) -> None:
        words = self.slot.words
        self.measured.append(bool(words[PRIVATE_MEMORY]))
        self.seen.append(f"nudge{' due' * bool(words[DUE])}{' ready' * bool(words[READY])}")

        self.asked.append((words[REPLACE_ASKED] == YES, words[DRAIN_ASKED] == YES))

    def _title(self, title: str) -> None:
        self.seen.append(f"title {title}".strip())
        self.titled.append((title, self.slot.words[READY] == YES, self.server.socket.fileno() != -1))

    def _rest(self, worker: Worker, at_most_ms: float | None = None) -> None:
        """What waits for the worker to wait goes on."""
        self.rested.append(at_most_ms)
        self.server.held.set()
        REST(worker, at_most_ms)

    @property
    def worker(self) -> Any:
        return self.server._prefork_.worker

    def come(self, *lines: str) -> None:
        """Clients, each with a line to say, in the queue."""
        for line in lines:
            client = socket.create_connection(self.server.server_address, 10)
            client.sendall(line.encode() + b"\n")
            self._clients.append(client)

    def made(self) -> Any:
        """One that has not begun."""
        self.server._prefork_.worker = Worker(self.server, self.terms, self.birth, cast(Master, self.master))
        return self.worker

    def run(self) -> int:
        # The end of Python is this process's own.
        with prepared(self.server.socket, lambda: True), pytest.MonkeyPatch.context() as patch, as_a_child():
            patch.setattr("prefork.workers.ending.finish", lambda: self.seen.append("finish"))
            patch.setattr(Worker, "_rest", lambda *arguments: self._rest(*arguments))
            status: int = self.made().run()
            return status

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
            worker._epoll.close()
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
    assert (run.master.asked, run.master.by) == (2, {signal.SIGTERM})
    assert run.titled == [("starting", False, True), ("", False, True), ("draining", True, True)]
    assert run.server.socket.fileno() == -1


def test_the_hook_of_a_drain(runs: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """worker_draining() begins beside the requests in hand, and is waited for before the master is told."""
    begun = threading.Event()
    run = runs(on_drain=begun.set)
    wait = ending.DrainHook.wait

    def waits(hook: ending.DrainHook) -> None:
        wait(hook)
        run.seen.append("waited")

    def process(request: Any, client_address: Any) -> None:
        Server.process_request(run.server, request, client_address)
        run.seen.append(f"begun {begun.wait(HUNG_S)}")

    monkeypatch.setattr(ending.DrainHook, "wait", waits)
    run.server.process_request = process
    run.come("leave")
    run.run()
    assert run.seen[-6:] == ["begun True", "title draining", "waited", "nudge ready", "stopping", "finish"]


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


@pytest.mark.parametrize("handler", [None, signal.SIG_IGN, signal.SIG_DFL])
def test_the_signal_to_drain_is_the_masters(handler: Any, runs: Callable[..., Run]) -> None:
    """From anybody else it does nothing. The word of the master is obeyed at the next wake-up, whatever the program has
    made of the signal."""
    run = runs()
    if handler is not None:
        run.server.worker_started = lambda: signal.signal(DRAIN_SIGNAL, handler)
    run.come("URG", "after it", "leave" if handler is None else "told", "nothing")
    run.run()
    assert run.answered == [True] * 4
    assert run.slot.words[LEAVING] == ExitReason.DRAINED


def test_a_term_from_elsewhere(runs: Callable[..., Run]) -> None:
    """TERM while the master lives is passed on to it, and the worker serves until it is told to drain."""
    run = runs()
    run.come("TERM", "after it", "leave")
    run.run()
    assert run.answered == [True] * 3
    assert run.slot.words[REPLACE_ASKED] == YES
    assert run.seen.index("TERM") < len(run.seen) - 1 - run.seen[::-1].index("nudge ready")
    assert run.seen.count("nudge ready") == 3, "for READY, to pass it on, when it has drained"
    assert run.asked == [(False, False), (True, False), (True, False)]
    assert run.worker.draining


def test_told_to_stop(runs: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """QUIT ends it at once, with its reason and status 0."""
    run = runs()
    ends: list[tuple[int, int]] = []

    def ends_not(status: int) -> None:
        ends.append((status, run.slot.words[LEAVING]))
        drain(run.server)

    monkeypatch.setattr(os, "_exit", ends_not)
    run.come("QUIT", "leave")
    run.run()
    assert ends == [(0, ExitReason.STOPPED)]


def test_where_its_threads_are(runs: Callable[..., Run]) -> None:
    """USR1 has the stacks of all of them written for the master."""
    run = runs()
    run.come("stacks", "leave")
    run.run()
    assert "Current thread" in run.birth.stacks.take()


def test_handlers_that_an_event_loop_took_away(runs: Callable[..., Run]) -> None:
    """They are there again before the next request."""
    run = runs()
    run.come("event loop", "TERM", "leave")
    run.run()
    assert run.asked[1] == (True, False)


def test_the_programs_metrics(runs: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """They are stored in its slot, where that has room for them, before any code of the program's runs; and what
    multiprocessing has of the master's is forgotten by then."""
    seen: list[str] = []
    monkeypatch.setattr(ending, "begin_anew", lambda: seen.append("anew"))
    monkeypatch.setattr(loop, "begin", lambda region: seen.append(f"metrics {len(region)}"))
    for room in (64, 0):
        run = runs(application_bytes=room)
        run.server.worker_started = lambda: seen.append("started")
        run.come("leave")
        run.run()
    assert seen == ["anew", "metrics 64", "started", "anew", "started"]


def die_by_signal(master: NoMaster) -> None:
    master.dead = True
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("server_class", [Server, Threaded])
@pytest.mark.parametrize("line", ["leave, then read", "die, then read"])
def test_a_handler_that_keeps_reading(
    server_class: type[Any], line: str, runs: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `drain_connections = "eof"` it sees the end of its connection when the worker is to leave."""
    monkeypatch.setattr(hangup, "FIRST_BYTES_NS", 0)
    if server_class is Server and line.startswith("die"):  # its loop is not there to see it: the kernel tells by TERM
        monkeypatch.setattr(NoMaster, "die", die_by_signal)
    run = runs(server_class, elsewhere=server_class is Threaded, hang_up=True)
    run.come(line)
    with threads_end():
        run.run()
    assert run.seen.count("read b''") == 1


def test_a_process_that_a_handler_forks(runs: Callable[..., Run], stray_ends: list[int]) -> None:
    """Ends with the handler; it has neither listener nor signals of ours, and writes to a slot of its own."""
    run = runs()
    seen: list[object] = []

    def close(request: socket.socket) -> None:
        request.close()
        ours = cast(Any, faulthandler).unregister(STACKS_SIGNAL)
        seen.extend((run.server.socket.fileno(), signal.getsignal(DRAIN_SIGNAL), ours))

    run.server.close_request = close
    run.come("fork")
    with pytest.raises(Stray):
        run.run()
    assert stray_ends[0] == 0
    assert seen == [-1, signal.SIG_DFL, False]
    masters = Slot.resume(os.dup(run.slot.fd))
    assert (run.slot.lane(0)[STATE], masters.lane(0)[STATE]) == (IDLE, BUSY)
    masters.close()


@pytest.mark.parametrize(
    "hook", ["worker_started", "worker_stopping", "get_request", "verify_request", "process_request"]
)
@pytest.mark.parametrize("module", [__name__, "prefork.server"])
def test_a_process_that_a_hook_forks(hook: str, module: str, runs: Callable[..., Run], stray_ends: list[int]) -> None:
    """Ends when that returns, whoever has defined it; its parent's end is none of its business."""
    run = runs()
    does: Callable[..., Any] = getattr(run.server, hook)

    def forks(*arguments: Any) -> Any:
        result = does(*arguments)
        if (hook, module) == ("get_request", __name__):
            result[0].close()
        user_forks._after_fork()
        return result

    forks.__module__ = module
    setattr(run.server, hook, forks)
    run.come("leave")
    with pytest.raises(Stray):
        run.run()
    assert stray_ends[0] == 0
    assert run.slot.words[LEAVING] == 0


def test_a_process_that_a_hook_forks_and_that_fails(runs: Callable[..., Run], stray_ends: list[int]) -> None:
    """Ends with the status of its SystemExit, and tells the master nothing."""
    run = runs()

    def forks(request: object, client_address: object) -> bool:
        user_forks._after_fork()
        sys.exit(3)

    forks.__module__ = "prefork.server"
    run.server.verify_request = forks
    run.come("x")
    with pytest.raises(Stray):
        run.run()
    assert stray_ends == [3]
    assert run.seen.count("nudge ready") == 1


def test_enough_requests(runs: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has served as many as it may says so, once, and serves on until it is told to leave."""
    monkeypatch.setattr(loop, "LOOK_EVERY_NS", 0)
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
    assert 900 <= run.worker._usage.limits.max_requests <= 1000
    assert runs(limits=WorkerLimits(1, None)).made()._usage.limits.max_requests == 1


def test_looks_are_few(runs: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """At the first request, and then no more often than every LOOK_EVERY_NS, but for the last that it may serve."""
    looks: list[int] = []
    monkeypatch.setattr(loop, "LOOK_EVERY_NS", 3600 * 10**9)
    monkeypatch.setattr(Worker, "_look", lambda worker, now_ns: looks.append(worker._usage.served))
    run = runs(limits=WorkerLimits(3, None))
    run.come("one", "two", "three", "four", "leave")
    run.run()
    assert looks == [1, 3]


@pytest.mark.parametrize(("metrics", "most", "every_s", "samples"), [
    (True, None, 0.0, 4), (True, None, 60.0, 1), (False, None, 0.0, 0), (False, 1 << 40, 0.0, 3),
    (False, 1 << 40, 60.0, 1),
])  # fmt: skip
def test_when_it_is_measured(
    metrics: bool, most: int | None, every_s: float, samples: int, runs: Callable[..., Run],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Before it is READY where metrics are served, and then now and then, for metrics or for a limit."""
    monkeypatch.setattr(loop, "LOOK_EVERY_NS", 0)
    monkeypatch.setattr("prefork.workers.limits.SAMPLE_EVERY_S", every_s)
    taken: list[object] = []
    monkeypatch.setattr(limits, "record", taken.append)
    run = runs(limits=WorkerLimits(None, most), metrics=metrics)
    run.come("one", "two", "leave")
    run.run()
    assert len(taken) == samples


def test_what_is_measured(runs: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes, descriptors, and nanoseconds of CPU; the next time is ten seconds later, also where nothing was found."""
    worker = runs().made()
    words = worker.birth.slot.words
    monkeypatch.setattr(limits, "sample", lambda: CostSample(1, 2, 3, 4.5, 6.25))
    worker._usage.sample(1000)
    assert [words[word] for word in (PRIVATE_MEMORY, OPEN_FDS, FDS_LIMIT)] == [1, 2, 3]
    assert [words[word] for word in (CPU_USER_NS, CPU_SYSTEM_NS)] == [4_500_000_000, 6_250_000_000]
    assert worker._usage.next_sample_ns == 1000 + 10_000_000_000
    monkeypatch.setattr(limits, "sample", lambda: None)
    worker._usage.sample(2000)
    assert (words[OPEN_FDS], worker._usage.next_sample_ns) == (2, 2000 + 10_000_000_000)
    assert list(worker._usage.memory) == [1]


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
    assert run.worker.draining
    assert run.server.socket.fileno() == -1
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
    begun = threading.Event()
    run = runs(one_request=True, on_drain=begun.set)
    with socket.socket(fileno=os.dup(run.server.fileno())):
        run.come("mine", "not mine")
        run.run()
    assert run.answered == [True, False]
    assert run.slot.words[LEAVING] == ExitReason.MAX_REQUESTS
    assert begun.is_set()


def test_a_rehearsal(runs: Callable[..., Run]) -> None:
    """Boots, says READY, and leaves without having accepted anybody."""
    run = runs(rehearsal=True)
    with socket.socket(fileno=os.dup(run.server.fileno())):
        run.come("leave")
        left: list[int] = []
        run.server.worker_stopping = lambda: left.append(run.slot.words[LEAVING])
        assert run.run() == 0
    assert run.seen == ["title starting", "started", "title", "nudge ready"]
    assert (left, run.slot.words[LEAVING]) == ([0], ExitReason.DRAINED)
    assert (run.slot.words[READY], run.answered) == (YES, [False])
    assert run.server.socket.fileno() != -1


def test_shutdown_in_a_handler(runs: Callable[..., Run]) -> None:
    """Asks the master, by the slot and a nudge, and goes on until it is told."""
    run = runs()
    run.come("shut down", "leave")
    run.run()
    assert run.slot.words[DRAIN_ASKED] == YES
    assert run.seen.index("shut down") < run.seen.index("nudge ready", run.seen.index("shut down"))
    assert run.asked == [(False, False), (False, True), (False, True)]
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
    with pytest.raises(KeyError):  # else each wait would end at once
        run.worker._own.unregister(run.master.fileno())


def test_the_master_dies_while_nobody_comes(runs: Callable[..., Run]) -> None:
    """An idle worker sees that, too."""
    run = runs(Threaded, elsewhere=True)
    run.come("hold")
    rest = run._rest

    def dies(worker: Worker, at_most_ms: float | None = None) -> None:
        if "hold" in run.seen:
            run.master.die()
        rest(worker, at_most_ms)

    run._rest = dies  # type: ignore[method-assign]
    with threads_end():
        run.run()
    assert run.slot.words[LEAVING] == ExitReason.MASTER_DIED
    assert run.seen.count("held True") == 1


def test_the_masters_death_by_signal(runs: Callable[..., Run]) -> None:
    """PDEATHSIG is a TERM: where the master is gone by then, the port is freed in the handler."""
    run = runs()
    run.master.dead = True
    run.come("TERM")
    run.run()
    assert run.slot.words[LEAVING] == ExitReason.MASTER_DIED


@pytest.mark.parametrize("dead", [False, True])
def test_who_drains_is_woken(dead: bool, runs: Callable[..., Run]) -> None:
    """The program may have replaced the signals' wake-up; once that is heard the wait is quiet again, and the log file
    is looked at, which the master may have reopened."""
    run = runs()
    worker = run.made()
    followed: list[None] = []
    run.master.dead = dead
    worker._watch()
    run.slot.tell_to_drain()
    worker._on_term(signal.SIGTERM, None) if dead else worker._on_drain(DRAIN_SIGNAL, None)
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert select.select([worker._wakeup], [], [], 0)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sinks, "follow", lambda: followed.append(None))
        worker._note([(worker._wakeup.fileno(), select.POLLIN)])
    assert not select.select([worker._wakeup], [], [], 0)[0]
    assert followed == [None]


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


def test_all_lanes_taken(runs: Callable[..., Run]) -> None:
    """It waits for one, and not in a circle."""
    run = runs(Threaded, elsewhere=True)
    run.come("hold", "leave")
    with threads_end():
        run.run()
    assert run.seen.count("held True") == 1
    assert 1 <= len(run.rested) <= 4


def test_no_memory_to_wait(runs: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where poll(2) has none it looks again in 20 ms, and the requests in hand go on."""
    run = runs(Threaded, elsewhere=True)

    class Poll:
        def register(self, fd: int, events: int) -> None: ...

        def poll(self, at_most_ms: float | None) -> NoReturn:
            raise OSError(errno.ENOMEM, "no memory")

    slept: list[float] = []
    monkeypatch.setattr(select, "poll", Poll)
    monkeypatch.setattr(loop, "sleep", slept.append)
    run.come("hold", "leave")
    with threads_end():
        run.run()
    assert set(slept) == {0.02}
    assert run.answered == [True, True]


def test_what_the_program_handed_over(runs: Callable[..., Run]) -> None:
    """Requests that it finishes in threads of its own are waited for, and looked for every 20 ms."""
    run = runs()

    def finish(request: Any, client_address: Any) -> None:
        run.server.finish_request(request, client_address)
        run.server.shutdown_request(request)

    run.server.process_request = lambda *arguments: threading.Thread(target=finish, args=arguments).start()
    run.come("hold", "leave")
    with threads_end():
        run.run()
    assert run.answered == [True, True]
    assert run.seen.index("held True") < len(run.seen) - 1 - run.seen[::-1].index("nudge ready")
    assert set(run.rested) == {20}


def test_a_datagrams_answer(runs: Callable[..., Run]) -> None:
    """It goes out through the listener, which is therefore left open in a drain."""
    run = runs(Packets)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(HUNG_S)
        client.sendto(b"x", run.server.server_address)
        run.run()
        assert client.recv(99) == b"answered\n"
    assert run.server.socket.fileno() != -1


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("hook", ["get_request", "process_request"])
def test_pauses(hook: str, last: bool, runs: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """After an accept for which there was no descriptor, or a request for which there was no thread; but not before it
    leaves, nor after any other."""
    run = runs(elsewhere=True)
    monkeypatch.setattr(Worker, "_pause", lambda worker: run.seen.append("pause"))
    does: Callable[..., Any] = getattr(run.server, hook)
    calls: list[None] = []

    def fails(*arguments: Any) -> Any:
        calls.append(None)
        if len(calls) == (3 if last else 1):
            raise (
                OSError(errno.EMFILE, "no descriptor")
                if hook == "get_request"
                else RuntimeError("can't start new thread")
            )
        return does(*arguments)

    setattr(run.server, hook, fails)
    run.server.handle_error = lambda *arguments: None
    run.come(*["x"] * (1 if last or hook == "get_request" else 2), "leave", "last")
    run.run()
    assert run.seen.count("pause") == (not last)


def test_a_request_that_makes_no_sense(runs: Callable[..., Run]) -> None:
    """An exception of the program's get_request() costs one client."""
    run = runs()
    accept, calls = run.server.get_request, list[None]()

    def fails() -> Any:
        calls.append(None)
        if len(calls) == 1:
            raise ValueError("no sense")
        return accept()

    run.server.get_request = fails
    run.come("leave")
    assert run.run() == 0
    assert run.answered == [True]


def test_without_a_descriptor(runs: Callable[..., Run]) -> None:
    """An accept that fails for lack of one is tried again after a while, not at once, and TERM is heard meanwhile."""
    run = runs()
    run.come("never")
    run.slot.tell_to_drain()

    def drains_soon() -> None:
        signal.signal(signal.SIGALRM, lambda signum, frame: os.kill(os.getpid(), DRAIN_SIGNAL))
        signal.setitimer(signal.ITIMER_REAL, 0.3)

    run.server.worker_started = drains_soon
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
    assert len(run.rested) <= 2 * len(tries)
    assert all(each is not None and 0 < each <= 100 for each in run.rested)


def test_no_memory_to_wait_for_the_listener(runs: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where epoll_ctl(2) has none a worker leaves the listener alone for a while and tries again: it is not deaf."""
    run, refused = runs(Threaded, lanes=4, elsewhere=True), [OSError(errno.ENOMEM, "no memory")] * 3

    def wait_for(epoll: select.epoll, listener: int, when: int) -> None:
        if refused:
            raise refused.pop()
        epoll.register(listener, when)

    run.come("x", "x", "leave")
    monkeypatch.setattr(loop, "ACCEPT_PAUSE", 0.001)
    monkeypatch.setattr(waiters, "wait_for", wait_for)
    with threads_end():
        run.run()
    assert not refused
    assert run.answered == [True] * 3


class Sender(PreForkingUDPServer):
    """Of datagrams that say what to do, and a queue of them."""

    seen: list[str]
    master: NoMaster
    held: threading.Event
    do = Server.do

    def __init__(self, address: Any, handler: object) -> None:
        super().__init__(address, Said)
        self.client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def send(self, *words: str) -> None:
        for word in words:
            self.client.sendto(word.encode(), self.server_address)


class Said(DatagramRequestHandler):
    def handle(self) -> None:
        self.server.seen.append(self.packet.decode())
        self.server.do(self.packet.decode())

    def finish(self) -> None: ...


class Epoll:
    """The kernel's, which counts waits, and does something before each."""

    def __init__(self) -> None:
        self.real = select.epoll()
        self.waits = 0
        self.before: Callable[[], None] = lambda: None
        self.register, self.unregister, self.fileno = self.real.register, self.real.unregister, self.real.fileno
        self.close = self.real.close

    def poll(self, *arguments: Any) -> list[tuple[int, int]]:
        self.waits += 1
        self.before()
        return self.real.poll(*arguments)


@pytest.fixture
def datagrams(
    runs: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Run, Epoll, Callable[..., None]]]:
    """A worker of datagrams, its epoll, and what sends some."""
    epoll = Epoll()
    run = runs(Sender)
    with run.server.client:
        monkeypatch.setattr(Worker, "_serve", serve_with(epoll))
        yield run, epoll, run.server.send
    epoll.close()


def serve_with(epoll: Epoll) -> Callable[[Worker], None]:
    serve = Worker._serve

    def _serve(worker: Worker) -> None:
        waiters.wait_for(cast(select.epoll, epoll), worker.server.fileno())
        for fd in (worker._wakeup.fileno(), worker.master.fileno()):
            epoll.register(fd, select.EPOLLIN)
        worker._epoll.close()
        worker._epoll = cast(select.epoll, epoll)
        serve(worker)

    return _serve


def test_datagrams_that_wait(datagrams: tuple[Run, Epoll, Callable[..., None]]) -> None:
    """Those that are queued are received one after another, sixteen between two waits; before it leaves it receives one
    more."""
    run, epoll, send = datagrams
    send(*["x"] * 40, "leave", "last", "not mine")
    run.run()
    assert run.seen.count("x") == 40
    assert [word for word in run.seen if word in ("leave", "last", "not mine")] == ["leave", "last"]
    assert epoll.waits == 3
    assert run.slot.lane(0)[ACCEPTED] == 42


def test_datagrams_do_not_make_it_deaf(datagrams: tuple[Run, Epoll, Callable[..., None]]) -> None:
    """However many wait, it hears that it is told to drain, by the word alone, at the next wait."""
    run, _, send = datagrams
    run.server.worker_started = lambda: signal.signal(DRAIN_SIGNAL, signal.SIG_IGN)
    send("told", "nothing", *["x"] * 100)
    run.run()
    assert run.seen.count("x") == 16, "with one when it hears it, and one before it leaves"
    assert run.slot.words[LEAVING] == ExitReason.DRAINED


def test_datagrams_that_come_singly(datagrams: tuple[Run, Epoll, Callable[..., None]]) -> None:
    """Are asked for in vain now and then, not each time: an ask that finds none costs as much as a wait."""
    run, epoll, send = datagrams
    words = ["x"] * 64 + ["leave"]
    epoll.before = lambda: send(words.pop(0))
    asked: list[None] = []
    get_request = run.server.get_request

    def count() -> Any:
        asked.append(None)
        return get_request()

    run.server.get_request = count
    run.run()
    assert run.seen.count("x") == 64
    assert len(asked) - epoll.waits <= 64 / 8 + 1


def test_how_many_datagrams_are_enough(runs: Callable[..., Run]) -> None:
    """`max_requests` is looked at after each, also without a wait in between."""
    run = runs(Sender, limits=WorkerLimits(3, None))
    with run.server.client:
        run.server.send("1", "2", "3", "4", "leave")
        run.run()
    due = run.seen.index("nudge due ready")
    assert run.seen[:due][-1] in ("2", "3")
    assert run.slot.words[DUE] == ExitReason.MAX_REQUESTS
