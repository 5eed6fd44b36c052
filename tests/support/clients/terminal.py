"""A program on a terminal of its own, as a person sits at it: what is typed, Ctrl-C among it, and what is shown.

Runs in the test's process. The terminal is a pty, and the controlling one of the program's session.
"""

import contextlib
import os
import pty
import select
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import monotonic

from tests.support.programs.command import HUNG

CTRL_C = b"\x03"


class Terminal:
    """`shown` is all that has been shown until now."""

    def __init__(self, process: "subprocess.Popen[bytes]", fd: int) -> None:
        self.process = process
        self.shown = ""
        self._fd = fd
        self._seen = 0

    def type(self, text: bytes) -> None:
        os.write(self._fd, text)

    def wait_shown(self, text: str) -> str:
        """Until this is shown after what was waited for before; what is shown up to its end."""
        deadline = monotonic() + HUNG
        while (found := self.shown.find(text, self._seen)) < 0:
            assert self._read(deadline - monotonic()), f"never shown: {text!r}\n{self.shown}"
        before, self._seen = self._seen, found + len(text)
        return self.shown[before : self._seen]

    def ended(self) -> int:
        """The exit status, once all is shown."""
        deadline = monotonic() + HUNG
        while self._read(deadline - monotonic()):
            pass
        return self.process.wait(HUNG)

    def _read(self, left: float) -> bool:
        """Read what there is. False at the end, or when it hangs."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        if not poll.poll(max(0.0, left) * 1000):
            return False
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # EIO: nobody holds the other side any more; pty(7)
            return False
        self.shown += data.decode(errors="replace").replace("\r\n", "\n")
        return bool(data)


@contextlib.contextmanager
def terminal(argv: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> Iterator[Terminal]:
    """The program on its terminal until the block ends; it must have ended by then, or it is killed."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", *argv], cwd=cwd, env=env, stdin=theirs, stdout=theirs, stderr=theirs
    )  # fmt: skip
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(HUNG)
        os.close(ours)
