"""The gauges that the master writes on the board: the limits in force, saturation, the accept queue.

Runs in the master, in a turn. Owns what only the supervisor knows; the counts of the children are kept by board.py.
"""

from collections.abc import Iterable

from prefork.metrics.board import QUEUE_LENGTH_MAX, Board, Word, listener_word
from prefork.metrics.facts import ChildKind

from .children import Child, ChildState
from .policy import Limits, Phase, Pool


def ready_of(children: Iterable[Child]) -> list[Child]:
    return [child for child in children if child.kind is ChildKind.WORKER and child.state is ChildState.READY]


def is_saturated(children: Iterable[Child], limits: Limits) -> bool:
    """Return whether a pool has `max_children` READY workers and no idle lane."""
    ready = ready_of(children)
    idle = any(child.report is not None and child.report.busy < child.report.lanes for child in ready)
    return limits.pool and not idle and len(ready) >= limits.max_children


class Gauges:
    """Publish the gauges, and measure the saturated time: that between two turns which both found `max_children` READY
    workers and no idle lane."""

    def __init__(self, board: Board, now: float) -> None:
        self._board = board
        self._turned_at = now
        self._was_saturated = False

    def publish(
        self, children: list[Child], phase: Phase, limits: Limits, pool: Pool, *,
        queue_lengths: Iterable[tuple[int, int]], reachable: bool, now: float, now_ns: int,
    ) -> None:  # fmt: skip
        ready, saturated = ready_of(children), is_saturated(children, limits)
        waits = pool.backing_off and pool.next_start > now
        answered = not pool.queue.unanswered(limits.stall_timeout, now)
        with self._board.change() as words:
            serving = bool(ready) and phase is Phase.RUNNING and answered and reachable
            words[Word.SERVING] = not limits.pool or serving
            words[Word.TURNED_NS] = now_ns
            words[Word.MIN_CHILDREN] = limits.min_children
            words[Word.MAX_CHILDREN] = limits.max_children
            words[Word.BACKING_OFF] = max(0, pool.target - len(ready)) if waits else 0
            for number, length in queue_lengths:
                word = listener_word(number, QUEUE_LENGTH_MAX)
                words[word] = max(words[word], length)
            if saturated and self._was_saturated:
                words[Word.SATURATED_NS] += int((now - self._turned_at) * 1e9)
        self._turned_at, self._was_saturated = now, saturated
