"""The straight way of a request: chosen only where no hook of the program's would be left out, asked anew each time;
and the same outcomes, counts and calls as by the long way."""

import errno
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import prefork
from prefork.metrics.scoreboard import (
    ACCEPTED,
    COMPLETED,
    DURATION,
    FAILED,
    HANDED_OVER,
    IDLE,
    LANE_WORDS,
    REJECTED,
    STARTED_NS,
    STATE,
    Slot,
)
from prefork.workers import lanes as lanes_module
from prefork.workers import straight, strays
from prefork.workers.accepting import Accepted
from prefork.workers.admission import Admission, Terms
from prefork.workers.contexts import Lane
from prefork.workers.keeps import KeepsConnections
from prefork.workers.lanes import Lanes
from prefork.workers.straight import (
    PASSED_BY,
    ServeOne,
    finish_in_child,
    way_in_threads,
    way_of,
    way_to_children,
    way_to_threads,
)
from prefork.workers.thread_body import THREAD_BODY
from prefork.workers.threads import RequestThread
from tests.support.programs.inside import Stray

NOW_NS = 5_000


class Gone(BaseException):
    """What no `except Exception` stops."""


class Log:
    """An access log that remembers."""

    def __init__(self, seen: list[str]) -> None:
        self.begin = lambda lane, request, client_address: seen.append(f"log {client_address}")
        self.end = lambda lane, outcome, request=None: seen.append(f"logged {outcome} {request}")


class Hooks:
    """What a program may define and still have the straight way. Each does what the event says."""

    event = "ok"
    seen: list[str]

    def get_request(self) -> Any:
        self.seen.append("get_request")
        match self.event:
            case "nothing":
                raise BlockingIOError(errno.EAGAIN, "nothing")
            case "shortage":
                raise OSError(errno.EMFILE, "no descriptor")
            case "no sense":
                raise ValueError("no sense")
            case "exit in get_request":
                raise SystemExit(3)
        return self.event, "somebody"

    def shutdown_request(self, request: Any) -> None:
        self.seen.append(f"shutdown_request {request}")
        if self.event == "shutdown raises" and self.seen.count(f"shutdown_request {request}") == 1:
            raise ValueError(self.event)

    def handle_error(self, request: Any, client_address: Any) -> None:
        self.seen.append(f"handle_error {request} {client_address}")

    def close_request(self, request: Any) -> None:
        self.seen.append(f"close_request {request}")


class Handler(prefork.BaseRequestHandler):
    """Does what its request says."""

    def handle(self) -> None:
        self.server.seen.append("handler")
        match self.request:
            case "fails":
                raise ValueError(self.request)
            case "exits":
                raise SystemExit(3)
            case "gone":
                raise Gone
            case "again":  # a handler that has the server finish it once more: that is not counted
                self.request = "ok"
                self.server.finish_request("ok", "somebody else")
            case "forks" | "forks and fails":
                self.server.forked()
                if self.request == "forks and fails":
                    raise SystemExit(4)


class Over(Hooks, prefork.BaseServer):
    seen: list[str]
    forked: Callable[[], None]


class OverTheStandard(Hooks, socketserver.BaseServer):
    seen: list[str]
    forked: Callable[[], None]


class LongWay(Over):
    """The same, by the long way: a hook is defined, which does what it does anyway."""

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return True


class InThreads(Hooks, prefork.ThreadingMixIn, prefork.BaseServer):
    """Serves each request in the thread that has accepted it."""

    seen: list[str]
    forked: Callable[[], None]


class InStandardThreads(Hooks, socketserver.ThreadingMixIn, socketserver.BaseServer):
    seen: list[str]
    forked: Callable[[], None]


class LongWayInThreads(InThreads):
    def verify_request(self, request: Any, client_address: Any) -> bool:
        return True


class ToThreads(InThreads):
    """Starts a thread for each request."""


class LongWayToThreads(ToThreads):
    def verify_request(self, request: Any, client_address: Any) -> bool:
        return True


