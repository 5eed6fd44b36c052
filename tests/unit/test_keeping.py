"""A worker that keeps connections, in the test's own process: a real listener, real queues whose other ends the test
has, a real slot, and a master that is none."""

import contextlib
import gc
import os
import resource
import select
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any, NoReturn, cast

import pytest

from prefork import (
    KeepAliveMixIn,
    PreForkingMixIn,
    PreForkingTCPServer,
    StreamRequestHandler,
    TCPServer,
    ThreadingMixIn,
)
from prefork.metrics.facts import CloseReason, ExitReason
from prefork.metrics.scoreboard import (
    ACCEPTED,
    BUSY,
    CLOSED,
    COMPLETED,
    DUE,
    DURATION,
    FAILED,
    HANDED_OVER,
    IDLE,
    IDLE_HERE,
    IN_HAND,
    LEAVING,
    MOVES,
    OPENED,
    REJECTED,
    STARTED_NS,
    STATE,
    Slot,
    Stacks,
)
from prefork.sockets.shared import prepared
from prefork.workers import user_forks
from prefork.workers.bootstrap import Birth, Master
from prefork.workers.kept import CLOSING, MET, SHORT, SLOW, TELL_END, Kept, Queues
from prefork.workers.limits import WorkerLimits
from prefork.workers.loop import Worker
from prefork.workers.signals import DRAIN_SIGNAL
from prefork.workers.stay import peek
from tests.support.programs.inside import NoMaster, Stray, as_a_child
from tests.support.programs.serving import threads_end

from .test_loop import TERMS

HUNG_S = 20.0
LINE_MAX = 100


class Line(KeepAliveMixIn, StreamRequestHandler):
    """Answers each line with the number of those of its connection."""

    server: "Server"

    def connection_opened(self) -> None:
        self.server.seen.append("opened")

    def handle_one_request(self) -> None:
        line = self.rfile.readline().strip().decode()
        self.server.seen.append(line)
        self.state = (self.state or 0) + 1
        self.server.do(self, line)
        self.wfile.write(f"{self.state} {line}\n".encode())


class Told(Line):
    """Is told of the end."""

    def connection_closed(self) -> None:
        self.server.seen.append(f"closed after {self.state}")


class Greeting(Line):
    speaks_first = True

    def connection_opened(self) -> None:
        super().connection_opened()
        self.wfile.write(b"hello\n")


class Whole(Line):
    """Is given whole lines only."""

    @staticmethod
    def complete(data: bytes) -> bool:
        if data.startswith(b"?"):
            raise ValueError(data)
        return b"\n" in data


class Doing:
    """What the servers here do."""

    seen: list[str]
    keep: Any
    _prefork_: Any

    def do(self, handler: Line, line: str) -> None:
        match line:
            case "leave":
                self.leave()
            case "close":
                handler.close_connection = True
            case "copy":
                self.keep.do_with(handler)
            case "raise":
                raise ValueError(line)
            case _:
                self.keep.during(line)

    def leave(self) -> None:
        """Tell this worker to drain, as its master does."""
        self._prefork_.worker.birth.slot.tell_to_drain()
        os.kill(os.getpid(), DRAIN_SIGNAL)

    def handle_error(self, request: Any, client_address: Any) -> None:
        self.seen.append("error")


class Server(Doing, PreForkingTCPServer):
    pass


class Threaded(Doing, PreForkingMixIn, ThreadingMixIn, TCPServer):
    pass


class Behind(Threaded):
    """Its main thread accepts, for a hook of the program's may rely on that."""

    def process_request(self, request: Any, client_address: Any) -> None:
        self.seen.append("process")
        super().process_request(request, client_address)


class OwnFinish(Server):
    def finish_request(self, request: Any, client_address: Any) -> None:
        self.seen.append("finish")
        super().finish_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.seen.append("shutdown")
        super().shutdown_request(request)


class OwnThreadBody(Threaded):
    def process_request_thread(self, request: Any, client_address: Any) -> None:
        self.seen.append("body")
        super().process_request_thread(request, client_address)


class OwnProcess(Server):
    def process_request(self, request: Any, client_address: Any) -> None:
        self.seen.append("process")
        super().process_request(request, client_address)


class Refuses(OwnProcess):
    """Closes every other stay of a connection, without a word to its handler."""

    came = 0

    def process_request(self, request: Any, client_address: Any) -> None:
        self.came += 1
        if self.came % 2:
            super().process_request(request, client_address)
        else:
            self.refuse(request)

    def refuse(self, request: Any) -> None:
        self.shutdown_request(request)


class Drops(Refuses):
    """Lets go of it, whereupon it is closed."""

    def refuse(self, request: Any) -> None:
        pass


class RefusesBehind(Refuses, Threaded):
    pass


class DropsBehind(Drops, Threaded):
    pass


class Wrapped(Server):
    """Its connections are of a class of its own."""

    def get_request(self) -> Any:
        request, client_address = super().get_request()
        own = Own(request.family, request.type, request.proto, request.detach())
        return own, client_address


class Own(socket.socket):
    pass


class Named(Server):
    """Its clients have names."""

    def get_request(self) -> Any:
        return super().get_request()[0], Name("somebody")


class Name:
    def __init__(self, name: str) -> None:
        self.name = name


class Picky(Server):
    """Serves every other connection; the first it serves not, and with the third it fails."""

    came = 0

    def verify_request(self, request: Any, client_address: Any) -> bool:
        self.came += 1
        if self.came == 3:
            raise ValueError("verify_request")
        return self.came % 2 == 0


