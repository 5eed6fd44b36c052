"""What a holder does with its connections, over real sockets and queues, at times that the test says."""

import errno
import os
import select
import socket
from collections.abc import Iterator
from time import monotonic
from typing import Any

import pytest

from prefork.holder import connections as module
from prefork.holder.connections import Bounds, Connections
from prefork.metrics.facts import CloseReason, Refusal
from prefork.metrics.scoreboard import ACCEPTED, CLOSED, IDLE_HERE, REJECTED, Slot
from prefork.workers.kept import CLOSING, SHORT, SILENT, SLOW, TELL_END, Kept, QueueEnd, Queues
from prefork.workers.kept_cells import CELLS_MOST, KEPT_WORDS, KeptCells

HUNG_S = 10.0
PLAIN = Kept()
BOUNDS = Bounds(keepalive_timeout=75.0, incomplete_timeout=10.0, most_idle=100, most=200)


class Play:
    """A holder's connections; the test is its loop, the workers and the clients."""

    def __init__(self, bounds: Bounds = BOUNDS, listeners: int = 0b101, cells: KeptCells | None = None) -> None:
        self.queues = Queues.made()
        self.slot = Slot(1, listeners=listeners)
        self.watch = select.epoll()
        self.held = Connections(bounds, self.slot, self.watch, self.queues.ready_in, cells)
        self.clients: list[socket.socket] = []
        self.copies: list[socket.socket] = []  # as a process of the program's may have one of each connection
        self.now = 100.0

    def park(self, kept: Kept = PLAIN, *, tcp: bool = False) -> socket.socket:
        """Give it a connection, and return the client's end."""
        client, ours = _pair(tcp)
        self.clients.append(client)
        self.copies.append(ours.dup())
        self.held.take(kept.encoded(), ours.detach(), self.now)
        return client

    def turn(self, later: float = 0.0, wait: float = 0.0) -> float:
        """One turn of the loop, so many seconds after the last one."""
        self.now += later
        for fd, event in self.watch.poll(wait, 64):
            self.held.on_event(fd, event, self.now)
        if self.now >= self.held.look_at or self.held.backlog:
            self.held.look(self.now)
        return self.held.look_at

    def passed_on(self) -> list[tuple[Kept, int]]:
        """What a worker finds in the ready queue."""
        found = []
        while (each := self.queues.ready_out.receive()) is not None:
            found.append((Kept.decoded(each[0]), each[1]))
        return found

    def words(self, number: int = 0) -> dict[str, int]:
        lane = self.slot.of_listener(number).lane(0)
        return {
            "idle": lane[IDLE_HERE],
            **{each.label: lane[CLOSED + each] for each in CloseReason if lane[CLOSED + each]},
        }

    def fill_ready(self) -> int:
        """Fill the ready queue, and return with how many messages."""
        ours, theirs = socket.socketpair()
        sent = 0
        with ours, theirs:
            while self.queues.ready_in.send(Kept(unread=bytes(60_000)).encoded(), ours.fileno()):
                sent += 1
        return sent

    def close(self) -> None:
        self.held.close_all()
        self.watch.close()
        for _, fd in self.passed_on():
            os.close(fd)
        for each in (*self.clients, *self.copies):
            each.close()
        self.queues.close()
        self.slot.close()


def _pair(tcp: bool) -> tuple[socket.socket, socket.socket]:
    if not tcp:
        client, ours = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.create_connection(listener.getsockname())
            ours = listener.accept()[0]
    client.settimeout(HUNG_S)
    return client, ours


def silent(until: float) -> Kept:
    return Kept(flags=SILENT, since_ns=int(until * 1e9))


def test_who_has_said_nothing_ends_in_its_own_time(play: Play) -> None:
    """Each for itself, whoever came first; who speaks in time does not, nor what has the descriptor afterwards."""
    late, early, speaks = (play.park(silent(until)) for until in (104.0, 102.0, 102.0))
    assert play.turn() == 102.0
    speaks.send(b"x")
    play.turn(wait=HUNG_S)
    ((kept, fd),) = play.passed_on()
    assert kept.flags & SILENT
    os.close(fd)
    again = play.park()
    assert play.turn(2.0) == 104.0
    assert (early.recv(1), play.words()) == (b"", {"idle": 2, "idle_timeout": 1})
    assert play.turn(2.0) == 175.0
    assert (late.recv(1), play.words()) == (b"", {"idle": 1, "idle_timeout": 2})
    again.setblocking(False)
    with pytest.raises(BlockingIOError):
        again.recv(1)
    lane = play.slot.of_listener(0).lane(0)
    assert lane[ACCEPTED] == lane[REJECTED + Refusal.FIRST_BYTE] == 2


