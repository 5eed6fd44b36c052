"""The loggers of ours. A handler of the program's that raises, blocks or has no reader does not hurt who logs.

Used in every process. Owns the class of our loggers, and which handlers are left out for the moment. Must not configure
anything: levels, handlers and propagation are the program's. Only what `logging.config` disables is not: every logger
that a configuration does not name, and tracebacks of handlers would be silent with the rest.
"""

import _signal  # type: ignore[import-not-found]  # the C module that `signal` wraps, without its enums: for each line
import contextlib
import logging
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from time import monotonic
from typing import Any

from .log_events import LogEvent, event

NAMES = ("prefork.supervisor", "prefork.server", "prefork.access", "prefork.exporter", "prefork.metrics")
HELD_UP_S = 0.5  # a handler that takes longer is left out
LEFT_OUT_S = 60.0
_DEFAULT, _SIGPIPE = int(signal.SIG_DFL), int(signal.SIGPIPE)
FAILED_EVERY_S = 10.0  # a handler that raises is told of at most this often

Limit = Callable[[float], AbstractContextManager[object]]


class HeldUp(BaseException):
    """The call took too long. No Exception: the handlers of logging catch all of these."""


class _LeftOut:
    """A handler that gets nothing until `until`, nor as long as its stream takes nothing; and what it has missed."""

    def __init__(self, handler: logging.Handler, until: float = 0.0) -> None:
        self.handler = handler
        self.until = until
        self.missed = 0


_limit: Limit | None = None  # raises HeldUp in a block that takes longer; None: handlers may take their time
_left_out: list[_LeftOut] = []
_told: dict[str, float] = {}  # when it was last told of each that failed


@contextlib.contextmanager
def impatient(limit: Limit) -> Iterator[None]:
    """Wait for no handler while in the block, which is the master's. `limit(seconds)` raises HeldUp."""
    global _limit
    before, _limit = _limit, limit
    try:
        yield
    finally:
        be_patient(before)


def be_patient(limit: Limit | None = None) -> None:
    """End that. Called in a new child, which may wait for its handlers."""
    global _limit
    _limit = limit
    _left_out.clear()


def known_levels(logger: logging.Logger) -> dict[int, bool]:
    """Return `levels` of one of ours: a look there costs less than isEnabledFor(), which fills it."""
    return logger.levels if isinstance(logger, ServiceLogger) else {}