class Keep:
    """A worker that keeps connections, and the test at the other ends. `script` runs beside it, and then it is told to
    leave."""

    def __init__(
        self, server_class: type[Any] = Server, handler: Any = Line, *, lanes: int = 1, **terms: Any
    ) -> None:  # fmt: skip
        self.seen: list[str] = []
        self.slot, self.master, self.queues = Slot(lanes), NoMaster(), Queues.made()
        self.server = server_class(("127.0.0.1", 0), handler)
        self.server.seen, self.server.keep = self.seen, self
        terms.setdefault("elsewhere", isinstance(self.server, ThreadingMixIn))
        self.terms = TERMS._replace(queues=self.queues, **terms)
        self.birth = Birth(self.slot, Stacks(self.slot), 0, False, lambda: None, set())
        self.during: Callable[[str], None] = lambda line: None
        self.do_with: Callable[[Line], object] = lambda handler: None
        self.failed: BaseException | None = None
        self.mine = set[int]()  # descriptors that the worker has parked
        self.held: list[Any] = []  # the clients of those that the holder has had
        self._opened = contextlib.ExitStack()

    def connect(self) -> socket.socket:
        client = socket.create_connection(self.server.server_address, HUNG_S)
        return self._opened.enter_context(client)

    def ask(self, client: socket.socket, *lines: str) -> str:
        client.sendall("".join(f"{line}\n" for line in lines).encode())
        return self.answer(client, len(lines))

    def anew(self, client: socket.socket, line: str) -> str:
        """Ask in a stay of its own."""
        self.until(lambda: self.count(IN_HAND) == [0])
        return self.ask(client, line)

    def answer(self, client: socket.socket, lines: int = 1) -> str:
        data = b""
        while data.count(b"\n") < lines and (more := client.recv(4096)):
            data += more
        return data.decode()

    def parked(self, seconds: float = HUNG_S) -> tuple[Kept, int]:
        """The next connection that the worker parks after a request of it."""
        kept, fd = self.parked_silent(seconds)
        while not kept.requests:  # its client was slower than the accept
            self.ready(kept, fd)
            kept, fd = self.parked_silent(seconds)
        return kept, fd

    def parked_silent(self, seconds: float = HUNG_S) -> tuple[Kept, int]:
        """The next connection that the worker parks."""
        select.select([self.queues.park_out], [], [], seconds)
        came = self.queues.park_out.receive()
        assert came is not None, "nothing was parked"
        self.mine.add(came[1])
        return Kept.decoded(came[0]), came[1]

    def ready(self, kept: Kept, fd: int) -> None:
        """Have it ready, as the holder does."""
        assert self.queues.ready_in.send(kept.encoded(), fd)
        self.mine.discard(fd)
        os.close(fd)

    @contextlib.contextmanager
    def holder(self) -> Iterator[None]:
        """Inside, what is parked is ready again once its client says something, or to be closed, once that hangs up."""
        ended = threading.Event()

        def hold() -> None:
            held: dict[int, Kept] = {}
            while not ended.is_set():
                for fd in select.select([self.queues.park_out.fileno(), *held], [], [], 0.01)[0]:
                    if (kept := held.pop(fd, None)) is not None:
                        with socket.fromfd(fd, socket.AF_INET, socket.SOCK_STREAM) as sock:
                            hung_up = not sock.recv(1, socket.MSG_PEEK)
                        if hung_up:
                            kept = kept._replace(flags=kept.flags | CLOSING, reason=CloseReason.CLIENT + 1)
                        self.ready(kept, fd)
                    elif (came := self.queues.park_out.receive()) is not None:
                        self.mine.add(came[1])
                        held[came[1]] = Kept.decoded(came[0])
                        self.held.append(held[came[1]].client_address)

        thread = threading.Thread(target=hold)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def count(self, *words: int) -> list[int]:
        return [sum(self.slot.lane(index)[word] for index in range(self.slot.lanes)) for word in words]

    def closed(self) -> dict[str, int]:
        """How many connections were closed for which reason."""
        return {reason.name: n for reason in CloseReason if (n := self.count(CLOSED + reason)[0])}

    def until(self, is_so: Callable[[], bool]) -> None:
        """Wait for the worker."""
        end = monotonic() + HUNG_S
        while not is_so():
            assert monotonic() < end, "hung"
            sleep(0.001)

    def tell_to_end(self) -> None:
        """Tell the worker that the service ends."""
        self.slot.tell_to_drain(ends=True)
        os.kill(os.getpid(), DRAIN_SIGNAL)

    def run(self, script: Callable[[], None]) -> int:
        """Run the worker in this thread, and the script in another."""

        def scripted() -> None:
            try:
                script()
            except BaseException as exc:
                self.failed = exc
            finally:
                self.server.leave()

        thread = threading.Thread(target=scripted)
        with (
            threads_end(),
            prepared(self.server.socket, lambda: True),
            pytest.MonkeyPatch.context() as patch,
            as_a_child(),
        ):
            patch.setattr("prefork.workers.ending.finish", lambda: None)
            worker = Worker(self.server, self.terms, self.birth, cast(Master, self.master))
            self.server._prefork_.worker = worker
            thread.start()
            try:
                status: int = worker.run()
            finally:
                thread.join()
        if self.failed is not None:
            raise self.failed
        return status

    def close(self) -> None:
        if (worker := self.server._prefork_.worker) is not None:
            worker._wakeup.close()
            worker._epoll.close()
        self.server._prefork_.worker = None
        self.server.socket.close()
        self._opened.close()
        for fd in self.mine:
            os.close(fd)
        for end in self.queues:
            with contextlib.suppress(OSError):
                end.close()
        os.close(self.master.pidfd)
        self.slot.close()


@pytest.fixture
def keeps() -> Iterator[Callable[..., Keep]]:
    with contextlib.ExitStack() as stack:

        def make(*args: Any, **terms: Any) -> Keep:
            keep = Keep(*args, **terms)
            stack.callback(keep.close)
            return keep

        yield make


