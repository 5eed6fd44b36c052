"""Log lines dropped because the log could take no more: count them, and report them once there is room again.

Runs in the master, as a part of the supervisor's turn. Owns how many have been reported so far.
"""

import logging
from collections.abc import Callable, Iterable
from math import inf

from prefork.metrics.board import Board, Word
from prefork.metrics.log_events import LogEvent
from prefork.workers import sinks

from .children import Child

log = logging.getLogger("prefork.supervisor")


TELL_EVERY_S = 1.0  # dropped lines are reported at most this often


class Drops:
    """The dropped lines of the master, counted on the board, and of its children, counted in their slots."""

    def __init__(self, board: Board, children: Iterable[Child], nudge: Callable[[], object]) -> None:
        """`nudge`: asks for a turn, which a plain server has only when there is something to do in it."""
        self._board = board
        self._children = children
        self._told = board.words[Word.LOG_DROPPED]
        self._next = -inf
        handler = self._handler = sinks.installed()
        if handler is not None:
            handler.count_with(lambda number: board.add(Word.LOG_DROPPED, number), nudge)
            with board.change() as words:
                words[Word.LOGS_COUNTED] = 1

    def turn(self, now: float) -> float:
        """Report new drops if it is time; return when to be called again."""
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
        """Stop counting on the board, which is about to be closed."""
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
