"""The message of a kept connection, and the queues on which it travels with its descriptor."""

import errno
import fcntl
import os
import resource
import socket
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.workers import kept as module
from prefork.workers.kept import (
    HEAD,
    MESSAGE_MAX,
    SHORT,
    STATE_MAX,
    TELL_END,
    Kept,
    QueueEnd,
    Queues,
    cell_of,
    changed,
    decode_address,
    decode_state,
    encode_address,
    encode_state,
    has_unread,
    since_of,
    wanted_of,
)
from prefork.workers.proxy_protocol import ProxyHeader
from prefork.workers.unnamed_peer import UNNAMED

NUMBERS = st.integers(0, 2**32 - 1)
ADDRESSES = st.one_of(
    st.tuples(st.text(), st.integers(0, 65535)),
    st.tuples(st.text(), st.integers(0, 65535), NUMBERS, NUMBERS),
    st.text(min_size=1),
    st.binary(min_size=1),
    st.none(),
    st.just(UNNAMED),
)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda some: st.lists(some) | st.dictionaries(st.text(), some) | st.tuples(some, some),
)


@pytest.fixture
def queues() -> Iterator[Queues]:
    made = Queues.made()
    yield made
    made.close()


@pytest.fixture
def connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client's end and ours."""
    client, ours = socket.socketpair()
    with client, ours:
        client.settimeout(5)
        yield client, ours


@given(
    ADDRESSES, PLAIN, st.binary(), NUMBERS, st.integers(0, 2**64 - 1), st.integers(0, 15), st.integers(0, 255),
    st.integers(0, 2**64 - 1), NUMBERS,
)  # fmt: skip
def test_a_message(
    address: Any,
    state: Any,
    unread: bytes,
    number: int,
    ns: int,
    listener: int,
    flags: int,
    since_ns: int,
    cell: int,
) -> None:
    """Whatever goes along comes out as it was, and of the same types."""
    was = Kept(listener, number, ns, address, encode_state(state), unread, flags, number, flags, since_ns, cell)
    found = Kept.decoded(was.encoded())
    assert found == was
    assert type(found.client_address) is type(address)
    assert decode_state(found.state) == state


def test_what_a_holder_looks_at() -> None:
    """It finds and changes some words of a message without decoding it, and leaves all else."""
    was = Kept(3, 7, 9, ("192.0.2.1", 5), b"state", b"rest", TELL_END | SHORT, 12, 4, 5, 6)
    message = was.encoded()
    assert (since_of(message), wanted_of(message), cell_of(message), has_unread(message)) == (5, 12, 6, True)
    assert not has_unread(was._replace(unread=b"").encoded())
    assert Kept.decoded(changed(message, 200, 2, 2**63)) == was._replace(flags=200, reason=2, since_ns=2**63)
    assert Kept.decoded(changed(message, 0)) == was._replace(flags=0, reason=0, since_ns=0)


def test_a_new_connection() -> None:
    """Of what nobody has said there is nothing."""
    assert Kept() == Kept.decoded(Kept().encoded()) == (0, 0, 0, None, b"", b"", 0, 1, 0, 0, 0)


@pytest.mark.parametrize(
    "header",
    [
        ProxyHeader(1, ("192.0.2.1", 5), ("192.0.2.2", 80), socket.SOCK_STREAM, (), ("127.0.0.1", 9)),
        ProxyHeader(2, b"/a\xff", b"/b", None, ((1, b"h2"), (0xE0, b"\0\xff")), UNNAMED),
        ProxyHeader(2, None, None, None, (), UNNAMED),
        ProxyHeader(2, None, None, socket.SOCK_DGRAM, (), ("::1", 9, 0, 0)),
    ],
)
def test_an_address_that_a_proxy_has_sent(header: ProxyHeader) -> None:
    """It has the header still, with the proxy's own address, and types are what they were."""
    was = header.client_address()
    found = decode_address(encode_address(was))
    assert (found, type(found), found.proxy, repr(found.proxy)) == (was, type(was), header, repr(header))
    assert type(found.proxy.peer) is type(header.peer)


