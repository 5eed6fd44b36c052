"""prefork.testing: a real pool for the users' own tests, and nothing of it left, however the test ends."""

import os
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from prefork import (
    BootError,
    ConfigError,
    PreForkingTCPServer,
    PreForkingUDPServer,
    PreForkingUnixStreamServer,
    StreamRequestHandler,
    ThreadingMixIn,
)
from prefork.testing import running
from tests.support.clients.connections import ask, ask_datagram
from tests.support.programs.service import HUNG, Watch

ROOT = Path(__file__).parents[2]


class Upper(StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line.upper())


def test_a_pool_serves_and_counts() -> None:
    """The block has a pool that is ready, in other processes than this one, and its statistics."""
    with running(PreForkingTCPServer, Upper) as pool:
        assert pool.pid != os.getpid()
        for _ in range(3):
            assert ask(pool.address, b"hello\n") == b"HELLO\n"
        assert pool.statistics().accepted == 3
        assert "listening on" in pool.log
        watch = Watch(pool.pid)
    with watch:
        assert watch.alive() == []


@pytest.mark.once
def test_companions_given_to_a_class_without_any(tmp_path: Path) -> None:
    """As every setting is: one that the class declares or has by default, and this one, which has no default."""

    def run(server: PreForkingTCPServer) -> None:
        (tmp_path / "ran").touch()
        server.wait_draining()

    with running(PreForkingTCPServer, Upper, companions={"one": run}):
        deadline = monotonic() + HUNG
        while not (tmp_path / "ran").exists():
            assert monotonic() < deadline


def test_classes_made_in_the_test() -> None:
    """Server and handler may be local classes; a setting is a class attribute that holds before the bind."""
    word = "local"

    class Local(StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(f"{word} {self.server.extra} {self.server.request_queue_size}".encode())

    class Server(ThreadingMixIn, socketserver.TCPServer):
        extra = 1

    with running(Server, Local, extra=2, request_queue_size=7, max_children=1) as pool:
        assert ask(pool.address, b"") == b"local 2 7"


def test_unix_and_datagrams() -> None:
    """A Unix server gets a fresh path that is gone afterwards; a UDP server a free port."""

    class Echo(socketserver.DatagramRequestHandler):
        def handle(self) -> None:
            self.wfile.write(self.rfile.read())

    with running(PreForkingUnixStreamServer, Upper) as pool, running(PreForkingUDPServer, Echo) as other:
        assert ask(pool.address, b"a\n") == b"A\n"
        assert ask_datagram(other.address, b"b") == b"b"
    assert not Path(pool.address).parent.exists()


def test_an_exception_ends_the_pool(capfd: pytest.CaptureFixture[str]) -> None:
    """The test's own exception, Ctrl-C's too, goes through; the pool is gone, though a client is served, and its log
    is shown."""
    for raised in (ValueError, KeyboardInterrupt):
        with pytest.raises(raised):  # noqa: PT012
            with running(PreForkingTCPServer, Upper) as pool:
                client = socket.create_connection(pool.address, HUNG)
                watch = Watch(pool.pid)
                raise raised
        with watch, client:
            assert watch.alive() == []
        assert "listening on" in capfd.readouterr().err


def test_mistakes_are_exceptions_here() -> None:
    """An unknown setting, an address in use, and a worker that cannot start raise in the test."""
    with pytest.raises(ConfigError, match=r"no such setting; did you mean max_children\?"):
        with running(PreForkingTCPServer, Upper, max_childen=3):
            pass
    with running(PreForkingTCPServer, Upper) as pool, pytest.raises(OSError, match="in use"):
        with running(PreForkingTCPServer, Upper, pool.address):
            pass

    class Broken(PreForkingTCPServer):
        def worker_started(self) -> None:
            raise BootError("broken on purpose")

    with pytest.raises(RuntimeError, match="ended before it said 'ready'"):
        with running(Broken, Upper):
            pass


def test_a_pool_that_died() -> None:
    """A pool that was killed from outside is a RuntimeError at the next question, and its workers follow it."""
    with pytest.raises(RuntimeError, match="ended before"):  # noqa: PT012
        with running(PreForkingTCPServer, Upper) as pool:
            os.kill(pool.pid, signal.SIGKILL)
            pool.statistics()


def test_a_test_with_threads() -> None:
    """From a thread of a test that has others, in which no other thread runs."""
    stop = threading.Event()
    other = threading.Thread(target=stop.wait)
    other.start()
    answers: list[Any] = []

    class Count(StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"%d" % threading.active_count())

    def use() -> None:
        with running(PreForkingTCPServer, Count) as pool:
            answers.append(ask(pool.address, b""))

    user = threading.Thread(target=use)
    user.start()
    user.join(HUNG)
    stop.set()
    other.join(HUNG)
    assert answers == [b"1"]


USER = Path(__file__).parent / "programs" / "users_tests.py"


def pytest_of(tmp_path: Path) -> "subprocess.Popen[str]":
    shutil.copy(USER, tmp_path / "test_user.py")
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", ".", "test_user.py"]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    out = subprocess.PIPE
    return subprocess.Popen(argv, cwd=tmp_path, env=environ, stdout=out, stderr=subprocess.STDOUT, text=True)


def test_the_fixture_in_parallel(tmp_path: Path) -> None:
    """Three pytest at once, as xdist has them: the fixture serves each, ends each pool with its test, and the log of
    the one that fails is in the report."""
    with_them = [pytest_of(tmp_path) for _ in range(3)]
    reports = [each.communicate(timeout=2 * HUNG)[0] for each in with_them]
    for report in reports:
        assert "1 failed, 1 passed" in report
        assert report.count("listening on") == 1
    pids = [int(path.read_text()) for path in tmp_path.glob("pid-*")]
    assert len(pids) == 3
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_killed_test_leaves_no_pool(tmp_path: Path) -> None:
    """The process of the test is killed: its pool ends by itself."""
    code = (
        "import os, signal; from prefork import *; from prefork.testing import running\n"
        "with running(PreForkingTCPServer, StreamRequestHandler) as pool:\n"
        "    print(pool.pid, flush=True); os.read(0, 1)\n"
    )
    argv = [sys.executable, "-c", code]
    with subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as test:
        assert test.stdout is not None
        with Watch(int(test.stdout.readline())) as watch:
            test.kill()
            watch.wait_dead()


def test_it_disturbs_nobody() -> None:
    """Importing prefork, or prefork.testing, loads neither pytest nor the fixture."""
    heavy = ("pytest", "_pytest", "prefork.fixtures")
    code = f"import prefork.testing, sys; print([m for m in {heavy!r} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT, timeout=HUNG) == "[]\n"
