"""The accept queue as the master sees it, real sockets of this process: who waits, and who is let in no more."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefork.master.accept_queue import AcceptQueue, AcceptQueues, Mending
from prefork.sockets import mending
from prefork.sockets.kept_paths import unlink_ours
from prefork.sockets.listener import Listener, put_beneath
from prefork.workers.kept import Queues

FOREVER_AGO = float("-inf")
IP_FREEBIND = 15  # ip(7)


@contextlib.contextmanager
def listening(kind: int = socket.SOCK_STREAM, path: Path | None = None) -> Iterator[Listener]:
    """On loopback, or at a Unix path; of a name that a reload finds it by."""
    with Listener(socket.AF_INET if path is None else socket.AF_UNIX, kind) as listener:
        listener.asked = "asked for"
        listener.bind(("127.0.0.1", 0) if path is None else str(path))
        if kind == socket.SOCK_STREAM:
            listener.listen(10)
        yield listener


@contextlib.contextmanager
def client(listener: socket.socket) -> Iterator[bool]:
    """One that connects, or sends; whether it was let in."""
    with socket.socket(listener.family, listener.type) as sock:
        sock.settimeout(0.2)  # an input: to a SYN that is dropped nobody answers
        try:
            sock.connect(listener.getsockname())
            sock.send(b"x")
            yield True
        except OSError:
            yield False


KINDS: list[tuple[int, bool]] = [(socket.SOCK_STREAM, False), (socket.SOCK_STREAM, True), (socket.SOCK_DGRAM, False)]


@pytest.fixture(params=KINDS, ids=["tcp", "unix", "udp"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Listener]:
    kind, named = request.param
    with listening(kind, tmp_path / "s" if named else None) as listener:
        yield listener


def test_who_waits_is_seen(listener: Listener) -> None:
    """A look says whether somebody waits, and when it was so last; nobody yet is never."""
    accept_queue = AcceptQueue(listener)
    assert (accept_queue.look(5.0), accept_queue.queued_at) == (False, 0.0)
    with client(listener):
        assert (accept_queue.look(7.0), accept_queue.queued_at) == (True, 7.0)
        assert (accept_queue.look(8.0), accept_queue.queued_at) == (True, 8.0)
        if listener.type == socket.SOCK_STREAM:
            listener.accept()[0].close()
        else:
            listener.recv(10)
        assert (accept_queue.look(9.0), accept_queue.queued_at) == (False, 8.0)


@pytest.mark.parametrize("named", [False, True])
def test_how_many_wait(named: bool, tmp_path: Path) -> None:
    """As many as have connected, at TCP and at a Unix path; none of a closed listener."""
    with listening(path=tmp_path / "s" if named else None) as listener:
        accept_queue = AcceptQueue(listener)
        assert accept_queue.queue_length() == 0
        with client(listener), client(listener), client(listener):
            assert accept_queue.queue_length() == 3
    assert accept_queue.queue_length() == 0


def test_of_datagrams_and_of_nothing_none_wait() -> None:
    """Datagrams are not counted, and without a listener there is no queue."""
    with listening(socket.SOCK_DGRAM) as listener, client(listener):
        assert AcceptQueue(listener).queue_length() == 0
    accept_queue = AcceptQueue(None)
    assert (accept_queue.queue_length(), accept_queue.look(3.0), accept_queue.queued_at) == (0, False, 0.0)
    assert accept_queue.datagrams_dropped() is None


def test_dropped_datagrams() -> None:
    """They are those that found the receive queue full."""
    with listening(socket.SOCK_DGRAM) as listener, socket.socket(type=socket.SOCK_DGRAM) as sender:
        accept_queue = AcceptQueue(listener)
        assert accept_queue.datagrams_dropped() == 0
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the kernel makes it its least
        for _ in range(100):
            sender.sendto(bytes(1000), listener.getsockname())
        assert (accept_queue.datagrams_dropped() or 0) > 50


def test_where_each_worker_has_a_socket() -> None:
    """What is queued at any of them is nothing to plan by before the end; then nothing comes, and what is there counts.

    What was dropped is summed, and a manager keeps none.
    """
    with contextlib.ExitStack() as stack:
        first, second = (stack.enter_context(listening(socket.SOCK_DGRAM)) for _ in range(2))
        queue = AcceptQueue(first, (second,))
        with socket.socket(type=socket.SOCK_DGRAM) as peer:
            peer.sendto(b"x", second.getsockname())
            assert queue.look(5.0) is False
            assert queue.queued_at == 5.0
            queue.narrow(6.0)
            assert queue.look(7.0) is True
            for each in (first, second):
                peer.sendto(b"y", each.getsockname())
        assert second.recv(9) == b"x"
        assert queue.look(8.0) is False
        assert queue.queued_at == 7.0
        assert queue.datagrams_dropped() == 2
        assert queue.kept() is None


def test_narrow_lets_nobody_in_and_keeps_who_is(listener: Listener) -> None:
    """Who came before is still seen; from then on nobody comes. It counts as looked at in that moment."""
    accept_queue = AcceptQueue(listener)
    with client(listener) as before:
        accept_queue.narrow(11.0)
        assert (before, accept_queue.queued_at) == (True, 11.0)
        assert accept_queue.look(12.0)
        with client(listener) as late:
            assert listener.type == socket.SOCK_DGRAM or not late
        if listener.type == socket.SOCK_STREAM:
            listener.accept()[0].close()
        else:
            listener.recv(10)
        assert not accept_queue.look(13.0)
        assert accept_queue.queued_at == 12.0


def test_it_is_narrowed_once(listener: Listener) -> None:
    """A second time changes nothing: what was queued last stays."""
    accept_queue = AcceptQueue(listener)
    accept_queue.narrow(11.0)
    accept_queue.narrow(20.0)
    assert accept_queue.queued_at == 11.0


def test_the_queue_of_somebody_else(listener: Listener) -> None:
    """One that others hold too is left open when we leave, and its queue is theirs: it holds nobody up."""
    listener.inherited = True
    accept_queue = AcceptQueue(listener)
    with client(listener):
        assert accept_queue.look(5.0)
        accept_queue.narrow(11.0)
        assert (accept_queue.look(12.0), accept_queue.queued_at) == (False, FOREVER_AGO)
    with client(listener) as late:
        assert late


def test_nothing_to_narrow() -> None:
    """Without a listener there is no queue to wait for."""
    accept_queue = AcceptQueue(None)
    accept_queue.narrow(11.0)
    assert (accept_queue.look(12.0), accept_queue.queued_at) == (False, FOREVER_AGO)


@pytest.mark.parametrize(("change", "kept"), [({}, True), ({"asked": ""}, False), ({"inherited": True}, False)])
def test_what_a_manager_may_keep(change: dict[str, Any], kept: bool) -> None:
    """A listener of ours that has a name; what the manager gave us it has itself."""
    with listening() as listener:
        for name, value in change.items():
            setattr(listener, name, value)
        assert AcceptQueue(listener).kept() == ((listener.fileno(), "asked for") if kept else None)


class Wrapped(socket.socket):
    """Stands for any class of the program's, as ssl.SSLSocket."""


