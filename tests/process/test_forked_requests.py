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
from typing import Any

import pytest

from prefork import BaseRequestHandler, ForkingTCPServer
from prefork.workers.signals import HEARD
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
        if word == "siblings":
            self.server.collect_children(blocking=True)
            self.request.sendall(repr(self.server.active_children).encode())
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


class Answers(BaseRequestHandler):
    def handle(self) -> None:
        self.request.sendall(b"answer")


class LongWay(ForkingTCPServer):
    """The same, by all hooks: one is defined, which does what it does anyway."""

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return True


@pytest.mark.parametrize("server_class", [ForkingTCPServer, LongWay])
def test_each_end_is_counted(server_class: type[ForkingTCPServer]) -> None:
    """Completed, also by os._exit(0); failed; and lost where the child ends by a signal, or with another status."""
    server = server_class(LOOPBACK, Told)
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


@pytest.mark.parametrize("server_class", [ForkingTCPServer, LongWay])
def test_last_words_are_each_ones_own(
    server_class: type[ForkingTCPServer], caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    """Children that share their memory and end at the same time are told apart in the log."""
    server = server_class(LOOPBACK, Told)
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


@pytest.mark.parametrize("server_class", [ForkingTCPServer, LongWay])
def test_a_child_holds_nothing_of_its_siblings(server_class: type[ForkingTCPServer]) -> None:
    """Nor what the loop waits with: no pidfd, no epoll."""
    server = server_class(LOOPBACK, Told)
    with serving(server), contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(told(server))
        wait_until(lambda: sorted(kinds(descriptors())) == ["eventpoll", *["pidfd"] * 3])
        client, _ = stack.enter_context(told(server))
        client.sendall(b"descriptors")
        assert client.recv(1000) == b"none"


@pytest.mark.parametrize("server_class", [ForkingTCPServer, LongWay])
def test_a_child_has_no_children(server_class: type[ForkingTCPServer]) -> None:
    """Its siblings are none of its own: it waits for nobody."""
    server = server_class(LOOPBACK, Told)
    with serving(server), told(server), told(server) as (client, _):
        client.sendall(b"siblings")
        assert client.recv(1000) == b"set()"


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


def _refused_late(pid: int, flags: int = 0, ours: int = os.getpid(), real: Any = os.pidfd_open) -> int:
    if os.getpid() != ours:  # in the child, which watches its parent
        watched: int = real(pid, flags)
        return watched
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return _refused(pid)


class Measured(ForkingTCPServer):
    metrics_address = LOOPBACK


@pytest.mark.parametrize("server_class", [ForkingTCPServer, LongWay, Measured])
def test_a_child_that_has_answered_before_it_is_given_up(
    server_class: type[ForkingTCPServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its request is counted once, as what it was to the client."""
    server, given_up = server_class(LOOPBACK, Answers), threading.Event()
    server.handle_error = lambda *_: given_up.set()  # type: ignore[method-assign]
    with serving(server):
        if server_class is Measured:
            wait_until(lambda: server.metrics_server_address is not None)
            assert ask(server.metrics_server_address, b"GET /-/healthy HTTP/1.0\r\n\r\n")  # it is forked
        with monkeypatch.context() as patch:
            patch.setattr(os, "pidfd_open", _refused_late)
            assert ask(server.server_address, b"") == b"answer"
            assert given_up.wait(HUNG)
        assert ask(server.server_address, b"") == b"answer"
        wait_until(lambda: server.statistics().completed == 2 and at_rest(server))
    counts = server.statistics()
    assert (counts.accepted, counts.completed, counts.failed, counts.lost) == (2, 2, 0, 0)


@pytest.mark.parametrize("server_class", [ForkingTCPServer, LongWay, Measured])
def test_a_child_that_cannot_be_waited_for(
    server_class: type[ForkingTCPServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the kernel has a limit for those: its request fails, and the next one is served and counted."""
    server = server_class(LOOPBACK, Answers)
    with serving(server):
        assert ask(server.server_address, b"") == b"answer"
        wait_until(lambda: server.statistics().completed == 1 and at_rest(server))
        waiting = server._prefork_.supervisor.waiting
        with monkeypatch.context() as patch:
            patch.setattr(waiting, "add", _refused)
            patch.setattr(waiting, "add_pidfd", _refused)
            ask(server.server_address, b"")
            wait_until(lambda: server.statistics().completed + server.statistics().failed == 2)
        assert ask(server.server_address, b"") == b"answer"
        wait_until(lambda: server.statistics().accepted == 3 and at_rest(server))
    counts = server.statistics()
    assert counts.completed + counts.failed == counts.accepted == 3


@pytest.mark.parametrize("measured", [[], ["measured"]])
@pytest.mark.parametrize("threads", [[], ["threads"]])
@pytest.mark.parametrize("how", [[], ["wrapped"], ["records"]])
def test_what_is_printed_is_printed_once(
    how: list[str], threads: list[str], measured: list[str], tmp_path: Path
) -> None:
    """What the parent has in its buffer at the fork is the parent's; what a child prints is there when it has ended."""
    argv = [sys.executable, "-m", "tests.process.programs.printing", *how, *threads, *measured]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open(tmp_path / "out", "wb") as out, subprocess.Popen(
        argv, cwd=ROOT, stdout=out, stderr=subprocess.PIPE, text=True, env=buffered
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


@pytest.mark.parametrize("words", [[], ["measured"]])
@pytest.mark.parametrize(
    "signum", sorted(HEARD - {signal.SIGALRM, signal.SIGCHLD}), ids=lambda signum: signal.Signals(signum).name
)
def test_what_the_program_blocks_is_blocked_in_its_children(signum: int, words: list[str]) -> None:
    """A signal to the whole group, which the program waits for in a thread of its own, ends no request in hand."""
    argv = [sys.executable, "-m", "tests.process.programs.signals_awaited", str(signum), *words]
    with subprocess.Popen(
        argv, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:  # fmt: skip
        hung = threading.Timer(HUNG, process.kill)
        hung.start()
        assert process.stdout is not None
        with dial(("127.0.0.1", int(process.stdout.readline()))) as client:
            assert client.recv(100) == b"begun"
            os.killpg(process.pid, signum)
            assert process.stdout.readline() == f"{signum}\n"
            client.sendall(b"x")
            assert client.recv(100) == b"done"
        assert process.wait(HUNG) == 0
        hung.cancel()
        hung.join()


class Collects(ForkingTCPServer):
    """Has a hook of its own."""

    collected: Callable[..., object]

    def collect_children(self, *, blocking: bool = False) -> None:
        super().collect_children(blocking=blocking)
        self.collected()


class CollectsNothing(ForkingTCPServer):
    """The same, and leaves its children to others."""

    collected: Callable[..., object]

    def collect_children(self, *, blocking: bool = False) -> None:
        self.collected()


@pytest.mark.parametrize("server_class", [Collects, CollectsNothing, ForkingTCPServer])
def test_collect_children_is_a_hook(server_class: type[ForkingTCPServer]) -> None:
    """The loop calls it after each wait, at least every `poll_interval`; what it leaves undone is done all the same."""
    with server_class(LOOPBACK, Upper) as server:
        called = threading.Semaphore(0)
        if server_class is ForkingTCPServer:

            def collect_children(*, blocking: bool = False) -> None:
                ForkingTCPServer.collect_children(server, blocking=blocking)
                called.release()

            server.collect_children = collect_children  # type: ignore[method-assign]
        else:
            server.collected = called.release  # type: ignore[attr-defined]
        with serving(server, 0.01):
            for _ in range(3):
                assert called.acquire(timeout=HUNG)
            assert ask(server.server_address, b"x") == b"X"
            wait_until(lambda: server.statistics().completed == 1 and not server._prefork_.supervisor.table.children)
            for _ in range(3):
                assert called.acquire(timeout=HUNG)


@contextlib.contextmanager
def few_descriptors(name: str, free: int) -> Iterator[tuple[str, int]]:
    """Such a server; at its end it has given up nothing."""
    program = [sys.executable, "-m", "tests.process.programs.few_descriptors", name, str(free)]
    pipe = subprocess.PIPE
    with (
        subprocess.Popen(program, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(process.kill)  # nothing when it has ended
        assert process.stdin is not None
        assert process.stdout is not None
        address = ("127.0.0.1", int(process.stdout.readline()))
        if "Datagrams" in name:
            assert answers(address, 1) == [b"LINE"]
        else:
            assert ask(address, b"before\n") == b"BEFORE\n"
        print(file=process.stdin, flush=True)
        assert process.stdout.readline() == "few\n"
        yield address
        process.stdin.close()
        assert process.stdout.read() == ""
        assert process.wait(HUNG) == 0


def answers(address: tuple[str, int], count: int) -> list[bytes]:
    """What comes back for so many datagrams, sent at once."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(HUNG)
        for _ in range(count):
            client.sendto(b"line", address)
        return [client.recv(9) for _ in range(count)]


@pytest.mark.once
@pytest.mark.parametrize("name", ["Server", "LongWay", "Measured"])
@pytest.mark.parametrize("free", [1, 2, 3])
def test_few_descriptors(free: int, name: str) -> None:
    """A client that was accepted with the last one is served, though its child is watched by one more; the others wait
    for their turn."""
    with few_descriptors(name, free) as address, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(dial(address)) for _ in range(6)]
        for client in clients:
            client.sendall(b"line\n")
            assert client.recv(9) == b"LINE\n"
            client.shutdown(socket.SHUT_WR)
            assert client.recv(9) == b""


@pytest.mark.once
@pytest.mark.parametrize("name", ["Datagrams", "MeasuredDatagrams"])
@pytest.mark.parametrize("free", [1, 2, 3])
def test_datagrams_with_few_descriptors(free: int, name: str) -> None:
    """None is received while no child could be watched that answers it."""
    with few_descriptors(name, free) as address:
        assert answers(address, 20) == [b"LINE"] * 20