def test_who_has_spoken_is_forgotten(play: Play) -> None:
    """Long before the time at which it would have ended; who is silent is not."""
    quiet = play.park(silent(150.0))
    for _ in range(1000):
        client = play.park(silent(4000.0))
        client.send(b"x")
        play.turn(wait=HUNG_S)
        for _, fd in play.passed_on():
            os.close(fd)
        client.close()
        play.copies.pop().close()
        play.clients.pop()
    assert len(play.held._silent) < 200
    play.turn(50.0)
    assert (quiet.recv(1), play.words()) == (b"", {"idle": 0, "idle_timeout": 1})


def test_who_has_said_nothing_is_handed_over(play: Play) -> None:
    """With the time at which it ends."""
    play.park(silent(102.0))
    assert play.held.hand_over(play.queues.park_in)
    found = play.queues.park_out.receive()
    assert found is not None
    assert Kept.decoded(found[0]) == silent(102.0)
    play.held.take(*found, 101.0)
    assert play.turn(1.0) == 102.0


@pytest.fixture
def play() -> Iterator[Play]:
    made = Play()
    yield made
    made.close()


def play_of(request: Any, **bounds: Any) -> Play:
    made = Play(BOUNDS._replace(**bounds))
    request.addfinalizer(made.close)
    return made


def gone(client: socket.socket) -> bool:
    """Whether the client sees the end of its connection."""
    return client.recv(1, socket.MSG_PEEK) == b""


def stays(client: socket.socket) -> bool:
    poll = select.poll()
    poll.register(client, select.POLLIN)
    return poll.poll(0) == []


@pytest.mark.parametrize(("after", "flags"), [(0.004, TELL_END), (0.006, TELL_END | SLOW)])
def test_one_that_comes_back_quickly(play: Play, after: float, flags: int) -> None:
    """It may linger with its worker again; one that takes its time is parked at once as ever."""
    client = play.park(Kept(flags=TELL_END | SLOW))
    play.turn()
    client.sendall(b"more")
    play.turn(after, wait=HUNG_S)
    [(found, fd)] = play.passed_on()
    assert found.flags == flags
    os.close(fd)


@pytest.mark.parametrize("tcp", [False, True])
def test_one_that_comes_back_quickly_after_another(play: Play, tcp: bool) -> None:
    """It would not linger for long: the other one's next request parks it."""
    first, second = (play.park(Kept(requests=number, flags=SLOW), tcp=tcp) for number in (1, 2))
    play.now += 0.001
    play.park(Kept(flags=SLOW), tcp=tcp)
    flags = {}
    for client in (second, first):
        client.sendall(b"more")
        play.turn(wait=HUNG_S)
        [(found, fd)] = play.passed_on()
        flags[found.requests] = found.flags
        os.close(fd)
    assert flags == {1: SLOW, 2: SLOW}


@pytest.mark.parametrize("tcp", [False, True])
def test_bytes_at_an_idle_connection(play: Play, tcp: bool) -> None:
    """It is passed on with its message as it came and the bytes unread, and no trace is left of it."""
    kept = Kept(2, 7, 9, ("192.0.2.1", 5), b"state", b"", 0b01000000)
    client = play.park(kept, tcp=tcp)
    play.turn()
    assert (play.passed_on(), play.words(2)) == ([], {"idle": 1})
    client.sendall(b"hello")
    play.turn(wait=HUNG_S)
    [(found, fd)] = play.passed_on()
    assert found == kept
    assert os.read(fd, 99) == b"hello"
    assert (len(play.held), play.words(2)) == (0, {"idle": 0})
    client.sendall(b"more")
    play.turn()  # the epoll has forgotten it
    os.close(fd)


