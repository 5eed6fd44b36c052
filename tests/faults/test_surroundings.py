"""What a service inherits from whoever starts it: closed descriptors, blocked and ignored signals, timers."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import psutil
import pytest

from tests.support.clients.connections import ask
from tests.support.clients.terminal import terminal
from tests.support.programs.releases import Released, numbered
from tests.support.programs.service import HUNG, ROOT, Service, kill_session, script

pytestmark = pytest.mark.once

SURROUNDED = (sys.executable, "-I", "-S", str(ROOT / "tests/support/programs/surrounded.py"))
EVERY = sorted(map(int, signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}))
CHILD = """
class Handler(Who):
    def do_child(self):
        import subprocess
        return subprocess.run(["false"]).returncode
"""
TIMERS = """
class Hooks:
    def service_actions(self):
        super().service_actions()
        tell("timers", left=[signal.getitimer(timer)[0] for timer in range(3)])
"""
CLOSED = [which for count in range(4) for which in itertools.combinations(range(3), count)]


def surrounded(*what: str) -> list[str]:
    """What goes before the command line of a service, for these surroundings."""
    return [*SURROUNDED, *what, "--"]


def numbers(signums: Iterable[int]) -> str:
    return ",".join(str(int(each)) for each in signums)


@pytest.mark.parametrize("closed", CLOSED, ids=lambda closed: "".join(map(str, closed)) or "none")
def test_closed_standard_descriptors(closed: tuple[int, ...], tmp_path: Path) -> None:
    """With any of stdin, stdout and stderr closed it serves and reloads, and they are /dev/null in every process."""
    with Released(tmp_path, before=surrounded(f"closed={numbers(closed)}"), max_children=1) as service:
        service.wait_ready(1)
        service.release(numbered(2))
        service.signal(signal.SIGHUP)
        service.wait_ready(1, replaced=1)
        assert service.answering() == "r2"
        for pid in (service.pid, *service.workers()):
            found = {fd: str(Path(f"/proc/{pid}/fd/{fd}").readlink()) for fd in range(3)}
            assert [fd for fd, what in found.items() if what == "/dev/null"] == sorted({0, *closed}), found


@pytest.mark.parametrize("how", ["blocked", "ignored"])
def test_signals_blocked_or_ignored(how: str, tmp_path: Path) -> None:
    """With every signal blocked, or ignored, by the parent: master and workers hear each that they take, a worker's
    child has a status, and the service ends by TERM."""
    source = script(CHILD, max_children=1)
    with Service(tmp_path, source, before=surrounded(f"{how}={numbers(EVERY)}"), env={"TEST": "1"}) as service:
        service.wait_ready(1)
        service.signal(signal.SIGTTIN)
        service.wait_ready(2)
        service.signal(signal.SIGTTOU)
        service.wait_ready(1, scaled_down=1)
        service.signal(signal.SIGUSR2)
        service.wait_ready(1, scaled_down=1, replaced=1)
        service.signal(signal.SIGTERM, service.workers()[0])
        service.wait_ready(1, scaled_down=1, replaced=2)
        service.signal(signal.SIGQUIT, service.workers()[0])
        service.wait_ready(1, scaled_down=1, replaced=2, stopped=1)
        with service.connect() as connection:
            assert connection.ask(b"child") == b"1"
        service.signal(signal.SIGTERM)
        assert service.wait_exit() == 0


def test_a_signal_that_is_pending(tmp_path: Path) -> None:
    """A TERM that was sent while the parent had it blocked ends the service as soon as it serves."""
    with Service(tmp_path, script(max_children=1), before=surrounded(f"pending={int(signal.SIGTERM)}")) as service:
        assert service.wait_exit() == 0
    assert "command: drain" in service.log


def test_interval_timers_that_run(tmp_path: Path) -> None:
    """Timers that the parent has set are stopped, and it is said: their signals would end the master."""
    before = surrounded("timer=real:30", "timer=virtual:30", "timer=prof:30")
    with Service(tmp_path, script(TIMERS, max_children=1), before=before) as service:
        assert service.wait("timers")["left"] == [0.0, 0.0, 0.0]
    assert service.log.count("stopped an interval timer that was running at the start") == 3


SLOW = Path(__file__).parent / "programs" / "slow_import_app.py"
RUN = (sys.executable, "-m", "prefork", "run", "app:Server", "--bind", "127.0.0.1:0")
AS_PID_1 = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


class Importing:
    """`prefork run` of a program that is slow to import, at that moment; a context manager. `pid` is the master's."""

    def __init__(self, folder: Path, *before: str, **env: str) -> None:
        shutil.copy(SLOW, folder / "app.py")
        self.folder = folder
        self.process = subprocess.Popen(
            [*before, *RUN], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT), **env}, stderr=subprocess.PIPE,
            text=True, start_new_session=True,
        )  # fmt: skip
        self.wait_for("importing")
        self.pid = self.process.pid
        if before:
            self.pid = psutil.Process(self.pid).children()[0].pid

    def wait_for(self, text: str) -> str:
        """Read its log until this comes; what was read."""
        assert self.process.stderr is not None
        read = ""
        for line in self.process.stderr:
            read += line
            if text in line:
                return read
        raise AssertionError(f"never said {text!r}:\n{read}")

    def ended(self) -> tuple[int, str]:
        """The exit status, and the rest of its log."""
        assert self.process.stderr is not None
        text = self.process.stderr.read()
        return self.process.wait(HUNG), text

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        kill_session(self.process.pid)
        with self.process:
            pass


