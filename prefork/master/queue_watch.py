"""Workers that are idle beside a queue: whose wake-up was lost, and who is stuck outside a request. Pure.

Used by policy, in the master. Owns what is remembered from one look at the queue to the next. A worker says that it is
well by trying to accept, which it writes in its slot whether or not it gets anything. Being busy is no reason for
suspicion, however long the queue.
"""

from collections.abc import Iterable
from typing import NamedTuple


class Unmoved(NamedTuple):
    """A READY worker with a free lane that was seen beside a queue at every look since `since`, and did not try."""

    serial: int
    tried_ns: int  # when it last tried to accept, by its own word
    since: float
    empty_handed: bool  # it has no request in hand


class QueueWatch(NamedTuple):
    """The state of the queue at the last look. Times are in seconds of the supervisor's clock."""

    unmoved: tuple[Unmoved, ...] = ()
    accepted: int = 0  # by all workers
    untaken_since: float | None = None  # something is queued and nobody has taken anything since; None: nothing is

    def looked(self, queued: bool, idle: Iterable[Unmoved], accepted: int, now: float) -> "QueueWatch":
        """Return the watch after another look, which found these `idle`, and so much `accepted`."""
        if not queued:
            return NOTHING_SEEN
        before = {(each.serial, each.tried_ns, each.empty_handed): each for each in self.unmoved}
        same = self.untaken_since is not None and accepted == self.accepted
        return QueueWatch(
            tuple(before.get((each.serial, each.tried_ns, each.empty_handed), each) for each in idle), accepted,
            self.untaken_since if same else now,
        )  # fmt: skip

    def to_wake(self, before: "QueueWatch") -> tuple[int, ...]:
        """Return the workers that have not moved since the look `before`: the wake-up was lost with somebody else."""
        return tuple(each.serial for each in self.unmoved if each in before.unmoved)

    def stuck(self, timeout: float | None, now: float) -> tuple[int, ...]:
        """Return the workers with no request in hand that have not moved for `timeout`."""
        return tuple(each.serial for each in self._unmoved_for(timeout, now) if each.empty_handed)

    def unanswered(self, timeout: float | None, now: float) -> bool:
        """Return whether nobody has taken anything for `timeout`, and not because every lane is busy."""
        if timeout is None or self.untaken_since is None or now < self.untaken_since + timeout:
            return False
        return bool(self._unmoved_for(timeout, now))

    def _unmoved_for(self, timeout: float | None, now: float) -> list[Unmoved]:
        return [each for each in self.unmoved if timeout is not None and now >= each.since + timeout]


NOTHING_SEEN = QueueWatch()
