"""The threads of a worker that stay, over a real listener: who waits, who serves, who leaves."""

import contextlib
import errno
import os
import re
import select
import signal
import socket
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

import prefork
from prefork import BaseRequestHandler, TCPServer, ThreadingMixIn
from prefork.metrics.scoreboard import ACCEPTED, COMPLETED, FAILED, HANDED_OVER, IDLE, STATE, Slot
from prefork.workers import thread_pool, waiters
from prefork.workers.lanes import Lanes
from prefork.workers.signals import DRAIN_SIGNAL
from prefork.workers.thread_pool import AHEAD, ThreadPool, can_stay
from tests.support.programs.serving import HUNG, threads_end
from tests.support.tools.proc import waits_in_epoll

NAME = re.compile(r"Thread-\d+ \(process_request_thread\)")


class Server(ThreadingMixIn, TCPServer):
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), BaseRequestHandler)
        self.socket.setblocking(False)
        self.threads: list[threading.Thread] = []
        self.does: Callable[[bytes], bytes] = bytes.upper
        self.held = threading.Event()

    def finish_request(self, request: Any, client_address: Any) -> None:
        self.threads.append(threading.current_thread())
        request.settimeout(HUNG)
        if (said := request.recv(100)) == b"hold":
            request.sendall(b"held")
            assert self.held.wait(HUNG)
        else:
            request.sendall(self.does(said))

    def handle_error(self, request: Any, client_address: Any) -> None:
        request.sendall(repr(sys.exception()).encode())


class Pool:
    """A pool of threads as a worker has it, whose main thread is one of the test's."""

    def __init__(self, lanes: int, server: Server | None = None) -> None:
        self.server = server or Server()
        self.slot = Slot(lanes)
        self.woken = threading.Semaphore(0)
        self.lanes = Lanes(self.slot, elsewhere=True, on_free=self.woken.release, guarded=True)
        self.epoll = select.epoll()
        self.pool = ThreadPool([(self.server, self.lanes)], self.epoll, self.woken.release)
        self.lanes.bind(self.server)
        self.ready, self._write = socket.socketpair()
        self.clients: list[socket.socket] = []
        self.pauses: list[float | None] = []
        self._over = False
        self._main = threading.Thread(target=self._see_to, name="the worker's main thread")

    def open(self, most: int = 0) -> None:
        self.pool.open(most, self.ready.fileno())
        self.pool.begin()
        self._main.start()

    def _see_to(self) -> None:
        while not self._over:
            self.pauses.append(at_most_ms := self.pool.see_to())
            self.woken.acquire(timeout=HUNG if at_most_ms is None else at_most_ms / 1000)

    def ask(self, line: bytes) -> bytes:
        with socket.create_connection(self.server.server_address[:2], HUNG) as client:
            client.sendall(line)
            with contextlib.suppress(ConnectionResetError):  # closed before all was read
                return client.recv(100)
            return b""

    def hold(self, answered: bool = True) -> socket.socket:
        client = socket.create_connection(self.server.server_address[:2], HUNG)
        self.clients.append(client)
        client.sendall(b"hold")
        assert not answered or client.recv(100) == b"held"
        return client

    def waits_in_front(self) -> bool:
        """Return True if a thread sleeps there, and nobody has a request."""
        waiting = {thread.ident: thread.native_id or 0 for thread in tuple(self.pool._waiting)}
        idle = all(self.slot.lane(number)[STATE] == IDLE for number in range(self.slot.lanes))
        return idle and self.pool._first in waiting and waits_in_epoll(waiting[self.pool._first])

    def end(self) -> None:
        """Tell all to leave, and wait for that."""
        self._over = True
        self.woken.release()
        if self._main.ident is not None:
            self._main.join()
        self.pool.tell_to_leave()
        deadline = monotonic() + HUNG
        while not self.lanes.all_free():
            assert self.woken.acquire(timeout=deadline - monotonic())
        self.pool.join()

    def close(self) -> None:
        self.server.held.set()
        self.end()
        self.epoll.close()
        self.pool._front.close()
        for each in (self.ready, self._write, self.server.socket, *self.clients):
            each.close()
        self.lanes.unbind(self.server)
        del self.pool, self.lanes
        self.slot.close()

    def counts(self) -> dict[int, int]:
        lanes = [self.slot.lane(number) for number in range(self.slot.lanes)]
        words = (ACCEPTED, COMPLETED, FAILED, HANDED_OVER)
        return {word: sum(lane[word] for lane in lanes) for word in words}