@pytest.mark.parametrize("before", [(), AS_PID_1], ids=["", "as PID 1"])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_the_end_while_it_is_imported(signum: int, before: tuple[str, ...], tmp_path: Path) -> None:
    """TERM, INT or QUIT while `prefork run` imports the program: status 0, and one line that says so."""
    if before and os.geteuid() != 0:
        pytest.skip("needs root")
    with Importing(tmp_path, *before) as importing:
        os.kill(importing.pid, signum)
        status, log = importing.ended()
    assert status == 0
    assert log.count("\n") == 1
    assert "asked to end before it served" in log


def test_a_program_that_swallows_the_end(tmp_path: Path) -> None:
    """A program whose import catches everything and tries again is ended by the second TERM."""
    with Importing(tmp_path, SWALLOWS="1") as importing:
        os.kill(importing.pid, signal.SIGTERM)
        importing.wait_for("importing")
        os.kill(importing.pid, signal.SIGTERM)
        assert importing.ended() == (0, "")


def test_other_signals_while_it_is_imported(tmp_path: Path) -> None:
    """HUP, USR1 and USR2 while the program is imported are obeyed once it serves."""
    with Importing(tmp_path) as importing:
        for signum in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(importing.pid, signum)
        (tmp_path / "go").touch()
        log = importing.wait_for("generation 3 is in service")
        os.kill(importing.pid, signal.SIGTERM)
        status, rest = importing.ended()
    assert status == 0
    assert [each for each in ("reload", "reopen", "restart", "drain") if f"command: {each}" in log + rest] == [
        "reload", "reopen", "restart", "drain",
    ]  # fmt: skip


TALKS = Path(__file__).parent / "programs" / "terminal_app.py"


def test_a_background_job_of_a_terminal(tmp_path: Path) -> None:
    """In the background of a terminal with `stty tostop`, master and workers write there, a handler that reads is told
    EIO, and the TTIN and TTOU that the kernel sends for it change nothing."""
    shutil.copy(TALKS, tmp_path / "app.py")
    run = f"{sys.executable} -m prefork run app:Server --bind unix:s --access-log yes"
    argv = ["bash", "-mc", f"stty tostop; {run} & echo job $!; wait; echo status $?"]
    with terminal(argv, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}) as seen:
        seen.wait_shown("job ")
        seen.wait_shown("running")
        for _ in range(10):
            assert ask(os.path.relpath(tmp_path / "s"), b"") == b"Input/output error"
        master = next(each for each in psutil.Process(seen.process.pid).children())
        assert len(master.children()) == 2
        master.send_signal(signal.SIGTERM)
        seen.wait_shown("status 0")
        assert seen.ended() == 0
    assert seen.shown.count("printed") == 10
    assert "pool:" not in seen.shown