def test_bytes_before_it_was_parked(play: Play) -> None:
    """It is passed on in the same turn."""
    client, ours = socket.socketpair()
    play.clients.append(client)
    client.sendall(b"early")
    play.held.take(Kept().encoded(), ours.detach(), play.now)
    play.turn()
    [(_, fd)] = play.passed_on()
    os.close(fd)


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize("how", ["close", "half", "reset"])
def test_an_idle_client_that_hangs_up(play: Play, how: str, tcp: bool) -> None:
    """Its connection is closed at once and counted as its own end; one with bytes before the end is passed on."""
    quiet, talks = play.park(tcp=tcp), play.park(Kept(requests=8), tcp=tcp)
    talks.sendall(b"last")
    for client in (quiet, talks):
        if how == "reset" and client is quiet:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes((1, 0, 0, 0, 0, 0, 0, 0)))
        client.shutdown(socket.SHUT_WR) if how == "half" else client.close()
    until = monotonic() + HUNG_S
    while len(play.held) and monotonic() < until:
        play.turn(wait=0.1)
    [(found, fd)] = play.passed_on()
    assert found.requests == 8
    assert os.read(fd, 99) == b"last"
    assert play.words() == {"idle": 0, "client": 1}
    os.close(fd)


def test_the_timeout(play: Play) -> None:
    """An idle connection ends after it, not before, the longest idle one first; the next look is when one is due."""
    first = play.park()
    assert play.turn() == play.now + 75.0
    play.turn(5.0)
    second = play.park()
    play.turn(69.9)
    assert stays(first)
    assert play.turn(0.2) == pytest.approx(play.now + 4.9)
    assert gone(first)
    assert stays(second)
    assert play.words() == {"idle": 1, "idle_timeout": 1}


def test_bytes_at_the_timeout(play: Play) -> None:
    """What has come in the same moment is not lost: the connection is passed on."""
    client = play.park()
    client.sendall(b"late")
    play.now += 75.0
    play.held.look(play.now)  # before its event
    [(_, fd)] = play.passed_on()
    assert os.read(fd, 9) == b"late"
    os.close(fd)
    assert play.words() == {"idle": 0}


def test_no_timeout(request: pytest.FixtureRequest) -> None:
    """Nothing ever ends for being idle."""
    play = play_of(request, keepalive_timeout=None)
    client = play.park()
    assert play.turn(1e6) == float("inf")
    assert stays(client)


def test_too_many_idle_ones(request: pytest.FixtureRequest) -> None:
    """The longest idle one ends; one that has just said something is passed on instead, and costs nobody his."""
    play = play_of(request, most_idle=2)
    first, second, third = (play.park() for _ in range(3))
    assert gone(first)
    assert play.words() == {"idle": 2, "evicted": 1}
    second.sendall(b"x")
    fourth = play.park()
    assert [stays(each) for each in (third, fourth)] == [True, True]
    [(_, fd)] = play.passed_on()
    os.close(fd)
    assert play.words() == {"idle": 2, "evicted": 1}


def test_none_may_be_idle(request: pytest.FixtureRequest) -> None:
    """With a limit of 0 each ends as it comes, unless it has something to say."""
    play = play_of(request, most_idle=0)
    assert gone(play.park())
    assert play.words() == {"idle": 0, "evicted": 1}


def test_no_descriptor_for_another_one(request: pytest.FixtureRequest) -> None:
    """The longest idle one goes for it; where all wait for a worker there is no room, until one has been taken."""
    play = play_of(request, most=2)
    first, second = play.park(), play.park()
    third = play.park()
    assert gone(first)
    assert [stays(each) for each in (second, third)] == [True, True]
    play.fill_ready()
    for client in (second, third):
        client.sendall(b"x")
    play.turn()
    assert play.held.has_room()
    play.park(Kept(unread=b"rest"))
    assert (len(play.held.backlog), play.held.has_room()) == (3, False)
    for _, fd in play.passed_on():
        os.close(fd)
    play.now += module.FLUSH_AGAIN_S
    play.turn()
    assert (len(play.held.backlog), play.held.has_room()) == (0, True)
    assert play.words() == {"idle": 0, "evicted": 1}


def test_bytes_read_ahead(play: Play) -> None:
    """They are passed on at once, with the message."""
    play.park(Kept(unread=b"rest"))
    [(found, fd)] = play.passed_on()
    assert found.unread == b"rest"
    os.close(fd)