def test_lingers_and_is_parked(keeps: Callable[..., Keep]) -> None:
    """Requests one after another are served where the connection lingers; then it is parked with what goes along."""
    keep = keeps()

    def script() -> None:
        client = keep.connect()
        assert keep.ask(client, "one") == "1 one\n"
        assert keep.ask(client, "two") == "2 two\n"
        kept, fd = keep.parked()
        assert (kept.requests, kept.flags, kept.unread, kept.listener) == (2, MET | SLOW, b"", 0)
        assert kept.client_address == client.getsockname()
        keep.ready(kept, fd)
        assert keep.ask(client, "three") == "3 three\n"
        assert keep.parked()[0].requests == 3

    assert keep.run(script) == 0
    assert keep.seen == ["opened", "one", "two", "three"]
    assert keep.count(OPENED, ACCEPTED, COMPLETED, MOVES, IN_HAND, IDLE_HERE, STATE) == [1, 3, 3, 1, 0, 0, IDLE]


@pytest.mark.parametrize("flags", [0, SLOW])
def test_one_that_has_lingered_in_vain(flags: int, keeps: Callable[..., Keep]) -> None:
    """It is parked as soon as nothing is at hand, unless the holder says that it came back quickly."""
    keep = keeps()

    def script() -> None:
        client = keep.connect()
        assert keep.ask(client, "one") == "1 one\n"
        kept, fd = keep.parked()
        patch.setattr("prefork.workers.keeping.LINGER_NS", 1 << 40)
        keep.ready(kept._replace(flags=kept.flags & ~SLOW | flags), fd)
        assert keep.ask(client, "two") == "2 two\n"
        if flags:
            assert keep.parked()[0].flags == MET | SLOW
        else:
            keep.until(lambda: keep.count(IDLE_HERE) == [1])
            assert keep.ask(client, "three") == "3 three\n"

    with pytest.MonkeyPatch.context() as patch:
        assert keep.run(script) == 0
    assert keep.count(MOVES) == [1]


@pytest.mark.parametrize("server_class", [Server, Threaded])
def test_what_the_holder_passes_on_is_not_looked_at(server_class: type[Any], keeps: Callable[..., Keep]) -> None:
    """It has said something, or is to be closed."""
    keep = keeps(server_class)

    def script() -> None:
        client = keep.connect()
        assert keep.ask(client, "one") == "1 one\n"
        kept, fd = keep.parked()
        patch.setattr("prefork.workers.keeping.peek", lambda sock: pytest.fail("looked"))
        client.sendall(b"two\n")
        keep.ready(kept, fd)
        assert keep.answer(client) == "2 two\n"
        keep.parked()

    with pytest.MonkeyPatch.context() as patch:
        assert keep.run(script) == 0


def test_what_the_wait_has_told_is_not_looked_at(keeps: Callable[..., Keep]) -> None:
    """One that lingers has said something, if it has not hung up as well."""
    keep = keeps()

    def script() -> None:
        patch.setattr("prefork.workers.keeping.LINGER_NS", 1 << 40)
        client = keep.connect()
        assert keep.ask(client, "one") == "1 one\n"
        keep.until(lambda: keep.count(IDLE_HERE) == [1])
        patch.setattr("prefork.workers.keeping.peek", looked)
        assert keep.ask(client, "two") == "2 two\n"
        assert looks == []
        keep.until(lambda: keep.count(IDLE_HERE) == [1])
        client.sendall(b"three\n")
        client.shutdown(socket.SHUT_WR)
        assert keep.answer(client) == "3 three\n"
        assert client.recv(99) == b""

    looks: list[bytes | None] = []

    def looked(sock: socket.socket) -> bytes | None:
        looks.append(peek(sock))
        return looks[-1]

    with pytest.MonkeyPatch.context() as patch:
        assert keep.run(script) == 0
    assert looks[-1] == b""
    assert (keep.closed(), keep.count(COMPLETED)) == ({"CLIENT": 1}, [3])


class Small(Line):
    """Reads nothing ahead."""

    rbufsize = 0

    def setup(self) -> None:
        self.server.seen.append("setup")
        super().setup()


@pytest.mark.parametrize(("at_once_ns", "stays"), [(0, [1, 1, 1, 1]), (1 << 60, [1, 3])])
def test_looks_where_there_was_more(at_once_ns: int, stays: list[int], keeps: Callable[..., Keep]) -> None:
    """After a request it is only asked whether the client has said more if it had so, or came back at once, before."""
    keep, busy, go_on = keeps(handler=Small), threading.Event(), threading.Event()

    def script() -> None:
        patch.setattr("prefork.workers.keeping.LINGER_NS", 1 << 40)
        patch.setattr("prefork.workers.keeping.AT_ONCE_NS", 0)
        first = keep.connect()
        assert keep.ask(first, "a") == "1 a\n"
        keep.until(lambda: keep.count(IDLE_HERE) == [1])
        first.close()
        keep.until(lambda: keep.closed() == {"CLIENT": 1})
        keep.connect().sendall(b"busy\n")
        assert busy.wait(HUNG_S)
        keep.seen.clear()
        patch.setattr("prefork.workers.keeping.AT_ONCE_NS", at_once_ns)
        client = keep.connect()
        client.sendall(b"a\nb\nc\nd\n")  # before it is accepted
        go_on.set()
        assert keep.answer(client, 4) == "1 a\n2 b\n3 c\n4 d\n"

    def during(line: str) -> None:
        if line == "busy":
            busy.set()
            assert go_on.wait(HUNG_S)

    keep.during = during
    with pytest.MonkeyPatch.context() as patch:
        assert keep.run(script) == 0
    asked = "".join(each[0] for each in keep.seen if each != "opened")
    assert [len(stay) for stay in asked.split("s")[1:]] == stays