@pytest.mark.parametrize("address", [object(), {"proxy": 1}, ("host", object())])
def test_an_address_without_bytes(address: Any) -> None:
    """What a program's get_request() may return beside addresses is refused, and not taken for one."""
    with pytest.raises(ValueError):
        Kept(client_address=address).encoded()


@pytest.mark.parametrize("cut", [0, 1, HEAD.size - 1, HEAD.size, -1])
def test_a_message_that_is_none(cut: int) -> None:
    """What is cut, too long or of another version is refused."""
    message = Kept(client_address=("h", 1), state=b"s", unread=b"u").encoded()
    for wrong in (message[:cut], message + b"x", bytes((message[0] + 1,)) + message[1:]):
        with pytest.raises(ValueError):
            Kept.decoded(wrong)


def test_a_message_that_is_too_long() -> None:
    """The longest one that is allowed goes; one byte more is refused before it is sent."""
    room = MESSAGE_MAX - len(Kept().encoded())
    assert len(Kept(unread=bytes(room)).encoded()) == MESSAGE_MAX
    with pytest.raises(ValueError):
        Kept(unread=bytes(room + 1)).encoded()


class Text(str):
    __slots__ = ()


ITSELF: list[Any] = []
ITSELF.append(ITSELF)


@pytest.mark.parametrize(
    "state",
    [
        object(), errno, errno.EACCES.__class__, 0j.__class__, bytearray(b"x"), memoryview(b"x"), array("d", (1.0,)),
        Text("x"), HTTPStatus.OK, Kept(), OrderedDict(), ..., ITSELF, (lambda: None).__code__,
    ],
    ids=lambda state: type(state).__name__,
)  # fmt: skip
@pytest.mark.parametrize("within", [lambda it: it, lambda it: {1: {2: it}}, lambda it: [0, (it,)]])
def test_a_state_that_is_not_plain(within: Callable[[Any], Any], state: Any) -> None:
    """It is refused, with the value in the sentence: nothing comes back as something else."""
    with pytest.raises(ValueError, match=r"plain values, not "):
        encode_state(within(state))


@pytest.mark.parametrize("state", [{1: {2.5, True, None}, "a": [b"x", (1j, frozenset("x"))]}, [[]] * 2, {(1, "x"): {}}])
def test_a_state_that_is_plain(state: Any) -> None:
    """It comes back with the same types."""
    assert repr(decode_state(encode_state(state))) == repr(state)


