"""Logging as `prefork run` sets it up: one format, one sink for all processes, one level that can be changed.

The library only emits to loggers named prefork.…; unless `set_up()` is called, it must not configure them. Runs in the
master, before the first fork; the part that children need is in workers/sinks.py.
"""

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Iterable

from prefork.metrics.log_events import LogEvent, event
from prefork.metrics.loggers import without_sigpipe
from prefork.workers import sinks

from .errors import ConfigError, reason_of
from .log_formats import JournalFormat, JsonFormat, TextFormat
from .master.guard import attempt

log = logging.getLogger("prefork.supervisor")

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")
NOTHING_TO_REOPEN = "there is no log file of prefork's own to reopen"


def set_up(level: str = "info", format: str = "text", path: str | None = None) -> None:
    """Install a handler on the root logger, for this process and its children.

    Raises ConfigError if the log file cannot be opened, or if the level is unknown.
    """
    try:
        handler = sinks.SinkHandler(sinks.Sink(path))
    except OSError as exc:
        raise _cannot_open(path, exc) from exc
    handler.setFormatter(_formatter(format, path))
    logging.getLogger().addHandler(handler)
    sinks.install(handler)
    set_level(level)


def say_no_effect(found: Iterable[tuple[str, str]]) -> None:
    """Log a line for each setting or hook that has no effect, and why; see settings/effects.py.

    An attribute of the program's may raise, or an import fail after a chroot: that is said, and keeps nobody from
    serving.
    """

    def say() -> None:
        for name, why in found:
            log.warning("%s has no effect: %s", name, why, extra=event(LogEvent.NO_EFFECT, name=name, why=why))

    attempt("look for settings without effect", say)


def say_if_root(user: str | None) -> None:
    """Warn of handlers that run as root. `user`: the setting; where that is root, it is meant."""
    if user is None and os.geteuid() == 0:
        log.warning(
            "handlers run as root: set user, or start the service as another one (user = root, if it must be)",
            extra=event(LogEvent.RUNS_AS_ROOT),
        )


def check(path: str | None) -> None:
    """Raise ConfigError if `set_up()` could not log to that file. Creates and writes nothing."""
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
    return ConfigError(f"could not open the log file {path}: {reason_of(exc)}")


def _formatter(format: str, path: str | None) -> TextFormat:
    if format == "json":
        return JsonFormat()
    if path is None and _stderr_is_the_journal():
        return JournalFormat()
    return TextFormat(colour=path is None and _isatty() and "NO_COLOR" not in os.environ)


def _isatty() -> bool:
    return os.isatty(2) and os.environ.get("TERM") != "dumb"


def _stderr_is_the_journal() -> bool:
    """Return True if stderr is the stream of JOURNAL_STREAM (device:inode), and not redirected; see systemd.exec(5)."""
    try:
        found = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def complain(text: str) -> None:
    """Write an error to stderr, apart from the log; for the journal, mark each line as an error, see sd-daemon(3).

    Whoever complains is about to end for a reason, so that stderr being closed or replaced must not be another one.
    """
    priority = "<3>" if _stderr_is_the_journal() else ""
    with without_sigpipe(), contextlib.suppress(Exception):
        sys.stderr.write("".join(f"{priority}{line}\n" for line in text.removesuffix("\n").split("\n")))


def note_removed() -> None:
    """Say so if the program has taken our handler away, as `logging.config` does: what --log-… set is then in vain."""
    handler = sinks.installed()
    if handler is not None and handler not in logging.getLogger().handlers:
        log.warning(
            "the program's configuration of logging has taken prefork's log handler away: what is logged goes where "
            "that says; leave it out, or the options --log-format and --log-file",
            extra=event(LogEvent.LOG_HANDLER_REMOVED),
        )


def set_level(level: str) -> None:
    """Change the log level here, and in every worker at its next look at it. Raises ConfigError if it is unknown."""
    if level not in LEVELS:
        raise ConfigError(f"could not set the log level {level!r}: it must be one of {', '.join(LEVELS)}")
    number = getattr(logging, level.upper())
    handler = sinks.installed()
    if handler is None:
        logging.getLogger("prefork").setLevel(number)
    else:
        handler.set_level(number)


def reopen() -> str:
    """Reopen the log file after the old one was renamed. Every other process follows at its next line.

    Return an empty string, or one sentence that says why it failed.
    """
    handler = sinks.installed()
    if handler is None or handler.sink.path is None:
        log.info(NOTHING_TO_REOPEN, extra=event(LogEvent.NOTHING_TO_REOPEN))
        return NOTHING_TO_REOPEN
    handler.acquire()
    try:
        handler.sink.reopen()
    except OSError as exc:
        path, reason = handler.sink.path, reason_of(exc)
        log.error(
            "could not reopen the log file %s: %s; going on with the old one",
            path,
            reason,
            extra=event(LogEvent.REOPEN_FAILED),
        )
        return f"could not reopen the log file {path}: {reason}; going on with the old one"
    finally:
        handler.release()
    return ""
