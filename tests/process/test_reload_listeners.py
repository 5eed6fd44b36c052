"""The listeners of a service over its reloads and at its end: wrapped by the program, passed by a manager, or lost."""

import errno
import os
import signal
import socket
from pathlib import Path
from time import monotonic

import pytest

from tests.support.clients.connections import ask, connect
from tests.support.clients.controlling import asked
from tests.support.clients.scraping import get
from tests.support.hosts.manager import Manager, passing
from tests.support.programs.releases import DEFINITIONS, Released, numbered
from tests.support.programs.service import HUNG, Service, script

pytestmark = pytest.mark.once  # nothing of it is the interpreter's

WRAPPED = "from tests.process.programs.wrapped import Wrapped\n"


def test_a_wrapped_listener_that_was_passed(tmp_path: Path) -> None:
    """A listener of a socket unit that the program has wrapped (TLS) is left as it was found, over a reload too: who
    comes after the end is let in by the kernel, and is not refused, nor ever was kept by the manager for us."""
    with Manager(tmp_path) as manager, socket.create_server(("127.0.0.1", 0)) as web:
        before = passing(("web", web.fileno()))
        source = script(WRAPPED, bases="Wrapped", max_children=1, inherited_fd=3)
        with Released(tmp_path, source=source, before=before, fds=[web.fileno()], env=manager.env()) as service:
            service.wait_ready(1)
            service.signal(signal.SIGHUP)
            service.wait_reloads(ok=1)
            service.wait_ready(1, replaced=1)
            service.signal(signal.SIGTERM)
            assert service.wait_exit() == 0
        with socket.create_connection(web.getsockname(), timeout=HUNG):
            pass
        manager.look()
        assert manager.kept == {}


def test_a_wrapped_listener_of_ours(tmp_path: Path) -> None:
    """It is stored with the manager, and its path is removed at the end."""
    with Manager(tmp_path) as manager:
        source = script(WRAPPED.replace("Wrapped\n", "WrappedUnix\n"), bases="WrappedUnix", address="s", max_children=1)
        with Service(tmp_path, source, env=manager.env()) as service:
            service.wait_ready(1)
            manager.wait("READY=1")
            assert len(manager.kept) == 1
            assert (tmp_path / "s").is_socket()
        assert not (tmp_path / "s").exists()


def test_every_socket_that_was_passed_is_handed_on(tmp_path: Path) -> None:
    """One of three is served, the program uses the second, and has closed the third: after each reload the first two
    are there under their names, and the third is not, whatever has its number by then."""
    with (
        socket.create_server(("127.0.0.1", 0)) as web,
        socket.create_server(("127.0.0.1", 0)) as admin,
        socket.create_server(("127.0.0.1", 0)) as third,
    ):
        sockets = {"web": web, "admin": admin, "closed": third}
        before = passing(*((name, sock.fileno()) for name, sock in sockets.items()))
        source = script("import tests.process.programs.two_passed\n" + DEFINITIONS, max_children=1, inherited_fd=3)
        fds = [sock.fileno() for sock in sockets.values()]
        with Released(tmp_path, source=source, before=before, fds=fds) as service:
            service.wait_ready(1)
            for number in (2, 3):
                service.release(numbered(number))
                service.signal(signal.SIGHUP)
                service.wait_reloads(ok=number - 1)
                service.wait_ready(1, replaced=number - 1)
                assert ask(web.getsockname(), b"release\n") == b"r%d\n" % number
        told = [(fact["port"], fact["closed"]) for fact in service.facts if fact["event"] == "admin"]
        assert told == [(admin.getsockname()[1], closed) for closed in (5, *["none of the 2 passed is called closed; "
                                                                            "there is admin, web"] * 2)]  # fmt: skip


def wait_ready_is(status: int, metrics: str) -> None:
    """Until /-/ready answers so; a look at the paths is a second apart from the next."""
    deadline = monotonic() + HUNG
    while (found := get(metrics, "/-/ready").status) != status:
        assert monotonic() < deadline, f"hung: {found}"


def test_paths_that_a_tidy_up_removes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No client can connect to a path that was removed: that is said, and ready is red. A reload binds the path anew,
    as it does those of the metrics and of the control socket; whoever was connected or queued is served."""
    monkeypatch.chdir(tmp_path)
    settings = {"bases": "PreForkingUnixStreamServer", "address": "s", "metrics_address": "m", "control_socket": "c"}
    with Released(tmp_path, max_children=1, **settings) as service:
        service.expect(f"{tmp_path}/s was removed or replaced: no new client can connect there")
        service.allow(f"{tmp_path}/[cm] was removed or replaced")  # seen if a look comes before the reload
        service.wait_ready(1)
        wait_ready_is(200, "m")
        with service.hold() as held, connect("s") as queued:
            queued.send(b"release")
            os.unlink("s")
            wait_ready_is(503, "m")
            os.unlink("c")
            os.unlink("m")
            with pytest.raises(FileNotFoundError):
                connect("s")
            service.release(numbered(2))
            service.signal(signal.SIGHUP)
            service.wait_reloads(ok=0)
            held.close()
            assert queued.answer() == b"r1"
        service.wait_reloads(ok=1)
        service.wait_ready(1, replaced=1)
        assert service.answering() == "r2"
        assert asked(tmp_path / "c", "status")["generation"] == 2
        wait_ready_is(200, "m")
    assert [name for name in "scm" if (tmp_path / name).exists()] == []


def test_a_path_that_another_service_has_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is left to that one: the reload is refused, and who is connected is served on."""
    monkeypatch.chdir(tmp_path)
    with Released(tmp_path, max_children=1, bases="PreForkingUnixStreamServer", address="s") as service:
        service.expect("(?s)reload failed: .*could not bind s: another server is listening there")
        service.wait_ready(1)
        with service.hold() as held, socket.socket(socket.AF_UNIX) as other:
            os.unlink("s")
            other.bind("s")
            other.listen()
            service.allow("s was removed or replaced")
            service.signal(signal.SIGHUP)
            service.wait_reloads(failed=1)
            assert held.ask(b"release") == b"r1"
            service.signal(signal.SIGTERM)
            held.close()
            assert service.wait_exit() == 0
            with socket.socket(socket.AF_UNIX) as client:
                assert client.connect_ex("s") != errno.ENOENT


def test_a_second_pool_is_refused(tmp_path: Path) -> None:
    """In a process that serves from one pool another one is refused by a sentence, and can be served afterwards."""
    with Service(tmp_path, argv=["-m", "tests.process.programs.second_pool"]) as service:
        assert service.wait("refused")["why"] == (
            "could not serve second from a pool: first is served by this process already"
        )
        assert ask(service.address, b"pid\n")
        service.signal(signal.SIGTERM)
        second = service.wait("worker_started", lambda fact: fact["of"] == "second")
        assert second["pid"] != service.pid
