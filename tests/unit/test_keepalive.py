"""KeepAliveMixIn alone: what a handler is told of its connection, stay by stay, or in a loop where that is not kept."""

import contextlib
import gc
import http.server
import io
import os
import socket
import socketserver
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefork import BaseRequestHandler, KeepAliveMixIn, StreamRequestHandler
from prefork.workers.kept import CLOSING, SILENT, Kept, decode_state, encode_state
from prefork.workers.stay import MOST_REQUESTS, KeptSocket, Stay
from tests.support.programs.serving import HUNG


@dataclass
class Connection:
    """A connection as a worker has it: `visit()` is a stay of its own each time, until it ends."""

    handler: Any
    client: socket.socket
    fd: int
    kept: Kept = field(default_factory=Kept)
    begun: list[int] = field(default_factory=list)
    server: Any = field(default_factory=lambda: SimpleNamespace(events=[]))
    last: Stay | None = None
    looks: bool = True
    ends: bool = False

    def visit(self, begun: int = 1) -> Stay:
        request = KeptSocket(socket.AF_INET, socket.SOCK_STREAM, 0, self.fd)
        request.stay = stay = self.last = Stay(
            self.kept, lambda stay: self.begun.append(stay.begun), begun, looks=self.looks, ends=lambda: self.ends
        )
        try:
            self.handler(request, ("client", 1), self.server)
        finally:
            if stay.goes_on:
                self.fd = request.detach()
                self.kept = stay.left()
            else:
                request.close()
                self.fd = -1
        return stay

    @property
    def events(self) -> list[Any]:
        return self.server.events  # type: ignore[no-any-return]


@contextlib.contextmanager
def tcp_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname(), HUNG)
        server, _ = listener.accept()
    with server, client:
        yield server, client


@contextlib.contextmanager
def connected(handler: Any, kept: Kept = Kept()) -> Iterator[Connection]:  # noqa: B008
    with tcp_pair() as (server, client):
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)  # as a listener hands it down
        connection = Connection(handler, client, server.detach(), kept)
        try:
            yield connection
        finally:
            if connection.fd != -1:
                socket.close(connection.fd)


class Told(KeepAliveMixIn):
    """Notes every step in the server."""

    server: Any

    def setup(self) -> None:
        self.server.events.append("setup")
        super().setup()  # type: ignore[misc]

    def finish(self) -> None:
        self.server.events.append("finish")
        super().finish()  # type: ignore[misc]

    def connection_opened(self) -> None:
        self.server.events.append("opened")

    def connection_closed(self) -> None:
        self.server.events.append("closed")


class Line(Told, StreamRequestHandler):
    """Answers with the number of the line on this connection."""

    def handle_one_request(self) -> None:
        line = self.rfile.readline()
        self.state = (self.state or 0) + 1
        self.server.events.append(line)
        self.wfile.write(b"%d %b" % (self.state, line))
        self.close_connection = line == b"quit\n"
        if line == b"raise\n":
            raise KeyError("raised")


def test_stay_by_stay() -> None:
    """Each has a new object; the connection is opened once, and closed once; the state goes along."""
    with connected(Line) as connection:
        for line in (b"one\n", b"two\n", b"quit\n"):
            connection.client.sendall(line)
            connection.visit()
        assert connection.client.recv(99) == b"1 one\n2 two\n3 quit\n"
        assert connection.client.recv(99) == b""
    assert connection.events == [
        "setup", "opened", b"one\n", "finish", "setup", b"two\n", "finish", "setup", b"quit\n", "closed", "finish",
    ]  # fmt: skip


def test_a_pipeline_is_one_stay() -> None:
    """As long as something is at hand, the next request begins in the same stay, and is counted."""
    with connected(Line) as connection:
        connection.client.sendall(b"one\ntwo\nthree\n")
        stay = connection.visit()
        assert (stay.goes_on, stay.begun, connection.begun, stay.more) == (True, 3, [2, 3], False)
        assert connection.client.recv(99) == b"1 one\n2 two\n3 three\n"
        assert connection.kept.requests == 3


