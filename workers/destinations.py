"""Open descriptors that log lines are written to, each with how to write there without ever blocking.

Used by every process that logs. Must not set a flag on an open file description that other programs share: a pipe or a
terminal is opened again, a socket gets MSG_DONTWAIT with each send.
"""

import os
import select
import socket
import stat
from collections.abc import Callable
from typing import NamedTuple

PIPE_BUF = select.PIPE_BUF  # writes to a pipe of up to this many bytes are atomic (pipe(7))

Write = Callable[[int, bytes], int]


class Opened(NamedTuple):
    """A destination that is open: how to write to it without blocking, and the most bytes to write at once."""

    fd: int
    write: Write
    at_once: int
    ours: bool = False  # nobody else has the open file description
    breaks: bool = True  # its reader may go, which SIGPIPE tells


def opened_stderr() -> Opened:
    """Return a descriptor of stderr.

    It is one of our own: the program may close descriptor 2, and the next connection would have its number.
    """
    try:
        mode = os.fstat(2).st_mode
    except OSError:
        return Opened(-1, os.write, 1 << 30)  # closed: every write fails
    try:
        fd = os.dup(2)
    except OSError:  # no descriptor is left
        fd = 2
    if stat.S_ISSOCK(mode):  # the journal's
        return Opened(fd, _send, 1 << 30)
    if stat.S_ISFIFO(mode) or os.isatty(2):
        try:
            again = os.open("/proc/self/fd/2", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:  # it belongs to another user, or has no reader now
            return Opened(fd, _write_if_ready, PIPE_BUF)
        if fd != 2:
            os.close(fd)
        return Opened(again, os.write, PIPE_BUF, ours=True)
    return Opened(fd, os.write, 1 << 30, breaks=False)  # a file, whose position all writers share


def _send(fd: int, data: bytes) -> int:
    sock = socket.socket(fileno=fd)
    try:
        return sock.send(data, socket.MSG_DONTWAIT)
    finally:
        sock.detach()


def _write_if_ready(fd: int, data: bytes) -> int:
    """Write to a pipe that cannot be opened again, if it is ready: then it has room for PIPE_BUF bytes.

    It can block only if another process takes that room in between. Raises BlockingIOError when it is not ready.
    """
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    if not poll.poll(0):
        raise BlockingIOError
    return os.write(fd, data)
