"""A service of a user that may have no more processes from one SIGRTMIN + 1 to the next, since it was imported."""

import os
import resource
import signal
from types import FrameType

from tests.support.programs.served import tell

if os.geteuid() == 0:
    os.setuid(54321)
enough = resource.getrlimit(resource.RLIMIT_NPROC)


def limit(signum: int, frame: FrameType | None) -> None:
    limited = resource.getrlimit(resource.RLIMIT_NPROC) != enough
    resource.setrlimit(resource.RLIMIT_NPROC, enough if limited else (1, enough[1]))
    tell("lifted" if limited else "limited")


signal.signal(signal.SIGRTMIN + 1, limit)