@pytest.mark.parametrize("rbufsize", [-1, 0, 1, 5, 64])
def test_the_most_of_a_stay(rbufsize: int) -> None:
    """After eight requests the stay is over, nothing is lost of what was read ahead, and others come first."""
    handler = type("Small", (Line,), {"rbufsize": rbufsize})
    with connected(handler) as connection:
        connection.client.sendall(b"line\n" * 20)
        stays = [connection.visit() for _ in range(3)]
        assert [(stay.begun, stay.more) for stay in stays] == [(MOST_REQUESTS, True), (MOST_REQUESTS, True), (4, False)]
        answers = b"".join(b"%d line\n" % number for number in range(1, 21))
        assert connection.client.recv(len(answers), socket.MSG_WAITALL) == answers


def test_the_last_stay() -> None:
    """Where nobody would take the connection from there, all that is at hand is served in one stay."""
    with connected(Line) as connection:
        connection.ends = True
        connection.client.sendall(b"line\n" * 20)
        stay = connection.visit()
        assert (stay.begun, stay.more) == (20, False)


@pytest.mark.parametrize("cut", range(0, 30, 3))
def test_a_pipeline_cut_anywhere(cut: int) -> None:
    """Where the rest of a request comes later, the handler waits for it; where all of it does, the next stay has it."""
    sent = b"line one\nline two\nline three\n"
    with connected(Line) as connection:
        connection.client.sendall(sent[:cut])
        rest = threading.Timer(0, connection.client.sendall, [sent[cut:]])
        rest.start()
        while connection.kept.requests < 3:
            connection.visit()
        rest.join(HUNG)
        assert connection.events.count("opened") == 1
        assert [line for line in connection.events if isinstance(line, bytes)] == sent.splitlines(keepends=True)


@pytest.mark.parametrize(("complete", "stays"), [(None, [1, 1]), (staticmethod(lambda data: b"\n" in data), [2])])
def test_one_that_does_not_look(complete: Any, stays: list[int]) -> None:
    """What the kernel has is not asked after a request, where that is left to the next wait. Where requests are to be
    whole it is, for the class has to be."""
    handler = type("Small", (Line,), {"rbufsize": 0, "complete": complete})
    with connected(handler) as connection:
        connection.looks = False
        connection.client.sendall(b"one\ntwo\n")
        assert [connection.visit().begun for _ in stays] == stays
        assert connection.client.recv(99) == b"1 one\n2 two\n"
        assert connection.kept.requests == 2


@pytest.mark.parametrize("says", [b"", b"one\n"])
def test_one_that_has_said_nothing_so_far(says: bytes) -> None:
    """Its deadline goes along with it until its first request, as well where that comes as it is greeted."""
    with connected(Line, Kept(flags=SILENT, since_ns=9)) as connection:
        connection.client.sendall(says)
        assert connection.visit(begun=0).goes_on
        assert (connection.kept.flags & SILENT, connection.kept.since_ns) == ((0, 0) if says else (SILENT, 9))


def test_the_client_hangs_up_between_requests() -> None:
    """That ends the connection, which is no request."""
    with connected(Line) as connection:
        connection.client.sendall(b"one\n")
        connection.client.shutdown(socket.SHUT_WR)
        stay = connection.visit()
        assert (stay.goes_on, stay.hung_up, stay.begun) == (False, True, 1)
        assert connection.events == ["setup", "opened", b"one\n", "closed", "finish"]


def test_an_error_ends_it() -> None:
    """Which is the server's to handle, as ever; the connection is closed, and that is told."""
    with connected(Line) as connection:
        connection.client.sendall(b"one\nraise\nthree\n")
        with pytest.raises(KeyError):
            connection.visit()
        assert connection.last is not None
        assert not connection.last.goes_on
        assert connection.events[-3:] == [b"raise\n", "closed", "finish"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("setup", []), ("connection_opened", ["setup", "finish"]),
        ("finish", ["setup", "opened", b"one\n", "closed"]),
    ],
)  # fmt: skip
def test_an_error_of_a_step(name: str, told: list[Any]) -> None:
    """The end is told if the beginning was, once, whichever step failed."""

    def fail(self: Any) -> None:
        raise KeyError(name)

    with connected(type("Failing", (Line,), {name: fail})) as connection:
        connection.client.sendall(b"one\n")
        with pytest.raises(KeyError):
            connection.visit()
        assert connection.fd == -1
        assert connection.events == told


