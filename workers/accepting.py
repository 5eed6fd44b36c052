"""An accept, its result, and the meaning of an error of `get_request()` to the loop that accepts.

The same for every loop: that of a worker, and that of a process that serves by itself. Writes the counts of errors in
the slot of this process; all else is pure.
"""

import errno
import logging
import select
import sys
from collections.abc import Callable
from enum import Enum, auto
from threading import Lock
from time import monotonic
from traceback import clear_frames
from typing import Any

from prefork.metrics.facts import AcceptError, Refusal
from prefork.metrics.log_events import LogEvent, event
from prefork.metrics.scoreboard import ACCEPT_ERRORS

from .handshake import failure

log = logging.getLogger("prefork.server")

# Seconds without accepting when descriptors or memory are short: ten attempts a second instead of 190,000.
ACCEPT_PAUSE = 0.1

_FACTS = {
    errno.EMFILE: AcceptError.EMFILE,
    errno.ENFILE: AcceptError.ENFILE,
    errno.ENOBUFS: AcceptError.NOMEM,
    errno.ENOMEM: AcceptError.NOMEM,
    errno.ECONNABORTED: AcceptError.ABORTED,
}
_RESOURCES = {AcceptError.EMFILE, AcceptError.ENFILE, AcceptError.NOMEM}
NEVER_S = float("-inf")
ACCEPT_SAID_EVERY_S = 10.0
RESOURCES_SHORT = "descriptors or memory are short"
FAILED_IN_A_ROW = 100  # then it rests once: get_request() may fail before it accepts, and would do so for ever
IN_VAIN = 16  # accepts in a row that found nothing, after which it is asked whether anything can come
SHUT_DOWN = "the listener was shut down"
_SHUT = getattr(select, "POLLHUP", 0) | getattr(select, "POLLRDHUP", 0)


GetRequest = Callable[[], tuple[Any, Any]]


class Accepted(Enum):
    """The result of one `serve_one()`."""

    REQUEST = auto()
    NOTHING = auto()  # the queue is empty, or its connection is gone
    NO_RESOURCES = auto()  # descriptors or memory are short: leave the listener alone for a while
    SHUT = auto()  # nothing can come: the listener was shut down, for all processes, and is told of as ready for ever
    NOT_BEGUN = auto()  # a request that failed because no thread was left: leave the listener alone for a while
    PASSED_ON = auto()  # a request that went elsewhere, and the lane with it, from a thread that serves by itself


# For the hot path: in 3.11 `Accepted.REQUEST` costs a call.
REQUEST, NOTHING, NO_RESOURCES, SHUT, NOT_BEGUN, PASSED_ON = Accepted


class NotAdmitted(Exception):
    """This connection is to be closed. It is logged already."""

    def __init__(self, refusal: Refusal, client_address: Any) -> None:
        super().__init__(refusal)
        self.refusal = refusal
        self.client_address = client_address  # by what is known of it


class Shortage:
    """Log that nothing can be accepted, at most once in ten seconds. For one thread."""

    def __init__(self) -> None:
        self._said_at = NEVER_S

    def say(self, reason: object) -> None:
        now = monotonic()
        if now - self._said_at >= ACCEPT_SAID_EVERY_S:
            self._said_at = now
            log.warning(
                "could not accept: %s; trying again every %g s",
                reason,
                ACCEPT_PAUSE,
                extra=event(LogEvent.ACCEPT_FAILED),
            )