@pytest.fixture
def pools() -> Iterator[Callable[..., Pool]]:
    """Makes them; at the end they are closed, and no thread is left."""
    with threads_end(), contextlib.ExitStack() as stack:

        def make(lanes: int = 1, server: Server | None = None) -> Pool:
            pool = Pool(lanes, server)
            stack.callback(pool.close)
            return pool

        yield make


def eventually(condition: Callable[[], object]) -> None:
    deadline = monotonic() + HUNG
    while not condition():
        assert monotonic() < deadline
        threading.Event().wait(0.001)


@pytest.mark.parametrize("daemon", [False, True])
def test_a_thread_serves_many(daemon: bool, pools: Callable[..., Pool]) -> None:
    """There are no more threads than lanes, and they stay; named and made as ThreadingMixIn's are."""
    pool = pools(lanes=4)
    pool.server.daemon_threads = daemon
    pool.open()
    assert [pool.ask(b"a line") for _ in range(20)] == [b"A LINE"] * 20
    assert 1 <= len(set(pool.server.threads)) <= 4
    for thread in pool.server.threads:
        assert (thread.daemon, bool(NAME.fullmatch(thread.name))) == (daemon, True)
    pool.end()
    assert not any(thread.is_alive() for thread in pool.server.threads)
    assert pool.counts() == {ACCEPTED: 20, COMPLETED: 20, FAILED: 0, HANDED_OVER: 0}


def test_the_first_threads(pools: Callable[..., Pool]) -> None:
    """None is started before the worker is READY, which that would delay; then so many as are to wait."""
    pool = pools(lanes=4)
    pool.pool.open(0, pool.ready.fileno())
    assert not pool.pool._waiting
    pool.pool.see_to()
    assert len(pool.pool._waiting) == AHEAD
    client = pool.hold(answered=False)
    assert not select.select([client], [], [], 0.05)[0]
    pool.pool.begin()
    assert client.recv(100) == b"held"


@pytest.mark.parametrize("lanes", [1, 2, 5])
def test_as_many_at_once_as_lanes(lanes: int, pools: Callable[..., Pool]) -> None:
    """One more waits in the queue, until one of them is done."""
    pool = pools(lanes=lanes)
    pool.open()
    for _ in range(lanes):
        pool.hold()
    late = pool.hold(answered=False)
    assert not select.select([late], [], [], 0.05)[0]
    assert pool.slot.lane(0)[ACCEPTED] == 1
    pool.server.held.set()
    assert late.recv(100) == b"held"
    assert len(set(pool.server.threads)) == lanes
    pool.end()
    assert pool.counts()[COMPLETED] == lanes + 1


def test_idle_ones_leave(pools: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch) -> None:
    """All but those that wait ahead, which serve on."""
    monkeypatch.setattr(thread_pool, "IDLE_S", 0.02)
    pool = pools(lanes=8)
    pool.open()
    for _ in range(8):
        pool.hold()
    pool.server.held.set()
    eventually(lambda: sum(thread.is_alive() for thread in set(pool.server.threads)) <= AHEAD)
    eventually(lambda: len(pool.pool._waiting) == AHEAD)
    assert pool.ask(b"a line") == b"A LINE"


def test_a_new_thread_to_each(pools: Callable[..., Pool]) -> None:
    """What a request leaves in a threading.local, a context variable or its thread is not there for the next."""
    local, found = threading.local(), list[tuple[bool, bool, str]]()
    pool = pools(lanes=2)

    def does(said: bytes) -> bytes:
        thread = threading.current_thread()
        found.append((hasattr(local, "value"), hasattr(thread, "value"), thread.name))
        local.value = 1
        if said == b"mark":
            setattr(thread, "value", 1)  # noqa: B010
            thread.name = "marked"
        return said

    pool.server.does = does
    pool.open()
    for said in (b"x", b"mark", b"x", b"mark", b"x"):
        assert pool.ask(said) == said
    assert [each[:2] for each in found] == [(False, False)] * 5
    assert all(NAME.fullmatch(name) for *_, name in found)


