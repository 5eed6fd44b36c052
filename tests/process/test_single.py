"""`prefork run --single`: requests run in the one process that there is, at a terminal, under a debugger."""

import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.clients.connections import ask
from tests.support.clients.terminal import CTRL_C, Terminal, terminal
from tests.support.programs.command import HUNG, MODULE, ROOT, running

APP = Path(__file__).parent / "programs" / "single_app.py"
ANY_PORT = "127.0.0.1:0"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    shutil.copy(APP, tmp_path / "app.py")
    return tmp_path


@pytest.fixture
def at_terminal(here: Path) -> Iterator[tuple[Terminal, tuple[str, int]]]:
    """The service on a terminal, and its address."""
    argv = [*MODULE, "run", "app:Server", "--bind", ANY_PORT, "--single"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "dumb"}
    with terminal(argv, cwd=here, env=env) as shown:
        shown.wait_shown("listening on 127.0.0.1:")
        port = int(shown.wait_shown("\n"))
        yield shown, ("127.0.0.1", port)


def quit_debugger(shown: Terminal) -> None:
    """Leave pdb and the service at its prompt; since Python 3.14 it asks whether to end the process, with status 1."""
    shown.type(b"quit\n")
    asks = sys.version_info >= (3, 14)
    if asks:
        shown.wait_shown("[y/n] ")
        shown.type(b"y\n")
    assert shown.ended() == int(asks)


def test_breakpoint_in_a_handler(at_terminal: tuple[Terminal, tuple[str, int]]) -> None:
    """breakpoint() in a handler is a prompt at the terminal; what is typed there changes what the client gets. After
    `continue`, Ctrl-C ends the service."""
    shown, address = at_terminal
    with socket.create_connection(address, HUNG) as client:
        client.sendall(b"break\n")
        shown.wait_shown("(Pdb) ")
        shown.type(b"p word, self.server.max_children > 0\n")
        assert "(b'break', True)" in shown.wait_shown("(Pdb) ")
        assert psutil.Process(shown.process.pid).children() == []
        shown.type(b"word = b'mended'\n")
        shown.wait_shown("(Pdb) ")
        shown.type(b"continue\n")
        assert client.recv(100) == b"MENDED %d 1\n" % shown.process.pid
    shown.type(CTRL_C)  # which pdb takes with "continue"
    assert shown.ended() == 0
    assert f"stopping {shown.process.pid}" in shown.shown
    assert "Traceback" not in shown.shown


def test_ctrl_c(at_terminal: tuple[Terminal, tuple[str, int]]) -> None:
    """Ctrl-C ends the service although a handler never ends, and its client is told."""
    shown, address = at_terminal
    with socket.create_connection(address, HUNG) as client:
        client.sendall(b"loop\n")
        assert client.recv(100) == b"looping\n"
        shown.type(CTRL_C)
        assert shown.ended() == 0
        assert client.recv(100) == b""
    assert f"stopping {shown.process.pid}" in shown.shown
    assert "Traceback" not in shown.shown


def test_ctrl_c_and_quit_at_the_prompt(at_terminal: tuple[Terminal, tuple[str, int]]) -> None:
    """Ctrl-C at the debugger's prompt leaves it there; `quit` in a handler ends the service."""
    shown, address = at_terminal
    with socket.create_connection(address, HUNG) as client:
        client.sendall(b"break\n")
        shown.wait_shown("(Pdb) ")
        shown.type(CTRL_C + b"\n")  # readline may be between its prompt and its wait: a key ends that
        shown.wait_shown("(Pdb) ")
        shown.type(b"p 6 * 7\n")
        shown.wait_shown("42\n")
        quit_debugger(shown)
        assert client.recv(100) == b""
    assert f"stopping {shown.process.pid}" in shown.shown


@pytest.mark.parametrize("target", ["Handler", "Server", "Threads", "Forks", "Standard", "Bounded"])
def test_everything_runs_in_the_one_process(target: str, here: Path) -> None:
    """Whatever the class does in a pool, requests run here, without a thread or a child; a failed one is logged."""
    with running(["run", f"app:{target}", "--bind", ANY_PORT, "--single"], cwd=here) as run:
        run.expect("ValueError: this request only")
        address = ("127.0.0.1", run.port)
        for _ in range(2):
            assert ask(address, b"hello\nagain\n") == b"HELLO %d 1\nAGAIN %d 1\n" % (run.pid, run.pid)
        assert ask(address, b"fail\n") == b""
        assert psutil.Process(run.pid).children() == []
        assert ask(address, b"end\n") == b"END %d 1\n" % run.pid
        assert run.ended() == 0
    assert run.log.count("Traceback") == 1
    assert "this request only" in run.log


