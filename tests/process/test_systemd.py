"""A service under systemd: the sockets it is passed, by systemd's own tool, and what it tells the manager."""

import contextlib
import os
import shutil
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.clients.connections import ask, ask_datagram, free_ports
from tests.support.hosts.manager import Manager, passing
from tests.support.programs import command
from tests.support.programs.releases import Released, numbered
from tests.support.programs.service import Service, script

pytestmark = pytest.mark.once  # nothing of it is the interpreter's

APP = Path(__file__).parent / "programs" / "systemd_app.py"
ENVIRONMENT = "from tests.process.programs.systemd_app import Environment as Handler"
BOOTS_ONE_BY_ONE = "from tests.process.programs.systemd_app import OneByOne as Hooks"


needs_activate = pytest.mark.skipif(
    shutil.which("systemd-socket-activate") is None,
    reason="systemd-socket-activate is not installed (Debian's package systemd has it)",
)


def activated(*listen: str) -> tuple[str, ...]:
    """`prefork` behind systemd-socket-activate, which starts it at the first connection."""
    passed_on = (f"--setenv={name}" for name in ("PATH", "PYTHONPATH"))
    return ("systemd-socket-activate", *passed_on, *listen, sys.executable, "-m", "prefork")


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with the program, found by whatever is started."""
    shutil.copy(APP, tmp_path / "app.py")
    monkeypatch.setenv("PYTHONPATH", str(command.ROOT))
    return tmp_path


class First:
    """A client that connects as soon as systemd-socket-activate listens, which starts the service."""

    def __init__(self, path: str, kind: int = socket.SOCK_STREAM, mine: str = "") -> None:
        self.path = path
        self.sock = socket.socket(socket.AF_UNIX, kind)
        self.sock.settimeout(command.HUNG)
        if mine:
            self.sock.bind(mine)

    def on_line(self, line: str) -> None:
        if line.startswith("Listening on "):
            self.sock.connect(self.path)
            self.sock.sendall(b"x\n")

    def __enter__(self) -> "First":
        return self

    def __exit__(self, *exc: object) -> None:
        self.sock.close()


@needs_activate
@pytest.mark.parametrize(
    ("options", "bind"), [((), "systemd"), (("--fdname=web",), "systemd"), (("--fdname=web",), "systemd:web")]
)
def test_socket_activation(options: tuple[str, ...], bind: str, app: Path) -> None:
    """systemd-socket-activate starts the service at the first connection, which is served; nothing of the protocol is
    left in the environment of workers and of their subprocesses; the path stays, for it is systemd's."""
    program = activated("-l", str(app / "s"), *options)
    argv = ["run", "app:Stream", "--bind", bind, "--max-children", "2"]
    with First(os.path.relpath(app / "s")) as first:
        with command.running(argv, cwd=app, program=program, on_line=first.on_line) as run:
            pid, variables = first.sock.recv(1000).decode().split(" ", 1)
            assert variables == "[]\n"
            assert psutil.Process(int(pid)).ppid() == run.pid
            first.sock.close()
            assert ask(first.path, b"x\n")
            assert run.ended(signal.SIGTERM) == 0
    assert (app / "s").is_socket()


@needs_activate
def test_datagram_activation(app: Path) -> None:
    """A datagram socket is passed as well, and says itself what it is."""
    program = activated("-d", "-l", str(app / "s"))
    argv = ["run", "app:Datagram", "--bind", "systemd", "--max-children", "1"]
    with First(os.path.relpath(app / "s"), socket.SOCK_DGRAM, str(app / "first")) as first:
        with command.running(argv, cwd=app, program=program, on_line=first.on_line) as run:
            assert first.sock.recv(100) == b"X\n"
            assert ask_datagram(first.path, b"more", str(app / "mine")) == b"MORE"
            assert run.ended(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("bind", "second", "reason"),
    [
        ("systemd:wob", "admin", "none of the 2 passed is called wob; there is admin, web"),
    ],
)
def test_which_socket(bind: str, second: str, reason: str, app: Path) -> None:
    """A name that none of them has is told with those that there are, and the exit status is 2."""
    with socket.create_server(("127.0.0.1", 0)) as web, socket.create_server(("127.0.0.1", 0)) as admin:
        program = (*passing(("web", web.fileno()), (second, admin.fileno())), *command.MODULE)
        argv, fds = ["run", "app:Stream", "--bind", bind], (web.fileno(), admin.fileno())
        with command.running(argv, cwd=app, program=program, fds=fds) as run:
            assert run.ended() == 2
        assert reason in run.log


