"""Programs that remove the path of their Unix socket themselves: the service that runs is found by it all the same."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from tests.support.clients.connections import ask
from tests.support.clients.controlling import ctl
from tests.support.programs.command import HUNG, MODULE, ROOT, running

pytestmark = pytest.mark.once  # nothing of it is the interpreter's

PROGRAM = "tests.process.programs.removing"
CLASSES = ("Removing", "ByPathlib", "ByName", "AtExit", "Datagrams")


def run(target: str) -> dict[str, Any]:
    if target == "script":
        return {"argv": [], "program": [sys.executable, str(ROOT / "tests/process/programs/removing.py")]}
    return {"argv": ["run", *bound(target), "--max-children", "1", "--control", "unix:c"]}


def bound(target: str) -> list[str]:
    return [f"{PROGRAM}:{target}", "--bind", ("unixgram:" if target == "Datagrams" else "unix:") + "s"]


def check(here: Path, target: str) -> str:
    done = subprocess.run(
        [*MODULE, "check", *bound(target)], cwd=here, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, timeout=HUNG,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def serves(path: Path, target: str) -> None:
    """It is found by its path: it answers, or takes a datagram."""
    if target != "Datagrams":
        assert ask(str(path), b"") == b"here"
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.sendto(b"", str(path))


@contextlib.contextmanager
def asked_all_the_while(path: Path, target: str) -> Iterator[None]:
    """A client looks for it anew again and again, in the block, and always finds it."""
    done, missed = Event(), [""] * 0

    def look() -> None:
        while not done.is_set():
            try:
                serves(path, target)
            except (OSError, AssertionError) as exc:
                missed.append(repr(exc))

    thread = Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(HUNG)
    assert missed == []


@pytest.mark.parametrize("target", [*CLASSES, "script"])
def test_a_reload(target: str, tmp_path: Path) -> None:
    """The path stays where it is, the same socket all along; at the end it is gone, and nobody fails of that."""
    path = tmp_path / "s"
    with running(**run(target), cwd=tmp_path):
        before = os.stat(path)
        with asked_all_the_while(path, target):
            for generation in (2, 3):
                assert f"generation {generation} is in service" in ctl(tmp_path / "c", "reload").stdout
        after = os.stat(path)
        assert (before.st_ino, before.st_mode) == (after.st_ino, after.st_mode)
    assert not path.exists()


@pytest.mark.parametrize("target", CLASSES)
def test_a_socket_that_was_passed(target: str, tmp_path: Path) -> None:
    """The path is the manager's: no start, reload or end removes it, or fails of that."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM if target == "Datagrams" else socket.SOCK_STREAM) as passed:
        passed.bind(str(path))
        if target != "Datagrams":
            passed.listen()
        before = os.stat(path).st_ino
        argv = ["run", f"{PROGRAM}:{target}", "--bind", f"fd://{passed.fileno()}", "--max-children", "1"]
        with running([*argv, "--control", "unix:c"], cwd=tmp_path, fds=[passed.fileno()]):
            serves(path, target)
            with asked_all_the_while(path, target):
                assert "generation 2 is in service" in ctl(tmp_path / "c", "reload").stdout
        assert os.stat(path).st_ino == before


@pytest.mark.parametrize("target", CLASSES)
def test_a_check_beside_the_service(target: str, tmp_path: Path) -> None:
    """It leaves the path to the service, which is found by it all the while."""
    path = tmp_path / "s"
    with running(**run(target), cwd=tmp_path):
        before = os.stat(path)
        with asked_all_the_while(path, target):
            assert f"{path.name}: in use now" in check(tmp_path, target)
        assert os.stat(path).st_ino == before.st_ino


@pytest.mark.parametrize("target", CLASSES)
@pytest.mark.parametrize("stale", [False, True])
def test_a_check_of_a_path_that_nobody_has(target: str, stale: bool, tmp_path: Path) -> None:
    """What the program does to its path does not fail in a check, and nothing is left that was not there."""
    if stale:
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(tmp_path / "s"))
    check(tmp_path, target)
    assert [name for name in os.listdir(tmp_path) if name != "s.old"] == []


def test_a_rehearsal_that_fails(tmp_path: Path) -> None:
    """The path is the service's still: nothing has changed."""
    shutil.copy(ROOT / "tests/process/programs/removing.py", tmp_path / "app.py")
    argv = ["run", "app:Removing", "--bind", "unix:s", "--max-children", "1", "--control", "unix:c"]
    with running(argv, cwd=tmp_path) as service:
        service.expect("reload failed: .*")
        with (tmp_path / "app.py").open("a") as program:
            program.write("import os\nos.unlink('s')\nos.replace('s', 't')\nraise OSError('no')\n")
        with asked_all_the_while(tmp_path / "s", "Removing"):
            assert ctl(tmp_path / "c", "reload").returncode == 1
        serves(tmp_path / "s", "Removing")