class ServiceLogger(logging.Logger):
    """A logger that never raises; inside `impatient()` it does not wait either."""

    _disabled = False

    @property
    def disabled(self) -> bool:
        return self._disabled

    @disabled.setter
    def disabled(self, value: bool) -> None:
        """Set it, unless `logging.config` does; see the top."""
        if sys._getframe(1).f_globals.get("__name__") != "logging.config":
            self._disabled = bool(value)

    @property
    def levels(self) -> dict[int, bool]:
        """Say of each level that was asked for whether it is logged; emptied whenever that may have changed."""
        return self._cache  # type: ignore[attr-defined, no-any-return]

    def _log(
        self, level: int, msg: object, args: Any, exc_info: Any = None, extra: Any = None, stack_info: bool = False,
        stacklevel: int = 1,
    ) -> None:  # fmt: skip
        try:
            with without_sigpipe():
                super()._log(level, msg, args, exc_info, extra, stack_info, stacklevel + 1)
        except Exception as exc:  # of a filter or record factory of the program's
            self._tell(exc, None)

    def callHandlers(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        """Pass the record to every handler. What one of them does is nothing to the others."""
        reached = self._reached()
        ready = [each for each in reached if record.levelno >= each.level and not self._misses(each)]
        if not _left_out:  # by logging's own method, which services like Sentry replace to see every record
            failed = self._pass(partial(super().callHandlers, record), None)
            if failed is None or failed not in ready:
                return
            ready = ready[ready.index(failed) + 1 :]
        for handler in ready:
            self._pass(partial(handler.handle, record), handler)

    def _reached(self) -> list[logging.Handler]:
        """Return the handlers that get our records."""
        found: list[logging.Handler] = []
        at: logging.Logger | None = self
        while at is not None:
            found += at.handlers
            at = at.parent if at.propagate else None
        return found or [each for each in [logging.lastResort] if each is not None]

    def _pass(self, step: Callable[[], object], handler: logging.Handler | None) -> logging.Handler | None:
        """Take the step; return the handler that failed, after telling of it."""
        try:
            with nullcontext() if _limit is None else _limit(HELD_UP_S):
                step()
        except (Exception, HeldUp) as exc:
            failed = handler or _handler_in(exc)
            if failed is not None and isinstance(exc, HeldUp):
                _left_out.append(_LeftOut(failed, monotonic() + LEFT_OUT_S))
            self._tell(exc, failed)
            return failed
        return None

    def _misses(self, handler: logging.Handler) -> bool:
        """Return True if the handler must not get the next message; count it, and tell the handler later."""
        if _limit is None:
            return False
        entry = next((each for each in _left_out if each.handler is handler), None)
        if (entry is None or monotonic() >= entry.until) and writable(handler):
            if entry is not None:
                _left_out.remove(entry)
                self._pass(partial(handler.handle, self._notice(entry.missed)), handler)
            return False
        if entry is None:
            _left_out.append(entry := _LeftOut(handler))
        entry.missed += 1
        return True

    def _notice(self, missed: int) -> logging.LogRecord:
        told = event(LogEvent.LOG_DROPPED, dropped=missed)
        args = ("%d log messages were dropped", (missed,), None, None, told)
        return self.makeRecord(self.name, logging.WARNING, "", 0, *args)

    def _tell(self, exc: BaseException, failed: logging.Handler | None) -> None:
        """Tell the other handlers, once in FAILED_EVERY_S. A raise inside `emit()` logging itself prints to stderr."""
        what = "a filter or record factory" if failed is None else f"the handler {type(failed).__name__}"
        if monotonic() - _told.get(what, float("-inf")) < FAILED_EVERY_S:
            return
        _told[what] = monotonic()
        why = f"it took {HELD_UP_S:g} s, and is left out for {LEFT_OUT_S:g} s" if isinstance(exc, HeldUp) else repr(exc)
        args = ("could not log by %s of the program's: %s", (what, why), None, None, event(LogEvent.HANDLER_FAILED))
        with contextlib.suppress(Exception):
            record = self.makeRecord(self.name, logging.ERROR, "", 0, *args)
            for handler in self._reached():
                if handler is not failed and not self._misses(handler):
                    self._pass(partial(handler.handle, record), handler)


def _handler_in(exc: BaseException) -> logging.Handler | None:
    """Return the handler in whose method this was raised."""
    at = exc.__traceback__
    while at is not None:
        found = at.tb_frame.f_locals.get("self")
        if isinstance(found, logging.Handler):
            return found
        at = at.tb_next
    return None


def writable(target: Any, within_s: float = 0.0) -> bool:
    """Return False if this stream, or the stream of this handler, takes nothing within that time. True if unknown."""
    try:
        poll = select.poll()
        poll.register(getattr(target, "stream", target).fileno(), select.POLLOUT)
        return bool(poll.poll(within_s * 1000))
    except Exception:  # it is no file; or an object of the program's, which may do anything
        return True


def sigpipe_kills() -> bool:
    """Return True if a write whose reader is gone ends this process: the default action of SIGPIPE."""
    return bool(_signal.getsignal(_SIGPIPE) == _DEFAULT)


@contextlib.contextmanager
def without_sigpipe() -> Iterator[None]:
    """Have writes in the block fail whose reader is gone, where SIGPIPE would end this process."""
    if not sigpipe_kills():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
    try:
        yield
    finally:
        if signal.SIGPIPE not in before:
            signal.sigtimedwait({signal.SIGPIPE}, 0)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


for _name in NAMES:
    logging.getLogger(_name).__class__ = ServiceLogger
