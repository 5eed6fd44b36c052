"""`prefork run` as a user starts it: a process of its own, its log on a pipe, ended by a signal.

Runs in the test's process. That it listens is learnt from the line that says where, as a user learns the port.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.support.programs.service import kill_session
from tests.support.tools.complaints import Judged

HUNG = 30.0  # seconds; never reached unless something hangs
ROOT = Path(__file__).parents[3]
MODULE = (sys.executable, "-m", "prefork")  # of the checkout
_LISTENING = re.compile(r'listening on ([^\s"]+)')


class Run(Judged):
    """A running command. `address` is where it says that it listens."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        super().__init__()
        self.process = process
        self.lines: list[str] = []
        self.address = ""
        self._asked = False  # the test was told how it ended

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return "".join(self.lines)

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def read_until_listening(self, on_line: Callable[[str], None] = lambda line: None) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            on_line(line)
            if found := _LISTENING.search(line):
                self.address = found[1]
                return

    def ended(self, signum: int | None = None) -> int:
        """Send a signal, where one is given, and wait for the end. The exit status; the whole log is in `log`."""
        if signum is not None:
            self.process.send_signal(signum)
        assert self.process.stderr is not None
        self.lines += self.process.stderr  # to EOF: until no worker holds the other end
        self._asked = True
        return self.process.wait(HUNG)

    def end(self) -> None:
        """By TERM, where it runs. It must exit with 0, and so must one of whose end nobody has asked."""
        if not self._asked:
            status = self.ended(signal.SIGTERM if self.process.poll() is None else None)
            assert status == 0, f"the command ended with {status}:\n{self.log}"


@contextlib.contextmanager
def running(
    argv: Sequence[str],
    *,
    cwd: Path,
    program: Sequence[str] = MODULE,
    fds: Sequence[int] = (),
    on_line: Callable[[str], None] = lambda line: None,
) -> Iterator[Run]:
    """`prefork ARGV` until the block ends. It need not get as far as listening: then `address` is empty. `on_line` is
    told of each line until then.

    A process that is left in its session afterwards is killed, and is a failure.
    """
    environ = os.environ | ({"PYTHONPATH": str(ROOT)} if program is MODULE else {})
    process = subprocess.Popen(
        [*program, *argv],
        cwd=cwd,
        env=environ,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=fds,
        start_new_session=True,
    )
    run = Run(process)
    try:
        with watched(process):
            run.read_until_listening(on_line)
            yield run
            run.end()
            run.judge()
    finally:
        sys.stderr.write(run.log)  # shown by pytest when the test fails


@contextlib.contextmanager
def watched(process: "subprocess.Popen[str]") -> Iterator[None]:
    """A leader of its session, in the block: killed with its group when that hangs. Whoever of the session is left at
    the end is killed, and is a failure."""
    watchdog = threading.Timer(4 * HUNG, os.killpg, (process.pid, signal.SIGKILL))
    watchdog.start()
    try:
        yield
    finally:
        left = kill_session(process.pid)
        process.wait(HUNG)
        watchdog.cancel()
        watchdog.join()
        assert process.stderr is not None
        process.stderr.close()
    assert not left, f"left behind in the session of the command: {left}"
