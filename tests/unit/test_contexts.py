"""A lane goes along with its request whatever the program does with what it has accepted, and comes back."""

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from prefork import BaseServer, ThreadingMixIn
from prefork.metrics.scoreboard import ACCEPTED, COMPLETED, FAILED, HANDED_OVER, REJECTED, Slot
from prefork.workers.contexts import Contexts, place_of
from prefork.workers.lanes import Lanes
from prefork.workers.strays import ending
from tests.support.programs.serving import HUNG

LANES = 2
TIMES = 3 * LANES
COUNTS = {"completed": COMPLETED, "failed": FAILED, "rejected": REJECTED, "handed_over": HANDED_OVER}


class Program(BaseServer):
    """Accepts one end of a socket pair, or a datagram; `way` is how it processes it."""

    way: Callable[["Program", Any, Any], None]
    stream = True

    def __init__(self) -> None:
        super().__init__("nowhere", lambda request, client_address, server: None)
        self.clients: list[socket.socket] = []
        self.threads: list[threading.Thread] = []
        self.executor = ThreadPoolExecutor(1)

    def get_request(self) -> Any:
        if not self.stream:
            return (b"data", None), "somebody"
        request, client = socket.socketpair()
        self.clients.append(client)
        return request, "somebody"

    def close_request(self, request: Any) -> None:
        if self.stream:
            request.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass

    def in_a_thread(self, body: Callable[..., Any], *args: Any) -> None:
        thread = threading.Thread(target=body, args=args)
        self.threads.append(thread)
        thread.start()

    def serve_in_this_thread(self, request: Any, client_address: Any) -> None:
        self.finish_request(request, client_address)
        self.shutdown_request(request)

    def serve_by_handler(self, request: Any, client_address: Any) -> None:
        """Serve without any hook of the server."""
        self.RequestHandlerClass(request, client_address, self)
        request.close()

    def end(self) -> None:
        self.executor.shutdown()
        for thread in self.threads:
            thread.join(HUNG)
        for client in self.clients:
            client.close()


class Threads(ThreadingMixIn, Program):
    """A thread for each, but for what `way` does."""

    def process_request(self, request: Any, client_address: Any) -> None:
        type(self).way(self, request, client_address)


class OneByOne(Program):
    """Each in the thread that accepts, but for what `way` does."""

    def process_request(self, request: Any, client_address: Any) -> None:
        type(self).way(self, request, client_address)


def wrapped(request: Any) -> Any:
    """What a TLS wrapper does: another object has the descriptor, and the one that was accepted has none."""
    return socket.socket(fileno=request.detach())


def pass_on(server: Any, request: Any, client_address: Any) -> None:
    """Process it as the classes do themselves."""
    kind = ThreadingMixIn if isinstance(server, ThreadingMixIn) else BaseServer
    kind.process_request(server, request, client_address)


def shut_by_itself(server: Any, request: Any, client_address: Any) -> None:
    """Pass it on to a server whose shutdown_request() closes by itself."""
    server.shutdown_request = lambda request: request.close()
    pass_on(server, request, client_address)


def raise_after(server: Any, request: Any, client_address: Any) -> None:
    pass_on(server, request, client_address)
    raise RuntimeError("after it was passed on")


def nothing(server: Any, request: Any, client_address: Any) -> None:
    """Drop it."""


WAYS: dict[str, tuple[Callable[[Any, Any, Any], Any], str, str]] = {
    # what it does; how that counts in threads, and one by one
    "as ever": (pass_on, "completed", "completed"),
    "wrapped": (lambda s, r, a: pass_on(s, wrapped(r), a), "completed", "completed"),
    "shut by itself": (shut_by_itself, "completed", "completed"),
    "shed": (lambda s, r, a: r.close(), "handed_over", "handed_over"),
    "shed by the hook": (lambda s, r, a: s.shutdown_request(r), "handed_over", "handed_over"),
    "dropped": (nothing, "handed_over", "handed_over"),
    "inline": (Program.serve_in_this_thread, "completed", "completed"),
    "inline and wrapped": (lambda s, r, a: s.serve_in_this_thread(wrapped(r), a), "completed", "completed"),
    "own thread": (lambda s, r, a: s.in_a_thread(s.serve_in_this_thread, r, a), "completed", "handed_over"),
    "own thread and wrapped": (
        lambda s, r, a: s.in_a_thread(s.serve_in_this_thread, wrapped(r), a), "completed", "handed_over"
    ),
    "own body": (lambda s, r, a: s.in_a_thread(s.serve_by_handler, r, a), "handed_over", "handed_over"),
    "executor": (lambda s, r, a: s.executor.submit(s.serve_in_this_thread, r, a), "completed", "handed_over"),
    "raises before": (lambda s, r, a: 1 / 0, "failed", "failed"),
    "raises after": (raise_after, "completed", "completed"),
}  # fmt: skip
OF_THREADS = {
    "thread body": (lambda s, r, a: s.in_a_thread(s.process_request_thread, r, a), "completed"),
    "executor": (lambda s, r, a: s.executor.submit(s.process_request_thread, wrapped(r), a), "completed"),
}
OF_DATAGRAMS = {
    "cleaned": (lambda s, r, a: pass_on(s, (r[0].strip(), r[1]), a), "completed"),
    "filtered": (nothing, "handed_over"),
    "own thread": (lambda s, r, a: s.in_a_thread(s.serve_in_this_thread, r, a), "handed_over"),
}