def test_an_error_of_a_later_setup() -> None:
    """Is told as the connection's end, too."""
    with connected(Line) as connection:
        connection.client.sendall(b"one\n")
        connection.visit()

        def setup(self: Any) -> None:
            raise KeyError("later")

        connection.handler = type("Failing", (Line,), {"setup": setup})
        connection.client.sendall(b"two\n")
        with pytest.raises(KeyError):
            connection.visit()
        assert connection.events == ["setup", "opened", b"one\n", "finish", "closed"]


class Stating(Line):
    def handle_one_request(self) -> None:
        self.rfile.readline()
        self.state = self.server.state


@pytest.mark.parametrize(
    ("state", "why"),
    [
        (object(), "must be of plain values, not <object"), ([{"key": threading.Lock()}], "must be of plain values"),
        (bytes(1 << 16), "the state of a connection takes"), ("x" * 70000, "takes 700"),
    ],
)  # fmt: skip
def test_a_state_that_cannot_go_along(state: Any, why: str) -> None:
    """Is an error of the handler's, in one sentence, and the connection ends."""
    with connected(Stating) as connection:
        connection.server.state = state
        connection.client.sendall(b"one\n")
        with pytest.raises(ValueError, match=why):
            connection.visit()
        assert connection.events == ["setup", "opened", "finish", "closed"]


@pytest.mark.parametrize("state", [None, 0, "", {"a": [1, (2.5, b"x")], 3: {4}}, "x" * 65000])
def test_a_state_goes_along(state: Any) -> None:
    """Also one that is false."""
    with connected(Stating) as connection:
        connection.server.state = state
        connection.client.sendall(b"one\n")
        connection.visit()
        assert decode_state(connection.kept.state) == state


def test_the_state_is_there_in_setup_and_taken_after_finish() -> None:
    """So that both may make it from something else, and into it."""

    class Parsed(Line):
        def setup(self) -> None:
            super().setup()
            self.parsed = [*(self.state or ())]

        def handle_one_request(self) -> None:
            self.parsed.append(self.rfile.readline())

        def finish(self) -> None:
            super().finish()
            self.state = self.parsed

    with connected(Parsed) as connection:
        for line in (b"one\n", b"two\n"):
            connection.client.sendall(line)
            connection.visit()
        assert decode_state(connection.kept.state) == [b"one\n", b"two\n"]


class Greets(Line):
    speaks_first = True

    def connection_opened(self) -> None:
        super().connection_opened()
        self.wfile.write(b"hello\n")


@pytest.mark.parametrize("kept", [False, True], ids=["loop", "stays"])
def test_a_state_of_the_class(kept: bool) -> None:
    """Is where each connection begins, and no connection's own."""

    class Counting(Line):
        state: Any = {"lines": []}  # as a program may write it

        def handle_one_request(self) -> None:
            line = self.rfile.readline()
            self.state["lines"].append(line)
            self.close_connection = line == b"two\n"

        def connection_closed(self) -> None:
            self.server.events.append(self.state["lines"])

    for _ in range(2):
        if kept:
            with connected(Counting) as connection:
                for line in (b"one\n", b"two\n"):
                    connection.client.sendall(line)
                    connection.visit()
                events = connection.events
        else:
            with tcp_pair() as (server, client):
                client.sendall(b"one\ntwo\n")
                events = []
                Counting(server, "client", SimpleNamespace(events=events))
        assert [b"one\n", b"two\n"] in events
    assert Counting.state == {"lines": []}


def test_who_is_turned_away_in_finish() -> None:
    """Is told of the end, once."""

    class Leaving(Line):
        def finish(self) -> None:
            super().finish()
            self.close_connection = True

    with connected(Leaving) as connection:
        connection.client.sendall(b"one\n")
        assert not connection.visit().goes_on
        assert connection.events == ["setup", "opened", b"one\n", "finish", "closed"]


def test_a_greeting() -> None:
    """Is no request; the connection is opened once, and the stays are the usual ones."""
    with connected(Greets) as connection:
        assert connection.visit(begun=0).goes_on
        assert connection.client.recv(99) == b"hello\n"
        connection.client.sendall(b"one\n")
        connection.visit()
        assert connection.client.recv(99) == b"1 one\n"
        assert (connection.events.count("opened"), connection.kept.requests, connection.begun) == (1, 1, [])


