"""The reason for which a child that was told to leave is still there, in words for the log.

Runs in the master, when the child is about to be killed. Owns nothing. Must not decide anything by what it finds, nor
be needed: where the kernel does not tell (proc_pid_status(5)), there are no words.
"""

import re
import signal

from .children import Child, ChildState

__all__ = ["why_it_stays"]

_STATES = {"T": "it is stopped", "t": "a debugger has stopped it", "D": "it waits in the kernel"}


def why_it_stays(child: Child) -> str:
    """Return why the child has not left; an empty string where nothing is known."""
    signum = signal.SIGQUIT if child.state is ChildState.STOPPING else child.drain_signal
    told = child.state in (ChildState.DRAINING, ChildState.STOPPING)
    return _by_the_kernel(child.pid, signum if told else None) or (_by_its_report(child) if told else "")


def _by_the_kernel(pid: int, signum: int | None) -> str:
    try:
        with open(f"/proc/{pid}/status", errors="replace") as file:
            status = file.read()
    except OSError:
        return ""
    found = dict(re.findall(r"^(\w+):\t(\w*)", status, re.MULTILINE))
    if (state := found.get("State", "")) in _STATES or signum is None:
        return _STATES.get(state, "")

    def in_set(name: str) -> bool:
        return bool(int(found.get(name) or "0", 16) >> (signum - 1) & 1)

    name = signal.Signals(signum).name
    if in_set("ShdPnd") or in_set("SigPnd"):
        return f"it blocks {name}"
    if in_set("SigIgn"):
        return f"it ignores {name}"
    return "" if in_set("SigCgt") else f"its handler of {name} is gone"


def _by_its_report(child: Child) -> str:
    busy = 0 if child.report is None else child.report.busy
    return f"it has {busy} request{'s' * (busy > 1)} in hand" if busy else ""