class Delayed(Small):
    def setup(self) -> None:
        super().setup()
        self.server.seen.append(str(self.request.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)))


@pytest.mark.parametrize("comes_bound", [False, True])
def test_no_delay(comes_bound: bool, keeps: Callable[..., Keep]) -> None:
    """Each has TCP_NODELAY: of its listener, or set on it where it was in the queue of one that came bound."""
    keep = keeps(handler=Delayed)
    assert keep.server.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    if comes_bound:
        keep.server.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, False)
    clients = [keep.connect(), keep.connect()]
    keep.server.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
    clients.append(keep.connect())
    for client in clients:
        client.sendall(b"one\n")

    def script() -> None:
        assert [keep.answer(client) for client in clients] == ["1 one\n"] * 3

    assert keep.run(script) == 0
    assert [each for each in keep.seen if each in "01"] == ["1"] * 3


def watched(epoll: select.epoll) -> dict[int, int]:
    """The descriptors of an epoll, and the events for which it waits."""
    lines = Path(f"/proc/self/fdinfo/{epoll.fileno()}").read_text().splitlines()
    fields = [line.split() for line in lines if line.startswith("tfd:")]
    return {int(each[1]): int(each[3], 16) for each in fields}


def test_where_the_epoll_has_it(keeps: Callable[..., Keep]) -> None:
    """From the first time that it lingers until it is parked, or closed; where somebody else has what was closed, the
    epoll tells nothing of it."""
    keep = keeps()
    copies: list[socket.socket] = []

    def script() -> None:
        epoll = keep.server._prefork_.worker._epoll
        keep.until(lambda: len(watched(epoll)) == 4)
        shared = watched(epoll).keys()
        parks = keep.connect()
        assert keep.ask(parks, "one") == "1 one\n"
        assert keep.anew(parks, "two") == "2 two\n"
        assert keep.parked()[0].requests == 2
        assert watched(epoll).keys() == shared
        patch.setattr("prefork.workers.keeping.LINGER_NS", 1 << 40)
        keep.do_with = lambda handler: copies.append(handler.request.dup())
        ends = keep.connect()
        assert keep.ask(ends, "copy") == "1 copy\n"
        keep.until(lambda: len(watched(epoll)) == 5)
        ends.close()
        keep.until(lambda: keep.closed() == {"CLIENT": 1})
        (left,) = (events for fd, events in watched(epoll).items() if fd not in shared)
        assert left == select.EPOLLONESHOT
        copies.pop().close()
        assert watched(epoll).keys() == shared

    with pytest.MonkeyPatch.context() as patch:
        assert keep.run(script) == 0


@pytest.mark.parametrize("server_class", [Server, Threaded])
def test_lingers_with_nothing_said(server_class: type[Any], keeps: Callable[..., Keep]) -> None:
    """A connection that says nothing costs 50 ms in the epoll, and is no request; what it says later is its first."""
    keep = keeps(server_class, lanes=8)

    def script() -> None:
        client = keep.connect()
        keep.until(lambda: keep.count(OPENED, IDLE_HERE) == [1, 1])
        kept, fd = keep.parked_silent()
        assert (kept.requests, kept.flags, kept.state) == (0, 0, b"")
        keep.until(lambda: keep.count(IDLE_HERE, ACCEPTED, IN_HAND) == [0, 0, 0])
        keep.ready(kept, fd)
        assert keep.ask(client, "one") == "1 one\n"

    assert keep.run(script) == 0
    assert keep.seen == ["opened", "one"]
    assert keep.count(OPENED, MOVES, ACCEPTED, COMPLETED, IDLE_HERE) == [1, 1, 1, 1, 0]


@pytest.mark.parametrize("server_class", [Server, Threaded, Behind])
def test_ends(server_class: type[Any], keeps: Callable[..., Keep]) -> None:
    """An end is counted once, by its reason: the client's, before a request or after one, the handler's, an error's."""
    keep = keeps(server_class, lanes=8)

    def script() -> None:
        keep.connect().close()
        keep.until(lambda: keep.closed() == {"CLIENT": 1})
        client = keep.connect()
        assert keep.ask(client, "one") == "1 one\n"
        client.close()
        keep.until(lambda: keep.closed() == {"CLIENT": 2})
        client = keep.connect()
        assert keep.ask(client, "close") == "1 close\n"
        assert client.recv(1) == b""
        client = keep.connect()
        client.sendall(b"raise\n")
        assert client.recv(1) == b""
        keep.until(lambda: keep.closed() == {"CLIENT": 2, "HANDLER": 2})

    with keep.holder():
        assert keep.run(script) == 0
    assert keep.seen.count("error") == 1
    assert keep.count(OPENED, ACCEPTED, COMPLETED, FAILED, IN_HAND, IDLE_HERE) == [4, 3, 2, 1, 0, 0]


@pytest.mark.parametrize("server_class", [Server, Threaded])
def test_nobody_waits_behind_another(server_class: type[Any], keeps: Callable[..., Keep]) -> None:
    """Before anything begins, whatever else lingers is parked: before another's first request, and one that has come
    back."""
    keep = keeps(server_class, lanes=8)
    clients: list[socket.socket] = []

    def during(line: str) -> None:
        if line == "other":
            keep.until(lambda: clients[0].getsockname() in keep.held)
        elif line == "back":
            keep.until(lambda: clients[2].getsockname() in keep.held)

    def script() -> None:
        keep.during = during
        clients.extend(keep.connect() for _ in range(3))
        keep.until(lambda: len(keep.held) == 3)
        keep.held.clear()
        keep.ask(clients[0], "one")
        assert keep.ask(clients[1], "other") == "1 other\n"
        keep.until(lambda: len(keep.held) == 2)
        keep.ask(clients[2], "one")
        assert keep.ask(clients[1], "back") == "2 back\n"

    with keep.holder():
        keep.run(script)


