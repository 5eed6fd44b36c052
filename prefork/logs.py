"""Logging as `prefork run` sets it up: one format, one sink for all processes, one level that can be changed.

The library itself only emits to loggers named prefork.…; without `set_up()` they are the program's business. Runs in
the master, before the first fork; what its children need of it is in workers/sinks.py.
"""

import errno
import logging
import os
from collections.abc import Iterable
from math import inf

from prefork.metrics.board import Board, Word
from prefork.workers import sinks

from .children import Child
from .errors import ConfigError
from .lines import JournalFormat, JsonFormat, TextFormat

log = logging.getLogger("prefork.supervisor")

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")
NOTHING_TO_REOPEN = "there is no log file of prefork's own to reopen"
TELL_EVERY_S = 1.0  # how often dropped lines are told of, at most


def set_up(level: str = "info", format: str = "text", path: str | None = None) -> None:
    """Log everything that this process and its children log, by the root logger. Raises ConfigError."""
    try:
        handler = sinks.SinkHandler(sinks.Sink(path))
    except OSError as exc:
        raise _cannot_open(path, exc) from exc
    handler.setFormatter(_formatter(format, path))
    logging.getLogger().addHandler(handler)
    sinks.install(handler)
    set_level(level)


def check(path: str | None) -> None:
    """Whether that file could be logged to; nothing is made or written. Raises ConfigError as `set_up()` would."""
    if path is None:
        return
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK))
    except FileNotFoundError as exc:
        folder = os.path.dirname(path) or "."
        if not os.path.isdir(folder):
            raise _cannot_open(path, exc) from exc
        if not os.access(folder, os.W_OK | os.X_OK):
            raise _cannot_open(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES))) from exc
    except OSError as exc:
        raise _cannot_open(path, exc) from exc


def _cannot_open(path: str | None, exc: OSError) -> ConfigError:
    return ConfigError(f"could not open the log file {path}: {(exc.strerror or str(exc)).lower()}")


def _formatter(format: str, path: str | None) -> TextFormat:
    if format == "json":
        return JsonFormat()
    if path is None and _stderr_is_the_journal():
        return JournalFormat()
    return TextFormat(colour=path is None and _isatty() and "NO_COLOR" not in os.environ)


def _isatty() -> bool:
    return os.isatty(2) and os.environ.get("TERM") != "dumb"


def _stderr_is_the_journal() -> bool:
    """systemd.exec(5): JOURNAL_STREAM is device:inode of the stream it gave us, which may not be our stderr now."""
    try:
        found = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def set_level(level: str) -> None:
    """Change what is logged, here and, before its next look, in every worker. Raises ConfigError."""
    if level not in LEVELS:
        raise ConfigError(f"could not set the log level {level!r}: it must be one of {', '.join(LEVELS)}")
    number = getattr(logging, level.upper())
    handler = sinks.installed()
    if handler is None:
        logging.getLogger("prefork").setLevel(number)
    else:
        handler.set_level(number)


def reopen() -> str:
    """Go on in a new file, because the old one was renamed; every other process does at its next line.

    Why that could not be, in one sentence; empty when it is done.
    """
    handler = sinks.installed()
    if handler is None or handler.sink.path is None:
        log.info(NOTHING_TO_REOPEN)
        return NOTHING_TO_REOPEN
    handler.acquire()
    try:
        handler.sink.reopen()
    except OSError as exc:
        path, reason = handler.sink.path, (exc.strerror or str(exc)).lower()
        log.error("could not reopen the log file %s: %s; going on with the old one", path, reason)
        return f"could not reopen the log file {path}: {reason}; going on with the old one"
    finally:
        handler.release()
    return ""


class Drops:
    """Lines that were dropped, in the master or in a child: counted on the board, told of once there is room again."""

    def __init__(self, board: Board, children: Iterable[Child]) -> None:
        self._board = board
        self._children = children
        self._told = board.words[Word.LOG_DROPPED]
        self._next = -inf
        handler = self._handler = sinks.installed()
        if handler is not None:
            handler.count_with(lambda number: board.add(Word.LOG_DROPPED, number))
            with board.change() as words:
                words[Word.LOGS_COUNTED] = 1

    def turn(self, now: float) -> float:
        """When to be back."""
        if self._handler is None:
            return inf
        untold = self._dropped() - self._told
        if not untold:
            return inf
        if now >= self._next:
            self._next = now + TELL_EVERY_S
            if self._handler.write(self._handler.format(_notice(untold))):
                self._told += untold
        return self._next

    def close(self) -> None:
        """The board is about to go."""
        if self._handler is not None:
            self._handler.count_no_longer()

    def _dropped(self) -> int:
        dead: int = self._board.words[Word.LOG_DROPPED]
        return dead + sum(child.reader.log_dropped() for child in self._children)


def _notice(dropped: int) -> logging.LogRecord:
    return logging.makeLogRecord({
        "name": log.name, "levelno": logging.WARNING, "levelname": "WARNING", "event": "log_dropped",
        "msg": "%d log messages were dropped", "args": (dropped,), "fields": {"dropped": dropped},
    })  # fmt: skip
