"""A kept connection in the hands of a handler: what was read ahead comes first, and is given back."""

import contextlib
import select
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from prefork.workers.kept import CLOSING, MET, SHORT, TELL_END, Kept
from prefork.workers.stay import UNREAD_MAX, WHOLE_MAX, KeptSocket, Stay, bytes_wanted, peek


def none_follows(stay: Stay) -> None:
    raise AssertionError("no other request was to begin")


@contextlib.contextmanager
def kept_pair(kept: Kept = Kept()) -> Iterator[tuple[KeptSocket, socket.socket]]:  # noqa: B008
    """A kept connection and its client."""
    server, client = socket.socketpair()
    with server, client, KeptSocket(server.family, server.type, server.proto, server.detach()) as request:
        client.settimeout(30)
        request.stay = Stay(kept, none_follows)
        yield request, client


def received(sock: Any, how: str, size: int, flags: int = 0) -> bytes:
    """What this method of a socket receives."""
    if how == "recv":
        return bytes(sock.recv(size, flags))
    if how == "recvfrom":
        return bytes(sock.recvfrom(size, flags)[0])
    if how == "recvmsg":
        return bytes(sock.recvmsg(size, 0, flags)[0])
    buffer = bytearray(size)
    if how == "recvmsg_into":
        return bytes(buffer[: sock.recvmsg_into([buffer], 0, flags)[0]])
    got = getattr(sock, how)(buffer, size, flags)
    return bytes(buffer[: got[0] if how == "recvfrom_into" else got])


RECEIVING = ("recv", "recv_into", "recvfrom", "recvfrom_into", "recvmsg", "recvmsg_into")


@pytest.mark.parametrize("how", RECEIVING)
def test_unread_bytes_come_first(how: str) -> None:
    """By every method that receives; a look takes nothing, and what the client sends now comes after them."""
    with kept_pair(Kept(unread=b"abcde")) as (request, client):
        client.sendall(b"later")
        assert received(request, how, 2, socket.MSG_PEEK) == b"ab"
        assert received(request, how, 3) == b"abc"
        assert received(request, how, 9) == b"de"
        assert received(request, how, 9) == b"later"


@pytest.mark.parametrize("how", ["recv", "recv_into"])
def test_waiting_for_all(how: str) -> None:
    """MSG_WAITALL goes on in the kernel where the unread bytes do not suffice."""
    with kept_pair(Kept(unread=b"ab")) as (request, client):
        client.sendall(b"cdef")
        assert received(request, how, 5, socket.MSG_WAITALL) == b"abcde"
        assert received(request, how, 5) == b"f"


@pytest.mark.parametrize("buffering", [None, -1, 0, 4, 16])
def test_files_read_unread_bytes_first(buffering: int | None) -> None:
    """Whatever the size of their buffer."""
    with kept_pair(Kept(unread=b"one\ntwo\nth")) as (request, client):
        client.sendall(b"ree\nfour\n")
        client.shutdown(socket.SHUT_WR)
        with request.makefile("rb", buffering) as file:
            assert list(file) == [b"one\n", b"two\n", b"three\n", b"four\n"]


@pytest.mark.parametrize("mode", ["r", "rw", "rwb"])
def test_other_files_too(mode: str) -> None:
    """A file in any mode that reads has the unread bytes; it is the program's own."""
    with kept_pair(Kept(unread=b"one\n")) as (request, client):
        client.sendall(b"two\n")
        client.shutdown(socket.SHUT_WR)
        with request.makefile(mode) as file:
            lines = list(file)
        assert [line if isinstance(line, bytes) else line.encode() for line in lines] == [b"one\n", b"two\n"]


@pytest.mark.parametrize("size", range(12))
def test_a_closed_file_gives_back(size: int) -> None:
    """What was read ahead and not asked for is unread again, in order, however much was read."""
    with kept_pair(Kept(unread=b"abcdef")) as (request, client):
        client.sendall(b"ghijkl")
        assert request.stay is not None
        for buffering in (4, 8, 64):
            file = request.makefile("rb", buffering)
            assert file.read(min(size, 4)) == b"abcdefghijkl"[: min(size, 4)]
            file.close()
            rest = request.stay.unread + (peek(request, 64) or b"")
            assert rest == b"abcdefghijkl"[min(size, 4) :]
            request.stay.unread = b"abcdefghijkl"[: min(size, 4)] + request.stay.unread


def test_asking_what_is_read_ahead_does_not_wait() -> None:
    """`ahead()` tells what is buffered, and reads nothing, also of an empty buffer."""
    with kept_pair() as (request, client):
        file = request.makefile("rb")
        assert file.ahead() == b""
        client.sendall(b"one\ntwo\n")
        assert file.ahead() == b""
        assert file.readline() == b"one\n"
        assert file.ahead() == file.ahead() == b"two\n"
        assert file.read(4) == b"two\n"
        file.close()


def test_no_file_reads_further_ahead_than_a_message_takes() -> None:
    """A large `rbufsize` is cut."""
    with kept_pair() as (request, client):
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                client.send(bytes(1 << 20))
        assert request.stay is not None
        with request.makefile("rb", 1 << 22) as file:
            assert file.read(1) == b"\0"
        assert 0 < len(request.stay.unread) < UNREAD_MAX


