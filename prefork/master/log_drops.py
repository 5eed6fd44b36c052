"""Log lines that were dropped because the log took no more: counted, and told of once there is room again.

Runs in the master, as a part of the supervisor's turn. Owns what has been told so far.
"""

import logging
from collections.abc import Iterable
from math import inf

from prefork.metrics.board import Board, Word
from prefork.metrics.log_events import LogEvent
from prefork.workers import sinks

from .children import Child

log = logging.getLogger("prefork.supervisor")


TELL_EVERY_S = 1.0  # how often dropped lines are told of, at most


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
        "name": log.name, "levelno": logging.WARNING, "levelname": "WARNING", "event": LogEvent.LOG_DROPPED,
        "msg": "%d log messages were dropped", "args": (dropped,), "fields": {"dropped": dropped},
    })  # fmt: skip