class NotAccepted:
    """The calls of `get_request()` that raised, in any thread; counted in the words of a slot.

    `is_shut` returns whether the listener was shut down. `on_shut` is called with True when that is found out, and with
    False when something has come after all, by one thread at a time; None: the listener is left alone for a while
    instead.
    """

    def __init__(
        self, words: memoryview, is_shut: Callable[[], bool], on_shut: Callable[[bool], object] | None = None
    ) -> None:  # fmt: skip
        self.in_vain = 0  # since something has come; if it is 0, nobody calls `end()`
        self.in_a_row = 0  # of those, what is not a client's doing
        self.why: str | None = None  # the listener has to be left alone; a text, for the exception holds its frames
        self._words = words
        self._said_at = NEVER_S
        self._is_shut = is_shut
        self._on_shut = on_shut
        self._known_shut = False
        self._telling = Lock()  # else what was told last might not be what is known

    def end(self) -> None:
        """Note that something has come."""
        self.in_vain = self.in_a_row = 0
        if self._known_shut:
            self._tell(shut=False)

    def count(self, exc: OSError) -> Accepted:
        self.in_vain = in_vain = self.in_vain + 1
        if isinstance(exc, BlockingIOError):  # also where nothing can come, but of TCP
            # By this thread's own number: another's, counted since, might pass over the one that asks.
            asks = self._known_shut or not in_vain % IN_VAIN
            return self._shut() if asks and self._is_shut() else NOTHING
        self._words[ACCEPT_ERRORS + accept_error(exc)] += 1
        if is_resource_error(exc):
            self.why = str(exc)
            return NO_RESOURCES
        if not _told_of_handshake(exc) and exc.errno == errno.EINVAL and self._is_shut():
            return self._shut()
        return NOTHING  # that is the client's doing, or the program's, which refuses it

    def _shut(self) -> Accepted:
        if self._on_shut is None:
            self.why = SHUT_DOWN
            return NO_RESOURCES
        self._tell(shut=True)
        return SHUT

    def _tell(self, *, shut: bool) -> None:
        with self._telling:
            if self._on_shut is not None and shut is not self._known_shut:
                self._known_shut = shut
                if shut:
                    self.in_vain = 1  # after that: another thread's `end()` may have come since it was counted
                self._on_shut(shut)

    def count_unexpected(self, exc: Exception) -> Accepted:
        """Log an exception of the program's `get_request()`, and close its connection.

        Only the frame of the call holds that connection, so clearing the frame closes it.
        """
        self._words[ACCEPT_ERRORS + AcceptError.OTHER] += 1
        if _told_of_handshake(exc):
            clear_frames(exc.__traceback__)
            return NOTHING
        now = monotonic()
        if now - self._said_at >= ACCEPT_SAID_EVERY_S:
            self._said_at = now
            log.error(
                "could not get a request, its connection is closed: %r",
                exc,
                exc_info=exc,
                extra=event(LogEvent.GET_REQUEST_FAILED),
            )
        clear_frames(exc.__traceback__)
        return self._one_more()

    def _one_more(self) -> Accepted:
        self.in_a_row += 1
        self.in_vain += 1
        if self.in_a_row < FAILED_IN_A_ROW:
            return NOTHING
        self.in_a_row = 0
        self.why = f"get_request() raised {FAILED_IN_A_ROW} times in a row"
        return NO_RESOURCES


def _told_of_handshake(exc: Exception) -> bool:
    """Tell of a TLS handshake that failed inside `get_request()`, if this is one."""
    why = failure(exc)
    if why is not None:
        log.info("TLS handshake with a client failed: %s", why, extra=event(LogEvent.HANDSHAKE_FAILED, reason=why))
    return why is not None


def accept_error(exc: OSError) -> AcceptError:
    """Return the AcceptError for this exception.

    `get_request()` may be the user's, and raise a TLS error, whose number is not an errno.
    """
    if exc.errno is None or _is_tls(exc):
        return AcceptError.OTHER
    return _FACTS.get(exc.errno, AcceptError.OTHER)


def is_resource_error(exc: OSError) -> bool:
    """Return whether descriptors or memory are short, so that retrying at once would fail again and again."""
    return accept_error(exc) in _RESOURCES


def is_shortage(exc: Exception) -> bool:
    """Return whether a request could not be started because the system is out of threads or processes."""
    if isinstance(exc, RuntimeError):
        return "can't start new thread" in str(exc)  # CPython gives no other sign of it
    return isinstance(exc, OSError) and (exc.errno == errno.EAGAIN or is_resource_error(exc))


def is_shut(fd: int) -> bool:
    """Return whether the socket was shut down (shutdown(2)), so that no stream's client comes, for any process that
    has it."""
    if fd == -1 or not _SHUT:
        return False
    poll = select.poll()
    try:
        poll.register(fd, _SHUT)
        return any(found & _SHUT for _, found in poll.poll(0))
    except (OSError, ValueError, TypeError):
        return False


def _is_tls(exc: OSError) -> bool:
    ssl = sys.modules.get("ssl")  # if it is not imported, the error cannot be one of its own
    return ssl is not None and isinstance(exc, ssl.SSLError)