@pytest.mark.parametrize(
    "reason", [CloseReason.CLIENT, CloseReason.IDLE_TIMEOUT, CloseReason.EVICTED, CloseReason.DRAINED]
)
def test_a_handler_that_wants_to_hear_of_the_end(request: pytest.FixtureRequest, reason: CloseReason) -> None:
    """Its connection is passed on with the reason, and counted by who closes it."""
    play = play_of(request, most_idle=1)
    client = play.park(Kept(requests=3, flags=TELL_END))
    if reason is CloseReason.CLIENT:
        client.close()
        play.turn(wait=HUNG_S)
    elif reason is CloseReason.IDLE_TIMEOUT:
        play.turn(75.0)
    elif reason is CloseReason.EVICTED:
        play.park(Kept(listener=2))
    else:
        play.held.end_all()
    [(found, fd)] = play.passed_on()
    assert (found.requests, found.flags, found.reason) == (3, TELL_END | CLOSING, reason + 1)
    assert play.words() == {"idle": 0}
    os.close(fd)


def test_a_full_ready_queue(play: Play) -> None:
    """What is readable waits in its order, counted as here, and is sent when there is room; nothing blocks."""
    filled = play.fill_ready()
    for number in range(3):
        play.park(Kept(requests=number)).sendall(b"x")
        again = module.FLUSH_AGAIN_S if number else module.UNIX_LOOK_S  # what comes after has been tried too lately
        assert play.turn() == pytest.approx(play.now + again)
    play.park(Kept(requests=3, unread=b"rest"))
    assert play.words() == {"idle": 4}
    found = play.passed_on()
    for _, fd in found:
        os.close(fd)
    assert len(found) == filled
    play.now += module.FLUSH_AGAIN_S
    play.turn()
    found = play.passed_on()
    assert [kept.requests for kept, _ in found] == [0, 1, 2, 3]
    for _, fd in found:
        os.close(fd)
    assert play.words() == {"idle": 0}


# Less than a request.


def test_a_short_one_over_tcp(play: Play) -> None:
    """The kernel waits for the bytes that are wanted; then it is passed on, as one that reads what there is again."""
    client = play.park(Kept(flags=SHORT, wanted=5, unread=b"a"), tcp=True)
    client.sendall(b"1234")
    assert play.watch.poll(0.05) == []
    client.sendall(b"5")
    play.turn(wait=HUNG_S)
    [(found, fd)] = play.passed_on()
    assert (found.flags, found.unread) == (0, b"a")
    with socket.socket(fileno=fd) as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1
        assert sock.recv(99) == b"12345"


def test_a_short_one_over_a_unix_socket(play: Play) -> None:
    """It is looked at again and again."""
    client = play.park(Kept(flags=SHORT, wanted=5))
    client.sendall(b"1234")
    assert play.turn() == pytest.approx(play.now + module.UNIX_LOOK_S)
    assert play.passed_on() == []
    client.sendall(b"5")
    play.turn(module.UNIX_LOOK_S * 0.6)
    assert play.passed_on() == []
    play.turn(module.UNIX_LOOK_S * 0.6)
    [(found, fd)] = play.passed_on()
    assert found.flags == 0
    os.close(fd)


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize("unread", [b"", b"half"])
def test_a_short_one_that_hangs_up(play: Play, tcp: bool, unread: bytes) -> None:
    """If there are bytes anywhere it is passed on as short, for that is all; else it has ended."""
    client = play.park(Kept(flags=SHORT, wanted=5, unread=unread), tcp=tcp)
    client.shutdown(socket.SHUT_WR)
    play.turn(wait=HUNG_S)
    found = play.passed_on()
    assert [kept.flags for kept, _ in found] == ([SHORT] if unread else [])
    assert play.words() == {"idle": 0, **({} if unread else {"client": 1})}
    for _, fd in found:
        os.close(fd)


def test_the_deadline_of_a_short_one(play: Play) -> None:
    """A client that drips has no more time than one that sends nothing: it counts from the first time it was short."""
    client = play.park(Kept(flags=SHORT, wanted=2))
    play.turn(6.0)
    client.sendall(b"12")
    play.turn(module.UNIX_LOOK_S)
    [(found, fd)] = play.passed_on()
    play.held.take(found._replace(flags=SHORT | TELL_END, wanted=3).encoded(), fd, play.now)
    assert play.turn(3.9) <= play.now + module.UNIX_LOOK_S
    assert play.passed_on() == []
    play.turn(0.2)
    [(found, fd)] = play.passed_on()
    assert (found.flags, found.reason) == (TELL_END | CLOSING, CloseReason.IDLE_TIMEOUT + 1)
    os.close(fd)