def test_one_of_two_sockets(app: Path) -> None:
    """systemd:NAME serves on the socket of that name and leaves the other alone."""
    with socket.create_server(("127.0.0.1", 0)) as web, socket.create_server(("127.0.0.1", 0)) as admin:
        program = (*passing(("web", web.fileno()), ("admin", admin.fileno())), *command.MODULE)
        argv, fds = ["run", "app:Stream", "--bind", "systemd:admin"], (web.fileno(), admin.fileno())
        with command.running(argv, cwd=app, program=program, fds=fds) as run:
            assert run.port == admin.getsockname()[1]
            assert ask(admin.getsockname(), b"x\n")


def test_sockets_of_another_process(app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables that were meant for our parent are not taken for ours."""
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    with command.running(["run", "app:Stream", "--bind", "systemd"], cwd=app) as run:
        assert run.ended() == 2
    assert f"LISTEN_PID is {os.getpid()}, and this process is {run.pid}: they are for another one" in run.log


def test_activation_over_a_reload(app: Path) -> None:
    """A reload goes on with the socket that was passed."""
    with socket.create_server(("127.0.0.1", 0)) as web:
        program = (*passing(("web", web.fileno())), *command.MODULE)
        argv = ["run", "app:Stream", "--bind", "systemd:web", "--max-children", "1"]
        with command.running(argv, cwd=app, program=program, fds=(web.fileno(),)) as run:
            before = ask(web.getsockname(), b"x\n").split()[0]
            run.process.send_signal(signal.SIGHUP)
            run.read_until_listening()
            assert run.port == web.getsockname()[1]
            while (after := ask(web.getsockname(), b"x\n").split()[0]) == before:
                pass  # the old generation serves until the new is there
            assert psutil.Process(int(after)).ppid() == run.pid


PASSED = {  # the kind of socket, how the service finds it, whether it is reloaded before its end
    "stream, systemd": (socket.SOCK_STREAM, "systemd:web", False),
    "stream, systemd, reloaded": (socket.SOCK_STREAM, "systemd:web", True),
    "stream, fd, reloaded": (socket.SOCK_STREAM, "fd://{}", True),
    "datagram, fd": (socket.SOCK_DGRAM, "fd://{}", False),
    "datagram, systemd, reloaded": (socket.SOCK_DGRAM, "systemd:web", True),
}


@pytest.mark.parametrize("how", PASSED)
def test_who_comes_to_a_passed_socket_after_the_end(how: str, app: Path) -> None:
    """A passed socket is left as it was found: the kernel lets in who comes after the end, also where the service was
    reloaded, and the next life of the service answers."""
    kind, bind, reloads = PASSED[how]
    with socket.socket(socket.AF_INET, kind) as passed, socket.socket(socket.AF_INET, kind) as late:
        passed.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            passed.listen()
        target = "app:Stream" if kind == socket.SOCK_STREAM else "app:Datagram"
        argv = ["run", target, "--bind", bind.format(passed.fileno()), "--max-children", "1"]
        program = (*passing(("web", passed.fileno())), *command.MODULE) if "systemd" in bind else command.MODULE
        with command.running(argv, cwd=app, program=program, fds=(passed.fileno(),)) as run:
            question = ask if kind == socket.SOCK_STREAM else ask_datagram
            assert question(passed.getsockname(), b"x\n")
            if reloads:
                run.allow("reload failed: the service is about to end")  # the new image listens before it is in service
                run.process.send_signal(signal.SIGHUP)
                run.read_until_listening()
            assert run.ended(signal.SIGTERM) == 0
        late.settimeout(command.HUNG)
        late.connect(passed.getsockname())  # nobody accepts yet
        late.sendall(b"x\n")
        with command.running(argv, cwd=app, program=program, fds=(passed.fileno(),)):
            assert late.recv(1000)
            late.close()


# Notices. Their order, and the watchdog, are a promise of FAULTS.md: tests/faults/test_manager.py.


def test_ready_when_all_are(tmp_path: Path) -> None:
    """READY=1 comes only when min_children are READY; until then the status says how many are."""
    os.mkfifo(tmp_path / "gate")
    with Manager(tmp_path) as manager:
        with Service(tmp_path, script(BOOTS_ONE_BY_ONE, max_children=2), env=manager.env()) as service:
            service.wait("second")
            service.wait_pool(lambda pool: pool["ready"] == 1 and pool["starting"] == 1)
            number = manager.wait("STATUS=serving: 1 of 2 workers, 1 starting")
            assert manager.states == []
            with (tmp_path / "gate").open("w"):
                pass
            service.wait_ready(2)
            assert "STATUS=serving: 2 workers" in manager.messages[manager.wait("READY=1", after=number)]


def test_status_follows_the_pool(tmp_path: Path) -> None:
    """The status changes with the pool, and says so when the service drains."""
    with Manager(tmp_path) as manager:
        with Service(tmp_path, script(max_children=1), env=manager.env()) as service:
            number = manager.wait("STATUS=serving: 1 worker")
            service.signal(signal.SIGTTIN)
            number = manager.wait("STATUS=serving: 2 workers", after=number)
            with service.hold():
                service.signal(signal.SIGTERM)
                manager.wait("STATUS=draining: ", after=number)
            assert service.wait_exit() == 0
        manager.look()
    assert manager.messages[-1].endswith("STATUS=stopped")


def test_nothing_of_it_is_inherited(tmp_path: Path) -> None:
    """Workers and their subprocesses have neither the variables nor a copy of the socket to the manager."""
    with Manager(tmp_path) as manager:
        env = manager.env(watchdog_s=60)
        with Service(tmp_path, script(ENVIRONMENT, max_children=1), env=env) as service:
            service.wait_ready(1)
            manager.wait("READY=1")
            with service.hold() as held:
                assert held.ask(b"env") == b"[]"
                # The listener, and nothing else: not the wake-up, and not the one to the manager.
                assert len(sockets(service.pid) & sockets(held.pid)) == 1


def sockets(pid: int) -> set[str]:
    """The sockets that a process has, by what only the same socket has."""
    links = (os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))
    return {link for link in links if link.startswith("socket:")}


def test_watchdog_of_another_process(tmp_path: Path) -> None:
    """Where WATCHDOG_PID is somebody else's nothing feeds it."""
    with Manager(tmp_path) as manager:
        env = manager.env(watchdog_s=0.02, watchdog_pid=os.getpid())
        with Service(tmp_path, script(max_children=1), env=env) as service:
            manager.wait("READY=1")
            service.signal(signal.SIGTERM)
            assert service.wait_exit() == 0
            manager.look()
    assert "WATCHDOG=1" not in manager.messages


def test_manager_that_is_gone(tmp_path: Path) -> None:
    """A manager that does not listen is no reason not to serve."""
    with Manager(tmp_path) as manager:
        env = manager.env(watchdog_s=0.1)
    with Service(tmp_path, script(max_children=1), env=env) as service:
        service.wait_ready(1)
        assert int(ask(service.address, b"pid\n"))


def test_a_manager_that_is_slow(tmp_path: Path) -> None:
    """What it had no room for when the service started is told as soon as it has: the listener, READY, the status."""
    with Manager(tmp_path) as manager:
        manager.fill()
        with Service(tmp_path, script(max_children=1), env=manager.env()) as service:
            service.wait_ready(1)
            service.statistics()  # a turn later: it was tried
            assert len(manager.kept) == 0
            assert "STATUS=serving: 1 worker" in manager.messages[manager.wait("READY=1")]
            assert [port(fd) for fd in manager.kept.values()] == [service.address[1]]


def port(fd: int) -> int:
    """Of the listener that is kept under this number."""
    with socket.socket(fileno=os.dup(fd)) as sock:
        return int(sock.getsockname()[1])


def test_a_passed_socket_is_not_kept(tmp_path: Path) -> None:
    """What the manager passed on it has itself, and is not asked to keep."""
    with Manager(tmp_path) as manager, socket.create_server(("127.0.0.1", 0)) as web:
        before, fds = passing(("web", web.fileno())), [web.fileno()]
        source = script(max_children=1, inherited_fd=3)
        with Service(tmp_path, source, env=manager.env(), before=before, fds=fds) as service:
            service.wait_ready(1)
            manager.wait("READY=1")
            assert tuple(service.address) == web.getsockname()
        manager.look()
    assert not any("FDSTORE" in message for message in manager.messages)


@pytest.mark.timed
def test_the_queue_of_a_passed_socket_is_for_the_next(tmp_path: Path) -> None:
    """A drain does not wait for the queue of a passed socket: but for one that a worker may take before it leaves, who
    waits there is answered by the next life of the service."""
    with socket.create_server(("127.0.0.1", 0)) as web, contextlib.ExitStack() as stack:
        passed: dict[str, Any] = {"before": passing(("web", web.fileno())), "fds": [web.fileno()]}
        source = script(max_children=1, inherited_fd=3)
        with Service(tmp_path, source, **passed) as first:
            first.wait_ready(1)
            held = first.hold()
            waiting = [stack.enter_context(first.connect()) for _ in range(4)]
            for connection in waiting:
                connection.send(b"pid")
                connection.sock.shutdown(socket.SHUT_WR)
            sent_at = first.signal(signal.SIGTERM)
            assert first.wait_pool(lambda pool: pool["draining"] == 1)["at"] - sent_at < 5  # and not at half of 30 s
            held.close()
            assert first.wait_exit() == 0
        with Service(tmp_path, source, **passed) as second:
            second.wait_ready(1)
            answered_by = [int(connection.answer()) for connection in waiting]
            assert answered_by.count(held.pid) <= 1
            assert set(answered_by) - {held.pid} == set(second.workers())


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_the_end_takes_the_listener_back(signum: int, tmp_path: Path) -> None:
    """A service that ends by itself leaves nothing with the manager, before its last worker is gone: who connects then
    is refused, and does not wait in a queue that nobody serves."""
    with Manager(tmp_path) as manager:
        with Service(tmp_path, script(max_children=1), env=manager.env()) as service:
            service.wait_ready(1)
            manager.wait("READY=1")
            assert len(manager.kept) == 1
            with service.hold():
                service.signal(signum)
                manager.wait("FDSTOREREMOVE=1")
                assert manager.kept == {}
            assert service.wait_exit() == 0


ELSEWHERE = """
class Hooks:
    def __init__(self, address, handler):
        super().__init__(("127.0.0.1", {}), handler)
"""


def test_a_reload_to_another_address_changes_what_is_kept(tmp_path: Path) -> None:
    """The manager keeps the new listener, and the old one no longer."""
    first, second = free_ports(2)
    with Manager(tmp_path) as manager:
        settings: dict[str, Any] = {"max_children": 1, "env": manager.env()}
        with Released(tmp_path, numbered(1, ELSEWHERE.format(first)), **settings) as service:
            service.wait_ready(1)
            number = manager.wait("READY=1")
            assert [port(fd) for fd in manager.kept.values()] == [first]
            service.release(numbered(2, ELSEWHERE.format(second)))
            service.signal(signal.SIGHUP)
            manager.wait("READY=1", after=number + 1)
            assert [port(fd) for fd in manager.kept.values()] == [second]