def test_a_wrapped_listener() -> None:
    """It is kept, or left open, as the listener underneath is: that one knows where it came from."""
    with listening() as listener:
        asked, inherited = listener.asked, listener.inherited = "asked for", True
        with Wrapped(fileno=listener.detach()) as wrapped:
            put_beneath(wrapped, listener)
            accept_queue = AcceptQueue(wrapped)
            assert (accept_queue.kept(), inherited) == (None, True)
            accept_queue.narrow(11.0)
            assert accept_queue.queued_at == FOREVER_AGO
            listener.inherited = False
            assert accept_queue.kept() == (wrapped.fileno(), asked)


def test_a_strange_socket_is_not_kept() -> None:
    """Nor is one that the program has put in the listener's place."""
    with socket.create_server(("127.0.0.1", 0)) as theirs:
        assert AcceptQueue(theirs).kept() is None
    assert AcceptQueue(None).kept() is None


def test_kept_connections_that_are_ready() -> None:
    """They are one more queue from which workers take: it is looked at as the others are, and has no length of its own.
    As long as the holder has some to pass on, or to close, the service is not quiet."""
    kept = Queues.made()
    with listening() as listener:
        queues = AcceptQueues([listener], (), kept.ready_out)
        assert (queues.look(5.0), queues.queued_at) == (False, 0.0)
        kept.ready_in.sock.send(b"ready")
        assert (queues.look(6.0), queues.queued_at) == (True, 6.0)
        assert queues.queue_length() == 0
        kept.ready_out.sock.recv(99)
        assert (queues.look(7.0), queues.queued_at) == (False, 6.0)
        with client(listener):
            assert (queues.look(8.0), queues.queued_at) == (True, 8.0)
            listener.accept()[0].close()
        queues.note_coming(9.0)
        assert (queues.look(9.5), queues.queued_at) == (False, 9.0)
    kept.close()


HOW = [socket.SHUT_RD, socket.SHUT_RDWR]


