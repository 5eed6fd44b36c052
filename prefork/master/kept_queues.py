"""The two queues of kept connections as the master has them: made before the first fork, handed on at the exec.

Runs in the process that serves, and in each child right after the fork, which closes the ends that are not its own.
Owns all four ends. The master neither parks nor serves a connection: at the end of the service it closes what is still
on its way, for then nobody is left to take it.
"""

import contextlib
from collections.abc import Mapping
from typing import Any

from prefork.metrics.board import Board, Word, listener_word
from prefork.metrics.facts import ChildKind, CloseReason
from prefork.metrics.scoreboard import CLOSED, COUNTS, LISTENERS_MAX
from prefork.workers.kept import Kept, QueueEnd, Queues, end_connection

# The ends that a child of each kind uses; one of another kind, or of the program's, has none.
USED_BY = {
    ChildKind.WORKER: ("park_in", "ready_out"),
    ChildKind.HOLDER: ("park_in", "park_out", "ready_in"),  # it parks what it has for the next one
}
LEFT_MAX = 100_000  # messages: what the kernel has room for is far less


class KeptQueues:
    """The queues of a service; `queues` is None where no server keeps a connection, and none did before a reload."""

    def __init__(self, wanted: bool, before: Mapping[str, Any] | None) -> None:
        """`before`: what `pack()` returned in an earlier image; its queues stay, wanted or not, for its workers use
        them. Raises OSError when descriptors are short."""
        self.queues: Queues | None = None
        if before is not None:
            self.queues = Queues.over(dict(before))
        elif wanted:
            self.queues = Queues.made()

    @property
    def ready(self) -> QueueEnd | None:
        """The end at which workers take what is ready: for the master to see whether anything is."""
        return None if self.queues is None else self.queues.ready_out

    def pack(self) -> tuple[dict[str, Any] | None, list[int]]:
        return (None, []) if self.queues is None else self.queues.pack()

    def keep_ends_of(self, kind: ChildKind) -> None:
        """Called in a new child: close the ends that one of this kind does not use."""
        if self.queues is not None:
            used = USED_BY.get(kind, ())
            for name, end in zip(Queues._fields, self.queues, strict=True):
                if name not in used:
                    _close(end)
            if not used:
                self.queues = None

    def close_left(self, board: Board) -> None:
        """Close what is still on its way, and count it. Nobody else may read the queues by now."""
        if self.queues is not None:
            for end in (self.queues.park_out, self.queues.ready_out):
                for _ in range(LEFT_MAX):
                    if not _close_one(end, board):
                        break

    def close(self) -> None:
        if self.queues is not None:
            queues, self.queues = self.queues, None
            for end in queues:
                _close(end)


def _close_one(end: QueueEnd, board: Board) -> bool:
    """Close the next connection of this queue; return False if there is none."""
    try:
        found = end.receive()
    except OSError:  # the program has closed it
        return False
    if found is None:
        return False
    message, fd = found
    if fd != -1:
        end_connection(fd)
    with contextlib.suppress(ValueError):  # one of another version
        listener = Kept.decoded(message).listener
        word = CLOSED + CloseReason.DRAINED - COUNTS.start
        with board.change() as words:
            words[Word.LANES_DEAD + word] += 1
            if listener < LISTENERS_MAX:
                words[listener_word(listener, word)] += 1
    return True


def _close(end: QueueEnd) -> None:
    with contextlib.suppress(OSError):  # the program has closed it
        end.sock.close()