class Service:
    """A program, its lanes, and the loop that waits for one."""

    def __init__(self, kind: type[Program], way: Any, *, stream: bool = True) -> None:
        self.slot = Slot(LANES)
        self.freed = threading.Event()
        self.server = type("Server", (kind,), {"way": staticmethod(way), "stream": stream})()
        self.lanes = Lanes(self.slot, elsewhere=isinstance(self.server, ThreadingMixIn), on_free=self.freed.set)
        self.lanes.bind(self.server)

    def serve(self, times: int) -> None:
        for _ in range(times):
            lane = self._take()
            self.lanes.serve_one(self.server, lane, 1)
            if not self.lanes.elsewhere:
                self.lanes.give_back(lane)

    def _take(self) -> Any:
        while (lane := self.lanes.take()) is None:
            self.wait()
        return lane

    def wait(self) -> None:
        """Wait as a worker does: until a lane is free, or it is time to look."""
        patience = self.lanes.contexts.patience
        assert self.freed.wait(patience or HUNG) or patience
        self.freed.clear()

    def end(self) -> None:
        self.server.end()
        if isinstance(self.server, ThreadingMixIn):
            self.server._prefork_.threads.join()
        while not self.lanes.all_free():
            self.wait()

    def counts(self) -> dict[str, int]:
        lanes = [self.slot.lane(index) for index in range(LANES)]
        assert sum(lane[ACCEPTED] for lane in lanes) == sum(lane[word] for word in COUNTS.values() for lane in lanes)
        totals = {name: sum(lane[word] for lane in lanes) for name, word in COUNTS.items()}
        return {name: total for name, total in totals.items() if total}


@contextlib.contextmanager
def service(kind: type[Program], way: Any, **values: Any) -> Iterator[Service]:
    made = Service(kind, way, **values)
    try:
        yield made
    finally:
        made.lanes.unbind(made.server)
        made.slot.close()
        del made.lanes


@pytest.mark.filterwarnings("ignore:unclosed")  # where the program drops it
@pytest.mark.parametrize("way", [*WAYS, *OF_THREADS])
def test_in_threads(way: str) -> None:
    """However a threading program processes more connections than it has lanes: each is counted once, each lane comes
    back."""
    does, counted, *_ = WAYS.get(way) or OF_THREADS[way]
    with service(Threads, does) as made:
        made.serve(TIMES)
        made.end()
        assert made.counts() == {counted: TIMES}
        assert made.lanes.handed_over.all_finished()


@pytest.mark.filterwarnings("ignore:unclosed")
@pytest.mark.parametrize("way", WAYS)
def test_one_by_one(way: str) -> None:
    """The same in the thread that accepts: what the program gives to its own threads is theirs."""
    does, _, counted = WAYS[way]
    with service(OneByOne, does) as made:
        made.serve(TIMES)
        made.end()
        assert made.counts() == {counted: TIMES}
        assert made.lanes.handed_over.all_finished()


@pytest.mark.parametrize("way", OF_DATAGRAMS)
def test_datagrams(way: str) -> None:
    """A datagram has no connection: one whose thread cannot be known is handed over at once."""
    does, counted = OF_DATAGRAMS[way]
    with service(Threads, does, stream=False) as made:
        made.serve(TIMES)
        made.end()
        assert made.counts() == {counted: TIMES}


def test_lanes_are_the_limit_of_own_threads() -> None:
    """A connection that a thread of the program's has keeps its lane until it is finished or closed."""
    with service(Threads, nothing) as made:
        kept: list[socket.socket] = []
        type(made.server).way = staticmethod(lambda s, r, a: kept.append(r))
        made.serve(LANES)
        assert made.lanes.take() is None
        assert not made.lanes.all_free()
        kept.pop().close()
        assert made.lanes.take() is not None
        with kept.pop() as last:
            made.server.finish_request(last, "somebody")
        assert made.lanes.take() is not None
        assert made.counts() == {"handed_over": 1, "completed": 1}
        made.server.end()


def test_a_carrier_that_is_dropped_later() -> None:
    """An executor that forgets what it has not begun says nothing: the loop is woken, and the lane comes back."""
    with service(Threads, nothing) as made:
        queue: list[Any] = []
        type(made.server).way = staticmethod(lambda s, r, a: queue.append((s.process_request_thread, r)))
        made.serve(LANES)
        assert made.lanes.contexts.patience is None
        body, request = queue.pop()
        del body
        assert made.freed.is_set()
        assert made.lanes.take() is None  # its connection is open
        request.close()
        assert made.lanes.take() is not None
        queue.pop()[1].close()
        assert made.lanes.take() is not None
        assert made.counts() == {"handed_over": 2}
        made.server.end()