EVENTS = (
    "ok", "fails", "exits", "gone", "again", "nothing", "shortage", "no sense", "exit in get_request",
    "shutdown raises",
)  # fmt: skip


class Harness:
    """A server of this class with one lane, and the way that is chosen."""

    def __init__(self, server_class: Any, logged: bool = False, **terms: Any) -> None:
        self.slot = Slot(1)
        self.server = server_class("nowhere", Handler)
        self.seen = self.server.seen = list[str]()
        log: Any = Log(self.seen) if logged else None
        self.elsewhere = issubclass(server_class, ToThreads)
        self.lanes = Lanes(
            self.slot, elsewhere=self.elsewhere, on_free=lambda: None, guarded=True, access_log=log, **terms
        )  # fmt: skip
        self.server.forked = lambda: setattr(self.lanes, "forked", True)
        in_threads = hasattr(self.server, THREAD_BODY)
        if in_threads and not self.elsewhere:
            self.lanes.serve_in_threads(self.server, lambda: self.seen.append("accepted"))
        self.lanes.bind(self.server)
        lane = self.lanes.take()
        assert lane is not None
        self.lane: Lane = lane
        way = way_in_threads if in_threads else way_of
        to_threads = self.server._prefork_.way if self.elsewhere else None
        self.serve_one: ServeOne = way(self.lanes, self.server) if to_threads is None else to_threads(self.lanes)

    @property
    def is_straight(self) -> bool:
        return self.serve_one != self.lanes.serve_one

    def serve(self, event: str) -> Accepted | BaseException:
        self.server.event = event
        self.seen.append(f"-- {event}")
        result: Accepted | BaseException
        try:
            result = self.serve_one(self.server, self.lane, NOW_NS)
        except BaseException as exc:
            result = exc
        if self.elsewhere:
            self.server._prefork_.threads.join()
            if result not in (Accepted.NOTHING, Accepted.NO_RESOURCES):
                lane = self.lanes.take()
                assert lane is not None, "it did not come back"
                self.lane = lane
                assert self.lanes.take() is None, "it came back twice"
        return result

    def close(self) -> None:
        self.lanes.unbind(self.server)
        self.slot.close()


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Harness]]:
    made: list[Harness] = []
    for module in (straight, lanes_module):
        monkeypatch.setattr(module, "monotonic_ns", lambda: NOW_NS + 777)

    def make(server_class: Any = Over, **values: Any) -> Harness:
        made.append(Harness(server_class, **values))
        return made[-1]

    yield make
    for harness in made:
        harness.close()


def told(harness: Harness, events: list[str]) -> list[Any]:
    """All that can be seen of these events: results, the words of the slot after each, and the calls in their order."""
    results = []
    for event in events:
        result = harness.serve(event)
        words = harness.slot.words.tolist()
        results.append((repr(result), words))
    return [results, harness.seen]


WAYS = (
    ((Over, LongWay), (OverTheStandard, LongWay)),
    ((InThreads, LongWayInThreads), (InStandardThreads, LongWayInThreads)),
    ((ToThreads, LongWayToThreads),),
)
FIRST_WAYS = [ways[0] for ways in WAYS]


@pytest.fixture(autouse=True)
def raised_in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a thread ends with is no matter here: Python only prints it."""
    monkeypatch.setattr(threading, "excepthook", lambda told: None)


@pytest.mark.parametrize(
    ("server_class", "by_the_long_way", "logged"),
    [(*ways, logged) for ways in (*WAYS[0], *WAYS[1]) for logged in (False, True)] + [(*WAYS[2][0], False)],
)
def test_both_ways_are_the_same(
    server_class: Any, by_the_long_way: Any, logged: bool, make: Callable[..., Harness]
) -> None:
    """Outcomes, words of shared memory, and the calls of the program's hooks, whatever happens to a request."""
    short, long = make(server_class, logged=logged), make(by_the_long_way, logged=logged)
    assert (short.is_straight, long.is_straight) == (True, False)
    script = [each for event in EVENTS for each in (event, "ok")]
    assert told(short, script) == told(long, script)
    lane = short.lane
    assert lane[ACCEPTED] == lane[COMPLETED] + lane[FAILED] + lane[REJECTED] + lane[HANDED_OVER]
    assert lane[FAILED] == 3