def test_a_greeting_to_a_client_that_does_not_wait() -> None:
    """Its first request begins in the same stay."""
    with connected(Greets) as connection:
        connection.client.sendall(b"one\n")
        stay = connection.visit(begun=0)
        assert (stay.begun, connection.begun) == (1, [1])
        assert connection.client.recv(12, socket.MSG_WAITALL) == b"hello\n1 one\n"


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("speaks_first", [True, False])
@pytest.mark.parametrize("sent", [b"one\ntwo\n", b""])
def test_who_is_turned_away_by_a_greeting(sent: bytes, speaks_first: bool, kept: bool) -> None:
    """`close_connection` in connection_opened(): nothing of what the client says is served."""

    class Away(Greets):
        def connection_opened(self) -> None:
            super().connection_opened()
            self.close_connection = True

    Away.speaks_first = speaks_first
    if kept:
        with connected(Away) as connection:
            connection.client.sendall(sent)
            stay = connection.visit(begun=0 if speaks_first else 1)
            assert (stay.goes_on, connection.begun, connection.fd) == (False, [], -1)
            assert connection.client.recv(99) == b"hello\n"
            events = connection.events
    else:
        with tcp_pair() as (server, client):
            client.sendall(sent)
            client.shutdown(socket.SHUT_WR)
            events = []
            Away(server, "client", SimpleNamespace(events=events))
            server.shutdown(socket.SHUT_WR)
            assert client.recv(99) == (b"hello\n" if speaks_first or sent else b"")
    met = kept or speaks_first or sent
    assert events == (["setup", "opened", "closed", "finish"] if met else ["setup", "finish"])


def test_a_connection_that_is_closed() -> None:
    """By its worker or the holder: only that is told, with the state."""

    class Closing(Line):
        def connection_closed(self) -> None:
            super().connection_closed()
            self.server.events.append(self.state)
            self.wfile.write(b"bye\n")

    kept = Kept(state=encode_state("mine"), flags=CLOSING | 8)
    with connected(Closing, kept) as connection:
        connection.client.sendall(b"too late\n")
        assert not connection.visit(begun=0).goes_on
        assert connection.client.recv(99) == b"bye\n"
        assert connection.events == ["setup", "closed", "mine", "finish"]


def test_requests_that_come_in_parts() -> None:
    """With `complete()`, a stay ends where the next request is not whole yet, and says for how many bytes to wait."""

    class Whole(Line):
        @staticmethod
        def complete(data: bytes) -> bool:
            return b"\n" in data

    with connected(Whole) as connection:
        connection.client.sendall(b"one\ntw")
        stay = connection.visit()
        assert (stay.goes_on, stay.wanted, stay.begun, connection.kept.unread) == (True, 1, 1, b"tw")
        connection.client.sendall(b"o\nthree\n")
        assert connection.visit().wanted == 0
        assert [line for line in connection.events if isinstance(line, bytes)] == [b"one\n", b"two\n", b"three\n"]


class Raw(KeepAliveMixIn, BaseRequestHandler):
    """Without files."""

    def handle_one_request(self) -> None:
        data = self.request.recv(4)
        self.request.sendall(data)
        self.close_connection = data == b"quit"


def test_a_handler_without_files() -> None:
    """Reads by the socket, and leaves in the kernel what it does not want."""
    with connected(Raw, Kept(unread=b"ab")) as connection:
        connection.client.sendall(b"cdefquit")
        assert not connection.visit().goes_on
        assert connection.client.recv(99) == b"abcdefquit"


def test_an_answer_that_waits_for_flush() -> None:
    """Is flushed between two requests."""

    class Buffered(Line):
        wbufsize = -1

        def handle_one_request(self) -> None:
            if self.state:
                self.server.seen = self.server.client.recv(99)
            super().handle_one_request()

    with connected(Buffered) as connection:
        connection.server.client = connection.client
        connection.client.sendall(b"one\ntwo\n")
        connection.visit()
        assert connection.server.seen == b"1 one\n"


