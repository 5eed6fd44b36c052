"""Where log lines go without ever waiting: stderr of whatever kind, or a file that is reopened when it was rotated.

Made by the master before the first fork and inherited by every process of the service, so that all write to the same
place by one rule: a line that cannot be written at once is dropped and counted. Nothing here sets a flag on a
description that other programs share: a pipe or a terminal is opened once more, a socket is told with each send.

One page of memory is shared by all processes: the master counts there how often it reopened and says which level is
in force; others compare before they write.
"""

import logging
import mmap
import os
import select
import socket
import stat
from collections.abc import Callable, MutableSequence
from time import monotonic
from typing import Any

from prefork.metrics.log_events import LogEvent, event
from prefork.metrics.scoreboard import LOG_DROPPED

PIPE_BUF = select.PIPE_BUF  # so much is written to a pipe whole or not at all
LEVEL_LOOK_EVERY_S = 1.0  # at the path of a log file, whether it is still ours: for who cannot be told to reopen

REOPENED, LEVEL, TORN = range(3)  # words of the shared page: TORN is set by whoever left a line half-written

Write = Callable[[int, bytes], int]


class Sink:
    """One destination. `write()` is called under the handler's lock; `reopen()` in the master only."""

    def __init__(self, path: str | None = None) -> None:
        """To this file, or to stderr. Raises OSError when the file cannot be opened."""
        self.path = path
        self.words: memoryview = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")
        self._seen = 0
        self._next_look = 0.0
        self._inode = (0, 0)
        self.fd, self._write_some, self._at_once = self._opened() if path is not None else _stderr()

    def write(self, line: bytes) -> bool:
        """Whether the whole line was taken. A line without its end is ended by whoever writes next."""
        self._follow()
        if self.words[TORN]:
            line = b"\n" + line
        taken = 0
        try:
            while taken < len(line):
                taken += self._write_some(self.fd, line[taken : taken + self._at_once])
                self.words[TORN] = taken < len(line)
        except OSError:  # stalled, closed, full: BlockingIOError, EPIPE, ENOSPC, …
            return False
        return True

    def reopen(self) -> None:
        """The file was renamed: go on in a new one, here and in every other process. Raises OSError, and then nothing
        has changed."""
        if self.path is not None:
            self._renew(create=True)
            self._seen = self.words[REOPENED] = self.words[REOPENED] + 1

    def _follow(self) -> None:
        if self.path is None:
            return
        told = self.words[REOPENED] != self._seen
        now = monotonic()
        if not told and now < self._next_look:
            return
        self._next_look = now + LEVEL_LOOK_EVERY_S
        self._seen = self.words[REOPENED]
        try:
            found = os.stat(self.path)
            if (found.st_dev, found.st_ino) != self._inode:
                self._renew(create=False)
        except OSError:
            pass  # nothing there yet: what we have is as good

    def _renew(self, *, create: bool) -> None:
        old = self.fd
        self.fd, self._write_some, self._at_once = self._opened(create=create)
        os.close(old)

    def _opened(self, *, create: bool = True) -> tuple[int, Write, int]:
        assert self.path is not None
        flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        fd = os.open(self.path, flags | (os.O_CREAT if create else 0), 0o640)
        found = os.fstat(fd)
        self._inode = (found.st_dev, found.st_ino)
        return fd, os.write, PIPE_BUF if stat.S_ISFIFO(found.st_mode) else 1 << 30


def _stderr() -> tuple[int, Write, int]:
    """How to write to stderr without waiting, by what it is."""
    try:
        mode = os.fstat(2).st_mode
    except OSError:
        return 2, os.write, 1 << 30  # closed: every write fails
    if stat.S_ISSOCK(mode):  # the journal's
        return 2, _send, 1 << 30
    if stat.S_ISFIFO(mode) or os.isatty(2):
        try:
            fd = os.open("/proc/self/fd/2", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
            return fd, os.write, PIPE_BUF
        except OSError:  # another user's, or nobody reads it now
            return 2, _write_if_ready, PIPE_BUF
    return 2, os.write, 1 << 30  # a file, in which all share one position


def _send(fd: int, data: bytes) -> int:
    sock = socket.socket(fileno=fd)
    try:
        return sock.send(data, socket.MSG_DONTWAIT)
    finally:
        sock.detach()


def _write_if_ready(fd: int, data: bytes) -> int:
    """For a pipe that cannot be opened once more. Ready means room for PIPE_BUF bytes; only a sibling that takes the
    room in between could make us wait."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    if not poll.poll(0):
        raise BlockingIOError
    return os.write(fd, data)


class SinkHandler(logging.Handler):
    """Formats a record and writes it; what the sink does not take is counted, by this process where it may."""

    def __init__(self, sink: Sink) -> None:
        super().__init__()
        self.sink = sink
        self.prefix = ""  # which process this is, in a child
        self._pid = os.getpid()
        self._uncounted = 0
        self._count: Callable[[int], object] | None = None
        self._nudge: Callable[[], object] = _nobody
        self._level = 0

    def emit(self, record: logging.LogRecord) -> None:
        record.prefork_process = self.prefix
        try:
            line = self.format(record)
        except Exception as exc:  # the arguments do not fit the message: a mistake of who logged it
            fault = f"could not format a log message of {record.pathname}:{record.lineno}: {exc}"
            mistake = logging.LogRecord(record.name, logging.ERROR, "", 0, fault, None, None)
            vars(mistake).update(event(LogEvent.LOG_UNFORMATTED), prefork_process=self.prefix)
            line = self.format(mistake)
        if not self.write(line):
            self._note_drop()

    def write(self, line: str) -> bool:
        return self.sink.write(line.encode("utf-8", "backslashreplace") + b"\n")

    def _note_drop(self) -> None:
        if self._count is None:
            self._uncounted += 1
        elif os.getpid() == self._pid:  # in a process that the user forked, the cell is not ours to write
            self._count(1)
            self._nudge()

    def count_with(self, count: Callable[[int], object], nudge: Callable[[], object] | None = None) -> None:
        """From now on this process counts what it drops by `count`."""
        self._pid = os.getpid()
        self._count = count
        self._nudge = nudge or _nobody
        if self._uncounted:
            count(self._uncounted)
            self._uncounted = 0

    def count_no_longer(self) -> None:
        self._count = None

    # The level, which the master may change while others run.

    def set_level(self, level: int) -> None:
        self.sink.words[LEVEL] = level
        self.follow()

    def follow(self) -> None:
        """Take over the level that is in force."""
        if self.sink.words[LEVEL] != self._level:
            self._level = self.sink.words[LEVEL]
            logging.getLogger().setLevel(self._level)


def _nobody() -> None:
    """There is nobody to wake."""


_handler: SinkHandler | None = None  # of `prefork run`; a program that sets up its own logging has none


def install(handler: SinkHandler | None) -> None:
    global _handler
    _handler = handler


def installed() -> SinkHandler | None:
    return _handler


def begin_child(words: MutableSequence[int] | memoryview) -> None:
    """First thing in a child: it counts in its own slot."""
    if _handler is not None:
        _handler._uncounted = 0  # those are the master's

        def count(number: int, words: Any = words) -> None:
            words[LOG_DROPPED] += number

        _handler.count_with(count)


def name_child(name: str, nudge: Callable[[], object] | None = None) -> None:
    """Each line of this process begins with this; the master is told of what it drops."""
    if _handler is not None:
        _handler.prefix = name
        _handler._nudge = nudge or _nobody


def follow() -> None:
    """Now and then in a child: is the level still the one in force?"""
    if _handler is not None:
        _handler.follow()
