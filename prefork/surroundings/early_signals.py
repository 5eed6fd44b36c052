"""The signals that come before the service serves: while `prefork run` reads its settings and imports the program.

Runs in the process that becomes the master, in its main thread. Owns the handlers until the pool takes over. TERM,
INT and QUIT end the process, with status 0; the others are noted, and obeyed once it serves.
"""

import os
import threading
from types import FrameType

from prefork.workers.signals import Signals
from prefork.workers.wakeup import Wakeup

from ..commands import BY_SIGNAL, Command

__all__ = ["AskedToEnd", "EarlySignals", "waiting"]


class AskedToEnd(KeyboardInterrupt):
    """A signal that ends the service came before it served. Raised wherever the main thread is in Python code."""


class EarlySignals(Signals):
    """Notes signals from `begin()` until they are handed over, or `end()`."""

    def __init__(self) -> None:
        super().__init__(Wakeup())
        self._asked = False

    def note(self, signum: int, frame: FrameType | None = None) -> None:
        super().note(signum, frame)
        if BY_SIGNAL[signum] in (Command.DRAIN, Command.STOP):
            if self._asked:  # the program has swallowed the first one, by a bare `except:`
                os._exit(0)
            self._asked = True
            raise AskedToEnd

    def begin(self) -> None:
        global _waiting
        _waiting = self
        self.take_unhandled(BY_SIGNAL)

    def end(self) -> None:
        """Restore the handlers, unless the signals were handed over. One of the program's own stays."""
        if waiting() is self:
            self.leave()


_waiting: EarlySignals | None = None


def waiting() -> EarlySignals | None:
    """Return the early signals that are to be handed over; they count as handed over from then on.

    Only the main thread can take them.
    """
    global _waiting
    if threading.current_thread() is not threading.main_thread():
        return None
    early, _waiting = _waiting, None
    return early