@pytest.mark.parametrize("buffering", [None, 0])
def test_the_end_is_noted(buffering: int | None) -> None:
    """A file that reads the end of file leaves word that the client has hung up; one that is asked for nothing not."""
    with kept_pair(Kept(unread=b"last")) as (request, client):
        assert request.stay is not None
        client.close()
        with request.makefile("rb", buffering) as file:
            assert (file.read(0), request.stay.hung_up) == (b"", False)
            assert (file.read(4), request.stay.hung_up) == (b"last", False)
            assert (file.read(4), request.stay.hung_up) == (b"", True)


def test_a_copy_has_no_stay() -> None:
    """What dup() returns is a socket like any other."""
    with kept_pair(Kept(unread=b"mine")) as (request, client), request.dup() as copy:
        client.sendall(b"both")
        assert (copy.stay, copy.recv(9), request.recv(9)) == (None, b"both", b"mine")


@pytest.mark.parametrize("timeout", [None, 0.0, 20.0])
def test_a_look_takes_nothing_and_does_not_wait(timeout: float | None) -> None:
    """Whatever the socket's timeout, which stays as it was."""
    with kept_pair() as (request, client):
        request.settimeout(timeout)
        assert peek(request) is None
        client.sendall(b"abc")
        assert (peek(request), peek(request, 9), request.gettimeout()) == (b"a", b"abc", timeout)
        assert request.recv(9) == b"abc"
        client.close()
        assert peek(request) == b""


def test_a_reset_is_an_end() -> None:
    """Of a connection that was reset nothing is at hand."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        request, _ = listener.accept()
    with request:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        select.select([request], [], [], 30)
        assert peek(request) == b""


def line(data: bytes) -> bool:
    return b"\n" in data


@pytest.mark.parametrize(
    ("unread", "sent", "ends", "wanted"),
    [
        (b"", b"one\n", False, 0), (b"on", b"e\n", False, 0), (b"one\nt", b"wo", False, 0), (b"", b"on", False, 3),
        (b"on", b"e", False, 2), (b"on", b"", False, 1), (b"on", b"", True, 0), (b"", b"one", True, 0),
        (b"", bytes(WHOLE_MAX), False, 0), (bytes(WHOLE_MAX - 3), b"abc", False, 0),
        (bytes(WHOLE_MAX - 3), b"ab", False, 3),
    ],
)  # fmt: skip
def test_what_a_request_wants(unread: bytes, sent: bytes, ends: bool, wanted: int) -> None:
    """Nothing, if it is whole, too long to be shown, or cut by the client's end; else one byte more than there are."""
    with kept_pair() as (request, client):
        client.sendall(sent)
        if ends:
            client.shutdown(socket.SHUT_WR)
        assert bytes_wanted(request, unread, line) == wanted


def test_what_is_left_of_a_stay() -> None:
    """The requests are added up; flags say what the handler has left, and nothing of how it came; its cell stays."""
    stay = Stay(Kept(3, 10, 99, ("::1", 1), b"s", b"u", TELL_END | SHORT, 7, 0, 8, 6), lambda stay: None)
    stay.next_request()
    stay.met, stay.state, stay.unread = True, b"new", b"more"
    assert stay.left() == Kept(3, 12, 99, ("::1", 1), b"new", b"more", TELL_END | MET, 1, cell=6)
    stay.wanted = 5
    assert stay.left() == Kept(3, 12, 99, ("::1", 1), b"new", b"more", TELL_END | MET | SHORT, 5, cell=6)


@pytest.mark.parametrize(
    ("flags", "closing", "met"), [(0, False, False), (CLOSING | MET, True, True), (MET, False, True)]
)
def test_what_a_connection_comes_for(flags: int, closing: bool, met: bool) -> None:
    """Its flags say whether it is only to be closed, and whether a handler has had it."""
    stay = Stay(Kept(flags=flags), none_follows, begun=0)
    assert (bool(stay.kept.flags & CLOSING), stay.met, stay.begun) == (closing, met, 0)


def test_each_further_request_is_told() -> None:
    """`next_request()` counts, then calls."""
    seen: list[int] = []
    note: Callable[[Stay], None] = lambda stay: seen.append(stay.begun)  # noqa: E731
    stay = Stay(Kept(), note, begun=0)
    stay.next_request()
    stay.next_request()
    assert seen == [1, 2]


def test_what_a_stay_does_not_know_goes_along() -> None:
    """Every word of a connection that is not the handler's to change is what it was, also one that is added later."""
    changed = {"requests", "state", "unread", "flags", "wanted", "reason", "since_ns"}
    sevens: dict[str, Any] = {name: 7 for name, value in Kept()._asdict().items() if type(value) is int}
    kept = Kept(**sevens)
    left = Stay(kept, none_follows).left()
    assert {name for name, was in kept._asdict().items() if getattr(left, name) != was} <= changed
    assert left.requests == 8
