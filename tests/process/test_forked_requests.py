"""Children of a plain forking server: what they share, what they count, what they leave to say."""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prefork import BaseRequestHandler, ForkingTCPServer
from tests.support.clients.connections import ask, dial
from tests.support.programs.serving import HUNG, Upper, descriptors, serving

LOOPBACK = ("127.0.0.1", 0)
ROOT = Path(__file__).parents[2]


def wait_until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + HUNG
    while not true():
        assert time.monotonic() < deadline, "hung"
        os.sched_yield()


class Told(BaseRequestHandler):
    """Does what the client says, after it has answered the pid of its child."""

    def handle(self) -> None:
        self.request.sendall(b"%d\n" % os.getpid())
        word = self.request.recv(100).decode()
        if word == "raise":
            raise ValueError(word)
        if word.startswith("exit "):
            sys.exit(f"the words of {word.removeprefix('exit ')}")
        if word.startswith("leave "):
            os._exit(int(word.removeprefix("leave ")))
        if word == "descriptors":
            self.request.sendall(" ".join(kinds(descriptors())).encode() or b"none")


@contextlib.contextmanager
def told(server: ForkingTCPServer) -> Iterator[tuple[socket.socket, int]]:
    """A client, and the pid of the child that serves it. Others, forked here, have copies of its socket."""
    with ended(dial(server.server_address)) as client:
        yield client, int(client.recv(100))


@contextlib.contextmanager
def ended(client: socket.socket) -> Iterator[socket.socket]:
    """A client whose end the server sees, whoever has a copy of its socket."""
    with client:
        try:
            yield client
        finally:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)


def at_rest(server: ForkingTCPServer) -> bool:
    return not server.active_children


def test_each_end_is_counted() -> None:
    """Completed, also by os._exit(0); failed; and lost where the child ends by a signal, or with another status."""
    server = ForkingTCPServer(LOOPBACK, Told)
    with serving(server):
        for word in ("", "", "raise", "leave 0", "leave 3", "kill"):
            with told(server) as (client, pid):
                wait_until(lambda: server.statistics().in_flight == 1)
                if word == "kill":
                    os.kill(pid, signal.SIGKILL)
                else:
                    client.sendall(word.encode() or b"x")
                assert client.recv(1) == b""
            wait_until(lambda: server.statistics().in_flight == 0)
        serving_still = server.statistics()
    for found in (serving_still, server.statistics()):
        assert (found.accepted, found.spawned) == (6, 6)
        assert (found.completed, found.failed, found.lost, found.handed_over) == (3, 1, 2, 0)


def test_lost_ones_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A request that ends with its child is told of, once, with the signal that ended the child."""
    caplog.set_level(logging.INFO)
    server = ForkingTCPServer(LOOPBACK, Told)
    with serving(server), told(server) as (client, pid):
        os.kill(pid, signal.SIGKILL)
        assert client.recv(1) == b""
        wait_until(lambda: at_rest(server))
        wait_until(lambda: len(caplog.records) == 2)
    assert [f"pid={pid}" in record.getMessage() for record in caplog.records] == [True, True]
    assert "requests that ended with it: 1 lost" in caplog.messages[0]
    assert "killed by SIGKILL" in caplog.messages[1]


def test_last_words_are_each_ones_own(caplog: pytest.LogCaptureFixture) -> None:
    """Children that share their memory and end at the same time are told apart in the log."""
    server = ForkingTCPServer(LOOPBACK, Told)
    with serving(server), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(told(server)) for _ in range(8)]
        for client, pid in clients:
            client.sendall(b"exit %d" % pid)
        for client, _ in clients:
            assert client.recv(1) == b""
        wait_until(lambda: at_rest(server))
        wait_until(lambda: len(caplog.records) == 8)
    for _, pid in clients:
        (record,) = [record for record in caplog.records if f"pid={pid}" in record.getMessage()]
        assert record.getMessage().endswith(f"\nthe words of {pid}")


@pytest.mark.parametrize("most", [1, 3, 70])
def test_at_most_max_children(most: int) -> None:
    """No more are accepted until one has ended, also where they are more than the lanes that were made at first."""

    class Few(ForkingTCPServer):
        max_children = most
        request_queue_size = 100

    server = Few(LOOPBACK, Told)
    with serving(server), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(told(server)) for _ in range(most)]
        wait_until(lambda: len(server.active_children or ()) == server.statistics().in_flight == most)
        late = stack.enter_context(ended(dial(server.server_address)))
        late.settimeout(0.1)
        with pytest.raises(TimeoutError):
            late.recv(1)
        clients[0][0].sendall(b"x")
        late.settimeout(HUNG)
        assert int(late.recv(100)) not in [pid for _, pid in clients]
    wait_until(lambda: at_rest(server))


def test_max_children_may_change() -> None:
    """The limit is read for each request."""
    server = ForkingTCPServer(LOOPBACK, Told)
    server.max_children = 1
    with serving(server), contextlib.ExitStack() as stack:
        for number in range(1, 4):
            server.max_children = number
            server._prefork_.wake()
            stack.enter_context(told(server))


def test_a_child_holds_nothing_of_its_siblings() -> None:
    """Nor what the loop waits with: no pidfd, no epoll."""
    server = ForkingTCPServer(LOOPBACK, Told)
    with serving(server), contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(told(server))
        wait_until(lambda: sorted(kinds(descriptors())) == ["eventpoll", *["pidfd"] * 3])
        client, _ = stack.enter_context(told(server))
        client.sendall(b"descriptors")
        assert client.recv(1000) == b"none"


def kinds(found: dict[int, str]) -> list[str]:
    return [kind for what in found.values() for kind in ("eventpoll", "pidfd") if kind in what]


def test_a_request_that_cannot_be_forked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is counted as failed and closed, and its lane serves the next one."""

    class Short(ForkingTCPServer):
        max_children = 1

    server = Short(LOOPBACK, Upper)
    with serving(server):
        with monkeypatch.context() as patch:
            patch.setattr(os, "pidfd_open", _refused)
            with dial(server.server_address) as client:  # what it sent unread would be answered by a reset
                assert client.recv(1) == b""
        wait_until(lambda: server.statistics().failed == 1)
        assert ask(server.server_address, b"x") == b"X"
        wait_until(lambda: at_rest(server))
        assert server.statistics().completed == 1


def _refused(pid: int, flags: int = 0) -> int:
    raise OSError(24, "no descriptor is left")


@pytest.mark.parametrize("words", [[], ["threads"]])
def test_what_is_printed_is_printed_once(words: list[str], tmp_path: Path) -> None:
    """What the parent has in its buffer at the fork is the parent's; what a child prints is there when it has ended."""
    argv = [sys.executable, "-m", "tests.process.programs.printing", *words]
    with open(tmp_path / "out", "wb") as out, subprocess.Popen(
        argv, cwd=ROOT, stdout=out, stderr=subprocess.PIPE, text=True
    ) as process:  # fmt: skip
        hung = threading.Timer(HUNG, process.kill)
        hung.start()
        assert process.stderr is not None
        address = ("127.0.0.1", int(process.stderr.readline()))
        assert [ask(address, b"") for _ in range(2)] == [b"x", b"x"]
        assert process.wait(HUNG) == 0
        hung.cancel()
        hung.join()
    assert sorted((tmp_path / "out").read_text().split()) == ["child", "child", "parent", "parent"]