@pytest.mark.parametrize("kind", [Threads, OneByOne])
def test_a_finish_that_no_accept_caused(kind: type[Program]) -> None:
    """It is served and not counted: beside a request of ours, within one, and in another thread."""

    def nested(server: Any, request: Any, client_address: Any) -> None:
        with other:
            server.finish_request(request, client_address)
            server.finish_request(other, "nobody")
            server.in_a_thread(server.finish_request, other, "nobody")
            server.threads[-1].join(HUNG)
        server.shutdown_request(request)

    other = socket.socket()
    with service(kind, nested) as made:
        made.serve(1)
        made.end()
        assert made.counts() == {"completed": 1}


@pytest.mark.parametrize("kind", [Threads, OneByOne])
def test_a_hook_takes_and_returns_what_the_program_says(kind: type[Program]) -> None:
    """Arguments of its own reach a `finish_request()`, by name too, and its result comes back, counted or not."""
    results = []

    class Tagged(kind):  # type: ignore[valid-type, misc]
        def finish_request(self, request: Any, client_address: Any, *more: Any, tag: str = "") -> Any:
            super().finish_request(request, client_address)
            return (*more, tag)

    def inline(server: Any, request: Any, client_address: Any) -> None:
        results.append(server.finish_request(request, client_address, 1, tag="a"))
        results.append(ending(server.finish_request, lambda: False)(request, client_address, tag="b"))
        server.shutdown_request(request)

    with service(Tagged, inline) as served:
        served.serve(1)
        served.end()
        assert served.counts() == {"completed": 1}
    assert results == [(1, "a"), ("b",)]


def test_a_place() -> None:
    """A connection is its descriptor and what the kernel calls it, not the object: another one at the same descriptor
    is another."""
    ours, theirs = socket.socketpair()
    place = place_of(ours)
    assert place is not None
    with theirs, wrapped(ours) as again:
        assert (place_of(again), place_of(ours), place_of((b"", None))) == (place, None, None)
        assert place.is_open()
        os.dup2(theirs.fileno(), place.fd)
        assert not place.is_open()
        assert place_of(again) != place
    assert not place.is_open()


def test_what_the_instance_had() -> None:
    """An instance's own hooks are called, counted, and there again afterwards; one put there meanwhile stays."""
    with service(Threads, pass_on) as made:
        made.lanes.unbind(made.server)
        attributes, calls = vars(made.server), []
        finish = attributes["finish_request"] = lambda request, address: calls.append("finish")
        body = attributes["process_request_thread"] = lambda request, address: finish_then_close(made.server, request)
        made.lanes.bind(made.server)
        made.serve(2)
        made.end()
        assert calls == ["finish"] * 2
        assert made.counts() == {"completed": 2}
        made.lanes.unbind(made.server)
        assert (attributes["finish_request"], attributes["process_request_thread"]) == (finish, body)
        made.lanes.bind(made.server)
        attributes["process_request_thread"] = other = lambda request, address: finish_then_close(made.server, request)
        made.serve(1)
        made.end()
        assert made.counts() == {"completed": 3}
        made.lanes.unbind(made.server)
        assert (attributes["finish_request"], attributes["process_request_thread"]) == (finish, other)


def finish_then_close(server: Any, request: Any) -> None:
    server.finish_request(request, "somebody")
    server.shutdown_request(request)


def test_one_that_was_begun_while_it_was_dropped() -> None:
    """By another thread: it is looked for no more."""
    contexts = Contexts(lambda lane: None, lambda: None)
    contexts._dropped.add(7)
    contexts.patience = 0.02
    contexts.look()
    assert not contexts._dropped
    assert contexts.patience is None


def test_in_a_process_that_the_program_forked() -> None:
    """Nothing is known there of what its parent passes on."""
    lanes: list[memoryview] = []
    contexts = Contexts(lanes.append, lambda: None)
    contexts.begin(memoryview(b""), None)
    contexts.forget()
    assert contexts._accepting.number == 0
    assert contexts.claim_own() is None
    contexts.drop(1)
    assert lanes == []


def test_a_connection_that_no_accept_of_ours_has_caused() -> None:
    """Has no lane, and least of all another one's."""
    contexts = Contexts(lambda lane: None, lambda: None)
    with contextlib.ExitStack() as stack:
        ours, theirs = (stack.enter_context(each) for each in socket.socketpair())
        lane = memoryview(b"")
        contexts.begin(lane, place_of(ours))
        contexts.passed_on()
        assert contexts.claim(theirs) is None
        context = contexts.claim(ours)
        assert context is not None
        assert context.lane is lane
        assert contexts.claim(ours) is None


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.filterwarnings("ignore:unclosed")
def test_nothing_is_kept_of_a_request(way: str) -> None:
    """After a request nothing is known of it any more, whatever became of it."""
    with service(Threads, WAYS[way][0]) as made:
        made.serve(TIMES)
        made.end()
        contexts = made.lanes.contexts
        assert (contexts._waiting, contexts._numbers_at, contexts._dropped) == ({}, {}, set())
