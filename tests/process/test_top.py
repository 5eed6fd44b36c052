"""`prefork top`: as plain text, and on a real terminal (tmux)."""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

from tests.support.clients import HUNG, ROOT
from tests.support.service import Service, script


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with Service(tmp_path, script(max_children=2, control_socket=str(tmp_path / "c"))) as service:
        service.wait_ready(2)
        yield service


def command(service: Service) -> list[str]:
    return [sys.executable, "-m", "prefork", "top", "--control", str(service.directory / "c")]


def test_once(service: Service) -> None:
    """--once prints the header and a row a worker, without a terminal."""
    with service.hold() as held:
        peer = ":".join(map(str, held.sock.getsockname()[:2]))
        done = subprocess.run([*command(service), "--once"], cwd=ROOT, capture_output=True, text=True, timeout=HUNG)
    assert done.returncode == 0, done.stderr
    assert "running  generation 1" in done.stdout
    assert "lanes 1 of 2 (50%)" in done.stdout
    assert sum(str(pid) in done.stdout for pid in service.workers()) == 2
    assert peer in done.stdout
    assert all(len(line) <= 200 for line in done.stdout.splitlines())


class Terminal:
    """A tmux of its own with one window of 80 by 24."""

    def __init__(self, folder: Path, argv: list[str]) -> None:
        self._tmux = ["tmux", "-S", str(folder / "t"), "-f", "/dev/null"]
        shell = f"cd {ROOT} && {shlex.join(argv)}; echo left $?; exec cat"
        self.run("new-session", "-d", "-x", "80", "-y", "24", shell)

    def run(self, *argv: str) -> str:
        environ = {**os.environ, "TERM": "xterm", "LC_ALL": "C.UTF-8"}
        return subprocess.check_output([*self._tmux, *argv], env=environ, text=True, timeout=HUNG)

    def wait(self, *words: str) -> str:
        """The screen, once all of this is on it."""
        deadline = monotonic() + HUNG
        while not all(word in (screen := self.run("capture-pane", "-p")) for word in words):
            assert monotonic() < deadline, f"hung: {words} not on the screen:\n{screen}"
        return screen


@pytest.fixture
def terminal(service: Service, tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path, command(service))
    try:
        yield terminal
    finally:
        terminal.run("kill-server")


def test_on_a_terminal(service: Service, terminal: Terminal) -> None:
    """In 80 by 24: header, workers, keys; `s` sorts, `d` has the selected one replaced, `q` leaves."""
    before = service.workers()
    screen = terminal.wait("running  generation 1", "by slot", *map(str, before))
    assert "q quit" in screen
    terminal.run("send-keys", "s")
    terminal.wait("by request")
    terminal.run("send-keys", "s", "s", "s", "s")
    terminal.wait("by slot")
    terminal.run("send-keys", "j", "d")
    service.wait_ready(2, replaced=1)
    assert len(set(before) & set(service.workers())) == 1
    terminal.wait("by slot", *map(str, service.workers()))
    terminal.run("send-keys", "q")
    terminal.wait("left 0")
