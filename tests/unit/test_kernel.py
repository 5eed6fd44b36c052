"""What the kernel tells of real sockets and of this process, and that what it does not tell is absent."""

import contextlib
import os
import resource
import select
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prefork.metrics import kernel
from tests.support.tools.proc import no_descriptor_left

HUNG = 30.0


@contextlib.contextmanager
def listening(family: int, address: object, backlog: int) -> Iterator[socket.socket]:
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.bind(address)  # type: ignore[arg-type]
        listener.listen(backlog)
        yield listener


@contextlib.contextmanager
def clients_of(listener: socket.socket, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.socket(listener.family, socket.SOCK_STREAM)) for _ in range(count)]
        for client in clients:
            client.connect(listener.getsockname())
        yield clients


def listeners(tmp_path: Path) -> dict[str, tuple[int, object]]:
    return {
        "tcp": (socket.AF_INET, ("127.0.0.1", 0)),
        "tcp6": (socket.AF_INET6, ("::1", 0)),
        "unix": (socket.AF_UNIX, str(tmp_path / "s")),
        "abstract": (socket.AF_UNIX, f"\0prefork-test-{os.getpid()}"),
    }


@pytest.mark.parametrize("kind", ["tcp", "tcp6", "unix", "abstract"])
def test_accept_queue(kind: str, tmp_path: Path) -> None:
    """The accept queue has the length of what was not accepted, and the limit that listen() asked for."""
    family, address = listeners(tmp_path)[kind]
    with listening(family, address, 7) as listener:
        assert kernel.accept_queue(listener) == (0, 7)
        with clients_of(listener, 3):
            assert kernel.accept_queue(listener) == (3, 7)
            listener.accept()[0].close()
            assert kernel.accept_queue(listener) == (2, 7)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_accept_queue_limit_is_capped(kind: str, tmp_path: Path) -> None:
    """The limit is the one in force: somaxconn, where listen() asked for more."""
    family, address = listeners(tmp_path)[kind]
    with listening(family, address, 1 << 30) as listener:
        assert kernel.accept_queue(listener) == (0, kernel.somaxconn())


def test_accept_queue_of_what_does_not_listen(tmp_path: Path) -> None:
    """What is no listener has no accept queue: a connection, a bound socket, a datagram socket, a closed one."""
    for family, address in listeners(tmp_path).values():
        with listening(family, address, 1) as listener, clients_of(listener, 1) as (client,):
            assert kernel.accept_queue(client) == (None, None)
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                with socket.socket(family, kind) as idle:
                    assert kernel.accept_queue(idle) == (None, None)
        assert kernel.accept_queue(listener) == (None, None)


def test_accept_queue_of_unix_without_netlink(tmp_path: Path) -> None:
    """Where no netlink socket is to be had, the queue of a Unix listener is unknown and nothing is raised."""
    with listening(socket.AF_UNIX, str(tmp_path / "s"), 3) as listener:
        known = kernel.accept_queue(listener)
        with no_descriptor_left(os.getpid()):
            unknown = kernel.accept_queue(listener)
    assert (known, unknown) == ((0, 3), (None, None))


def test_datagram_queue() -> None:
    """A UDP socket tells the bytes that wait, and every datagram for which there was no room."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind(("127.0.0.1", 0))
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        assert kernel.datagram_queue(receiver) == (0, 0)
        for _ in range(100):
            sender.sendto(bytes(500), receiver.getsockname())
        queued, dropped = kernel.datagram_queue(receiver)
        assert queued is not None
        assert queued > 500
        received = 0
        receiver.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while receiver.recv(1000):
                received += 1
        assert received + (dropped or 0) == 100
        assert kernel.datagram_queue(receiver) == (0, dropped)


def test_datagram_queue_of_others(tmp_path: Path) -> None:
    """Of Unix datagrams, of streams and of a closed socket the kernel tells no such thing."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram, socket.socket() as stream:
        datagram.bind(str(tmp_path / "s"))
        assert kernel.datagram_queue(datagram) == (None, None)
        assert kernel.datagram_queue(stream) == (None, None)
    closed = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    closed.close()
    assert kernel.datagram_queue(closed) == (None, None)


@pytest.mark.timed
@pytest.mark.parametrize("talks", [False, True])
def test_queue_wait(talks: bool) -> None:
    """A connection waited as long as it stood in the accept queue, whether its client talks or is silent."""
    with listening(socket.AF_INET, ("127.0.0.1", 0), 1) as listener:
        before = time.monotonic()
        with clients_of(listener, 1) as (client,):
            connected = time.monotonic()
            if talks:
                client.sendall(b"hello")
            select.select([], [], [], 0.2)  # the wait that is measured
            waited = time.monotonic() - connected
            with listener.accept()[0] as accepted:
                told = kernel.queue_wait_ns(accepted)
                assert told is not None
                # A jiffy is 10 ms at most, and cut off at both ends.
                assert waited - 0.02 <= told / 1e9 <= time.monotonic() - before + 0.02


