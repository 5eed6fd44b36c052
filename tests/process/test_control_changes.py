"""The control socket over a reload: another path, mode or list of users; reloads in a queue; nothing is left behind."""

import os
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from tests.support.clients.controlling import OTHER, answer, as_other, asked, connected, ctl, open_folder
from tests.support.programs.command import HUNG, MODULE, ROOT
from tests.support.programs.releases import Released, numbered

pytestmark = pytest.mark.once  # nothing of it is the interpreter's

GATED = "if rehearsing():\n    os.read(os.open('gate', os.O_RDONLY), 1)\n"


def hooks(number: int, **settings: object) -> str:
    """A release whose server has these settings."""
    lines = "".join(f"    {name} = {value!r}\n" for name, value in settings.items())
    return numbered(number, f"class Hooks:\n    boot_timeout = {HUNG}\n{lines}")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Released]:
    with Released(tmp_path, hooks(1, control_socket="c"), max_children=1) as service:
        service.wait_ready(1)
        yield service


def reload(service: Released, path: Path, text: str) -> "subprocess.CompletedProcess[str]":
    service.release(text)
    return ctl(path, "reload")


def test_another_path(service: Released) -> None:
    """Whoever asked by the old path is answered; then the service is at the new path and the old one is gone."""
    old, new = service.directory / "c", service.directory / "d"
    done = reload(service, old, hooks(2, control_socket="d"))
    assert (done.returncode, done.stdout) == (0, "reloaded: generation 2 is in service\n")
    assert not old.exists()
    assert stat.S_IMODE(new.stat().st_mode) == 0o600
    assert asked(new, "status")["generation"] == 2
    assert reload(service, new, hooks(3, control_socket="c")).returncode == 0
    assert asked(old, "status")["generation"] == 3
    assert not new.exists()


def test_no_path_any_more(service: Released) -> None:
    """Without a control socket in the new settings the path goes away, and whoever asked is told how it ended."""
    path = service.directory / "c"
    done = reload(service, path, hooks(2))
    assert (done.returncode, done.stdout) == (0, "reloaded: generation 2 is in service\n")
    assert not path.exists()
    service.wait_answering("r2")


def test_another_mode(service: Released) -> None:
    """The mode of the path is changed, wider and narrower, and the socket stays."""
    path = service.directory / "c"
    for number, mode in ((2, 0o660), (3, 0o600)):
        done = reload(service, path, hooks(number, control_socket="c", control_mode=mode))
        assert done.returncode == 0, done.stderr
        assert stat.S_IMODE(path.stat().st_mode) == mode
        assert asked(path, "status")["generation"] == number


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_another_owner(service: Released) -> None:
    """The path is given to whom the new settings name."""
    path = service.directory / "c"
    assert reload(service, path, hooks(2, control_socket="c", control_owner="65534:65534")).returncode == 0
    assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65534)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_another_list_of_users(tmp_path: Path) -> None:
    """Who may command and who may only look are as the new settings say, and so when a name is taken out again."""
    with open_folder() as folder:
        path = folder / "c"
        anybody = {"control_socket": str(path), "control_mode": 0o666}
        with Released(tmp_path, hooks(1, **anybody), max_children=1) as service:
            service.wait_ready(1)
            for number, allowed, may in (
                (2, {"control_allow_read": str(OTHER)}, (True, False)),
                (3, {"control_allow": f"root, {OTHER}"}, (True, True)),
                (4, {}, (False, False)),
            ):
                assert reload(service, path, hooks(number, **anybody, **allowed)).returncode == 0
                assert tuple(as_other(path, verb).get("ok", False) for verb in ("status", "scale")) == may


def test_a_path_that_cannot_be_had(service: Released) -> None:
    """Where the new path is somebody else's, or its folder is not there, the reload fails and all stays as it was."""
    service.expect(
        r"reload failed: could not bind d \(from control_socket\): another server",
        r"reload failed: could not bind no/d \(from control_socket\): no such file",
    )
    path = service.directory / "c"
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(os.path.relpath(service.directory / "d"))
        theirs.listen()
        done = reload(service, path, hooks(2, control_socket="d"))
        assert done.returncode == 1
        assert "could not bind d (from control_socket): another server is listening there" in done.stderr
        done = reload(service, path, hooks(2, control_socket="no/d"))
        assert "could not bind no/d (from control_socket): no such file or directory" in done.stderr
        assert (service.directory / "d").is_socket()
    status = asked(path, "status")
    assert (status["generation"], status["degraded"], status["exits"]) == (1, None, {})
    assert service.answering() == "r1"


def test_a_path_that_was_removed(service: Released) -> None:
    """A path that somebody has removed is made anew by a reload."""
    path = service.directory / "c"
    service.allow("c was removed or replaced")  # seen if a look comes before the reload
    path.unlink()
    service.signal(signal.SIGHUP)
    service.wait_reloads(ok=1)
    service.wait_ready(1, replaced=1)
    assert asked(path, "status")["generation"] == 2


@pytest.mark.parametrize("name", ["control_socket", "metrics_address"])
def test_a_path_that_is_lost_after_the_rehearsal(name: str, service: Released) -> None:
    """Where a new path cannot be had only after the exec, the old generation serves on, and the control socket too."""
    service.expect("BindError: could not bind x/d", "reload failed: the program failed: BindError")
    path = service.directory / "c"
    with service.connect() as connection:
        assert int(connection.ask(b"pid")) in service.workers()
    afterwards = f"if not rehearsing():\n    Hooks.{name} = 'x/d'"
    done = reload(service, path, hooks(2, control_socket="c") + afterwards)
    assert done.returncode == 1
    assert f"could not bind x/d (from {name}): no such file or directory" in done.stderr
    status = asked(path, "status")
    assert "could not bind x/d" in status["degraded"]
    assert status["requests"]["accepted"] == 1
    assert service.answering() == "r1"
    assert reload(service, path, hooks(3, control_socket="c")).returncode == 0
    service.wait_answering("r3")
    assert asked(path, "status")["requests"]["accepted"] == 3


def lines_of(process: "subprocess.Popen[str]") -> IO[str]:
    assert process.stderr is not None
    return process.stderr


def test_a_second_reload_is_queued(service: Released) -> None:
    """A reload that is asked for while the first is rehearsed is made after it; both callers get their own answer."""
    path, gate = service.directory / "c", service.directory / "gate"
    os.mkfifo(gate)
    hold = os.open(gate, os.O_RDWR)
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PREFORK_CONTROL": "c"}
    service.release(hooks(2, control_socket="c") + GATED)
    first = subprocess.Popen([*MODULE, "ctl", "reload"], cwd=service.directory, env=environ, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    with first, connected(path) as (second, answers):
        try:
            assert lines_of(first).readline().startswith("rehearsing")
            second.sendall(b'{"verb":"reload"}\n')
            assert asked(path, "status")["reloading"]  # asked for after it: the second is in the queue
            os.write(hold, b"1")
            out, _ = first.communicate(timeout=HUNG)
            assert (first.returncode, out) == (0, "reloaded: generation 2 is in service\n")
            os.write(hold, b"2")
            assert answer(answers) == {"ok": True, "result": {"reason": "generation 3 is in service"}}
        finally:
            first.kill()
            os.close(hold)
    assert asked(path, "status")["generation"] == 3
