"""What a service inherits from whoever starts it: closed descriptors, blocked and ignored signals, timers, a locale,
limits, and a file system that nobody may write."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import psutil
import pytest

from tests.support.clients.connections import ask
from tests.support.clients.controlling import asked
from tests.support.clients.terminal import terminal
from tests.support.hosts.users import become
from tests.support.programs.releases import Released, numbered
from tests.support.programs.served import RELOADS
from tests.support.programs.service import HUNG, ROOT, Service, kill_session, script
from tests.support.tools.figures import figure, ms
from tests.support.tools.proc import no_descriptor_left

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


# Locale, file system, limits, PID 1.

BYTES = """
def hexed(*texts):
    return [os.fsencode(each).hex() for each in texts]
tell("began", found=hexed(os.environ["STRANGE"], *sys.argv))
logging.getLogger().warning("said \\xfc")
"""
STRANGE = "\udcff"  # the byte 0xFF, as os.fsdecode() gives it


@pytest.mark.parametrize("utf8", ["1", "0"], ids=["UTF-8 mode", "ASCII"])
def test_a_locale_without_characters(utf8: str, tmp_path: Path) -> None:
    """Under LC_ALL=C, with bytes that are no UTF-8 in arguments, paths and environment, it serves and is reloaded; the
    program finds the same bytes, and the log has what was said."""
    argv = ["-m", "prefork", "run", "program:Server", "--bind", f"unix:s{STRANGE}", "--log-file", f"log{STRANGE}"]
    env = {"LC_ALL": "C", "PYTHONUTF8": utf8, "STRANGE": STRANGE, RELOADS: "1"}
    source = script(BYTES, bases="PreForkingUnixStreamServer", max_children=1)
    with Service(tmp_path, source, argv=[*argv, "--control", f"unix:c{STRANGE}"], env=env) as service:
        service.wait_ready(1)
        service.signal(signal.SIGHUP)
        service.wait_ready(1, replaced=1)
        first, second = (fact["found"] for fact in service.wait_each("began", 2))
        assert first == second
        assert first[0] == "ff"
        assert int(ask(service.address, b"pid\n"))
        assert asked(tmp_path / f"c{STRANGE}", "status")["address"] == r"s\udcff"
    log = (tmp_path / f"log{STRANGE}").read_bytes()
    assert b"listening on s" in log
    assert b"in service" in log
    assert b"Logging error" not in log


READ_ONLY = (
    'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && mount -o remount,bind,ro / && shift && exec "$@"'
)


def test_a_file_system_that_is_read_only(tmp_path: Path) -> None:
    """Nothing of it is needed: it serves, is scraped, reloads and ends where no file can be written. What was asked to
    be there, a Unix path or a control socket, is refused in one sentence, with status 4."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    before = ("unshare", "--mount", "sh", "-c", READ_ONLY, "sh", str(tmp_path))
    with Released(tmp_path, before=before, max_children=1, metrics_address=("127.0.0.1", 0)) as service:
        service.wait_ready(1)
        service.signal(signal.SIGHUP)
        service.wait_ready(1, replaced=1)
        assert service.answering() == "r1"
    (tmp_path / "app.py").write_text("from prefork.examples import Upper\n")
    for options in (("unix:s",), ("127.0.0.1:0", "--control", "unix:c"), ("127.0.0.1:0", "--metrics", "unix:m")):
        ended = subprocess.run(
            [*before, sys.executable, "-m", "prefork", "run", "app:Upper", "--bind", *options], cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True, timeout=HUNG, check=False,
        )  # fmt: skip
        assert (ended.returncode, ended.stderr.count("\n")) == (4, 1), ended.stderr
        assert "read-only file system" in ended.stderr


ENOUGH = 100
USER = 54322  # nobody else's: the kernel counts the processes of a user


def test_too_few_processes_for_its_user(tmp_path: Path) -> None:
    """Under `ulimit -u` it serves with the workers that there may be, says what the kernel refuses, and fails a reload
    by name; the limit lifted, the pool is full within two seconds."""
    if os.geteuid() != 0:
        pytest.skip("needs root: for root there is no such limit")
    before = [*surrounded(f"limit=NPROC:2:{ENOUGH}"), *become(USER)]
    with Released(tmp_path, before=before, max_children=2, metrics_address=("127.0.0.1", 0)) as service:
        service.expect(
            "could not fork a worker: resource temporarily unavailable; trying again every 0.5 s",
            "could not start the exporter: resource temporarily unavailable",
            "reload failed: could not start the rehearsal: resource temporarily unavailable",
        )
        service.wait_pool(lambda pool: pool["ready"] == 1 and pool["fork_failures"] > 1)
        assert service.answering() == "r1"
        service.signal(signal.SIGHUP)
        service.wait_reloads(failed=1)
        lifted = time.monotonic()
        subprocess.run([*become(USER), "prlimit", f"--pid={service.pid}", f"--nproc={ENOUGH}"], check=True)
        took = service.wait_ready(2)["at"] - lifted
    figure("ulimit -u lifted: a full pool after", ms(took), "2000 ms")
    assert took < 2


ORPHANS = """
class Handler(Who):
    def do_orphan(self):
        pid = os.fork()
        if not pid:
            os.fork()
            os._exit(3)
        os.waitpid(pid, 0)
"""


def test_pid_1_without_a_descriptor(tmp_path: Path) -> None:
    """As PID 1 with no descriptor left, for which /proc cannot be read, it reaps the orphans nevertheless, and serves
    on."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with Service(tmp_path, script(ORPHANS, max_children=1), before=AS_PID_1) as service:
        service.allow("could not list the orphans: too many open files")
        service.wait_ready(1)
        (master,) = psutil.Process(service.pid).children()
        (worker,) = master.children()
        with no_descriptor_left(master.pid):
            for _ in range(3):
                assert int(ask(service.address, b"orphan\n"))
            deadline = time.monotonic() + HUNG
            while (left := master.children()) != [worker]:
                assert time.monotonic() < deadline, f"hung: {left} are never reaped"
                time.sleep(0.2)  # a poll: nothing tells
        assert int(ask(service.address, b"pid\n")) > 1
        service.signal(signal.SIGTERM, master.pid)
        assert service.wait_exit() == 0
    assert service.log.count("reaped an orphan") == 3