def test_a_timeout_of_the_handlers_stays_with_it() -> None:
    """The next object of the connection's class sets its own; a connection that is put aside blocks."""
    with connected(type("Timed", (Line,), {"timeout": 20})) as connection:
        connection.client.sendall(b"one\n")
        assert connection.visit().goes_on
        with socket.socket(fileno=socket.dup(connection.fd)) as copy:
            assert socket.socket.getblocking(copy)


@pytest.mark.parametrize("act", ["close", "detach"])
def test_a_connection_that_the_handler_has_given_away(act: str) -> None:
    """Is not kept."""

    class Closes(Line):
        def handle_one_request(self) -> None:
            super().handle_one_request()
            given = getattr(self.request, act)()
            if given is not None:
                socket.close(given)

    with connected(Closes) as connection:
        connection.client.sendall(b"one\n")
        assert not connection.visit().goes_on


@pytest.mark.parametrize("act", ["request.close", "rfile.close", "request.detach"])
@pytest.mark.parametrize("rbufsize", [-1, 0])
def test_a_connection_of_a_loop_that_the_handler_has_given_away(act: str, rbufsize: int) -> None:
    """Is over, without an error, and at once: its client may wait for the end."""
    given = []

    class Closes(Line):
        def handle_one_request(self) -> None:
            super().handle_one_request()
            name, _, close = act.partition(".")
            given.append(getattr(getattr(self, name), close)())

    Closes.rbufsize = rbufsize
    with tcp_pair() as (server, client):
        events: list[Any] = []
        client.sendall(b"one\n")
        Closes(server, "client", SimpleNamespace(events=events))
        assert events == ["setup", "opened", b"one\n", "closed", "finish"]
    for fd in filter(None, given):
        socket.close(fd)


class Shadowed(StreamRequestHandler):
    def handle_one_request(self) -> None:
        raise AssertionError("never called")


class ByHandle(Shadowed):
    def handle(self) -> None:
        self.wfile.write(self.rfile.readline().upper())


def test_a_class_whose_handle_is_one_request() -> None:
    """That is called for each."""
    with connected(type("Kept", (KeepAliveMixIn, ByHandle), {})) as connection:
        connection.client.sendall(b"one\ntwo\n")
        assert connection.visit().begun == 2
        assert connection.client.recv(99) == b"ONE\nTWO\n"


def test_a_class_with_nothing_to_call() -> None:
    """A clear sentence, for a class that nobody could look into before."""
    with connected(type("Nothing", (KeepAliveMixIn, StreamRequestHandler), {})) as connection:
        connection.client.sendall(b"one\n")
        with pytest.raises(TypeError, match=r"^Nothing has no handle_one_request\(\)$"):
            connection.visit()


@pytest.mark.parametrize("base", [StreamRequestHandler, socketserver.StreamRequestHandler])
@pytest.mark.parametrize("rbufsize", [-1, 0])
def test_a_loop(base: Any, rbufsize: int) -> None:
    """On a request that cannot be kept one object serves the connection to its end; the words mean the same."""
    handler = type("Looping", (Told, base), {"handle_one_request": Line.handle_one_request, "rbufsize": rbufsize})
    with tcp_pair() as (server, client):
        client.sendall(b"one\ntwo\nquit\nfour\n")
        told = SimpleNamespace(events=[])
        handler(server, "client", told)
        assert client.recv(99) == b"1 one\n2 two\n3 quit\n"
        assert told.events == ["setup", "opened", b"one\n", b"two\n", b"quit\n", "closed", "finish"]


@pytest.mark.parametrize("rbufsize", [-1, 0])
@pytest.mark.parametrize(("keepalive", "timeout"), [(0.05, None), (None, 0.05), (20.0, 0.05), (0.05, 20.0)])
def test_an_idle_client_of_a_loop(rbufsize: int, keepalive: float | None, timeout: float | None) -> None:
    """Does not hold a thread for ever; its end is told, and no error."""
    handler = type("Looping", (Line,), {"rbufsize": rbufsize, "timeout": timeout})
    with tcp_pair() as (server, client):
        client.sendall(b"one\n")
        told = SimpleNamespace(events=[], keepalive_timeout=keepalive)
        handler(server, "client", told)
        assert told.events == ["setup", "opened", b"one\n", "closed", "finish"]


