"""The destinations of log lines, written without ever blocking: stderr of any kind, or a file that can be rotated.

The master creates one before the first fork and every process of the service inherits it, so that all write to the same
place by one rule: a line that cannot be written at once is dropped and counted. Must not set a flag on an open file
description that other programs share: a pipe or a terminal is opened again, a socket gets MSG_DONTWAIT with each send.

All processes share one page of memory. In it the master counts how often it reopened the file and says which level is
in force; the others compare before they write, and take the new file from log_handing.py. Page and pair go on in the
next image of the master, for the workers of the one before.
"""

import contextlib
import logging
import mmap
import os
import stat
from collections.abc import Callable, MutableSequence, Sequence
from time import monotonic
from typing import Any, NamedTuple

from prefork.metrics.log_events import LogEvent, event
from prefork.metrics.loggers import sigpipe_kills, without_sigpipe
from prefork.metrics.scoreboard import LOG_DROPPED, LOG_FOLLOWED, LOG_KEPT

from .destinations import PIPE_BUF, Opened, opened_stderr
from .identity import identity, is_marked, lost, mark
from .log_handing import LogHanding

PATH_LOOK_EVERY_S = 1.0  # check that the path still names our file, for processes that cannot be told to reopen
FOLLOW_AGAIN_S = 1.0  # until a process that could not go on in the new file tries again

REOPENED, LEVEL, TORN = range(3)  # words of the shared page; a process that leaves a line half-written sets TORN


class Sink:
    """One destination. Call `write()` with the handler's lock held, and `reopen()` in the master only."""

    def __init__(self, path: str | None = None) -> None:
        """Write to the file at `path`, or to stderr. Raises OSError when the file cannot be opened."""
        self.path = path
        self._shared = None if path is None else _shared()
        page = -1 if self._shared is None else self._shared.page
        self.words: memoryview = memoryview(mmap.mmap(page, mmap.PAGESIZE)).cast("Q")
        self.number = self.words[REOPENED]  # of the file that this process writes
        self.kept = 0  # of the last one that it could not go on in
        self._next_look = self._next_try = 0.0
        self._inode = (0, 0)  # of the file at `path`, as we opened it
        self._take(self._opened() if path is not None else opened_stderr())

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # the constructor failed; the interpreter ends
            self._close(self.fd)

    def write(self, line: bytes) -> bool:
        """Write a line and return whether all of it was accepted. The next writer ends a line that was cut short."""
        words = self.words
        if self._shared is not None and (words[REOPENED] != self.number or monotonic() >= self._next_look):
            self.follow()
        if not is_marked(self.fd) if self._marked else lost(self.fd, self._identity):
            self._open_anew()
        if torn := words[TORN]:
            line = b"\n" + line
        taken, size = 0, len(line)
        try:
            while taken < size:
                taken += self._write_some(self.fd, line[taken : taken + self._at_once])
                if torn != (taken < size):  # no write but where it changes: all processes have this cache line
                    torn = words[TORN] = taken < size
        except OSError:  # stalled, closed or full: BlockingIOError, EPIPE, ENOSPC, …
            return False
        return True

    def reopen(self) -> None:
        """Continue in a new file, here and in every other process, because the old one was renamed.

        Raises OSError when it cannot be opened; then nothing has changed.
        """
        if self._shared is not None:
            self._renew(self._opened(create=True))
            number = self.words[REOPENED] + 1
            try:
                self._shared.handing.hand(number, self.fd)
            except OSError:
                pass  # the others open it by its path, where they can, and say whether they could
            self.number = self.words[REOPENED] = number

    def follow(self) -> None:
        """Go on in the new file, if the master has reopened it."""
        if self._shared is None:
            return
        now, number = monotonic(), self.words[REOPENED]
        told = number != self.number
        if (now < self._next_try) if told else (now < self._next_look):
            return
        self._next_look = now + PATH_LOOK_EVERY_S
        try:
            fd = self._shared.handing.look(number) if told else None
            if fd is not None:
                self._renew(self._with(fd))
            else:
                self._look_by_path()
            self.number = number
        except OSError:  # no new file yet, or none that we can have: keep writing to the old one
            if told:
                self.kept, self._next_try = number, now + FOLLOW_AGAIN_S

    def _look_by_path(self) -> None:
        assert self.path is not None
        found = os.stat(self.path)
        if (found.st_dev, found.st_ino) != self._inode:
            self._renew(self._opened(create=False))

    def _renew(self, opened: Opened) -> None:
        self._close(self.fd)
        self._take(opened)

    def _take(self, opened: Opened) -> None:
        """Write there from now on."""
        self.fd, self._write_some, self._at_once, ours, self.breaks = opened
        self._identity = identity(self.fd)
        self._marked = ours and mark(self.fd)

    def _open_anew(self) -> None:
        with contextlib.suppress(OSError):
            fd = None if self._shared is None else self._shared.handing.look(self.number)
            if fd is not None:
                self._take(self._with(fd))
            else:
                self._take(self._opened() if self.path is not None else opened_stderr())

    def _close(self, fd: int) -> None:
        if fd > 2 and not lost(fd, self._identity):
            os.close(fd)

    def _opened(self, *, create: bool = True) -> Opened:
        assert self.path is not None
        flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        return self._with(os.open(self.path, flags | (os.O_CREAT if create else 0), 0o640))

    def _with(self, fd: int) -> Opened:
        found = os.fstat(fd)
        self._inode = (found.st_dev, found.st_ino)
        regular = stat.S_ISREG(found.st_mode)
        return Opened(fd, os.write, PIPE_BUF if stat.S_ISFIFO(found.st_mode) else 1 << 30, True, not regular)


class Shared(NamedTuple):
    """Descriptors that the sinks of a log file share, in all processes and in the next image of the master."""

    page: int
    handing: LogHanding


