"""Steps that may fail, in a process that may not: whatever a step raises is said, and the caller goes on.

Used in the process that serves. Owns when each kind of failure was last said: once in SAID_EVERY_S, so that a failure
which comes back in every turn fills no log. A kind is what could not be done, in the words of the log, and why.
"""

import errno
import logging
import time
from collections.abc import Callable
from time import monotonic
from typing import TypeVar

from prefork.metrics.log_events import LogEvent, event

log = logging.getLogger("prefork.supervisor")

SAID_EVERY_S = 10.0
INSIST_S = 10.0
INSIST_EVERY_S = 0.05
T = TypeVar("T")

_said: dict[tuple[str, str], float] = {}  # of this process: when each kind was last said


def guarded(what: str, step: Callable[[], T], otherwise: T) -> T:
    """What the step returns, or `otherwise` when it raises; `what` could not be done then, and the log says so."""
    try:
        return step()
    except Exception as exc:
        say_failed(what, exc)
        return otherwise


def attempt(what: str, step: Callable[[], object]) -> bool:
    """Take the step; whether it was taken."""
    try:
        step()
    except Exception as exc:
        say_failed(what, exc)
        return False
    return True


def insist(what: str, step: Callable[[], T]) -> T:
    """What the step returns, which is tried again for INSIST_S: for where nobody supervises until it is done, and the
    kernel may be short of something for a moment. Raises OSError when it fails to the last."""
    until = monotonic() + INSIST_S
    while True:
        try:
            return step()
        except OSError as exc:
            if monotonic() > until:
                raise
            say_failed(what, exc, "trying again")
        time.sleep(INSIST_EVERY_S)


def say_failed(what: str, exc: Exception, then: str = "") -> None:
    """Log that `what` could not be done, unless that was said in the last SAID_EVERY_S; `then` is what follows from it.

    What the kernel refused is one sentence; anything else is a mistake of ours or of the program's, and has its
    traceback.
    """
    now = monotonic()
    kind = what, type(exc).__name__
    if now - _said.get(kind, float("-inf")) < SAID_EVERY_S:
        return
    _said[kind] = now
    follows = f"; {then}" if then else ""
    if isinstance(exc, OSError):
        log.error("could not %s: %s%s", what, reason_of(exc), follows, extra=event(LogEvent.STEP_FAILED, step=what))
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


def reason_of(exc: OSError) -> str:
    """The kernel's reason in small letters, with its name: `too many open files (EMFILE)`."""
    reason = exc.strerror or str(exc)
    name = errno.errorcode.get(exc.errno or 0, "")
    return reason[:1].lower() + reason[1:] + (f" ({name})" if name else "")