@pytest.mark.parametrize("speaks_first", [False, True])
def test_a_silent_client_of_a_loop(speaks_first: bool) -> None:
    """One that leaves without a word is no request, and nothing was opened unless we speak first."""
    with tcp_pair() as (server, client):
        client.close()
        told = SimpleNamespace(events=[])
        type("Looping", (Line,), {"speaks_first": speaks_first})(server, "client", told)
        assert told.events == (["setup", "opened", "closed", "finish"] if speaks_first else ["setup", "finish"])


@pytest.mark.parametrize("rbufsize", [-1, 0])
@pytest.mark.parametrize("family", ["tcp", "unix"])
def test_requests_in_parts_in_a_loop(family: str, rbufsize: int) -> None:
    """`complete()` is asked there as well: the handler finds each request whole."""

    class Whole(Line):
        def handle_one_request(self) -> None:
            self.request.setblocking(False)  # so a read that has to wait fails
            super().handle_one_request()
            self.request.setblocking(True)

        @classmethod
        def complete(cls, data: bytes) -> bool:
            asked.append(data)
            return b"\n" in data

    asked: list[bytes] = []
    Whole.rbufsize = rbufsize
    pair = tcp_pair() if family == "tcp" else contextlib.nullcontext(socket.socketpair())
    with pair as (server, client), server, client:
        told = SimpleNamespace(events=[])
        serving = threading.Thread(target=Whole, args=(server, "client", told))
        serving.start()
        for part in (b"on", b"e", b"\nt", b"wo\nqu", b"it\n"):
            client.sendall(part)
        serving.join(HUNG)
        assert [line for line in told.events if isinstance(line, bytes)] == [b"one\n", b"two\n", b"quit\n"]


@pytest.mark.parametrize("rbufsize", [-1, 0])
def test_a_request_in_a_loop_for_which_the_kernel_has_no_room(rbufsize: int) -> None:
    """`complete()` never sees all of it: the handler is given what is there, and reads the rest as it comes."""
    handler = type("Whole", (Line,), {"rbufsize": rbufsize, "complete": staticmethod(lambda data: b"\n" in data)})
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client = socket.create_connection(listener.getsockname(), HUNG)
        server, _ = listener.accept()
    line = b"x" * 40_000 + b"\n"
    with server, client:
        told = SimpleNamespace(events=[])
        serving = threading.Thread(target=handler, args=(server, "client", told))
        serving.start()
        client.sendall(line)
        client.shutdown(socket.SHUT_WR)
        serving.join(HUNG)
        assert line in told.events


@pytest.mark.parametrize("rbufsize", [-1, 0])
def test_a_request_in_a_loop_that_comes_byte_by_byte(rbufsize: int) -> None:
    """A Unix socket has no room for many that are sent each by itself: as above."""
    handler = type("Whole", (Line,), {"rbufsize": rbufsize, "complete": staticmethod(lambda data: b"\n" in data)})
    line = b"x" * 1000 + b"\n"
    server, client = socket.socketpair()
    with server, client:
        told = SimpleNamespace(events=[], incomplete_timeout=HUNG)
        serving = threading.Thread(target=handler, args=(server, "client", told))
        serving.start()
        for byte in line:
            client.send(bytes([byte]))
        client.shutdown(socket.SHUT_WR)
        serving.join(HUNG)
        assert line in told.events


@pytest.mark.parametrize("rbufsize", [-1, 0])
def test_a_socket_that_could_be_kept_and_is_not(rbufsize: int) -> None:
    """Is served in a loop, as any other."""

    class Whole(Line):
        complete = staticmethod(lambda data: b"\n" in data)

    Whole.rbufsize = rbufsize
    server, client = socket.socketpair()
    with KeptSocket(server.family, server.type, server.proto, server.detach()) as request, client:
        client.sendall(b"one\ntw")
        client.shutdown(socket.SHUT_WR)
        told = SimpleNamespace(events=[])
        Whole(request, "client", told)
        assert told.events == ["setup", "opened", b"one\n", b"tw", "closed", "finish"]


def test_a_request_that_is_never_whole_in_a_loop() -> None:
    """Ends after `incomplete_timeout`."""

    class Whole(Line):
        complete = staticmethod(lambda data: b"\n" in data)

    with tcp_pair() as (server, client):
        client.sendall(b"one\ntw")
        told = SimpleNamespace(events=[], incomplete_timeout=0.05, keepalive_timeout=20)
        Whole(server, "client", told)
        assert told.events == ["setup", "opened", b"one\n", "closed", "finish"]


