"""A program with every interval timer that there is, each with its handler, as a profiler has them."""

import signal
from types import FrameType

from tests.support.programs.served import Told, tell

TIMERS = {
    signal.ITIMER_REAL: signal.SIGALRM, signal.ITIMER_VIRTUAL: signal.SIGVTALRM, signal.ITIMER_PROF: signal.SIGPROF,
}  # fmt: skip
rang: set[int] = set()


def ring(signum: int, frame: FrameType | None) -> None:
    rang.add(signum)


for timer, signum in TIMERS.items():
    signal.signal(signum, ring)
    signal.setitimer(timer, 0.001, 0.001)


class Hooks(Told):
    """Tells when each has rung."""

    def service_actions(self) -> None:
        super().service_actions()
        if rang >= set(TIMERS.values()):
            rang.clear()
            tell("rang", release=vars(__import__("__main__"))["RELEASE"])