def test_queue_wait_is_unknown() -> None:
    """Where something was sent already, and of what is no TCP connection, nobody knows how long it waited."""
    with listening(socket.AF_INET, ("127.0.0.1", 0), 1) as listener, clients_of(listener, 1):
        accepted = listener.accept()[0]
        accepted.sendall(b"hello")
        assert kernel.queue_wait_ns(accepted) is None
        accepted.close()
        assert kernel.queue_wait_ns(accepted) is None
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert kernel.queue_wait_ns(ours) is None
    assert kernel.queue_wait_ns((b"datagram", ours)) is None


@pytest.mark.parametrize("asks", [kernel.queue_wait_ns, kernel.tcp_bytes, kernel.tcp_bytes_read, kernel.unix_peer_text])
def test_what_stands_for_a_socket(asks: Callable[[object], object]) -> None:
    """A request can be any object: one whose attributes raise whatever it likes is one of which nothing is known."""

    class Request:
        def __getattr__(self, name: str) -> object:
            raise LookupError(name)

    assert asks(Request()) in (None, (None, None))


def test_listen_overflows_and_drops() -> None:
    """A connection that finds the accept queue full counts as an overflow and a drop of the namespace."""
    overflows, drops = kernel.listen_overflows_and_drops()
    if overflows is None or drops is None:
        assert "TcpExt" not in Path("/proc/net/netstat").read_text()
        return
    with listening(socket.AF_INET, ("127.0.0.1", 0), 0) as listener, contextlib.ExitStack() as stack:
        end = time.monotonic() + HUNG
        while (now := kernel.listen_overflows_and_drops()) == (overflows, drops):
            assert time.monotonic() < end, "the queue never overflowed"
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
            select.select([], [client], [], 0.05)
        assert now[0] is not None
        assert now[0] > overflows
        assert now[1] is not None
        assert now[1] > drops


def test_descriptors() -> None:
    """The count of descriptors moves with each one opened, and the limit is the soft one."""
    opened, limit = kernel.descriptors()
    assert opened is not None
    with open("/dev/null"), socket.socket():
        assert kernel.descriptors() == (opened + 2, limit)
    assert limit == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert opened == len(os.listdir("/proc/self/fd")) - 1


def test_machine_figures() -> None:
    """The two figures of the machine are plain numbers here."""
    assert isinstance(kernel.oom_kills(), int)
    assert isinstance(kernel.somaxconn(), int)


def test_unix_peer(tmp_path: Path) -> None:
    """The other end of a Unix connection is a process; nothing else has one."""
    one, other = socket.socketpair()
    with one, other, listening(socket.AF_INET, ("127.0.0.1", 0), 1) as tcp:
        assert kernel.unix_peer(one) == (os.getpid(), os.getuid())
        assert kernel.peer_credentials(one) == kernel.PeerCredentials(os.getpid(), os.getuid(), os.getgid())
        assert kernel.unix_peer(tcp) is None
    assert kernel.unix_peer(one) is None  # closed
    assert kernel.unix_peer((b"datagram", None)) is None


def test_bytes_that_were_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has come and was not read is none of them, also where it comes between the two questions; not known of what
    is closed, or is no TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        mine, _ = listener.accept()
    with mine, client:
        client.sendall(b"hello")
        assert mine.recv(2, socket.MSG_WAITALL) == b"he"
        mine.sendall(b"bye")
        assert kernel.tcp_bytes_read(mine) == (2, 3)
        asked, last = kernel.tcp_bytes, list[int]()

        def more_comes(sock: object) -> tuple[int | None, int | None]:
            found = asked(sock)
            if len(last) < 2:
                last.append(client.send(b"more"))
                assert mine.recv(3 + 4 * len(last), socket.MSG_PEEK | socket.MSG_WAITALL)
            return found

        monkeypatch.setattr(kernel, "tcp_bytes", more_comes)
        assert kernel.tcp_bytes_read(mine) == (2, 3)
        assert len(last) == 2
    assert kernel.tcp_bytes_read(mine) == (None, None)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert kernel.tcp_bytes_read(ours) == (None, None)


def test_unread_bytes() -> None:
    """Those that have come and that nobody has read; unknown of what is closed, or no socket."""
    mine, other = socket.socketpair()
    with mine, other:
        other.sendall(b"hello")
        assert kernel.unread_bytes(mine) == 5
        assert mine.recv(2) == b"he"
        assert kernel.unread_bytes(mine) == 3
    assert [kernel.unread_bytes(each) for each in (mine, (b"a datagram", mine), None)] == [None] * 3