def test_short_ones_over_tcp_are_looked_at_when_they_are_due(play: Play) -> None:
    """And not again and again."""
    clients = [play.park(Kept(flags=SHORT, wanted=2), tcp=True) for _ in range(2)]
    assert play.turn() == pytest.approx(play.now + 10.0)
    play.turn(10.1)
    assert all(map(gone, clients))
    assert play.words() == {"idle": 0, "idle_timeout": 2}


def test_when_to_look_again(request: pytest.FixtureRequest) -> None:
    """At the next thing that is due, whichever it is."""
    play = play_of(request, incomplete_timeout=100.0)
    began = play.now
    play.park(Kept(flags=SHORT, wanted=2), tcp=True)
    assert play.turn() == pytest.approx(began + 100.0)
    play.park()
    assert play.turn(30.0) == pytest.approx(began + 75.0)
    assert play.turn(50.0) == pytest.approx(began + 100.0)
    play.fill_ready()
    play.park(Kept(unread=b"x"))
    assert play.turn() == pytest.approx(began + 80.0 + module.UNIX_LOOK_S)
    play.park()
    assert play.turn() == pytest.approx(began + 80.0 + module.FLUSH_AGAIN_S)


# The end.


def test_the_end_of_the_service(play: Play) -> None:
    """What is idle or short ends, and so does what becomes so; what has something to say is passed on."""
    idle, short, talks = play.park(), play.park(Kept(flags=SHORT, wanted=9)), play.park(Kept(requests=1))
    talks.sendall(b"x")
    play.held.end_all()
    assert gone(idle)
    assert gone(short)
    assert gone(play.park())
    assert gone(play.park(Kept(flags=SHORT, wanted=9)))
    play.park(Kept(requests=2, unread=b"x"))
    found = play.passed_on()
    assert [kept.requests for kept, _ in found] == [1, 2]
    for _, fd in found:
        os.close(fd)
    assert play.words() == {"idle": 0, "drained": 4}


def test_all_at_once(play: Play) -> None:
    """Everything is closed, whatever it waits for, and a message that is still on its way."""
    play.fill_ready()
    clients = [play.park(), play.park(Kept(flags=SHORT, wanted=9)), play.park(Kept(unread=b"x", flags=TELL_END))]
    client, ours = socket.socketpair()
    play.clients.append(client)
    play.held.close_all()
    play.held.close(Kept().encoded(), ours.detach())
    assert all(map(gone, (*clients, client)))
    assert play.words() == {"idle": 0, "drained": 4}


def test_all_for_the_next_holder(play: Play, request: pytest.FixtureRequest) -> None:
    """It gets every connection, the longest idle one as such, with the time for which it has been so."""
    next_one = play_of(request, most_idle=100)
    play.fill_ready()
    for number in range(3):
        play.park(Kept(requests=number))
        play.now += 10.0
    play.park(Kept(requests=3, flags=SHORT, wanted=4, unread=b"ab"), tcp=True)
    play.park(Kept(requests=4, unread=b"x"))
    assert play.held.hand_over(play.queues.park_in)
    assert play.words() == {"idle": 0}
    next_one.now = play.now
    next_one.park(Kept(requests=5))
    while (found := play.queues.park_out.receive()) is not None:
        next_one.held.take(*found, next_one.now)
    [(ahead, fd)] = next_one.passed_on()
    os.close(fd)
    assert ahead == Kept(requests=4, unread=b"x", client_address=ahead.client_address)
    idle = [(Kept.decoded(message), round(next_one.now - since)) for message, since in next_one.held.idle.values()]
    assert [(kept.requests, kept.flags, kept.since_ns, ago) for kept, ago in idle] == [
        (0, 0, 0, 30), (1, 0, 0, 20), (2, 0, 0, 10), (5, 0, 0, 0),
    ]  # fmt: skip
    [(message, since)] = next_one.held.short.values()
    assert (Kept.decoded(message).unread, round(since - play.now)) == (b"ab", 0)
    assert next_one.turn(45.0) == pytest.approx(next_one.now + 10.0)
    assert next_one.words() == {"idle": 3, "idle_timeout": 2}


