"""A Unix path to bind: what stands there already is taken over only when nobody listens; what is not ours stays."""

import errno
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

import prefork
from prefork import BindError, PreForkingUnixDatagramServer, PreForkingUnixStreamServer
from tests.support.clients.connections import ask
from tests.support.programs.service import Service, script
from tests.support.tools.figures import figure

pytestmark = pytest.mark.quick_faults
SERVERS = [PreForkingUnixStreamServer, PreForkingUnixDatagramServer]


class Nothing(prefork.BaseRequestHandler):
    """Serves nobody: these servers are only made."""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A short one: relative to the directory of the test."""
    monkeypatch.chdir(tmp_path)
    return Path("s")


def identity(path: Path) -> tuple[int, int, int]:
    found = path.lstat()
    return found.st_ino, found.st_mode, found.st_ctime_ns


def refused(cls: type[Any], path: Path, said: str) -> BindError:
    """The server is refused with this sentence, and what stands on the path is what stood there."""
    before = identity(path)
    with pytest.raises(BindError) as caught:
        cls(str(path), Nothing)
    assert str(caught.value).endswith(f"could not bind {path}: {said}")
    assert identity(path) == before
    figure(f"{cls.__name__} on a path that is taken", said)
    return caught.value


@pytest.mark.parametrize("cls", SERVERS)
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_live_server_there(kind: int, cls: type[Any], path: Path) -> None:
    """A path on which somebody listens, of either kind, is refused as in use."""
    with socket.socket(socket.AF_UNIX, kind) as other:
        other.bind(str(path))
        if kind == socket.SOCK_STREAM:
            other.listen()
        assert refused(cls, path, "another server is listening there").errno == errno.EADDRINUSE


def test_full_backlog_there(path: Path) -> None:
    """A server whose queue is full answers EAGAIN, and is alive."""
    with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as first:
        other.bind(str(path))
        other.listen(0)
        first.connect(str(path))
        with socket.socket(socket.AF_UNIX) as second:
            second.setblocking(False)
            assert second.connect_ex(str(path)) == errno.EAGAIN
        refused(PreForkingUnixStreamServer, path, "another server is listening there")


@pytest.mark.parametrize("cls", SERVERS)
@pytest.mark.parametrize("what", ["file", "directory", "link to a file", "link to a socket", "link to nothing", "fifo"])
def test_something_else_there(what: str, cls: type[Any], path: Path, tmp_path: Path) -> None:
    """What is no socket is refused, and so is a link, wherever it leads: neither it nor its target is touched."""
    target = tmp_path / "target"
    match what:
        case "file":
            path.write_text("precious")
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "link to a socket":
            with socket.socket(socket.AF_UNIX) as stale:
                stale.bind("target")
            path.symlink_to("target")
        case "link to a file":
            target.write_text("precious")
            path.symlink_to("target")
        case _:
            path.symlink_to("target")
    before = target.exists() and identity(target)
    refused(cls, path, "it exists and is not a socket")
    assert before == (target.exists() and identity(target))


@pytest.mark.parametrize("cls", SERVERS)
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_stale_socket_there(kind: int, cls: type[Any], path: Path) -> None:
    """A socket that nobody listens on is taken over, and removed at the end."""
    with socket.socket(socket.AF_UNIX, kind) as stale:
        stale.bind(str(path))
        before = identity(path)
    with cls(str(path), Nothing) as server:
        assert server.server_address == str(path)
        assert identity(path) != before
    assert not path.exists()


@pytest.mark.parametrize("cls", SERVERS)
@pytest.mark.parametrize("what", ["another socket", "file", "nothing"])
def test_path_is_another_s_at_the_end(what: str, cls: type[Any], path: Path) -> None:
    """What stands at the end where our socket stood, and is not ours, stays."""
    with cls(str(path), Nothing):
        path.unlink()
        if what == "another socket":
            with socket.socket(socket.AF_UNIX) as other:
                other.bind(str(path))
        elif what == "file":
            path.write_text("precious")
        before = path.exists() and identity(path)
    assert before == (path.exists() and identity(path))


def test_after_a_kill(tmp_path: Path) -> None:
    """What kill -9 of the whole service leaves is taken over by the next one, which serves, and leaves nothing."""
    source = script(bases="PreForkingUnixStreamServer", address="s", max_children=1)
    with Service(tmp_path, source) as service:
        service.wait_ready(1)
        [worker] = service.workers()
        service.signal(signal.SIGSTOP)
        service.signal(signal.SIGKILL, worker)
        service.signal(signal.SIGKILL)
        service.wait_exit()
        service.wait_gone()
    assert (tmp_path / "s").is_socket()
    with Service(tmp_path, source) as service:
        assert int(ask(service.address, b"pid\n"))
    assert not (tmp_path / "s").exists()


def test_two_services(tmp_path: Path) -> None:
    """A second service on the path of a running one ends with 4 and a sentence; the first serves on."""
    (tmp_path / "app.py").write_text(script(bases="PreForkingUnixStreamServer"))
    argv = ["-m", "prefork", "run", "app:Server", "--bind", f"unix:{tmp_path}/s", "--max-children", "1"]
    with Service(tmp_path, argv=argv) as first:
        first.wait_ready(1)
        with Service(tmp_path, argv=argv) as second:
            assert second.wait_exit() == 4
        assert "another server is listening there" in second.log.splitlines()[-1]
        assert ask(str(tmp_path / "s"), b"pid\n")