def test_what_is_kept_by_a_thread(pools: Callable[..., Pool]) -> None:
    """Is not there for the next request; the thread of one that keeps nothing stays."""
    kept = weakref.WeakKeyDictionary[threading.Thread, int]()
    pool = pools(lanes=2)

    def does(said: bytes) -> bytes:
        thread = threading.current_thread()
        if said == b"keep":
            assert thread not in kept
            kept[thread] = 1
        return said

    pool.server.does = does
    pool.open()
    assert [pool.ask(b"keep") for _ in range(20)] == [b"keep"] * 20
    before = len(pool.server.threads)
    assert [pool.ask(b"x") for _ in range(50)] == [b"x"] * 50
    assert len(set(pool.server.threads[before:])) < 10


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_a_handler_that_ends_its_thread(
    error: BaseException, pools: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends as a thread of ThreadingMixIn does, told to `threading.excepthook`; others serve on."""
    hooked: list[tuple[type[BaseException], threading.Thread | None]] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: hooked.append((args.exc_type, args.thread)))
    pool = pools(lanes=1)

    def does(said: bytes) -> bytes:
        if said == b"end":
            raise error
        return said

    pool.server.does = does
    pool.open()
    for _ in range(3):
        assert pool.ask(b"end") == b""
        assert pool.ask(b"x") == b"x"
    threads = pool.server.threads[::2]
    assert len(set(threads)) == 3
    assert hooked == [(type(error), thread) for thread in threads]
    pool.end()
    assert pool.counts() == {ACCEPTED: 6, COMPLETED: 3, FAILED: 3, HANDED_OVER: 0}


def test_an_error_of_a_handler(pools: Callable[..., Pool]) -> None:
    """It goes to handle_error(), and the thread stays."""
    pool = pools(lanes=1)
    pool.server.does = lambda said: bytes(int(said))
    pool.open()
    assert pool.ask(b"no number").startswith(b"ValueError(")
    assert pool.ask(b"2") == b"\0\0"
    assert len(set(pool.server.threads)) == 1
    pool.end()
    assert pool.counts() == {ACCEPTED: 2, COMPLETED: 1, FAILED: 1, HANDED_OVER: 0}


class Passing(Server):
    """Has a thread body of its own."""

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        if request.recv(1, socket.MSG_PEEK) == b"!":
            thread = threading.Thread(target=super().process_request_thread, args=(request, client_address))
            thread.start()
            thread.join()
        elif request.recv(1, socket.MSG_PEEK) == b"?":
            request.close()
        else:
            super().process_request_thread(request, client_address)


def test_a_thread_body_of_the_programs(pools: Callable[..., Pool]) -> None:
    """It runs in the thread; what it gives to another, or drops, is handed over."""
    pool = pools(lanes=1, server=Passing())
    assert can_stay(pool.server)
    pool.open()
    assert [pool.ask(said) for said in (b"a", b"!b", b"?c", b"d")] == [b"A", b"!B", b"", b"D"]
    pool.end()
    assert pool.counts() == {ACCEPTED: 4, COMPLETED: 2, FAILED: 0, HANDED_OVER: 2}
    assert pool.lanes.handed_over.all_finished()


def test_a_hook_that_is_put_there_later(pools: Callable[..., Pool]) -> None:
    """verify_request() is asked where it is then."""
    pool = pools(lanes=1)
    pool.open()
    assert pool.ask(b"a") == b"A"
    pool.server.verify_request = lambda request, client_address: False  # type: ignore[method-assign]
    assert pool.ask(b"a") == b""


@pytest.mark.parametrize("hook", ["verify_request", "process_request"])
def test_a_hook_that_is_put_there_later_and_raises(hook: str, pools: Callable[..., Pool]) -> None:
    """Its error goes to handle_error(), as in the standard library's loop; the request is closed and counted."""
    pool = pools(lanes=2)
    pool.open()
    error = ValueError("of the hook")

    def raises(request: Any, client_address: Any) -> None:
        request.recv(100)  # else closing it resets the connection
        raise error

    setattr(pool.server, hook, raises)
    assert [pool.ask(b"a") for _ in range(5)] == [repr(error).encode()] * 5
    delattr(pool.server, hook)
    assert pool.ask(b"a") == b"A"
    pool.end()
    assert pool.counts() == {ACCEPTED: 6, COMPLETED: 1, FAILED: 5, HANDED_OVER: 0}


def test_process_request_that_is_put_there_later(pools: Callable[..., Pool]) -> None:
    """On the object or in the class: each request keeps its lane, so that there are no more at once, and is counted,
    whether it is finished in a thread of its own, at once, or never."""
    pool = pools(lanes=2, server=(server := type("Mine", (Server,), {})()))
    pool.open()
    assert pool.ask(b"a") == b"A"
    theirs = server.process_request

    def process_request(request: Any, client_address: Any) -> None:
        match request.recv(1, socket.MSG_PEEK):
            case b"!":
                server.process_request_thread(request, client_address)
            case b"?":
                server.shutdown_request(request)
            case _:
                theirs(request, client_address)

    for in_class in (False, True):
        if in_class:
            del server.process_request
            type(server).process_request = lambda self, *arguments: process_request(*arguments)
        else:
            server.process_request = process_request
        assert [pool.ask(said) for said in (b"a", b"!b", b"?", b"c")] == [b"A", b"!B", b"", b"C"]
        held = [pool.hold() for _ in range(2)]
        late = pool.hold(answered=False)
        assert not select.select([late], [], [], 0.05)[0]
        server.held.set()
        assert late.recv(100) == b"held"
        for each in (*held, late):
            assert each.recv(1) == b""
        server.held.clear()
    del type(server).process_request
    assert pool.ask(b"a") == b"A"
    pool.end()
    assert pool.counts() == {ACCEPTED: 16, COMPLETED: 14, FAILED: 0, HANDED_OVER: 2}


@pytest.mark.parametrize("hook", thread_pool.IN_THE_MAIN_THREAD)
def test_hooks_that_run_in_the_main_thread(hook: str) -> None:
    """Where the program has one of them, wherever it stands, another thread must not accept."""
    over = {hook: lambda server, *arguments: None}
    base, ours = type("Base", (TCPServer,), over), type("Base", (prefork.TCPServer,), over)
    kinds = [type("Mine", (Server,), over)]
    if hook != "process_request":  # which the mix-in is there to replace
        kinds += [type("Behind", (ThreadingMixIn, base), {})]
        kinds += [type("Mixed", (prefork.PreForkingMixIn, ThreadingMixIn, ours), {})]
    assert [can_stay(object.__new__(kind)) for kind in kinds] == [False] * len(kinds)
    assert can_stay(object.__new__(Server))
    assert not can_stay(object.__new__(TCPServer))
    instance = object.__new__(Server)
    vars(instance)[hook] = print
    assert not can_stay(instance)


def test_no_more_threads(
    pools: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the system has none it is said once, tried again after a pause, and those there are serve on."""
    pool = pools(lanes=8)
    refused: list[threading.Thread] = []
    start = threading.Thread.start

    def no_more(thread: threading.Thread) -> None:
        if NAME.fullmatch(thread.name) and pool.server.threads:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", no_more)
    monkeypatch.setattr(thread_pool, "ACCEPT_PAUSE", 0.01)
    pool.open()
    pool.hold()
    late = pool.hold(answered=False)
    eventually(lambda: len(refused) > 2)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert set(pool.pauses) <= {None, 10.0}
    monkeypatch.setattr(threading.Thread, "start", start)
    assert late.recv(100) == b"held"


def test_no_descriptor_left(pools: Callable[..., Pool]) -> None:
    """The listener is left alone, and waited for again when the main thread says so."""
    pool = pools(lanes=2)
    accept, calls = pool.server.get_request, list[None]()

    def fails() -> Any:
        calls.append(None)
        if len(calls) <= 2:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return accept()

    pool.server.get_request = fails  # type: ignore[method-assign]
    pool.open()
    client = pool.hold(answered=False)
    for tries in (1, 2):
        eventually(lambda: pool.pool.short)
        assert len(calls) == tries
        eventually(lambda: len(pool.pool._waiting) == 2)
        assert not pool.waits_in_front()
        pool.pool.short = False
        pool.pool.go_to_the_back()
    assert client.recv(100) == b"held"
    pool.server.held.set()
    eventually(pool.waits_in_front)


def test_no_memory_to_wait(pools: Callable[..., Pool]) -> None:
    """Where epoll_ctl(2) has none after an accept, the main thread is told, and the request is served."""
    pool = pools(lanes=2)
    pool.open()
    eventually(pool.waits_in_front)
    pool.hold()
    refused: list[int] = []

    def refuses(listener: int, when: int) -> None:
        refused.append(listener)
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool.pool, "_register", refuses)
        patch.setattr(waiters, "wait_for", lambda epoll, listener, when: refuses(listener, when))
        assert pool.ask(b"x") == b"X"
        assert pool.pool.short
        assert len(refused) >= 2
    pool.pool.go_to_the_back()
    assert pool.ask(b"x") == b"X"


def test_no_memory_to_wait_in_front(pools: Callable[..., Pool]) -> None:
    """The main thread is told, and a thread waits there once there is some."""
    pool = pools(lanes=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(thread_pool, "go_to_the_back", lambda epoll, *rest: epoll is pool.epoll)
        pool.open()
        assert pool.pool.short
    eventually(pool.waits_in_front)
    pool.pool.go_to_the_back()
    assert pool.ask(b"x") == b"X"


@pytest.fixture
def drain_signal_heard() -> Iterator[None]:
    """As in a worker; whose default is that no wait is interrupted."""
    before = signal.signal(DRAIN_SIGNAL, lambda signum, frame: None)
    yield
    signal.signal(DRAIN_SIGNAL, before)


@pytest.mark.parametrize("closed", ["epoll", "ready", "both", "front"])
def test_descriptors_that_the_program_has_closed(
    closed: str, pools: Callable[..., Pool], drain_signal_heard: None
) -> None:
    """The thread that finds it says so to the main thread; told to leave, all do, whatever they wait for."""
    pool = pools(lanes=8)
    epolls = (pool.epoll, pool.pool._front)

    def does(said: bytes) -> bytes:
        for epoll in epolls if closed != "front" else epolls[1:]:
            os.close(epoll.fileno())
        return said

    pool.server.does = does
    pool.open()
    eventually(pool.waits_in_front)
    if closed in ("ready", "both"):
        pool.ready.close()
    if closed != "ready":
        assert pool.ask(b"close") == b"close"
        eventually(lambda: pool.pool.failed)
        assert isinstance(pool.pool.failed, OSError | ValueError)
    pool.end()
    assert not any(thread.is_alive() for thread in pool.pool._threads)
    for epoll in epolls:
        with contextlib.suppress(OSError):
            epoll.close()


def test_one_after_another_in_front(pools: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that come one by one change nothing in any epoll: the worker keeps its place."""
    pool = pools(lanes=8)
    registered: list[int] = []
    register = pool.epoll.register

    def noting(fd: int, events: int) -> None:
        registered.append(fd)
        register(fd, events)

    monkeypatch.setattr(pool.pool, "_register", noting)
    pool.open()
    for _ in range(10):
        eventually(pool.waits_in_front)
        assert pool.ask(b"a line") == b"A LINE"
    assert registered == []  # at the back it waits from the first one on, by another way
    eventually(pool.waits_in_front)
    pool.hold()
    assert pool.ask(b"a line") == b"A LINE"
    assert registered == [pool.server.fileno()]


def test_shared_out_among_workers(pools: Callable[..., Pool]) -> None:
    """Each has some, as who has none goes first; one that is not let run is passed over from then on."""
    first, *others = servers = [Server() for _ in range(3)]
    for other in others:
        other.socket.close()
        other.socket, other.held = first.socket.dup(), first.held
    each = [pools(lanes=16, server=server) for server in servers]
    for pool in each:
        pool.open()
    eventually(lambda: all(pool.waits_in_front() for pool in each))
    for _ in range(24):
        each[0].hold()
    counts = [sum(lane[STATE] != IDLE for lane in map(pool.slot.lane, range(16))) for pool in each]
    assert sum(counts) == 24
    assert min(counts) > 0, counts


def test_nobody_waits_in_front_beside_a_request(pools: Callable[..., Pool]) -> None:
    """A worker that has one takes another only if no other is free."""
    pool = pools(lanes=4)
    pool.open()
    eventually(pool.waits_in_front)
    pool.hold()
    first = pool.pool._first
    for _ in range(4):
        assert pool.ask(b"a line") == b"A LINE"
    eventually(lambda: len(pool.pool._waiting) == 3)
    assert pool.pool._first == first not in {thread.ident for thread in pool.pool._waiting}
    pool.server.held.set()
    eventually(pool.waits_in_front)


def test_another_one_waits_in_front(pools: Callable[..., Pool]) -> None:
    """In the place of a thread that has ended, because its request has changed it."""
    pool = pools(lanes=4)
    pool.open()
    eventually(pool.waits_in_front)

    def does(said: bytes) -> bytes:
        threading.current_thread().name = "marked"
        return said

    pool.server.does = does
    assert pool.ask(b"a line") == b"a line"
    (first,) = pool.server.threads
    eventually(lambda: first not in pool.pool._waiting and pool.waits_in_front())


def test_what_woke_nobody(pools: Callable[..., Pool]) -> None:
    """The main thread, which the master wakes for it, has the thread in front look anew."""
    pool = pools(lanes=1)
    pool.open()
    eventually(pool.waits_in_front)
    pool.pool.leave(pool.server.fileno())
    client = pool.hold(answered=False)
    assert not select.select([client], [], [], 0.05)[0]
    pool.pool.go_to_the_back(in_front_too=True)
    assert client.recv(100) == b"held"


def test_who_has_woken_the_main_thread(pools: Callable[..., Pool]) -> None:
    """It is told whether one of the threads has, once."""
    pool = pools(lanes=1)
    assert not pool.pool.woken()
    pool.pool._wake()
    assert [pool.pool.woken(), pool.pool.woken()] == [True, False]


def test_the_last_one_accepts_once_more(pools: Callable[..., Pool]) -> None:
    """For a connection that this process alone was woken for: one, however many threads wait and connections are
    queued."""
    pool = pools(lanes=4)
    pool.open()
    for _ in range(3):
        pool.hold()
    pool.server.held.set()
    eventually(lambda: len(pool.pool._waiting) == 4)
    with socket.socket(fileno=os.dup(pool.server.fileno())) as sibling:
        pool.pool.leave(pool.server.fileno())
        for _ in range(3):
            pool.hold(answered=False)
        pool.end()
        assert pool.counts()[COMPLETED] == 4
        for _ in range(2):
            sibling.accept()[0].close()


def test_the_main_thread_is_woken(pools: Callable[..., Pool]) -> None:
    """At the number of requests that it asks for, and at most every 100 ms beside."""
    pool = pools(lanes=1)
    pool.open(most=5)
    for _ in range(4):
        pool.ask(b"x")
    while pool.woken.acquire(blocking=False):
        pass
    pool.pool._next_look_ns = 1 << 63
    pool.ask(b"x")
    eventually(lambda: pool.pool.served == 5)
    eventually(lambda: len(pool.pauses) > 1)


@pytest.mark.parametrize("may_need_another", [False, True])
def test_requests_without_an_accept(may_need_another: bool) -> None:
    """The main thread hears of the last that it waits for, and of each that leaves too few waiting."""
    woken: list[int] = []
    server = Server()
    slot = Slot(1)
    lanes = Lanes(slot, elsewhere=True, on_free=lambda: None, guarded=True)
    ready, write = socket.socketpair()
    with ready, write, select.epoll() as epoll:
        pool = ThreadPool([(server, lanes)], epoll, lambda: woken.append(pool.served))
        lanes.bind(server)
        pool.open(3, ready.fileno())
        for _ in range(4):
            pool.count_one_more(may_need_another=may_need_another)
    server.server_close()
    slot.close()
    assert woken == ([1, 2, 3, 4] if may_need_another else [3])


# A listener that was shut down.


@pytest.mark.parametrize("step", ["begin", "go_to_the_back"])
def test_a_listener_that_is_shut_down_while_its_place_changes(
    step: str, pools: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that finds it out has the last word, whatever the main thread is about: else each wait in front would
    end at once, for ever."""
    pool = pools(1)
    front = pool.pool._front
    found_out = threading.Thread(target=pool.pool.on_shut, args=(True,))

    def meanwhile(epoll: select.epoll, listener: int, when: int = waiters.AT_ANY_TIME) -> bool:
        stands = waiters.go_to_the_back(epoll, listener, when)
        if epoll is front and found_out.ident is None:
            found_out.start()
            found_out.join(0.2)  # it has to wait for its turn
        return stands

    pool.pool.open(0, pool.ready.fileno())
    if step == "go_to_the_back":
        pool.pool.begin()
    monkeypatch.setattr(thread_pool, "go_to_the_back", meanwhile)
    pool.pool.begin() if step == "begin" else pool.pool.go_to_the_back(in_front_too=True)
    found_out.join(HUNG)
    told = Path(f"/proc/self/fdinfo/{front.fileno()}").read_text()
    (events,) = re.findall(rf"tfd: +{pool.server.fileno()} events: +(\w+)", told)
    assert int(events, 16) & select.EPOLLET