@given(st.lists(st.sampled_from(EVENTS), max_size=12), st.sampled_from(FIRST_WAYS))
def test_both_ways_are_the_same_in_any_order(script: list[str], ways: tuple[Any, Any]) -> None:
    """So they are in any order of events."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (straight, lanes_module):
            patch.setattr(module, "monotonic_ns", lambda: NOW_NS + 777)
        patch.setattr(threading, "excepthook", lambda told: None)
        short, long = map(Harness, ways)
        assert told(short, script) == told(long, script)
        short.close()
        long.close()


@pytest.mark.parametrize("event", ["forks", "forks and fails"])
@pytest.mark.parametrize("server_class", [Over, LongWay, InThreads])
def test_a_process_that_a_handler_forks(
    server_class: Any, event: str, make: Callable[..., Harness], stray_ends: list[int]
) -> None:
    """Ends with the handler, and counts nothing."""
    harness = make(server_class)
    assert isinstance(harness.serve(event), Stray)
    assert stray_ends[0] == (0 if event == "forks" else 4)
    assert [harness.lane[word] for word in (ACCEPTED, COMPLETED, FAILED)] == [1, 0, 0]


class Written(dict[int, int]):
    """A lane that remembers what was written to it, in its order."""

    def __init__(self) -> None:
        super().__init__(dict.fromkeys(range(LANE_WORDS), 0))
        self.order: list[tuple[int, int]] = []

    def __getitem__(self, word: Any) -> Any:
        if isinstance(word, slice):
            return [self[each] for each in range(word.start, word.stop)]
        return super().__getitem__(word)

    def __setitem__(self, word: int, value: int) -> None:
        self.order.append((word, value))
        super().__setitem__(word, value)


@pytest.mark.parametrize("ways", FIRST_WAYS)
@pytest.mark.parametrize("event", EVENTS)
def test_both_write_in_the_same_order(event: str, ways: tuple[Any, Any], make: Callable[..., Harness]) -> None:
    """What a dying worker leaves between any two writes tells the same."""
    orders = []
    for server_class in ways:
        harness, lane = make(server_class), Written()
        harness.lane = lane  # type: ignore[assignment]
        harness.serve(event)
        orders.append(lane.order)
    assert orders[0] == orders[1]
    assert [word for word, _ in orders[0]][:2] == [STARTED_NS, STATE]


def hook(name: str, seen: list[str]) -> Any:
    """One that a program may define, as a function that is called with or without the object."""

    def method(*arguments: Any) -> bool:
        seen.append(f"my {name}")
        return True

    return method


def behind(name: str, seen: list[str]) -> Any:
    """The program's class stands behind the mix-in."""
    return type("Behind", (prefork.PreForkingMixIn, type("Base", (Over,), {name: hook(name, seen)})), {})


def before(name: str, seen: list[str]) -> Any:
    return type("Before", (type("Mine", (), {name: hook(name, seen)}), prefork.PreForkingMixIn, Over), {})


def of_a_kind(name: str, seen: list[str]) -> Any:
    return type("Mine", (Over,), {name: property(lambda server: hook(name, seen))})