@pytest.mark.parametrize("then", [None, socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR])
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("port", ["chosen by the kernel", "asked for"])
def test_a_listener_that_was_shut_down(port: str, how: int, then: int | None, caplog: pytest.LogCaptureFixture) -> None:
    """It listens again where it did, as often as it takes, and it is said; nothing is queued meanwhile. So too where
    others do it `then` once more, which those would feel who are accepted afterwards."""
    with contextlib.ExitStack() as opened:
        listener = opened.enter_context(listening())
        if port == "asked for":
            name = listener.getsockname()
            listener.close()
            listener = opened.enter_context(Listener(socket.AF_INET))
            listener.bind(name)
            listener.listen(10)
        name, accept_queue = listener.getsockname(), AcceptQueue(listener)
        for _ in range(2):
            listener.shutdown(how)
            if then is not None:
                with contextlib.suppress(OSError):  # it says so, and is done all the same
                    listener.shutdown(then)
            assert not accept_queue.look(1.0)
            assert listener.getsockname() == name
            with socket.create_connection(name) as one, listener.accept()[0] as other:
                assert accept_queue.look(2.0) is False
                for sender, receiver in ((one, other), (other, one)):
                    sender.send(b"x")
                    assert receiver.recv(1) == b"x"
                one.close()  # first: the port is free again
            with client(listener) as let_in:
                assert let_in
                assert accept_queue.look(2.0)
            listener.accept()[0].close()
        said = "%s:%d was shut down by a process of the service: it listens again, and what was queued there is lost"
        assert [record.getMessage() for record in caplog.records] == [said % name] * 2


def test_a_port_that_is_in_use(caplog: pytest.LogCaptureFixture) -> None:
    """By its own clients, without SO_REUSEADDR: it is tried again until they have gone."""
    said = ["no new client can connect there, which is tried again in 10 s (address already in use)"] * 2
    with listening() as listener:
        name, accept_queue = listener.getsockname(), AcceptQueue(listener)
        with socket.create_connection(name) as one, listener.accept()[0]:
            listener.shutdown(socket.SHUT_RDWR)
            looks = [(accept_queue.look(now), accept_queue.reachable) for now in (1.0, 10.9, 11.0)]
            assert looks == [(False, False)] * 3
            one.close()
        assert (accept_queue.look(21.0), accept_queue.reachable) == (False, True)
        with client(listener) as let_in:
            assert let_in
            assert listener.getsockname() == name
    said.append("it listens again, and what was queued there is lost")
    assert [record.getMessage().partition("service: ")[2] for record in caplog.records] == said


def test_an_address_that_could_not_be_bound_now(caplog: pytest.LogCaptureFixture) -> None:
    """It has it still: a port below 1024 once root is given up, an address that this host has no more."""
    with Listener(socket.AF_INET) as listener:
        listener.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        listener.bind(("192.0.2.1", 0))
        name = listener.getsockname()
        listener.close()
    with Listener(socket.AF_INET) as listener:
        listener.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        listener.bind(name)
        listener.listen(10)
        listener.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 0)
        accept_queue = AcceptQueue(listener)
        listener.shutdown(socket.SHUT_RDWR)
        assert not accept_queue.look(1.0)
        assert listener.getsockname() == name
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    assert "it listens again" in caplog.text