def test_a_next_holder_that_takes_nothing(play: Play) -> None:
    """What its queue has no room for stays, in its order, until there is some."""
    for number in range(3):
        play.park(Kept(requests=number, state=bytes(60_000)))
    while play.held.hand_over(play.queues.park_in):
        play.park(Kept(requests=len(play.clients), state=bytes(60_000)))
    left = [Kept.decoded(message).requests for message, _ in play.held.idle.values()]
    received: list[int] = []
    while not play.held.hand_over(play.queues.park_in) or not received or received[-1] != left[0]:
        found = play.queues.park_out.receive()
        assert found is not None
        os.close(found[1])
        received.append(Kept.decoded(found[0]).requests)
    assert received[-len(left) :] == left[::-1]
    assert play.words()["idle"] == 0


# What should not come.


def test_messages_of_nobody(play: Play) -> None:
    """One of a listener that this image does not have, or of another version, is closed and counted nowhere; one
    without a descriptor is lost."""
    assert gone(play.park(Kept(listener=1)))
    client, ours = socket.socketpair()
    play.clients.append(client)
    play.held.take(b"\xff" + Kept().encoded()[1:], ours.detach(), play.now)
    assert gone(client)
    for message in (Kept(listener=1).encoded(), Kept(listener=2).encoded()):
        play.held.take(message, -1, play.now)
    assert (play.words(), play.words(2)) == ({"idle": 0}, {"idle": 0, "lost": 1})


@pytest.mark.parametrize("others", [0, 1])
def test_the_kernel_does_not_wait_for_one_more(play: Play, others: int) -> None:
    """The longest idle one goes for it; without any, it goes itself."""

    class Refusing:
        def __init__(self, to: select.epoll) -> None:
            self.to, self.refuses = to, 1

        def register(self, fd: int, events: int) -> None:
            self.refuses -= 1
            if self.refuses >= 0:
                raise OSError(errno.ENOSPC, "no watches")
            self.to.register(fd, events)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.to, name)

    clients = [play.park() for _ in range(others)]
    play.held._watch = Refusing(play.watch)  # type: ignore[assignment]
    clients.append(play.park())
    assert [stays(each) for each in clients] == [False, True] if others else [False]
    assert play.words() == {"idle": others, "evicted": 1}


def test_a_ready_queue_that_nobody_has(play: Play) -> None:
    """What cannot be passed on ever is closed and counted as lost."""
    client = play.park()
    play.queues.ready_out.close()
    client.sendall(b"x")
    play.turn()
    assert play.words() == {"idle": 0, "lost": 1}
    other, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    other.close()
    play.queues = play.queues._replace(ready_out=QueueEnd(end))


def test_the_cells(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection is counted for as long as it is open: here, on its way, and not once it is closed."""
    words = memoryview(bytearray(KEPT_WORDS * 8)).cast("Q")
    cells = KeptCells(words)
    play = Play(BOUNDS, 0b101, cells)
    request.addfinalizer(play.close)
    numbers, another = [cells.claim(5) for _ in range(7)], os.getpid() + 1

    def counted() -> list[bool]:
        return [bool(words[number]) for number in numbers]

    def of_a_holder_that_dies() -> list[int]:
        return [
            index for index, number in enumerate(numbers) if words[number] and words[CELLS_MOST + number] == another
        ]

    for number in numbers:
        cells.park(number)
    monkeypatch.setattr(os, "getpid", lambda: another)
    clients = [play.park(Kept(cell=number)) for number in numbers[:4]]
    assert (counted(), of_a_holder_that_dies()) == ([True] * 7, [0, 1, 2, 3])
    clients[0].sendall(b"x")
    clients[1].close()
    play.turn()
    assert (counted(), of_a_holder_that_dies()) == ([True, False, *[True] * 5], [2, 3])
    [(found, fd)] = play.passed_on()
    assert found.cell == numbers[0]
    os.close(fd)
    play.fill_ready()
    clients[2].sendall(b"x")
    play.turn()
    assert of_a_holder_that_dies() == [2, 3]  # the queue is full
    play.held.close(Kept(cell=numbers[4]).encoded(), -1)
    play.held.take(Kept(cell=numbers[5]).encoded(), -1, play.now)
    play.held.take(Kept(cell=numbers[6], listener=1).encoded(), -1, play.now)
    play.held.close_all()
    assert counted() == [True, *[False] * 6]
