"""The watch on the Unix paths of the service: does each still lead to its listener?

Runs in the master, in a turn, once a second. Owns which path is known to be lost. A path that was removed by a tidy-up,
or replaced, cannot be bound again by a running master without risk: the listener goes on, and a reload binds anew. Must
not touch a path.
"""

import logging
import socket
from collections.abc import Sequence

from prefork.metrics.log_events import LogEvent, event

from ..sockets.listener import Listener

log = logging.getLogger("prefork.supervisor")

MISSED_WITHIN_S = 1.0


class PathWatch:
    """Check the paths; `reachable` is False while one of the service itself is lost."""

    def __init__(self, origins: Sequence[Listener]) -> None:
        self._origins = origins
        self._watched: list[Listener] = []
        self._lost: set[str] = set()
        self._next_look = float("inf")
        for origin in origins:
            self.add(origin)

    def add(self, listener: Listener) -> None:
        """Watch the path of this listener too, on which no client of the service depends."""
        if listener.family == getattr(socket, "AF_UNIX", None):
            self._watched.append(listener)
            self._next_look = 0.0

    @property
    def reachable(self) -> bool:
        return not any(origin.path in self._lost for origin in self._origins)

    def turn(self, now: float) -> float:
        """Look if it is time, and say what has changed; return when to look again."""
        if now < self._next_look:
            return self._next_look
        self._next_look = now + MISSED_WITHIN_S
        paths = {each.path: each.stands for each in self._watched if each.path is not None}
        lost = {path for path, stands in paths.items() if not stands}
        for path in sorted(lost - self._lost):
            log.error(
                "%s was removed or replaced: no new client can connect there until a reload binds it anew",
                path,
                extra=event(LogEvent.PATH_LOST, address=path),
            )
        for path in sorted((self._lost - lost) & paths.keys()):
            log.info("%s leads here again", path, extra=event(LogEvent.PATH_FOUND, address=path))
        self._lost = lost
        return self._next_look