@pytest.mark.parametrize("target", ["Handler", "Threads", "Forks", "Standard"])
def test_access_log(target: str, here: Path) -> None:
    """Each request has its record, as in a pool."""
    with running(["run", f"app:{target}", "--bind", ANY_PORT, "--single", "--access-log", "yes"], cwd=here) as run:
        run.expect("ValueError: this request only")
        address = ("127.0.0.1", run.port)
        assert ask(address, b"hello\n")
        assert ask(address, b"fail\n") == b""
        assert run.ended(signal.SIGTERM) == 0
    records = [line for line in run.log.splitlines() if " prefork.access: request " in line]
    assert ["slot=1 outcome=ok " in records[0], "slot=1 outcome=error " in records[1]] == [True, True], records
    assert len(records) == 2
    assert f"listener={run.address} peer=127.0.0.1:" in records[0]


def test_exit(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A SystemExit of a handler ends the service with that status, after worker_stopping()."""
    with running(["run", "app:Server", "--bind", ANY_PORT, "--single"], cwd=here) as run:
        assert ask(("127.0.0.1", run.port), b"exit\n") == b""
        assert run.ended() == 7
    assert capfd.readouterr().out == f"started {run.pid}\nstopping {run.pid}\n"
    assert "Traceback" not in run.log


def test_terminated(here: Path) -> None:
    """TERM ends it with 0 and leaves no path; metrics are said not to be served."""
    path = here / "s.sock"
    argv = ["run", "app:Handler", "--bind", f"unix:{path}", "--single", "--metrics", ANY_PORT]
    with running(argv, cwd=here) as run:
        assert ask(str(path), b"hello\n") == b"HELLO %d 1\n" % run.pid
        assert run.ended(signal.SIGTERM) == 0
    assert "metrics are not served" in run.log
    assert run.log.endswith(" stopped\n")
    assert not path.exists()


OWN_TERM = """
import signal, sys
from app import Server

signal.signal(signal.SIGTERM, lambda signum, frame: (print("told"), sys.exit(5)))
"""


def test_terminated_by_the_program(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What the program does on TERM is done, as in a pool; worker_stopping() is called."""
    (here / "own.py").write_text(OWN_TERM)
    with running(["run", "own:Server", "--bind", ANY_PORT, "--single"], cwd=here) as run:
        assert ask(("127.0.0.1", run.port), b"hello\n") == b"HELLO %d 1\n" % run.pid
        assert run.ended(signal.SIGTERM) == 5
    assert capfd.readouterr().out == f"started {run.pid}\ntold\nstopping {run.pid}\n"


IGNORING = ("sh", "-c", 'trap "" INT; exec "$@"', "sh", *MODULE)


@pytest.mark.once
def test_an_interrupt_that_was_inherited_as_ignored(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a script's background job it ends by INT all the same, as a pool does; the log says so."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with running(["run", "app:Server", "--bind", ANY_PORT, "--single"], cwd=here, program=IGNORING) as run:
        assert ask(("127.0.0.1", run.port), b"hello\n") == b"HELLO %d 1\n" % run.pid
        assert run.ended(signal.SIGINT) == 0
    assert run.log.endswith(" stopped\n")


def test_under_pdb_from_the_start(here: Path) -> None:
    """python -m pdb -m prefork run, told by variables to serve single, stops where it was told to, in a handler."""
    line = APP.read_text().splitlines().index('            if word == b"break":') + 1
    argv = [
        sys.executable,
        "-m",
        "pdb",
        "-c",
        f"b app.py:{line}",
        "-c",
        "c",
        "-m",
        "prefork",
        "run",
    ]  # 3.13.0 takes no options
    told = {"PREFORK_TARGET": "app:Server", "PREFORK_BIND": ANY_PORT, "PREFORK_SINGLE": "yes"}
    env = os.environ | told | {"PYTHONPATH": f"{ROOT}:{here}", "TERM": "dumb"}
    with terminal(argv, cwd=here, env=env) as shown:
        shown.wait_shown("listening on 127.0.0.1:")
        port = int(shown.wait_shown("\n"))
        with socket.create_connection(("127.0.0.1", port), HUNG) as client:
            client.sendall(b"hello\n")
            assert 'word == b"break"' in shown.wait_shown("(Pdb) ")
