"""A kill storm: workers of a service under test are killed at random, each once, and counted.

Runs in the test's process. Only what has booted is killed: three deaths at boot in a row are another fault.
"""

import random
import signal
import threading
from pathlib import Path
from time import monotonic

from tests.support.programs.service import Service


def booted(master: int) -> list[int]:
    """The workers whose title says that they are through with their boot; quick, because a storm asks all the time."""
    found = []
    for pid in map(int, Path(f"/proc/{master}/task/{master}/children").read_text().split()):
        try:
            title = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode()
        except OSError:
            continue
        if title.startswith("prefork: worker") and title.split()[-1].isdigit():
            found.append(pid)
    return found


class Storm:
    """Kills a random worker every 0 to 20 ms, while it is told to."""

    def __init__(self, service: Service, rng: random.Random) -> None:
        self._killed: set[int] = set()  # one that is dying can still be seen
        self.last_at = 0.0
        self._service, self._rng = service, rng

    @property
    def kills(self) -> int:
        return len(self._killed)

    def rage(self, seconds: float) -> None:
        pause, until = threading.Event(), monotonic() + seconds
        while monotonic() < until:
            pause.wait(self._rng.uniform(0, 0.02))  # the fault's own timing
            victims = [pid for pid in booted(self._service.pid) if pid not in self._killed]
            if victims:
                victim = self._rng.choice(victims)
                self._killed.add(victim)
                self.last_at = self._service.signal(signal.SIGKILL, victim)
            self._service.mark()

    def wait_full(self, workers: int) -> float:
        """Until the pool is whole again; how long that took since the last kill."""
        return float(self._service.wait_ready(workers, killed=self.kills)["at"]) - self.last_at