def test_a_state_that_is_too_large() -> None:
    """STATE_MAX bytes are taken, and one more is refused."""
    overhead = len(encode_state(bytes(STATE_MAX // 2))) - STATE_MAX // 2
    assert len(encode_state(bytes(STATE_MAX - overhead))) == STATE_MAX
    with pytest.raises(ValueError, match="more than"):
        encode_state(bytes(STATE_MAX - overhead + 1))
    assert encode_state(None) == b""
    assert decode_state(b"") is None


def test_a_connection_on_a_queue(queues: Queues, connection: tuple[socket.socket, socket.socket]) -> None:
    """It arrives with its message and a descriptor of its own, which no exec inherits; one's copy may be closed before
    it is received."""
    client, ours = connection
    kept = Kept(3, 7, 9, ("192.0.2.1", 5), encode_state({"n": 1}), b"rest", TELL_END | SHORT, 12)
    assert queues.park_out.receive() is None
    assert queues.park_in.send(kept.encoded(), ours.fileno())
    os.close(ours.detach())
    found = queues.park_out.receive()
    assert found is not None
    assert Kept.decoded(found[0]) == kept
    assert fcntl.fcntl(found[1], fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    os.write(found[1], b"hello")
    assert client.recv(9) == b"hello"
    os.close(found[1])
    assert client.recv(9) == b""
    assert queues.park_out.receive() is None


def test_a_full_queue(queues: Queues, connection: tuple[socket.socket, socket.socket]) -> None:
    """Sending says so, never blocks, and goes on when there is room; what was sent comes in its order."""
    sent = 0
    while queues.ready_in.send(Kept(requests=sent, unread=bytes(60_000)).encoded(), connection[1].fileno()):
        sent += 1
    assert sent > 1
    received = []
    while (found := queues.ready_out.receive()) is not None:
        received.append(Kept.decoded(found[0]).requests)
        os.close(found[1])
    assert received == list(range(sent))
    assert queues.ready_in.send(Kept().encoded(), connection[1].fileno())


def test_the_room_of_the_queues(queues: Queues, connection: tuple[socket.socket, socket.socket]) -> None:
    """Each takes the longest message. The ready queue takes a few hundred short ones, so that a worker with the usual
    limit of descriptors can still park."""
    for sending, receiving in ((queues.park_in, queues.park_out), (queues.ready_in, queues.ready_out)):
        longest = Kept(unread=bytes(MESSAGE_MAX - len(Kept().encoded()))).encoded()
        assert sending.send(longest, connection[1].fileno())
        found = receiving.receive()
        assert found is not None
        assert found[0] == longest
        os.close(found[1])
    sent = 0
    while queues.ready_in.send(Kept().encoded(), connection[1].fileno()):
        sent += 1
    assert 100 <= sent <= 500


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOBUFS, errno.ETOOMANYREFS, errno.ENOMEM, errno.EBADF])
def test_a_refused_message(number: int) -> None:
    """What passes is told by False, and nothing else: an error that stays is raised."""

    class Refusing(socket.socket):
        def sendmsg(self, *arguments: Any) -> int:
            raise OSError(number, os.strerror(number))

    with Refusing() as sock:
        if number == errno.EBADF:
            with pytest.raises(OSError):
                QueueEnd(sock).send(b"m", 0)
        else:
            assert QueueEnd(sock).send(b"m", 0) is False


def test_no_descriptor_at_the_receiver(queues: Queues, connection: tuple[socket.socket, socket.socket]) -> None:
    """Receiving raises EMFILE and leaves the connection in the queue, open; it is received once there is room."""
    client, ours = connection
    assert queues.park_in.send(Kept(requests=5).encoded(), ours.fileno())
    ours.close()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        with pytest.raises(OSError) as raised:
            queues.park_out.receive()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert raised.value.errno == errno.EMFILE
    found = queues.park_out.receive()
    assert found is not None
    assert Kept.decoded(found[0]).requests == 5
    os.write(found[1], b"still")
    assert client.recv(9) == b"still"
    os.close(found[1])


def test_no_descriptor_after_all(queues: Queues, connection: tuple[socket.socket, socket.socket]) -> None:
    """Where another thread took the last one, the message comes without, and the client sees the end."""
    client, ours = connection
    assert queues.park_in.send(Kept(requests=5).encoded(), ours.fileno())
    ours.close()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        found = queues.park_out.receive(has_room=True)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert found == (Kept(requests=5).encoded(), -1)
    assert client.recv(9) == b""


def test_nobody_has_the_other_end(queues: Queues) -> None:
    """Then a queue is empty for ever."""
    queues.park_in.close()
    assert queues.park_out.receive() is None


def test_queues_of_an_earlier_image(queues: Queues, connection: tuple[socket.socket, socket.socket]) -> None:
    """They are the same queues, with what was in them, whatever the program's default timeout."""
    packed, fds = queues.pack()
    assert queues.park_in.send(Kept(requests=5).encoded(), connection[1].fileno())
    socket.setdefaulttimeout(3)
    try:
        again = Queues.over({"fds": [os.dup(fd) for fd in packed["fds"]]})
    finally:
        socket.setdefaulttimeout(None)
    assert fds == packed["fds"]
    found = again.park_out.receive()
    assert found is not None
    os.close(found[1])
    assert again.ready_out.receive() is None  # at once
    again.close()


def test_where_messages_are_received(queues: Queues, connection: tuple[socket.socket, socket.socket]) -> None:
    """One place is used again and again, and what was received before is not written over."""
    module._rooms.clear()
    found = []
    for number in range(3):
        assert queues.park_in.send(Kept(requests=number).encoded(), connection[1].fileno())
        found.append(queues.park_out.receive())
    assert [Kept.decoded(each[0]).requests for each in found if each is not None] == [0, 1, 2]
    assert len(module._rooms) == 1
    for each in found:
        assert each is not None
        os.close(each[1])