def test_one_lingers(keeps: Callable[..., Keep]) -> None:
    """At most one per worker: it is the last one."""
    keep = keeps()

    def script() -> None:
        clients = [keep.connect() for _ in range(3)]
        keep.until(lambda: keep.count(OPENED)[0] == 3)
        assert [keep.parked_silent()[0].client_address for _ in clients] == [client.getsockname() for client in clients]

    keep.run(script)


@pytest.mark.parametrize("server_class", [Server, Threaded, Behind])
def test_a_pipeline(server_class: type[Any], keeps: Callable[..., Keep]) -> None:
    """After eight requests others have a turn, and what was read ahead goes along, in order."""
    keep = keeps(server_class, lanes=8)
    lines = [f"line {number}" for number in range(20)]

    def script() -> None:
        client = keep.connect()
        client.sendall("".join(f"{line}\n" for line in lines).encode())
        for requests in (8, 16):
            kept, fd = keep.parked()
            assert kept.requests == requests
            assert kept.unread.decode().split("\n")[:-1] == lines[requests:]
            keep.ready(kept, fd)
        answers = [f"{number} {line}" for number, line in enumerate(lines, 1)]
        assert keep.answer(client, 20).split("\n")[:-1] == answers

    keep.run(script)
    assert keep.count(ACCEPTED, COMPLETED, OPENED) == [20, 20, 1]
    assert sum(keep.count(*range(DURATION.start, DURATION.end - 1))) == 20


def test_a_request_is_timed_by_itself(keeps: Callable[..., Keep]) -> None:
    """`request_timeout` is for one of a stay: each has a beginning of its own, and the lane is BUSY throughout."""
    keep = keeps()
    begun: list[int] = []

    def during(line: str) -> None:
        begun.append(keep.slot.lane(0)[STARTED_NS])
        assert keep.count(STATE, IN_HAND) == [BUSY, 1]
        assert keep.count(ACCEPTED, COMPLETED) == [len(begun), len(begun) - 1]

    def script() -> None:
        keep.during = during
        keep.ask(keep.connect(), "one", "two", "three")

    keep.run(script)
    assert begun == sorted(set(begun))
    assert len(begun) == 3


@pytest.mark.parametrize("server_class", [Server, Threaded])
def test_is_told_of_the_end(server_class: type[Any], keeps: Callable[..., Keep]) -> None:
    """Once, whoever ends it: its handler, its client while it lingers, or the holder, which sends it back with the
    reason. One that has said nothing is not told of."""
    keep = keeps(server_class, Told, lanes=8)

    def script() -> None:
        keep.connect().close()
        keep.until(lambda: keep.closed() == {"CLIENT": 1})
        keep.ask(keep.connect(), "close")
        client = keep.connect()
        keep.ask(client, "one", "two")
        client.close()
        keep.until(lambda: keep.closed() == {"CLIENT": 2, "HANDLER": 1})
        keep.ask(keep.connect(), "one")
        kept, fd = keep.parked()
        assert kept.flags == MET | TELL_END | SLOW
        keep.ready(kept._replace(flags=kept.flags | CLOSING, reason=CloseReason.EVICTED + 1), fd)
        keep.until(lambda: keep.closed() == {"CLIENT": 2, "HANDLER": 1, "EVICTED": 1})

    keep.run(script)
    assert sorted(line for line in keep.seen if "closed" in line) == ["closed after 1"] * 2 + ["closed after 2"]
    assert keep.count(OPENED, ACCEPTED, COMPLETED, FAILED) == [4, 4, 4, 0]


@pytest.mark.parametrize("server_class", [Server, Threaded, Behind])
def test_speaks_first(server_class: type[Any], keeps: Callable[..., Keep]) -> None:
    """Its greeting is no request, and is given once."""
    keep = keeps(server_class, Greeting, lanes=8)

    def script() -> None:
        client = keep.connect()
        assert keep.answer(client) == "hello\n"
        kept, fd = keep.parked_silent()
        assert (kept.requests, kept.flags) == (0, MET)
        assert keep.count(OPENED, ACCEPTED, IN_HAND, IDLE_HERE) == [1, 0, 0, 0]
        client.sendall(b"one\ntwo\n")
        keep.ready(kept, fd)
        assert keep.answer(client, 2) == "1 one\n2 two\n"

    keep.run(script)
    assert keep.seen.count("opened") == 1
    assert keep.count(OPENED, ACCEPTED, COMPLETED) == [1, 2, 2]


@pytest.mark.parametrize("server_class", [Server, Threaded, Behind])
def test_whole_requests(server_class: type[Any], keeps: Callable[..., Keep]) -> None:
    """What is less than a request is no handler's: it is parked with the number of bytes to wait for. Bytes after a
    request, too; and with the client's end it is given as it is."""
    keep = keeps(server_class, Whole, lanes=8)

    def script() -> None:
        client = keep.connect()
        client.sendall(b"on")
        kept, fd = keep.parked_silent()
        while not kept.flags & SHORT:
            keep.ready(kept, fd)
            kept, fd = keep.parked_silent()
        assert (kept.flags, kept.wanted, kept.unread, keep.seen) == (SHORT, 3, b"", [])
        client.sendall(b"e\ntw")
        keep.ready(kept._replace(flags=0), fd)
        assert keep.answer(client) == "1 one\n"
        kept, fd = keep.parked()
        assert (kept.flags & SHORT, kept.wanted, kept.unread) == (SHORT, 1, b"tw")
        client.shutdown(socket.SHUT_WR)
        keep.ready(kept, fd)
        assert keep.answer(client) == "2 tw\n"

    keep.run(script)
    assert keep.count(OPENED, ACCEPTED, COMPLETED) == [1, 2, 2]


