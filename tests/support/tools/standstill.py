"""How long the machine stood still: a host that has other guests takes the processors away, for up to a second.

Run as a program, one for each processor: before all other processes, by SCHED_FIFO, it sleeps a little again and again.
No load of ours makes it wake late, so what it misses is the host's doing. Needs root; without it nothing is noticed.
"""

import contextlib
import os
import select
import subprocess
import sys
import time

BEAT_S, LATE_S = 0.02, 0.03
ITEM = 8  # bytes of shared memory for each processor: the nanoseconds that it stood still


class Standstill:
    """The processes that watch; they are no children of this one, for tests count those."""

    def __init__(self) -> None:
        self._cpus = sorted(os.sched_getaffinity(0))
        self._words = os.memfd_create("standstill")
        end, self._end = os.pipe()
        for at, cpu in enumerate(self._cpus):
            subprocess.run(
                [sys.executable, "-IS", __file__, *map(str, (self._words, at, cpu))], pass_fds=[self._words],
                stdin=end, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True,
            )  # fmt: skip
        os.close(end)

    def lost(self) -> list[int]:
        """The nanoseconds so far, processor by processor."""
        words = os.pread(self._words, ITEM * len(self._cpus), 0).ljust(ITEM * len(self._cpus), b"\0")
        return list(memoryview(words).cast("Q"))

    def seconds(self, since: list[int]) -> float:
        """Since `lost()` returned that, of the processor that was taken for longest."""
        return max(now - then for now, then in zip(self.lost(), since, strict=True)) / 1e9

    def close(self) -> None:
        os.close(self._end)
        os.close(self._words)


def _watch(words: int, at: int, cpu: int) -> None:
    """Note what each beat came late, until the tests have ended: nobody has the other end of stdin then."""
    os.sched_setaffinity(0, {cpu})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    if os.fork():
        return
    ended, lost = False, 0
    while not ended:
        began = time.monotonic()
        ended = bool(select.select([0], [], [], BEAT_S)[0])
        late = time.monotonic() - began - BEAT_S
        if late > LATE_S:
            lost += int(late * 1e9)
            os.pwrite(words, lost.to_bytes(ITEM, sys.byteorder), ITEM * at)


if __name__ == "__main__":
    with contextlib.suppress(PermissionError):
        _watch(*map(int, sys.argv[1:]))
