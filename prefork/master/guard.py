"""Guards for steps that may fail in a process that must not: log what a step raises, and let the caller go on.

Used in the process that serves. Owns when each kind of failure was last logged: at most once in SAID_EVERY_S, so that a
failure that comes back in every turn does not fill the log. A kind is the step, in the words of the log, and the type
of its exception.
"""

import errno
import logging
import time
from collections.abc import Callable
from time import monotonic
from typing import TypeVar

from prefork.metrics.log_events import LogEvent, event

from ..errors import reason_of

log = logging.getLogger("prefork.supervisor")

SAID_EVERY_S = 10.0
INSIST_S = 10.0
INSIST_EVERY_S = 0.05
T = TypeVar("T")

_said: dict[tuple[str, str], float] = {}  # when this process last logged each kind


def guarded(what: str, step: Callable[[], T], otherwise: T) -> T:
    """Return what the step returns, or `otherwise` when it raises; then log that `what` could not be done."""
    try:
        return step()
    except Exception as exc:
        say_failed(what, exc)
        return otherwise


def attempt(what: str, step: Callable[[], object]) -> bool:
    """Take the step; return False if it raised, after logging that `what` could not be done."""
    try:
        step()
    except Exception as exc:
        say_failed(what, exc)
        return False
    return True


def insist(what: str, step: Callable[[], T]) -> T:
    """Return what the step returns; try again for INSIST_S when it raises OSError, and raise the last one.

    For steps before the supervisor runs: without them nothing is supervised, and the kernel may be short of something
    only for a moment.
    """
    until = monotonic() + INSIST_S
    while True:
        try:
            return step()
        except OSError as exc:
            if monotonic() > until:
                raise
            say_failed(what, exc, "trying again")
        time.sleep(INSIST_EVERY_S)


def say_failed(what: str, exc: Exception, then: str = "", *, theirs: bool = False) -> None:
    """Log that `what` could not be done, unless that was logged in the last SAID_EVERY_S; `then` is what follows.

    A refusal of the kernel (OSError) is one sentence, unless the program asked the kernel (`theirs`). Anything else is
    a bug of ours or of the program's, and is logged with its traceback.
    """
    now = monotonic()
    kind = what, type(exc).__name__
    if now - _said.get(kind, float("-inf")) < SAID_EVERY_S:
        return
    _said[kind] = now
    follows = f"; {then}" if then else ""
    if isinstance(exc, OSError) and not theirs:
        log.error("could not %s: %s%s", what, named_reason(exc), follows, extra=event(LogEvent.STEP_FAILED, step=what))
    else:
        log.error(
            "could not %s: %s: %s%s",
            what,
            type(exc).__name__,
            exc,
            follows,
            exc_info=exc,
            extra=event(LogEvent.STEP_FAILED, step=what),
        )


def named_reason(exc: OSError) -> str:
    """Return the kernel's reason with its name: `too many open files (EMFILE)`."""
    name = errno.errorcode.get(exc.errno or 0, "")
    return reason_of(exc) + (f" ({name})" if name else "")