def test_what_asks_for_whole_requests_fails(keeps: Callable[..., Keep]) -> None:
    """That is the handler's error, and the end of one connection."""
    keep = keeps(Server, Whole)

    def script() -> None:
        client = keep.connect()
        client.sendall(b"?")
        assert client.recv(1) == b""
        assert keep.ask(keep.connect(), "one") == "1 one\n"

    keep.run(script)
    assert keep.seen == ["error", "opened", "one"]
    assert keep.count(ACCEPTED, FAILED, COMPLETED) == [2, 1, 1]
    assert keep.closed() == {"HANDLER": 1}


def test_a_full_queue(keeps: Callable[..., Keep]) -> None:
    """What cannot be parked stays, is served, and is tried again; nobody waits for it."""
    keep = keeps()
    mine, yours = socket.socketpair()

    def fill() -> int:
        sent = 0
        while keep.queues.park_in.send(Kept(unread=bytes(60_000)).encoded(), yours.fileno()):
            sent += 1
        return sent

    def script() -> None:
        filled = fill()
        assert filled
        first, second = keep.connect(), keep.connect()
        for _ in range(3):
            assert keep.ask(first, "first").endswith(" first\n")
            assert keep.ask(second, "second").endswith(" second\n")
        sleep(0.06)  # longer than anything lingers
        assert keep.ask(first, "first") == "4 first\n"
        keep.until(lambda: keep.count(IDLE_HERE, IN_HAND) == [2, 0])
        for _ in range(filled):
            os.close(keep.queues.park_out.receive()[1])  # type: ignore[index]
        assert {keep.parked()[0].requests, keep.parked()[0].requests} == {3, 4}

    with mine, yours:
        keep.run(script)
    assert keep.count(OPENED, ACCEPTED, COMPLETED, IDLE_HERE) == [2, 7, 7, 0]


def test_leaves(keeps: Callable[..., Keep]) -> None:
    """It takes one last from the listener and from the ready queue, and parks at once what it had in hand."""
    keep = keeps()
    siblings = socket.socket(fileno=os.dup(keep.server.fileno()))
    clients: list[socket.socket] = []

    def script() -> None:
        back = keep.connect()
        keep.ask(back, "one")
        kept, fd = keep.parked()

        def during(line: str) -> None:
            if line == "hold":
                clients.extend((back, keep.connect(), keep.connect()))
                for client in clients:
                    client.sendall(b"last\n")
                keep.ready(kept, fd)
                keep.server.leave()

        keep.during = during
        assert keep.ask(keep.connect(), "hold") == "1 hold\n"

    with siblings:
        keep.run(script)
        assert [keep.answer(client) for client in clients[:2]] == ["2 last\n", "1 last\n"]
        siblings.accept()[0].close()  # not his
    assert sorted(keep.parked_silent(0)[0].requests for _ in range(3)) == [1, 1, 2]
    assert keep.count(OPENED, ACCEPTED, COMPLETED, IDLE_HERE) == [3, 4, 4, 0]


def test_what_it_cannot_take(keeps: Callable[..., Keep], caplog: pytest.LogCaptureFixture) -> None:
    """A connection of a listener that it has not, one that is told of in other words, and one whose descriptor was
    lost: closed, counted, and the next one is served."""
    keep = keeps()

    def script() -> None:
        client = keep.connect()
        keep.ask(client, "one")
        kept, fd = keep.parked()
        for message in (kept._replace(listener=3).encoded(), b"\xff" * 80):
            mine, yours = socket.socketpair()
            with mine, yours:
                assert keep.queues.ready_in.send(message, yours.fileno())
                mine.settimeout(HUNG_S)
                assert mine.recv(1) == b""
        keep.queues.ready_in.sock.send(kept.encoded())
        client.sendall(b"two\n")
        keep.ready(kept, fd)
        assert keep.answer(client) == "2 two\n"

    keep.run(script)
    assert keep.closed() == {"DRAINED": 2, "LOST": 1}
    assert keep.count(OPENED, MOVES, ACCEPTED) == [1, 4, 2]
    assert [record.message for record in caplog.records] == [
        "could not take a kept connection, which is closed: this message of a kept connection is of version 255, or cut"
    ]


@pytest.mark.parametrize(
    ("server_class", "seen"),
    [
        (OwnFinish, ["finish", "opened", "one", "finish", "two", "finish", "close", "shutdown"]),
        (OwnProcess, ["process", "opened", "one", "process", "two", "process", "close"]),
        (OwnThreadBody, ["body", "opened", "one", "body", "two", "body", "close"]),
        (Behind, ["process", "opened", "one", "process", "two", "process", "close"]),
    ],
)
def test_hooks_of_a_stay(server_class: type[Any], seen: list[str], keeps: Callable[..., Keep]) -> None:
    """Those on the way to a handler are called for each stay, `shutdown_request()` at the end of the connection."""
    keep = keeps(server_class, lanes=8)

    def script() -> None:
        client = keep.connect()
        for number, line in enumerate(("one", "two", "close"), 1):
            assert keep.anew(client, line) == f"{number} {line}\n"
        assert client.recv(1) == b""

    with keep.holder():
        keep.run(script)
    assert keep.seen == seen
    assert keep.count(OPENED, ACCEPTED, COMPLETED, IN_HAND) == [1, 3, 3, 0]
    assert keep.closed() == {"HANDLER": 1}


