"""Listening sockets, real ones in this process: bound, inherited, resumed, narrowed, widened, unlinked."""

import contextlib
import errno
import logging
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefork.errors import BindError, ConfigError
from prefork.metrics.kernel import somaxconn
from prefork.sockets.listener import (
    Beneath,
    Listener,
    asked_for,
    asked_once_more,
    bound_elsewhere,
    names_of,
    put_beneath,
)
from prefork.sockets.ownership import Access
from prefork.sockets.shared import narrow, prepared, queued, widen
from prefork.sockets.unix_paths import is_stale

STREAM, DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
BOTH = pytest.mark.parametrize("kind", [STREAM, DATAGRAM], ids=["stream", "datagram"])
NO_ANSWER_S = 0.2  # to a SYN that is dropped; an input


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unix paths are short ones in the test's folder."""
    monkeypatch.chdir(tmp_path)


@contextlib.contextmanager
def tcp() -> Iterator[Listener]:
    with Listener(socket.AF_INET) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(5)
        yield listener


@contextlib.contextmanager
def udp() -> Iterator[Listener]:
    with Listener(socket.AF_INET, DATAGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        yield listener


@contextlib.contextmanager
def unix(path: str = "s", kind: int = STREAM) -> Iterator[Listener]:
    with Listener(socket.AF_UNIX, kind) as listener:
        listener.bind(path)
        if kind == STREAM:
            listener.listen(5)
        yield listener


class Theirs(socket.socket):
    """A class of the program's."""


def theirs(plain: socket.socket) -> Theirs:
    """The same socket in an object of the program's class, which has been assigned."""
    wrapped = Theirs(fileno=plain.detach())
    put_beneath(wrapped, Listener.without_descriptor())
    return wrapped


def connects(listener: socket.socket) -> bool:
    """Say if a client is let in."""
    with socket.socket(listener.family, STREAM) as client:
        client.settimeout(NO_ANSWER_S)
        return client.connect_ex(listener.getsockname()) == 0


def sends(listener: socket.socket, data: bytes = b"x") -> None:
    with socket.socket(listener.family, DATAGRAM) as client:
        client.sendto(data, listener.getsockname())


# Names.


def test_asked_for() -> None:
    """A listener is found again by its kind, its address as it was given, and which of those it is."""
    assert asked_for(("h", 1), STREAM) == "SOCK_STREAM ('h', 1) 1"
    assert asked_for(("h", 1), DATAGRAM, 2) == "SOCK_DGRAM ('h', 1) 2"
    assert len({asked_for(path, STREAM) for path in ("p", b"p", Path("p"))}) == 1
    assert [asked_once_more(("here.test", 7), STREAM)[-2:] for _ in range(3)] == [" 1", " 2", " 3"]
    assert asked_once_more(("here.test", 7), DATAGRAM).endswith(" 1")


# Where it comes from.


@pytest.mark.parametrize("timeout", [None, 0.0, 3.0])
def test_adopted(timeout: float | None) -> None:
    """A plain socket becomes a listener, with its timeout, and stays the object that it was; it is ours to bind."""
    plain = socket.socket(socket.AF_INET, DATAGRAM)
    plain.settimeout(timeout)
    with Listener.adopt(plain) as listener:
        assert listener is plain
        assert (listener.family, listener.type, listener.gettimeout()) == (socket.AF_INET, DATAGRAM, timeout)
        assert (listener.inherited, listener.resumed, listener.quiet) == (False, False, False)


def test_inherited() -> None:
    """An inherited listener is bound already: `bind()` leaves it where it is, and a subprocess does not get it."""
    with socket.create_server(("127.0.0.1", 0)) as theirs:
        passed = os.dup(theirs.fileno())
        os.set_inheritable(passed, True)
        with Listener.inherit(passed) as listener:
            assert (listener.inherited, listener.resumed, listener.quiet) == (True, False, False)
            assert not listener.get_inheritable()
            listener.bind(("127.0.0.1", 1))
            assert listener.getsockname() == theirs.getsockname()
            listener.access = Access(0o600)
            with pytest.raises(ConfigError, match=r"could not set socket_mode of 127\.0\.0\.1:1"):
                listener.bind(("127.0.0.1", 1))


@pytest.mark.parametrize("number", [9999, None])
def test_no_socket_to_inherit(number: int | None) -> None:
    """What is no socket, or not there, is a sentence with the number."""
    with open(os.devnull) as file:
        fd = file.fileno() if number is None else number
        with pytest.raises(BindError, match=f"could not take over descriptor {fd}: ") as raised:
            Listener.inherit(fd)
        assert raised.value.errno == (errno.ENOTSOCK if number is None else errno.EBADF)


def test_resumed() -> None:
    """What an earlier image listened on is bound; it listens with the new backlog, unless it is another process's."""
    with tcp() as before:
        with Listener.resume(os.dup(before.fileno()), quiet=False) as listener:
            assert (listener.resumed, listener.quiet, listener.inherited) == (True, False, False)
            listener.bind(("127.0.0.1", 1))
            assert listener.getsockname() == before.getsockname()
            listener.listen(0)
            assert backlog(listener) == 0
        with Listener.resume(os.dup(before.fileno()), quiet=True) as quiet:
            assert quiet.quiet
            quiet.listen(7)
            assert backlog(quiet) == 0


def backlog(listener: socket.socket) -> int:
    """What the kernel has been told; struct tcp_info, tcpi_sacked of a listening socket."""
    return int.from_bytes(listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)[28:32], "little")