PLACES: dict[str, Callable[[str, list[str]], Any]] = {
    "behind": behind, "before": before, "a property": of_a_kind,
    "its class": lambda name, seen: type("Mine", (Over,), {name: hook(name, seen)}),
    "its base": lambda name, seen: type("Mine", (type("Base", (Over,), {name: hook(name, seen)}),), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", PASSED_BY)
@pytest.mark.parametrize("place", PLACES)
def test_a_hook_is_called(name: str, place: str, make: Callable[..., Harness]) -> None:
    """A hook that the straight way leaves out is the program's nowhere."""
    seen: list[str] = []
    harness = make(PLACES[place](name, seen))
    assert not harness.is_straight
    harness.serve("ok")
    assert f"my {name}" in seen


def on_the_object(harness: Harness, name: str, ours: Any) -> None:
    setattr(harness.server, name, ours)


def in_its_class(harness: Harness, name: str, ours: Any) -> None:
    setattr(type(harness.server), name, ours)


def in_its_base(harness: Harness, name: str, ours: Any) -> None:
    setattr(type(harness.server).__mro__[1], name, ours)


def by_another_class(harness: Harness, name: str, ours: Any) -> None:
    harness.server.__class__ = type("Another", (type(harness.server),), {name: ours})


CHANGES = (on_the_object, in_its_class, in_its_base, by_another_class)
# The counting `finish_request` stays with the class that it was put over.
LATER = [(each, name) for each in CHANGES for name in PASSED_BY if (each, name) != (by_another_class, "finish_request")]


@pytest.mark.parametrize(("change", "name"), LATER)
def test_a_hook_that_is_put_there_later(
    name: str, change: Callable[[Harness, str, Any], None], make: Callable[..., Harness]
) -> None:
    """Between two requests of a worker that serves: the next has it called."""
    harness = make(type("Mine", (type("Base", (Over,), {}),), {}))
    assert harness.is_straight
    harness.serve("ok")
    change(harness, name, hook(name, harness.seen))
    harness.serve("ok")
    assert harness.seen.count(f"my {name}") == 1
    harness.seen.clear()
    if change is on_the_object:
        delattr(harness.server, name)
        harness.serve("ok")
        assert f"my {name}" not in harness.seen
        assert "handler" in harness.seen


@pytest.mark.parametrize("server_class", [Over, InThreads, ToThreads])
def test_the_straight_way_is_found_again(server_class: Any, make: Callable[..., Harness]) -> None:
    """After what the program has put over `finish_request` on the object is deleted; and every request is counted."""
    harness = make(type("Mine", (server_class,), {}))
    counted = harness.server.finish_request
    harness.server.finish_request = lambda *arguments: counted(*arguments)
    harness.serve("ok")
    del harness.server.finish_request
    for _ in range(3):
        harness.serve("ok")
    assert (harness.lane[COMPLETED], harness.lane[HANDED_OVER]) == (4, 0)
    assert harness.server.finish_request is counted


IN_THREADS = (*PASSED_BY, THREAD_BODY)


@pytest.mark.parametrize("threaded", [InThreads, ToThreads])
@pytest.mark.parametrize("name", IN_THREADS)
def test_a_hook_is_called_in_threads(name: str, threaded: Any, make: Callable[..., Harness]) -> None:
    """A hook of the program's in front of the mix-in is not left out, nor what is behind it and not the mix-in's."""
    seen: list[str] = []
    over = {name: hook(name, seen)}
    classes = [type("Mine", (threaded,), over)]
    if name in ("verify_request", "finish_request"):
        classes.append(type("Behind", (prefork.ThreadingMixIn, type("Base", (Over,), over)), {}))
    for number, server_class in enumerate(classes):
        harness = make(server_class)
        assert not harness.is_straight
        if name != "process_request":  # of which the class is asked, and there are no such threads then
            harness.serve("ok")
            assert seen.count(f"my {name}") == number + 1


@pytest.mark.parametrize(
    ("change", "name"),
    [(each, name) for each in CHANGES for name in IN_THREADS if (each, name) != (by_another_class, "finish_request")],
)
@pytest.mark.parametrize("threaded", [InThreads, ToThreads])
def test_a_hook_that_is_put_there_later_in_threads(
    threaded: Any, name: str, change: Callable[[Harness, str, Any], None], make: Callable[..., Harness]
) -> None:
    """The next request has it called; what nobody finishes is handed over."""
    harness = make(type("Mine", (type("Base", (threaded,), {}),), {}))
    assert harness.is_straight
    harness.serve("ok")
    change(harness, name, hook(name, harness.seen))
    harness.serve("ok")
    assert harness.seen.count(f"my {name}") == 1
    in_its_place = name in ("process_request", THREAD_BODY) or (change, name) == (on_the_object, "finish_request")
    assert harness.lane[HANDED_OVER] == in_its_place


@pytest.mark.parametrize("server_class", WAYS[2][0])
@pytest.mark.parametrize(
    ("raised", "begun", "counts", "calls"),
    [
        (RuntimeError("can't start new thread"), None, (0, 1), ["handle_error ok somebody", "shutdown_request ok"]),
        (RuntimeError("something else"), None, (0, 1), ["handle_error ok somebody", "shutdown_request ok"]),
        (KeyboardInterrupt(), None, (0, 1), ["shutdown_request ok"]),
        (KeyboardInterrupt(), "before", (1, 0), ["handler", "shutdown_request ok", "shutdown_request ok"]),
        (KeyboardInterrupt(), "later", (0, 1), ["shutdown_request ok", "handler", "shutdown_request ok"]),
    ],
)
def test_a_thread_whose_start_is_interrupted(
    server_class: Any, raised: BaseException, begun: str | None, counts: tuple[int, int], calls: list[str],
    make: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Its request is counted once, by whoever comes first, and its lane comes back once; a thread that begins after
    that still serves it, uncounted."""
    started: list[RequestThread] = []
    start = RequestThread.start

    def interrupted(thread: RequestThread) -> None:
        started.append(thread)
        if begun == "before":
            start(thread)
            thread.join()
        raise raised

    harness, lane = make(server_class), Written()
    harness.lane = lane  # type: ignore[assignment]
    monkeypatch.setattr(RequestThread, "start", interrupted)
    result = harness.serve("ok")
    failed_to_start = isinstance(raised, RuntimeError) and "start" in str(raised)
    expected: Any = Accepted.NOT_BEGUN if failed_to_start else Accepted.REQUEST
    assert result is (raised if isinstance(raised, KeyboardInterrupt) else expected)
    if begun == "later":
        start(started[0])
        started[0].join()
    assert harness.seen == ["-- ok", "get_request", *calls]
    assert (harness.lane[COMPLETED], harness.lane[FAILED]) == counts
    assert (harness.lane[ACCEPTED], lane.order[-1]) == (1, (STATE, IDLE))  # given back when it is counted


def test_waits_are_measured(make: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch) -> None:
    """When it is time for it, by both ways; not at each request."""
    asked: list[str] = []

    def ask(request: str) -> int:
        asked.append(request)
        return 3_000_000

    monkeypatch.setattr(lanes_module, "queue_wait_ns", ask)
    words = []
    for server_class in WAYS[2][0]:
        harness = make(server_class, queue_waits=True)
        harness.lanes.next_queue_wait_ns = NOW_NS
        harness.serve("ok")
        harness.serve("ok")
        words.append(harness.slot.words.tolist())
    assert words[0] == words[1]
    assert asked == ["ok", "ok"]


def test_what_a_plain_thread_cannot_have(make: Callable[..., Harness]) -> None:
    """An access log, or what a connection has to show first: there is no short way with them, if ever there are any.
    Nor is there one where requests of a connection are counted one by one, or what the object has of its own."""
    assert not make(ToThreads, logged=True).is_straight
    assert not make(ToThreads, admission=Admission(Terms(), str)).is_straight
    harness = make(type("Mine", (ToThreads,), {"socket_type": socket.SOCK_STREAM}))
    harness.server.RequestHandlerClass = type("Kept", (KeepsConnections, Handler), {})
    assert harness.server._prefork_.way(harness.lanes) == harness.lanes.serve_one
    harness.server.RequestHandlerClass = Handler
    harness.lanes.unbind(harness.server)
    harness.server.finish_request = hook("finish_request", harness.seen)
    harness.lanes.bind(harness.server)
    harness.serve_one = harness.server._prefork_.way(harness.lanes)
    assert not harness.is_straight
    harness.serve("ok")
    assert "my finish_request" in harness.seen


def test_threads_are_named_alike(make: Callable[..., Harness]) -> None:
    """After the method that they stand for, as in the standard library."""
    names = []

    class Named(Handler):
        def handle(self) -> None:
            names.append(threading.current_thread().name)

    for server_class in WAYS[2][0]:
        harness = make(server_class)
        harness.server.RequestHandlerClass = Named
        harness.serve("ok")
    assert [name.split(" ", 1)[1] for name in names] == ["(process_request_thread)"] * 2


def test_threads_of_the_standard_library(make: Callable[..., Harness]) -> None:
    """Those of its own mix-in are started by that."""

    class Standard(Hooks, prefork.SupervisedMixIn, socketserver.ThreadingMixIn, socketserver.BaseServer):
        seen: list[str]

    server = Standard("nowhere", Handler)
    slot = Slot(1)
    lanes = Lanes(slot, elsewhere=True, on_free=lambda: None)
    lanes.bind(server)
    assert way_to_threads(lanes, server, lambda *arguments: None) == lanes.serve_one
    lanes.unbind(server)
    slot.close()


def test_a_hook_on_the_object_before_it_serves(make: Callable[..., Harness]) -> None:
    """`finish_request` of the object is under the counting one, and no less the program's."""
    for name in PASSED_BY:
        harness = make(type("Mine", (Over,), {}))
        harness.lanes.unbind(harness.server)
        setattr(harness.server, name, hook(name, harness.seen))
        harness.lanes.bind(harness.server)
        harness.serve_one = way_of(harness.lanes, harness.server)
        harness.serve("ok")
        assert f"my {name}" in harness.seen


def test_what_else_is_put_over_finish_request(make: Callable[..., Harness]) -> None:
    """`drain_connections = "eof"` is, after the counting: its connections are known."""
    harness = make()
    counted = harness.server.finish_request

    def finish_request(request: Any, client_address: Any) -> None:
        harness.seen.append("over it")
        counted(request, client_address)

    harness.server.finish_request = finish_request
    harness.serve("ok")
    assert "over it" in harness.seen


def test_a_server_that_looks_up_its_attributes_itself(make: Callable[..., Harness]) -> None:
    """Nobody can tell what it would find."""

    class Proxy(Over):
        def __getattribute__(self, name: str) -> Any:
            return super().__getattribute__(name)

    assert not make(Proxy).is_straight


def test_who_serves_elsewhere(make: Callable[..., Harness]) -> None:
    """Threads have the long way: a lane goes along with each."""
    harness = make()
    harness.lanes.elsewhere = True
    assert way_of(harness.lanes, harness.server) == harness.lanes.serve_one


def test_what_is_refused_later(make: Callable[..., Harness]) -> None:
    """A program that stops serving by verify_request() is obeyed and counted."""
    harness = make()
    harness.serve("ok")
    harness.server.verify_request = lambda request, client_address: False
    harness.serve("ok")
    assert [harness.lane[word] for word in (ACCEPTED, COMPLETED, REJECTED)] == [2, 1, 1]
    assert sum(harness.lane[DURATION.start : DURATION.end - 1]) == 1


def test_the_handler_class_is_asked_anew(make: Callable[..., Harness]) -> None:
    """As it is in `finish_request()`."""
    harness = make()
    harness.serve("ok")
    harness.server.RequestHandlerClass = lambda *arguments: harness.seen.append("another")
    harness.serve("ok")
    assert "another" in harness.seen


@pytest.mark.parametrize("server_class", [Over, LongWay])
def test_the_shorter_get_request(server_class: Any, make: Callable[..., Harness]) -> None:
    """It is called in place of the server's, on both ways."""
    harness = make(server_class)
    harness.lanes.get_request = lambda: ("short", "somebody")
    serve_one = way_of(harness.lanes, harness.server)
    serve_one(harness.server, harness.lane, NOW_NS)
    assert "get_request" not in harness.seen
    assert "shutdown_request short" in harness.seen


def test_failures_in_a_row(make: Callable[..., Harness]) -> None:
    """One request between them ends the row, by which a get_request() that always fails is known."""
    harness = make()
    for _ in range(2):
        outcomes = [harness.serve("no sense") for _ in range(100)]
        assert outcomes == [Accepted.NOTHING] * 99 + [Accepted.NO_RESOURCES]
        harness.serve("ok")


def test_where_it_ends(make: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch) -> None:
    """A forked process ends before anything of the request is counted or closed."""
    harness, ends = make(), list[list[str]]()

    def end(exc: BaseException | None = None) -> None:
        ends.append(list(harness.seen))
        raise Stray

    monkeypatch.setattr(strays, "end", end)
    harness.serve("forks")
    assert [line for line in ends[0] if line.startswith("shutdown")] == []


# To a child that is forked; here it is this process. (Over the kernel's: tests/process/test_forked_requests.py.)


class ToChildren(Hooks, prefork.ForkingMixIn, prefork.BaseServer):
    seen: list[str]


class Forks:
    """A server of this class with one lane, and what forks for it, or raises."""

    def __init__(self, server_class: Any = ToChildren, **terms: Any) -> None:
        self.slot = Slot(1)
        self.server = server_class("nowhere", Handler)
        self.seen = self.server.seen = list[str]()
        self.raises: BaseException | None = None
        self.ends = list[int]()
        self.lanes = Lanes(self.slot, elsewhere=True, on_free=lambda: None, **terms)
        self.lanes.bind(self.server)
        self.serve_one = way_to_children(self.lanes, self.server, self.fork)
        lane = self.lanes.take()
        assert lane is not None
        self.lane: Lane = lane

    @property
    def is_straight(self) -> bool:
        return self.serve_one != self.lanes.serve_one

    def fork(self, request: Any, client_address: Any, passed: list[Lane]) -> None:
        if self.raises is not None:
            raise self.raises
        lane = passed.pop()
        try:
            self.ends.append(finish_in_child(self.lanes, self.server, lane, request, client_address))
        except SystemExit as exc:
            self.ends.append(int(str(exc)))
        self.lanes.take_back(lane, ended_well=self.ends[-1] == 0)

    def serve(self, event: str) -> Accepted:
        self.server.event = event
        return self.serve_one(self.server, self.lane, NOW_NS)

    def counted(self, *words: int) -> tuple[int, ...]:
        return tuple(self.lane[word] for word in words)


@pytest.fixture
def forks() -> Iterator[Callable[..., Forks]]:
    made: list[Forks] = []

    def forks(*arguments: Any, **named: Any) -> Forks:
        made.append(Forks(*arguments, **named))
        return made[-1]

    yield forks
    for each in made:
        each.lanes.unbind(each.server)
        each.slot.close()


@pytest.mark.parametrize(
    ("event", "status", "outcome", "calls"),
    [
        ("ok", 0, COMPLETED, []),
        ("fails", 1, FAILED, ["handle_error fails somebody"]),
        ("exits", 3, FAILED, []),
        ("again", 0, COMPLETED, ["handler"]),
    ],
)
def test_a_request_of_a_child(
    event: str, status: int, outcome: int, calls: list[str], forks: Callable[..., Forks]
) -> None:  # fmt: skip
    """It is counted once, on the lane that it was accepted on, which comes back; the parent closes its copy."""
    over = forks()
    assert over.is_straight
    assert over.serve(event) is Accepted.REQUEST
    assert over.ends == [status]
    assert over.counted(ACCEPTED, outcome, STATE) == (1, 1, IDLE)
    assert sum(over.counted(COMPLETED, FAILED, HANDED_OVER, REJECTED)) == 1
    request = "ok" if event == "again" else event
    child = ["get_request", "handler", *calls, f"shutdown_request {event}"]
    assert over.seen == [*child, f"close_request {event}"], request
    assert over.lanes.take() is over.lane


@pytest.mark.parametrize(("event", "result"), [("nothing", Accepted.NOTHING), ("shortage", Accepted.NO_RESOURCES)])
def test_no_request_for_a_child(event: str, result: Accepted, forks: Callable[..., Forks]) -> None:
    """The lane is still the caller's. After that a request is served as ever."""
    over = forks()
    assert over.serve(event) is result
    assert over.counted(ACCEPTED, STATE) == (0, IDLE)
    assert over.lanes.take() is None
    assert over.serve("ok") is Accepted.REQUEST


@pytest.mark.parametrize(
    ("exc", "result"),
    [
        (OSError(errno.EAGAIN, "no process"), Accepted.NOT_BEGUN),
        (OSError(errno.EMFILE, "no pidfd"), Accepted.NOT_BEGUN),
        (ValueError("something else"), Accepted.REQUEST),
    ],
)
def test_a_child_that_cannot_be_forked(exc: Exception, result: Accepted, forks: Callable[..., Forks]) -> None:
    """Its request has failed, which is the program's to tell, and its lane is free."""
    over = forks()
    over.raises = exc
    assert over.serve("ok") is result
    assert over.seen == ["get_request", "handle_error ok somebody", "shutdown_request ok"]
    assert over.counted(ACCEPTED, FAILED, STATE) == (1, 1, IDLE)
    assert over.lanes.take() is over.lane


def test_a_fork_that_is_interrupted(forks: Callable[..., Forks]) -> None:
    """By what ends the program: its connection is closed, and no error told."""
    over = forks()
    over.raises = Gone()
    with pytest.raises(Gone):
        over.serve("ok")
    assert over.seen == ["get_request", "shutdown_request ok"]
    assert over.counted(ACCEPTED, FAILED, STATE) == (1, 1, IDLE)


def test_what_is_raised_after_the_fork(forks: Callable[..., Forks]) -> None:
    """A close that fails is told; the request is its child's all the same, and counted there."""
    over = forks()

    def close_request(request: Any) -> None:
        raise ValueError("no close")

    over.server.close_request = close_request
    assert over.serve("ok") is Accepted.REQUEST
    assert over.seen[-2:] == ["handle_error ok somebody", "shutdown_request ok"]
    assert over.counted(COMPLETED, FAILED) == (1, 0)


@pytest.mark.parametrize("name", PASSED_BY)
def test_a_hook_before_a_fork(name: str, forks: Callable[..., Forks]) -> None:
    """One of the program's class keeps to the long way, and so does what it puts there while it serves."""
    assert not forks(type("Mine", (ToChildren,), {name: hook(name, [])})).is_straight
    over = forks()
    long_way = list[str]()
    over.lanes.serve_one = lambda *arguments: long_way.append(name)  # type: ignore[method-assign, assignment]
    over.serve("ok")
    assert long_way == []
    setattr(over.server, name, hook(name, []))
    over.serve("ok")
    delattr(over.server, name)
    if name == "finish_request":
        over.server.finish_request = over.lanes.bound
    over.serve("ok")
    assert long_way == [name]
    over.server.__class__ = type("Other", (ToChildren,), {name: hook(name, [])})
    over.serve("ok")
    assert long_way == [name] * 2


def test_what_a_plain_child_cannot_have(forks: Callable[..., Forks]) -> None:
    """As for threads: an access log, what a connection has to show first, requests of a connection counted one by one,
    a `finish_request` of the object's own. And the standard library's own mix-in forks by itself."""
    assert not forks(access_log=Log([])).is_straight
    assert not forks(admission=Admission(Terms(), str)).is_straight
    over = forks(type("Mine", (ToChildren,), {"socket_type": socket.SOCK_STREAM}))
    over.server.RequestHandlerClass = type("Kept", (KeepsConnections, Handler), {})
    assert way_to_children(over.lanes, over.server, over.fork) == over.lanes.serve_one
    over.server.RequestHandlerClass = Handler
    over.lanes.unbind(over.server)
    over.server.finish_request = hook("finish_request", [])
    over.lanes.bind(over.server)
    assert way_to_children(over.lanes, over.server, over.fork) == over.lanes.serve_one
    standard = type(
        "Standard", (Hooks, prefork.SupervisedMixIn, socketserver.ForkingMixIn, socketserver.BaseServer), {}
    )
    assert not forks(standard).is_straight