@pytest.mark.filterwarnings("ignore:unclosed")
@pytest.mark.parametrize("server_class", [Refuses, Drops, RefusesBehind, DropsBehind])
def test_a_stay_that_the_program_does_not_serve(server_class: type[Any], keeps: Callable[..., Keep]) -> None:
    """It closes the connection, or lets go of it: its client sees the end at once, and it is counted as closed."""
    keep = keeps(server_class, lanes=8)

    def script() -> None:
        gc.disable()
        for number in (1, 2):
            client = keep.connect()
            assert keep.anew(client, "one") == "1 one\n"
            keep.until(lambda: keep.count(IN_HAND) == [0])
            client.sendall(b"two\n")
            with contextlib.suppress(ConnectionResetError):  # what it has said was not read
                assert client.recv(1) == b""
            keep.until(lambda number=number: keep.closed() == {"HANDLER": number})  # type: ignore[misc]

    try:
        with keep.holder():
            keep.run(script)
    finally:
        gc.enable()
    assert keep.count(OPENED, ACCEPTED, COMPLETED, HANDED_OVER, IN_HAND) == [2, 4, 2, 2, 0]


@pytest.mark.parametrize("server_class", [Server, Threaded])
def test_a_hook_that_comes_later(server_class: type[Any], keeps: Callable[..., Keep]) -> None:
    """One that a program puts there while it serves is called from the next stay on."""
    keep = keeps(server_class, lanes=8)

    def process(request: Any, client_address: Any) -> None:
        keep.seen.append("process")
        server_class.process_request(keep.server, request, client_address)

    def script() -> None:
        client = keep.connect()
        keep.ask(client, "one")
        keep.server.process_request = process
        assert keep.anew(client, "two") == "2 two\n"
        assert keep.anew(client, "three") == "3 three\n"

    with keep.holder():
        keep.run(script)
    assert keep.seen == ["opened", "one", "process", "two", "process", "three"]
    assert keep.count(OPENED, ACCEPTED, COMPLETED, IN_HAND) == [1, 3, 3, 0]


@pytest.mark.parametrize("server_class", [Wrapped, Named])
def test_what_cannot_be_kept(server_class: type[Any], keeps: Callable[..., Keep]) -> None:
    """A connection of the program's own class, or whose client has an address that cannot go along, is served to its
    end by its worker, in a loop. It is counted as one."""
    keep = keeps(server_class)

    def script() -> None:
        client = keep.connect()
        assert keep.ask(client, "one") == "1 one\n"
        assert keep.count(OPENED, IN_HAND) == [1, 1]
        assert keep.ask(client, "close") == "2 close\n"
        assert client.recv(1) == b""

    keep.run(script)
    assert keep.seen == ["opened", "one", "close"]
    assert keep.count(OPENED, IN_HAND, IDLE_HERE, STATE) == [1, 0, 0, IDLE]
    assert keep.closed() == {"HANDLER": 1}


def test_what_is_refused(keeps: Callable[..., Keep]) -> None:
    """Once for a connection, which is none that could have gone on then."""
    keep = keeps(Picky)

    def script() -> None:
        for served in (False, True, False):
            client = keep.connect()
            if served:
                assert keep.ask(client, "one", "two") == "1 one\n2 two\n"
                assert keep.ask(client, "close") == "3 close\n"
            assert client.recv(1) == b""

    keep.run(script)
    assert keep.seen == ["opened", "one", "two", "close", "error"]
    assert keep.count(ACCEPTED, COMPLETED, REJECTED, FAILED, OPENED) == [5, 3, 1, 1, 1]


def test_no_descriptor_is_free(keeps: Callable[..., Keep]) -> None:
    """A connection stays in the ready queue until there is one: nothing is lost."""
    keep = keeps()

    def script() -> None:
        client = keep.connect()
        keep.ask(client, "one")
        kept, fd = keep.parked()
        last = keep.connect()
        keep.ask(last, "close")  # by now the worker has closed its own copy
        assert last.recv(1) == b""
        keep.until(lambda: keep.count(STATE) == [IDLE])
        client.sendall(b"two\n")
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        os.close(room := os.dup(fd))
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(room, fd), limits[1]))
        try:
            keep.ready(kept, fd)
            client.settimeout(0.3)
            with pytest.raises(TimeoutError):
                client.recv(1)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        client.settimeout(HUNG_S)
        assert keep.answer(client) == "2 two\n"

    keep.run(script)
    assert keep.closed() == {"HANDLER": 1}
    assert keep.count(OPENED, COMPLETED) == [2, 3]


