"""What a program changes of its own process in the master, and what it has found there before."""

import os
import resource
import signal
from pathlib import Path
from typing import Any

LIMITS = (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE, resource.RLIMIT_MEMLOCK)
OOM_SCORE_ADJ = Path("/proc/self/oom_score_adj")
IGNORED = (signal.SIGINT, signal.SIGCHLD, signal.SIGUSR2, signal.SIGVTALRM, signal.SIGRTMAX)


def change() -> dict[str, Any]:
    """Change everything that an exec keeps; return what it was."""
    found: dict[str, Any] = {
        "umask": os.umask(0o027), "nice": os.nice(1), "cpus": sorted(os.sched_getaffinity(0)),
        "soft": [resource.getrlimit(which)[0] for which in LIMITS],
        "scheduling": (os.sched_getscheduler(0), os.sched_getparam(0).sched_priority),
        "oom_score_adj": OOM_SCORE_ADJ.read_text(),
        "ignored": [signum.name for signum in IGNORED if signal.getsignal(signum) is signal.SIG_IGN],
    }  # fmt: skip
    os.sched_setaffinity(0, found["cpus"][-1:])
    for which in LIMITS:
        hard = resource.getrlimit(which)[1]
        resource.setrlimit(which, (1 << 16 if hard == resource.RLIM_INFINITY else hard // 2, hard))
    for signum in IGNORED:
        signal.signal(signum, signal.SIG_IGN)
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    if os.getuid() == 0:  # who may lower it again
        OOM_SCORE_ADJ.write_text(str(min(1000, int(found["oom_score_adj"]) + 10)))
    return found