@pytest.mark.parametrize("how", HOW)
def test_a_unix_socket_that_was_shut_down(how: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Another one is bound at its path, with its mode and under its descriptor, of which every child has to hear: as
    often as it takes, once a second. Whoever waits for it has let go of it before."""
    path, let_go = tmp_path / "s", list[int]()
    with listening(path=path) as listener:
        queues = AcceptQueues([listener], mending=Mending(let_go=lambda: let_go.append(path.stat().st_ino)))
        path.chmod(0o620)
        listener.setblocking(False)
        fd, now = listener.fileno(), 0.0
        for times in (1, 2):
            before = path.stat()
            listener.shutdown(how)
            assert not queues.look(now)
            assert not queues.look(now + 0.5)
            after = path.stat()
            assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
            assert (queues.bound_anew(), queues.bound_anew()) == (True, False)
            assert let_go[times - 1 :] == [before.st_ino]
            assert listener.stands
            assert (listener.fileno(), listener.get_inheritable(), listener.getblocking()) == (fd, False, False)
            with client(listener) as let_in:
                assert let_in
                assert queues.look(now + 0.6)
            listener.accept()[0].close()
            listener.shutdown(how)
            assert not queues.look(now + 0.9)
            assert not queues.bound_anew()
            now += 1.0
        assert queues.look(now) is False
        assert queues.bound_anew()
    what = "its path is bound anew, what was queued there is lost, and the workers are replaced"
    said = f"{path} was shut down by a process of the service: {what}"
    assert [record.getMessage() for record in caplog.records] == [said] * 3


def test_a_path_of_somebody_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is left alone where the socket that led there was shut down, and said once."""
    path = tmp_path / "s"
    with listening(path=path) as listener:
        queues = AcceptQueues([listener])
        listener.shutdown(socket.SHUT_RDWR)
        path.unlink()
        path.write_text("somebody else's")
        assert [queues.look(float(now)) for now in range(3)] == [False] * 3
        assert (queues.bound_anew(), queues.reachable) == (False, False)
        assert path.read_text() == "somebody else's"
    said = f"{path} was shut down by a process of the service: its path leads elsewhere, and a reload binds it anew"
    assert [record.getMessage() for record in caplog.records] == [said]


def test_a_path_that_somebody_else_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the moment in which it is free: it is theirs, and stays so."""
    path = tmp_path / "s"
    with listening(path=path) as listener, socket.socket(socket.AF_UNIX) as theirs:
        queues = AcceptQueues([listener])

        def unlink(path: str) -> None:
            unlink_ours(path)
            theirs.bind(path)

        monkeypatch.setattr(mending, "unlink_ours", unlink)
        listener.shutdown(socket.SHUT_RDWR)
        assert [queues.look(float(now)) for now in range(3)] == [False] * 3
        assert path.is_socket()


def test_where_nobody_would_serve_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A master without its program starts no workers: it removes the path, so that a reload binds it anew."""
    path = tmp_path / "s"
    with listening(path=path) as listener:
        queues = AcceptQueues([listener], mending=Mending(starts_workers=False))
        listener.shutdown(socket.SHUT_RDWR)
        assert [queues.look(float(now)) for now in range(3)] == [False] * 3
        assert not path.exists()
        assert (queues.bound_anew(), queues.reachable) == (False, False)
    said = f"{path} was shut down by a process of the service: its path is removed, and a reload binds it anew"
    assert [record.getMessage() for record in caplog.records] == [said]


def test_a_path_that_cannot_be_bound(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is said why, once; the path is as it was."""
    path = tmp_path / ("s" * (120 - len(str(tmp_path))))
    with listening(path=tmp_path / "short") as listener:
        (tmp_path / "short").rename(path)
        listener.path, accept_queue = str(path), AcceptQueue(listener)
        listener.shutdown(socket.SHUT_RDWR)
        assert [accept_queue.look(float(now)) for now in range(3)] == [False] * 3
        assert path.is_socket()
    assert "no new client can connect there until a restart (file name too long)" in caplog.text
    assert len(caplog.records) == 1


@pytest.mark.parametrize("how", HOW)
def test_datagrams_that_were_shut_down(how: int, caplog: pytest.LogCaptureFixture) -> None:
    """They are queued there still; it is said once, and an empty queue does not look full."""
    with listening(socket.SOCK_DGRAM) as listener:
        accept_queue = AcceptQueue(listener)
        with contextlib.suppress(OSError):  # it has no client
            listener.shutdown(how)
        assert not accept_queue.look(1.0)
        with client(listener):
            assert accept_queue.look(2.0)
            assert accept_queue.look(3.0)
            assert listener.recv(10) == b"x"
        assert not accept_queue.look(4.0)
        assert accept_queue.reachable
    said = "was shut down by a process of the service: datagrams come there still, but answers may fail until a restart"
    assert said in caplog.text
    assert len(caplog.records) == 1


def test_one_without_a_path_that_was_shut_down(caplog: pytest.LogCaptureFixture) -> None:
    """An abstract name cannot be bound anew while somebody has the socket: the service is not ready."""
    with Listener(socket.AF_UNIX) as listener, listening() as another:
        listener.bind("")
        listener.listen(10)
        queues = AcceptQueues([another, listener])
        found = [queues.reachable]
        listener.shutdown(socket.SHUT_RDWR)
        assert [queues.look(float(now)) for now in range(3)] == [False] * 3
        found.append(queues.reachable)
    assert found == [True, False]
    assert "no new client can connect there until a restart (invalid argument)" in caplog.text
    assert len(caplog.records) == 1


def test_one_that_the_program_has_mended() -> None:
    """It is found out that clients come again."""
    found = []
    with listening() as listener:
        accept_queue = AcceptQueue(listener)
        with socket.create_connection(listener.getsockname()) as one, listener.accept()[0]:
            listener.shutdown(socket.SHUT_RDWR)
            found += [accept_queue.look(1.0), accept_queue.reachable]
            one.close()
        listener.listen(10)
        found += [accept_queue.look(2.0), accept_queue.reachable]
    assert found == [False, False, False, True]


def test_shut_down_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    """Once it is narrowed nothing is undone, and a drain does not wait for it."""
    with listening() as listener:
        accept_queue = AcceptQueue(listener)
        accept_queue.narrow(1.0)
        listener.shutdown(socket.SHUT_RDWR)
        assert not accept_queue.look(2.0)
        assert not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    assert not caplog.records
