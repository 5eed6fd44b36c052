"""One client of the control socket: its requests, line by line, what it is told, and when it is cut."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from prefork.control import protocol
from prefork.control.connection import Connection, Peer

REQUEST_WITHIN_S = 5.0  # as documented
FRAME_MAX = protocol.FRAME_MAX
PEER = Peer(4711, 7, False)
LINE = b'{"verb":"version"}'


class Client:
    """The two ends."""

    def __init__(self) -> None:
        self.other, ours = socket.socketpair()
        ours.setblocking(False)
        self.other.setblocking(False)
        self.connection = Connection(ours, PEER, 100.0)

    def heard(self) -> bytes:
        try:
            return self.other.recv(1 << 20)
        except BlockingIOError:
            return b""

    def sees(self, *names: str) -> list[Any] | Any:
        """What the server sees now."""
        found = [getattr(self.connection, name) for name in names]
        return found if len(names) > 1 else found[0]

    def fill(self) -> int:
        """Until nothing more goes in; how much did."""
        sent = 0
        try:
            while True:
                sent += self.connection.sock.send(b"x" * 4096)
        except BlockingIOError:
            return sent

    def close(self) -> None:
        self.other.close()
        self.connection.sock.close()


@pytest.fixture
def client() -> Iterator[Client]:
    client = Client()
    yield client
    client.close()


# What it asks.


def test_a_line_at_a_time(client: Client) -> None:
    """Each as it came, whatever pieces they came in; the rest waits."""
    assert client.connection.read() is None
    client.other.send(LINE[:5])
    assert client.connection.read() is None
    assert not client.sees("has_line")
    client.other.send(LINE[5:] + b"\n" + LINE + b"\nab")
    assert client.connection.read() == LINE
    assert client.sees("has_line")
    assert client.connection.read() == LINE
    assert not client.sees("has_line")
    assert client.connection.read() is None
    assert not client.connection.done


@pytest.mark.parametrize(("end", "line"), [(b"", None), (b"ab", b"ab")])
def test_the_end_of_its_requests(end: bytes, line: bytes | None, client: Client) -> None:
    """What stands before the end is a line without an end; then there is no more, and the kernel is not asked."""
    client.other.sendall(LINE + b"\n" + end)
    client.other.shutdown(socket.SHUT_WR)
    assert client.connection.read() == LINE
    assert client.connection.read() == line
    if line is not None:
        assert client.connection.read() is None
    assert client.connection.closing
    assert client.connection.done
    assert not client.connection.reads
    client.connection.sock.close()
    assert client.connection.read() is None
    assert not client.sees("has_line")


@pytest.mark.parametrize("size", [1, FRAME_MAX - 1])
def test_the_longest_line(size: int, client: Client) -> None:
    """It is taken up to there, however it comes, and no more than a byte beyond is read."""
    client.connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    text, line = b"x" * size + b"\n", None
    while line is None:
        while text:
            try:
                text = text[client.other.send(text) :]
            except BlockingIOError:
                break
        line = client.connection.read()
        assert len(client.connection._in) <= FRAME_MAX + 1
    assert line == b"x" * size


def test_no_more_is_read_than_may_be_kept(client: Client) -> None:
    """Whatever the client sends, the master keeps a line and a byte."""
    asked: list[int] = []

    class Endless:
        def recv(self, size: int) -> bytes:
            asked.append(size)
            return b"x" * 1000

    ours, client.connection.sock = client.connection.sock, Endless()  # type: ignore[assignment]
    for _ in range(3):
        assert client.connection.read() is None
    client.connection.sock = ours
    assert asked == [FRAME_MAX + 1, FRAME_MAX - 999, FRAME_MAX - 1999]


def test_a_line_that_is_too_long(client: Client) -> None:
    """Where the next one begins nobody knows: that was its last."""
    text = b"x" * FRAME_MAX
    with pytest.raises(protocol.BadRequest):  # noqa: PT012
        while True:
            try:
                text = text[client.other.send(text) :]
            except BlockingIOError:
                pass
            assert client.connection.read() is None
    assert client.connection.closing
    assert not client.connection.reads
    assert client.connection.done


# What it is told.


def test_a_request_has_its_time_and_its_answer_too(client: Client) -> None:
    """While it is answered there is no deadline and nothing is read; the last line of the answer sets one."""
    connection = client.connection
    assert connection.deadline == 100.0 + REQUEST_WITHIN_S
    assert connection.reads
    connection.begin()
    assert client.sees("busy", "deadline", "reads", "done") == [True, None, False, False]
    connection.say({"progress": "one"}, 103.0)
    assert client.sees("busy", "deadline") == [True, None]
    assert client.heard() == b'{"progress":"one"}\n'
    connection.say({"ok": True}, 104.0)
    assert client.sees("busy", "deadline", "reads") == [False, 104.0 + REQUEST_WITHIN_S, True]
    assert client.heard() == b'{"ok":true}\n'
    assert not connection.done
    connection.closing = True
    assert connection.done


def test_what_it_does_not_take_waits(client: Client) -> None:
    """Nothing is lost or said twice; until all of it is gone nothing is read, and then it has its time for the next."""
    connection = client.connection
    filled = client.fill()
    connection.begin()
    connection.say({"ok": True, "result": "y" * 5000}, 104.0)
    said = connection.out
    assert len(said) > 5000
    connection.closing = True
    assert not connection.done, "it has still to be told"
    connection.closing = False
    assert (connection.reads, connection.done) == (False, False)
    connection.flush(105.0)
    assert (connection.out, connection.deadline) == (said, 104.0 + REQUEST_WITHIN_S)
    heard = b""
    while connection.out:
        heard += client.heard()
        connection.flush(106.0)
    heard += client.heard()
    assert heard[filled:] == said
    assert connection.deadline == 106.0 + REQUEST_WITHIN_S
    assert connection.reads
    connection.flush(107.0)
    assert connection.deadline == 106.0 + REQUEST_WITHIN_S


def test_progress_that_is_taken_late_sets_no_deadline(client: Client) -> None:
    """An answer may take as long as it takes."""
    filled = client.fill()
    client.connection.begin()
    client.connection.say({"progress": "one"}, 104.0)
    while client.connection.out:
        filled -= len(client.heard())
        client.connection.flush(105.0)
    assert client.connection.deadline is None


def test_who_has_gone_is_no_signal(client: Client) -> None:
    """SIGPIPE would come to the master."""
    client.other.close()
    with pytest.raises(BrokenPipeError):
        client.connection.say({"ok": True}, 104.0)


# The next image.


def test_it_is_handed_over(client: Client) -> None:
    """With what it has asked and what it has still to be told, byte for byte, and its time begins anew."""
    client.fill()
    client.other.send(LINE + b"\n\xff")
    assert client.connection.read() == LINE
    client.connection.say({"ok": True, "result": "é"}, 104.0)
    packed = client.connection.pack()
    before, fd = client.connection, client.connection.sock.detach()
    packed["fd"] = fd
    client.connection = Connection.resume(packed, 200.0)
    assert (client.connection._in, client.connection.out) == (before._in, before.out)
    assert client.connection.peer == PEER
    assert client.connection.deadline == 200.0 + REQUEST_WITHIN_S
    assert not client.connection.busy
    assert client.connection.sock.gettimeout() == 0.0
    assert client.connection.pack() == packed


def test_its_end_is_handed_over(client: Client) -> None:
    """Who has asked its last is not read again."""
    client.other.send(LINE + b"\n")
    client.other.shutdown(socket.SHUT_WR)
    client.connection.read()
    client.connection.read()
    packed = client.connection.pack()
    packed["fd"] = client.connection.sock.detach()
    client.connection = Connection.resume(packed, 200.0)
    assert not client.connection.reads
    assert client.connection.done