# Left of the previous image's sink for one of this image: descriptors of the page, and of the pair.
_left: tuple[int, tuple[int, int]] | None = None


def resume(packed: Sequence[int]) -> None:
    """Have the next sink go on with what an earlier image of this process packed; its children hold that."""
    global _left
    page, *pair = packed
    _left = page, (pair[0], pair[1])


def _shared() -> Shared:
    """Return what the previous image has left; else make it."""
    global _left
    left, _left = _left, None
    if left is not None:
        return Shared(left[0], LogHanding(left[1]))
    page = os.memfd_create("prefork-log", os.MFD_CLOEXEC)
    os.ftruncate(page, mmap.PAGESIZE)
    return Shared(page, LogHanding())


class SinkHandler(logging.Handler):
    """Format records and write them to a sink; count those that it drops, where this process may count."""

    def __init__(self, sink: Sink) -> None:
        super().__init__()
        self.sink = sink
        self.own_formatter: logging.Formatter | None = None  # the one that `prefork run` has set
        self.prefix = ""  # names the process, in a child
        self._pid = os.getpid()
        self._uncounted = 0
        self._count: Callable[[int], object] | None = None
        self._nudge: Callable[[], object] = _nobody
        self._level = 0
        self._own: MutableSequence[int] | memoryview | None = None  # the words of this process's slot, if it has one
        self._said = (-1, -1)

    def emit(self, record: logging.LogRecord) -> None:
        record.prefork_process = self.prefix
        try:
            line = self.format(record)
        except Exception as exc:  # the arguments do not fit the message: the caller's mistake
            fault = f"could not format a log message of {record.pathname}:{record.lineno}: {exc}"
            mistake = logging.LogRecord(record.name, logging.ERROR, "", 0, fault, None, None)
            vars(mistake).update(event(LogEvent.LOG_UNFORMATTED), prefork_process=self.prefix)
            line = self.format(mistake)
        if not self.write(line):
            self._note_drop()

    def put(self, line: str) -> None:
        """Write a line that is formatted already, as `handle()` writes a record."""
        with self.lock or contextlib.nullcontext():
            if self.sink.breaks and sigpipe_kills():
                with without_sigpipe():
                    written = self.write(line)
            else:
                written = self.write(line)
            if not written:
                self._note_drop()

    def write(self, line: str) -> bool:
        sink, said = self.sink, self._said
        written = sink.write(line.encode("utf-8", "backslashreplace") + b"\n")
        if sink.number != said[0] or sink.kept != said[1]:
            self._say_which()
        return written

    def _say_which(self) -> None:
        """Say in this process's slot, where it has one, which file it writes."""
        if self._own is not None and os.getpid() == self._pid:
            self._own[LOG_FOLLOWED], self._own[LOG_KEPT] = self._said = self.sink.number, self.sink.kept

    def _note_drop(self) -> None:
        if self._count is None:
            self._uncounted += 1
        elif os.getpid() == self._pid:  # a process that user code forked must not write the slot
            self._count(1)
            self._nudge()

    def count_with(self, count: Callable[[int], object], nudge: Callable[[], object] | None = None) -> None:
        """Count the lines dropped by this process, from now on and so far, with `count`; call `nudge` after each."""
        self._pid = os.getpid()
        self._count = count
        self._nudge = nudge or _nobody
        if self._uncounted:
            count(self._uncounted)
            self._uncounted = 0

    def count_no_longer(self) -> None:
        self._count = None

    # The level, which the master may change while other processes run.

    def set_level(self, level: int) -> None:
        self.sink.words[LEVEL] = level
        self.follow()

    def follow(self) -> None:
        """Adopt the log file and the level that are in force."""
        with self.lock or contextlib.nullcontext():
            self.sink.follow()
            self._say_which()
        if self.sink.words[LEVEL] != self._level:
            self._level = self.sink.words[LEVEL]
            logging.getLogger().setLevel(self._level)


def _nobody() -> None:
    """Do nothing: there is no loop to wake."""


_handler: SinkHandler | None = None  # of `prefork run`; None in a program that sets up its own logging


def install(handler: SinkHandler | None) -> None:
    global _handler
    _handler = handler
    if handler is not None:
        handler.own_formatter = handler.formatter


def installed() -> SinkHandler | None:
    return _handler


def begin_child(words: MutableSequence[int] | memoryview) -> None:
    """Count dropped lines in the child's own slot. Called first thing in a child."""
    if _handler is not None:
        _handler._uncounted = 0  # the master counts those

        def count(number: int, words: Any = words) -> None:
            words[LOG_DROPPED] += number

        _handler.count_with(count)
        _handler._own, _handler._said = words, (-1, -1)
        _handler._say_which()


def name_child(name: str, nudge: Callable[[], object] | None = None) -> None:
    """Begin each line of this process with `name`; call `nudge` to tell the master when one is dropped."""
    if _handler is not None:
        _handler.prefix = name
        _handler._nudge = nudge or _nobody


def pack() -> tuple[list[int], list[int]] | None:
    """Pack what the next image of this process, and its sink, go on with."""
    if _handler is None or _handler.sink._shared is None:
        return None
    shared = _handler.sink._shared
    fds = [shared.page, *shared.handing.fds]
    return fds, fds


def handed_anew() -> bool:
    """Return whether the pair that hands on a new file is another one since the last call, of which no child has a
    copy."""
    if _handler is None or _handler.sink._shared is None:
        return False
    handing = _handler.sink._shared.handing
    anew, handing.anew = handing.anew, False
    return anew


def follow() -> None:
    """Adopt the level and the log file that are in force. Called now and then in a child, and when it was poked."""
    if _handler is not None:
        _handler.follow()