def test_recovered() -> None:
    """One that the service manager kept knows its Unix path, and removes it; an abstract one and TCP have none."""
    with unix() as before:
        absolute = os.path.abspath("s")
    with Listener(socket.AF_UNIX) as before:
        os.unlink("s")
        before.bind(absolute)
        with Listener.recover(os.dup(before.fileno())) as listener:
            assert (listener.path, listener.stands, listener.resumed) == (absolute, True, True)
            listener.unlink()
            assert not os.path.lexists("s")
    with unix("\0prefork-test-%d" % os.getpid()) as before:
        with Listener.recover(os.dup(before.fileno())) as listener:
            assert listener.path is None
    with tcp() as before:
        with Listener.recover(os.dup(before.fileno())) as listener:
            assert listener.path is None


# Bound.


def test_a_port_that_is_taken() -> None:
    """The sentence says where and why, in small letters, and has the errno."""
    with tcp() as first, Listener(socket.AF_INET) as second:
        port = first.getsockname()[1]
        with pytest.raises(BindError, match=f"^.*could not bind 127.0.0.1:{port}: address already in use") as raised:
            second.bind(("127.0.0.1", port))
        assert raised.value.errno == errno.EADDRINUSE


@BOTH
def test_a_unix_path(kind: int) -> None:
    """Where it is bound is known, absolute, and stands until something else is there."""
    with unix("s", kind) as listener:
        assert listener.path == os.path.abspath("s")
        stood = [listener.stands]
        os.rename("s", "elsewhere")
        stood.append(listener.stands)
        Path("s").touch()
        stood.append(listener.stands)
        assert stood == [True, False, False]
        listener.unlink()
        assert Path("s").exists()
        assert not listener.unreachable
        assert listener.path is None


@BOTH
def test_a_unix_path_is_removed(kind: int) -> None:
    """Ours is; then no other way leads there, and it cannot serve again."""
    with unix("s", kind) as listener:
        listener.unlink()
        assert not os.path.lexists("s")
        assert listener.unreachable
        assert not listener.stands
        with pytest.raises(
            BindError, match=r"could not serve again on s: its path is removed; make a new server"
        ) as raised:
            widen(listener)
        assert raised.value.errno == errno.ENOENT


