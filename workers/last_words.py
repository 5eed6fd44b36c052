"""The last words of children that share a slot: each writes its own, and the parent tells them apart by the pid.

A child writes, at its end; the process that has forked it reads, when it has reaped it.
"""

import os

from prefork.metrics.scoreboard import Stacks

_BEGIN, _PID_ENDS = "\x1e", "\x1f"  # control characters that no traceback has


class LastWords:
    """The text of one slot."""

    def __init__(self, stacks: Stacks) -> None:
        self.stacks = stacks
        self.untold: dict[int, str] = {}  # of those that are not reaped yet

    def write(self, text: str) -> None:
        """Leave these words, in a child."""
        if text:
            self.stacks.write(f"{_BEGIN}{os.getpid()}{_PID_ENDS}{text}")

    def of(self, pid: int) -> str:
        """Return what this child has left to say, once."""
        if self.stacks.size():
            for each in self.stacks.take().split(_BEGIN)[1:]:
                who, _, text = each.partition(_PID_ENDS)
                self.untold[int(who)] = self.untold.get(int(who), "") + text
        return self.untold.pop(pid, "").rstrip() if self.untold else ""