def test_no_delay() -> None:
    """TCP_NODELAY is set before the first request of a loop, and a Unix socket needs none."""

    class Asks(Line):
        def handle_one_request(self) -> None:
            self.server.events.append(self.request.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            super().handle_one_request()

    with tcp_pair() as (server, client):
        client.sendall(b"quit\n")
        told = SimpleNamespace(events=[])
        Asks(server, "", told)
        assert told.events[2] != 0
    server, client = socket.socketpair()
    with server, client:
        client.sendall(b"quit\n")
        Line(server, "", SimpleNamespace(events=[]))
        assert client.recv(99) == b"1 quit\n"


def test_an_object_that_is_no_socket() -> None:
    """What a program's `get_request()` has made is served in a loop as well as it can be."""

    class Wrapped:
        def __init__(self) -> None:
            self.sent: list[bytes] = []

        def makefile(self, mode: str, buffering: int) -> Any:
            return io.BytesIO(b"one\nquit\n") if mode == "rb" else None

        def sendall(self, data: bytes) -> None:
            self.sent.append(data)

    wrapped = Wrapped()
    Line(wrapped, "", SimpleNamespace(events=[]))
    assert wrapped.sent == [b"1 one\n", b"2 quit\n"]


class Reads(KeepAliveMixIn, StreamRequestHandler):
    """Reads each request in the way that the test says, and gives what it has got to the server."""

    def handle_one_request(self) -> None:
        how, size = self.server.ways.pop(0) if self.server.ways else ("read", 1)
        if how == "recv":
            self.rfile.close()  # what it has read ahead is given back
            got = self.request.recv(size)
            self.rfile = self.request.makefile("rb", self.rbufsize)
        elif how == "peek":
            got = self.rfile.peek(size)[:size]  # type: ignore[attr-defined]
            got = self.rfile.read(len(got))
        elif how == "file":
            with self.request.makefile("rb", size) as file:
                self.rfile.close()
                got = file.read1(size)
            self.rfile = self.request.makefile("rb", self.rbufsize)
        else:
            got = getattr(self.rfile, how)(size)
        self.server.got.append(got)


ways = st.lists(st.tuples(st.sampled_from(["read1", "readline", "recv", "peek", "file"]), st.integers(1, 40)))


@given(st.binary(min_size=1, max_size=200), ways, st.integers(1, 64), st.integers(0, 100))
@settings(max_examples=60)
def test_no_byte_is_lost(sent: bytes, ways: list[tuple[str, int]], rbufsize: int, unread: int) -> None:
    """However a handler reads, and wherever its stays end: each byte comes once, in its order."""
    handler = type("Small", (Reads,), {"rbufsize": rbufsize})
    with connected(handler, Kept(unread=sent[:unread])) as connection:
        connection.client.sendall(sent[unread:])
        connection.client.shutdown(socket.SHUT_WR)
        connection.server.ways, connection.server.got = list(ways), []
        while connection.fd != -1:
            connection.visit()
        assert b"".join(connection.server.got) == sent


def whole_line(data: bytes) -> bool:
    return b"\n" in data


class OwnFile(KeepAliveMixIn, BaseRequestHandler):
    """Reads and writes by a file of its own, which it never closes; nor is it freed at its end."""

    mode = "rb"

    def setup(self) -> None:
        self.steps = self.handle_one_request  # a circle
        self.file = self.request.makefile(self.mode)
        self.out = self.file if "w" in self.mode else self.request.makefile("wb")

    def handle_one_request(self) -> None:
        self.out.write(self.file.readline().upper())


@pytest.mark.parametrize(
    ("complete", "cut"), [(None, 4), (None, 8), *((staticmethod(whole_line), n) for n in range(1, 9))]
)
@pytest.mark.parametrize("mode", ["rb", "br", "rwb", "wrb", "rw"])
def test_files_that_outlive_their_stay(mode: str, cut: int, complete: Any) -> None:
    """Nothing that was read ahead stays in them, and nothing that was written."""
    handler = type("Own", (OwnFile,), {"mode": mode, "complete": complete})
    sent = b"one\ntwo\n" * 10
    gc.disable()
    try:
        with connected(handler) as connection:
            for part in (sent[:-cut], sent[-cut:]):
                connection.client.sendall(part)
                while (stay := connection.visit()).more:
                    pass
                assert not stay.unread or stay.wanted
            assert connection.client.recv(len(sent), socket.MSG_WAITALL) == sent.upper()
    finally:
        gc.enable()


@pytest.mark.parametrize("mode", ["r", "rw", "w", "rb", "wb", "rwb", "br", "", "b", "x", "rx"])
@pytest.mark.parametrize("buffering", [None, -1, 0, 1, 99])
def test_files_are_those_of_the_standard_library(mode: str, buffering: int | None) -> None:
    """The same modes, of the same kinds, with the same words where there is none such."""

    def made(sock: socket.socket) -> Any:
        try:
            with sock.makefile(mode, buffering) as file:  # type: ignore[call-overload]
                return [base for base in type(file).__mro__ if base.__module__ in ("_io", "io")]
        except (ValueError, AttributeError) as exc:
            return repr(exc)

    ours, theirs = socket.socketpair()
    with ours, theirs, KeptSocket(fileno=ours.detach()) as kept:
        kept.stay = Stay(Kept(), lambda stay: None)
        assert made(kept) == made(theirs)


class Page(KeepAliveMixIn, http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.events.append(self.path)  # type: ignore[attr-defined]
        self.send_response_only(204)
        self.end_headers()


@pytest.mark.parametrize(
    ("handler", "sent"), [(Line, b"one\n"), (Page, b"GET /one HTTP/1.1\r\n\r\n")], ids=["lines", "http"]
)
def test_an_object_is_freed_with_its_stay(handler: Any, sent: bytes) -> None:
    """At once, and not by a collection: nothing of ours refers to it in a circle."""
    made: list[weakref.ref[Any]] = []

    def note(*args: Any) -> None:
        made.append(weakref.ref(handler(*args)))

    gc.disable()
    try:
        with connected(note) as connection:
            for _ in range(2):
                connection.client.sendall(sent)
                assert connection.visit().goes_on
            assert [ref() for ref in made] == [None, None]
            assert len(connection.events) >= 2
    finally:
        gc.enable()


def test_an_init_that_does_not_call_ours() -> None:
    """It is told in one sentence, and not by an attribute that is missing."""

    class PassesUsBy(KeepAliveMixIn, StreamRequestHandler):
        def __init__(self, request: Any, client_address: Any, server: Any) -> None:
            StreamRequestHandler.__init__(self, request, client_address, server)

        def handle_one_request(self) -> None:
            raise AssertionError("nobody knows this connection")

    with connected(PassesUsBy) as connection:
        connection.client.sendall(b"one\n")
        with pytest.raises(TypeError, match=r"PassesUsBy\.__init__\(\) must call super\(\)\.__init__\(\)"):
            connection.visit()


class Blind(KeepAliveMixIn, StreamRequestHandler):
    """Reads nothing."""

    def handle_one_request(self) -> None:
        self.server.events.append("called")


def test_who_reads_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Its connection waits for more than is at hand, instead of a call for the same bytes for ever; it is said once."""
    with connected(Blind) as connection:
        for sent in (1, 2):
            connection.client.sendall(b"line\n")
            stay = connection.visit()
            assert (stay.more, stay.wanted, stay.goes_on) == (False, 5 * sent + 1, True)
        assert len(connection.events) <= 2 * (MOST_REQUESTS + 1)
        connection.client.shutdown(socket.SHUT_WR)
        assert not connection.visit().goes_on
    assert caplog.text.count("Blind reads nothing of what its client sends") == 1


class Unseen(KeepAliveMixIn, StreamRequestHandler):
    """Reads in a way that nobody sees."""

    def handle_one_request(self) -> None:
        os.read(self.request.fileno(), 5)


def test_who_reads_unseen(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever reads by the descriptor reads all the same."""
    with connected(Unseen) as connection:
        connection.client.sendall(b"line\n" * 12)
        assert connection.visit().more
        stay = connection.visit()
        assert (stay.more, stay.wanted, stay.goes_on) == (False, 0, True)
    assert caplog.text == ""
