"""The back-off of a process that a service has one of: the exporter, the holder. Pure.

Used in the master, in its turns. Owns when it may start again. Times are in seconds of the supervisor's clock.
"""

FIRST_RESTART_S = 0.1
RESTART_MAX_S = 30.0
HEALTHY_S = 10.0  # one that ran longer is restarted at once


class Restarts:
    """`next_start`: before it the process must not be started."""

    def __init__(self) -> None:
        self.next_start = 0.0
        self._delay = FIRST_RESTART_S

    def ended(self, started: float, now: float) -> None:
        """Note the end of one that was started then; of one that could not be, now."""
        well = now - started > HEALTHY_S
        self._delay = FIRST_RESTART_S if well else min(RESTART_MAX_S, self._delay * 2)
        self.next_start = now + (0.0 if well else self._delay)