@pytest.mark.parametrize("server_class", [Server, Threaded])
def test_requests_are_counted_for_max_requests(server_class: type[Any], keeps: Callable[..., Keep]) -> None:
    """Each of a stay is one."""
    keep = keeps(server_class, lanes=8, limits=WorkerLimits(5, None))
    due: list[int] = []

    def during(line: str) -> None:
        due.append(keep.slot.words[DUE])

    def script() -> None:
        keep.during = during
        client = keep.connect()
        assert keep.ask(client, *"abcd").count("\n") == 4
        for line in "efghijklmnop":
            keep.ask(client, line)
        keep.until(lambda: bool(keep.slot.words[DUE]))

    with keep.holder(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("prefork.workers.limits.jittered", lambda number: number)
        patch.setattr("prefork.workers.loop.LOOK_EVERY_NS", 1 << 60)
        patch.setattr("prefork.workers.thread_pool.LOOK_EVERY_NS", 1 << 60)
        keep.run(script)
    assert keep.slot.words[DUE] == ExitReason.MAX_REQUESTS
    assert not any(due[:4])


def test_one_request_each(keeps: Callable[..., Keep]) -> None:
    """A worker that was forked ahead serves one stay, and parks its connection; one that says nothing is parked, and is
    not it."""
    keep = keeps(one_request=True)

    def script() -> None:
        silent = keep.connect()
        kept, fd = keep.parked_silent()
        assert kept.requests == 0
        silent.sendall(b"one\ntwo\n")
        keep.ready(kept, fd)
        assert keep.answer(silent, 2) == "1 one\n2 two\n"
        assert keep.parked()[0].requests == 2
        keep.until(lambda: keep.server.socket.fileno() == -1)

    assert keep.run(script) == 0
    assert keep.slot.words[LEAVING] == ExitReason.MAX_REQUESTS
    assert keep.count(OPENED, ACCEPTED, COMPLETED, IDLE_HERE) == [1, 2, 2, 0]


def test_the_master_dies(keeps: Callable[..., Keep]) -> None:
    """There is nobody left to park for: what is idle is closed."""
    keep = keeps()

    def script() -> None:
        client = keep.connect()
        keep.ask(client, "one")
        keep.master.die()
        assert client.recv(1) == b""
        keep.until(lambda: keep.closed() == {"DRAINED": 1})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prefork.workers.keeping.LINGER_NS", 5_000_000_000)
        keep.run(script)
    assert keep.queues.park_out.receive() is None
    assert keep.slot.words[LEAVING] == ExitReason.MASTER_DIED


def test_a_fork_in_a_handler(keeps: Callable[..., Keep]) -> None:
    """The new process has no end of a queue, and nothing that lingers; it ends where its handler does."""
    keep = keeps()

    def during(line: str) -> None:
        user_forks._after_fork()  # as in the new process
        idle = keep.server._prefork_.worker._keeping.idle
        keep.seen.append(f"{[end.fileno() for end in keep.queues]} {bool(idle.here)}")

    def left(*arguments: Any) -> NoReturn:
        keep.seen.append("left")
        raise Stray

    def script() -> None:
        keep.during = during
        keep.connect().sendall(b"fork\n")
        keep.until(lambda: "left" in keep.seen)

    with pytest.MonkeyPatch.context() as patch:
        for module in ("stays", "strays", "loop", "lanes", "thread_pool"):
            patch.setattr(f"prefork.workers.{module}.leave", left)
        with contextlib.suppress(Stray):
            keep.run(script)
    assert keep.seen[2:4] == ["[-1, -1, -1, -1] False", "left"]
    assert keep.count(COMPLETED) == [0]


@pytest.mark.parametrize("server_class", [Server, Threaded])
def test_the_program_closes_the_queues(server_class: type[Any], keeps: Callable[..., Keep]) -> None:
    """The worker ends, as after the loss of any descriptor of ours, and is replaced."""
    keep = keeps(server_class, lanes=8)

    def during(line: str) -> None:
        os.close(keep.queues.park_in.fileno())

    def script() -> None:
        keep.during = during
        client = keep.connect()
        keep.ask(client, "one")
        keep.until(lambda: keep.slot.words[LEAVING] == ExitReason.CRASHED)

    assert keep.run(script) == 1
    keep.queues.park_in.sock.detach()
    keep.server._prefork_.worker._keeping.idle.forget()


@pytest.mark.parametrize("server_class", [Server, Threaded])
def test_the_service_ends(server_class: type[Any], keeps: Callable[..., Keep]) -> None:
    """A connection whose request is answered as the service ends is closed in place, and its handler told of that."""
    keep = keeps(server_class, Told, lanes=8)

    def during(line: str) -> None:
        keep.tell_to_end()
        keep.until(lambda: keep.server._prefork_.worker.draining)

    def script() -> None:
        keep.during = during
        client = keep.connect()
        assert keep.ask(client, "last") == "1 last\n"
        assert client.recv(1) == b""

    keep.run(script)
    assert keep.seen == ["opened", "last", "closed after 1"]
    assert keep.closed() == {"DRAINED": 1}
    assert keep.count(OPENED, ACCEPTED, COMPLETED, IN_HAND, IDLE_HERE) == [1, 1, 1, 0, 0]


@pytest.mark.parametrize("server_class", [Server, Threaded])
def test_the_service_ends_while_one_lingers(server_class: type[Any], keeps: Callable[..., Keep]) -> None:
    """It is closed there, and its handler told."""
    keep = keeps(server_class, Told, lanes=8)

    def script() -> None:
        client = keep.connect()
        assert keep.ask(client, "one") == "1 one\n"
        keep.until(lambda: keep.count(IDLE_HERE) == [1])
        keep.tell_to_end()
        assert client.recv(1) == b""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prefork.workers.keeping.LINGER_NS", 1 << 40)
        keep.run(script)
    assert keep.seen == ["opened", "one", "closed after 1"]
    assert keep.closed() == {"DRAINED": 1}
    assert keep.count(OPENED, IN_HAND, IDLE_HERE) == [1, 0, 0]


def test_the_service_ends_before_all_is_answered(keeps: Callable[..., Keep]) -> None:
    """What a client has said already is answered here, though it is more than a stay may have: nobody is left to whom
    it could be passed on."""
    keep = keeps(Server, Told)

    def during(line: str) -> None:
        if line == "7":
            keep.tell_to_end()
            keep.until(lambda: keep.server._prefork_.worker.draining)

    def script() -> None:
        keep.during = during
        client = keep.connect()
        client.sendall(b"".join(b"%d\n" % number for number in range(10)))
        assert keep.answer(client, 10).endswith("10 9\n")
        assert client.recv(1) == b""

    keep.run(script)
    assert keep.seen[-1] == "closed after 10"
    assert keep.closed() == {"DRAINED": 1}


class Stuck(Server):
    """Whose `shutdown_request()` fails."""

    def shutdown_request(self, request: Any) -> None:
        raise ValueError("not this one")


def test_it_cannot_be_shut_down(keeps: Callable[..., Keep]) -> None:
    """A connection is closed all the same, and the program hears of its error."""
    keep = keeps(Stuck)

    def script() -> None:
        client = keep.connect()
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""

    assert keep.run(script) == 0
    assert keep.seen == ["error"]
    assert keep.closed() == {"CLIENT": 1}