def test_a_path_that_goes_while_it_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody was faster: that is no error."""
    with unix() as listener:
        monkeypatch.setattr(Listener, "stands", True)
        os.unlink("s")
        listener.unlink()
        assert listener.path is None


def test_an_abstract_name() -> None:
    """A listener with an abstract name has no path, is reached, and removes nothing."""
    with unix("\0prefork-test-%d" % os.getpid()) as listener:
        assert listener.path is None
        assert not listener.stands
        listener.unlink()
        assert not listener.unreachable
        assert connects(listener)


@BOTH
def test_a_stale_path_is_taken_over(kind: int, caplog: pytest.LogCaptureFixture) -> None:
    """A socket that nobody listens on is removed, and that is said; one that somebody does is not."""
    with unix("s", kind):
        pass
    with caplog.at_level(logging.INFO, "prefork.supervisor"), unix("s", kind):
        assert "removing the stale socket s" in caplog.text
        with Listener(socket.AF_UNIX, kind) as other:
            with pytest.raises(BindError, match=r"could not bind s: another server is listening there") as raised:
                other.bind("s")
            assert raised.value.errno == errno.EADDRINUSE
            assert other.path is None
    assert is_stale("s", kind)
    assert not is_stale("nowhere", kind)


def test_what_is_no_socket() -> None:
    """A file in the way is left, and so is a socket of the other kind, a full one, and one that is not ours to ask."""
    Path("s").write_text("mine")
    with Listener(socket.AF_UNIX) as listener:
        with pytest.raises(BindError, match=r"could not bind s: it exists and is not a socket") as raised:
            listener.bind("s")
        assert raised.value.errno == errno.EEXIST
    assert Path("s").read_text() == "mine"
    with unix("other", DATAGRAM), pytest.raises(OSError, match="another server is listening there"):
        is_stale("other", STREAM)
    with unix("full") as full:
        full.listen(0)
        with contextlib.ExitStack() as clients:
            for _ in range(2):
                client = clients.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect_ex("full")
            with pytest.raises(OSError, match="another server is listening there"):
                is_stale("full", STREAM)


def test_mode_of_a_path() -> None:
    """A path has the mode that was asked for; where there is no path, a mode is a mistake of the settings."""
    with Listener(socket.AF_UNIX) as listener:
        listener.access = Access(0o640)
        listener.bind("s")
        assert stat.S_IMODE(os.stat("s").st_mode) == 0o640
    for address, family in ((("127.0.0.1", 0), socket.AF_INET), ("\0prefork-test", socket.AF_UNIX)):
        with Listener(family) as listener:
            listener.access = Access(0o640)
            with pytest.raises(ConfigError, match=r"could not set socket_mode of .*: it is no Unix path"):
                listener.bind(address)


def test_bound_elsewhere() -> None:
    """`bind()` in a rehearsal takes what it is given, with the path where there is one; a port as it is, no path."""
    seen = []

    def instead(listener: Beneath, address: object, path: str | None) -> object:
        seen.append((address, path))
        return ("127.0.0.1", 0) if path is None else "other"

    with bound_elsewhere(instead):
        with unix("s") as listener:
            assert (os.path.exists("other"), os.path.exists("s")) == (True, False)
            assert listener.path is None
        with Listener(socket.AF_INET) as listener:
            listener.bind(("127.0.0.1", 1))
        with tcp() as theirs, Listener.inherit(os.dup(theirs.fileno())) as inherited:
            assert inherited.quiet
    assert seen[:2] == [("s", "s"), (("127.0.0.1", 1), None)]
    with unix("s") as listener:
        assert listener.path == os.path.abspath("s")


def test_the_kernel_cuts_the_queue(caplog: pytest.LogCaptureFixture) -> None:
    """A listen queue above net.core.somaxconn is said; one as long as it is not."""
    limit = somaxconn()
    assert limit is not None
    with tcp() as listener, caplog.at_level(logging.WARNING, "prefork.supervisor"):
        listener.listen(limit)
        assert caplog.text == ""
        listener.listen(limit + 1)
        assert f"the kernel cuts the listen queue of {limit + 1} to {limit} (net.core.somaxconn)" in caplog.text


# Accepted and received.


def test_accept() -> None:
    """As socket.accept: a connection of the same kind, and who it is from."""
    with tcp() as listener, socket.create_connection(listener.getsockname()) as client:
        connection, address = listener.accept()
        with connection:
            assert (connection.family, connection.type) == (socket.AF_INET, STREAM)
            assert address == client.getsockname()
            client.sendall(b"x")
            assert connection.recv(10) == b"x"


def ours() -> bool:
    return True


def test_a_datagram_that_a_sibling_took() -> None:
    """Prepared, a receive does not block for one that is gone, in none of the six ways; afterwards it may again."""
    with udp() as listener:
        listener.settimeout(3.0)
        with prepared(listener, ours):
            assert (listener.gettimeout(), os.get_blocking(listener.fileno())) == (3.0, True)
            assert os.get_blocking(listener.fileno()), "a reply on the same socket may block"
            room = bytearray(10)
            for receive in (
                lambda: listener.recv(10), lambda: listener.recvfrom(10), lambda: listener.recvmsg(10),
                lambda: listener.recv_into(room), lambda: listener.recvfrom_into(room),
                lambda: listener.recvmsg_into([room]),
            ):  # fmt: skip
                with pytest.raises(BlockingIOError):
                    receive()
            sends(listener)
            assert listener.recv(10, socket.MSG_PEEK) == b"x"
            assert listener.recvfrom(10, socket.MSG_PEEK)[0] == b"x"
            assert listener.recvmsg(10, 0, socket.MSG_PEEK)[0] == b"x"
            assert listener.recv(10) == b"x"
        assert (type(listener), listener.gettimeout()) == (Listener, 3.0)


@pytest.mark.parametrize("before", [None, 0.0, 2.0])
def test_a_connection_that_a_sibling_took(before: float | None) -> None:
    """Prepared, an accept does not block, whoever holds the listener, and whatever the program says of its timeout,
    which it has afterwards."""
    with tcp() as listener:
        listener.settimeout(before)
        with prepared(listener, ours):
            listener.settimeout(7.0 if before is None else before)
            listener.setblocking(before is None)
            assert listener.gettimeout() == 0.0
            with socket.socket(fileno=os.dup(listener.fileno())) as siblings:
                assert not os.get_blocking(siblings.fileno())
        assert listener.gettimeout() == (None if before is None else 0.0)
        assert os.get_blocking(listener.fileno()) is (before is None)
        listener.settimeout(5.0)
        assert listener.gettimeout() == 5.0


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("blocks", [False, True])
def test_put_back(blocks: bool, wrapped: bool) -> None:
    """Ours, or what the program has put in its place, blocks or not as it was found, though Python knew otherwise."""
    plain = socket.create_server(("127.0.0.1", 0))
    with theirs(plain) if wrapped else Listener.adopt(plain) as listener:
        os.set_blocking(listener.fileno(), blocks)
        with prepared(listener, ours):
            assert not os.get_blocking(listener.fileno())
        assert os.get_blocking(listener.fileno()) is blocks


def test_what_is_not_put_back() -> None:
    """A listener that workers of another image go on with, and a closed one."""
    with tcp() as listener:
        with prepared(listener, lambda: False):
            pass
        assert not os.get_blocking(listener.fileno())
        with prepared(listener, ours):
            listener.close()


def test_of_an_image_before() -> None:
    """What was resumed is not blocking because of that image: it is put back as one that does."""
    with tcp() as before:
        before.setblocking(False)
        with Listener.resume(os.dup(before.fileno()), quiet=False) as listener:
            for timeout in (None, 4.0):
                listener.settimeout(timeout)
                assert not os.get_blocking(listener.fileno()), "its workers go on accepting"
            with prepared(listener, ours):
                pass
            assert listener.gettimeout() == 4.0


def test_queued() -> None:
    """queued() says if there is somebody to accept, or something to receive; of a closed listener nothing."""
    with tcp() as listener:
        assert not queued(listener)
        with socket.create_connection(listener.getsockname()):
            assert queued(listener)
    assert not queued(listener)
    with udp() as listener:
        assert not queued(listener)
        sends(listener)
        assert queued(listener)


# Narrowed and widened.


def test_narrow_tcp() -> None:
    """Nobody new is let in, who is in the queue stays there and can talk; widened, it is as before."""
    with tcp() as listener, socket.create_connection(listener.getsockname()) as before:
        assert narrow(listener)
        assert not connects(listener)
        connection, _ = listener.accept()
        with connection:
            before.sendall(b"x")
            assert connection.recv(10) == b"x"
        widen(listener)
        assert connects(listener)
        widen(listener)


def test_narrow_datagrams() -> None:
    """What has come stays, what comes is dropped; widened, it is as before."""
    with udp() as listener:
        sends(listener, b"before")
        assert narrow(listener)
        sends(listener, b"late")
        listener.settimeout(1)
        assert listener.recv(10) == b"before"
        assert not queued(listener)
        widen(listener)
        sends(listener, b"again")
        assert listener.recv(10) == b"again"


@BOTH
def test_narrow_a_unix_path(kind: int) -> None:
    """Nobody finds the way any more; who is in the queue is."""
    with unix("s", kind) as listener, socket.socket(socket.AF_UNIX, kind) as before:
        before.connect("s")
        before.send(b"x")
        assert narrow(listener)
        assert not os.path.lexists("s")
        assert queued(listener)
        if kind == DATAGRAM:
            assert listener.recv(10) == b"x"
            before.send(b"late")  # it is connected, and needs no path
            assert not queued(listener)


def test_narrow_what_others_hold() -> None:
    """An inherited one is left as it is: its queue is for whoever serves it next. So is a closed one."""
    with tcp() as listener:
        listener.inherited = True
        assert not narrow(listener)
        assert connects(listener)
    listener.inherited = False
    assert not narrow(listener)


def test_narrow_a_wrapped_one() -> None:
    """What the program has put in its place is narrowed too."""
    with theirs(socket.create_server(("127.0.0.1", 0))) as wrapped:
        assert narrow(wrapped)
        assert not connects(wrapped)


def test_prepared_is_widened() -> None:
    """What an earlier drain has narrowed serves again."""
    with tcp() as listener:
        narrow(listener)
        with prepared(listener, ours):
            assert connects(listener)


def test_without_a_filter() -> None:
    """Where the kernel takes no filter the queue is made as short as it can be; a second one is as good as one."""
    with tcp() as listener:
        listener.setsockopt(socket.SOL_SOCKET, 44, 1)  # SO_LOCK_FILTER: none can be set or removed from now on
        assert narrow(listener)
        assert backlog(listener) == 0
        widen(listener)
    with udp() as listener:
        listener.setsockopt(socket.SOL_SOCKET, 44, 1)
        assert narrow(listener)


def test_a_path_that_may_not_be_removed(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """It is left, and said; clients still reach the socket, so it may serve again."""

    def refuses(path: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with unix() as listener:
        monkeypatch.setattr(os, "unlink", refuses)
        listener.unlink()
        assert "/s, it is left: permission denied" in caplog.text
        assert not listener.unreachable
        widen(listener)
        assert connects(listener)


def test_a_path_that_is_gone_stands_no_more() -> None:
    """Nor does one of which nobody knows what it was."""
    with unix() as listener:
        stood = [listener.stands]
        listener.identity = None
        stood.append(listener.stands)
        os.unlink("s")
        stood.append(listener.stands)
        assert stood == [True, False, False]


def test_names_of_several_listeners() -> None:
    """An address is a name, unless another listener has it as well: no two series of one service are the same."""
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp,
        socket.socket(type=socket.SOCK_DGRAM) as alone,
    ):  # fmt: skip
        udp.bind(tcp.getsockname())
        alone.bind(("127.0.0.1", 0))
        here, there = (f"127.0.0.1:{sock.getsockname()[1]}" for sock in (tcp, alone))
        assert names_of([tcp, udp, alone]) == [here, f"udp://{here}", there]
        assert names_of([udp]) == [here]
        assert names_of([tcp, tcp, udp]) == [here, f"{here} 2", f"udp://{here}"]
        assert names_of([]) == []
