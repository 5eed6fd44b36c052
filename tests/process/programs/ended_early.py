"""A program that ignores SIGCHLD, and in whose rehearsal each child has ended before somebody watches it."""

import contextlib
import os
import signal

from prefork.run_mode import rehearsing

open_at_once = os.pidfd_open


def open_late(pid: int, flags: int = 0) -> int:
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return open_at_once(pid, flags)


signal.signal(signal.SIGCHLD, signal.SIG_IGN)
if rehearsing():
    os.pidfd_open = open_late
