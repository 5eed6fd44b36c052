"""An exception on its way out of `serve_forever()`, the program's or ours: held back until the pool has drained.

Runs in the master, in the supervisor's loop. Owns the exception. Must not wait for the drain: the loop goes on, and its
own deadlines end it; only an error of ours that comes back in every turn is let go after GIVE_UP_S.
"""

import logging
import time
from collections.abc import Callable
from time import monotonic

from prefork.metrics.log_events import LogEvent, event

from ..commands import Command
from .guard import say_failed

log = logging.getLogger("prefork.supervisor")

GIVE_UP_S = 5.0  # after the deadline of the drain
AGAIN_S = 0.05  # pause after an error of ours, which may come back at once


class Parting:
    """The exception with which the serving loop will be left; None while nothing was raised."""

    def __init__(self, post: Callable[[Command], None]) -> None:
        self.raised: BaseException | None = None
        self._post = post
        self._give_up_at = 0.0

    def note(self, exc: BaseException, drained_within: float) -> None:
        """Hold the first exception back and have the pool drain; a second KeyboardInterrupt has it stop.

        `drained_within`: what a drain takes at most, in seconds. Raises the first one if errors of ours go on after
        that: then nothing more can be done for the pool.
        """
        if self.raised is None:
            self.raised, self._give_up_at = exc, monotonic() + drained_within + GIVE_UP_S
            self._post(Command.DRAIN)
            if not isinstance(exc, Exception):
                log.info(
                    "the program leaves serve_forever() by %s; draining first",
                    type(exc).__name__,
                    extra=event(LogEvent.PROGRAM_LEAVES, error=type(exc).__name__),
                )
        elif isinstance(exc, KeyboardInterrupt):
            self._post(Command.STOP)
        if isinstance(exc, Exception):
            say_failed("go on", exc, "draining")
            if monotonic() > self._give_up_at:
                raise self.raised
            time.sleep(AGAIN_S)
