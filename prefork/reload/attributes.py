"""The attributes of a process that execve(2) keeps and that its program may change: a new image must not find them
changed.

Read in any program that imports prefork, and restored in the process that is the master, or a rehearsal. Owns values
only. Must change nothing that is as it was: a filter of system calls may end whoever only asks.
"""

import _signal  # type: ignore[import-not-found]  # the C module that `signal` wraps, without its enums: 1 ms
import contextlib
import os
import resource
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Self

LIMITS = sorted({value for name, value in vars(resource).items() if name.startswith("RLIMIT_")})
FOR_AN_IMPORT = 64  # descriptors that a new image has open at once while it starts


class Attributes(NamedTuple):
    """Those of this process at one moment."""

    nice: int
    umask: int
    cpus: frozenset[int]  # on which it may run; empty if the kernel does not tell
    soft_limits: Mapping[int, int]  # of setrlimit(2), by its numbers
    ignored: frozenset[int]  # signals
    scheduling: tuple[int, int] | None = None  # policy and priority of sched(7); None if the kernel does not tell
    oom_score_adj: str = ""  # as proc(5) has it; empty if it does not tell

    @classmethod
    def read(cls) -> Self:
        os.umask(umask := os.umask(0o077))  # it can only be read by setting it
        return cls(
            os.getpriority(os.PRIO_PROCESS, 0), umask, _cpus(), _soft_limits(), _ignored(), _scheduling(),
            _oom_score_adj(),
        )  # fmt: skip

    @contextlib.contextmanager
    def restored(self, descriptors: int) -> Iterator[None]:
        """Give this process, inside, these attributes: the program will set them again, nice(2) adds up, and defaults
        are computed from the others. Undone on the way out, which is reached only if there was no exec.

        `descriptors`: how many are handed on; where they leave no room under the soft limit, that stays as it is. Call
        it in the main thread, with every signal blocked.
        """
        from prefork.workers.signals import dispose  # late: a pool has loaded it, and only a pool is reloaded

        before, ignored = self.read(), self.newly_ignored()
        limits = {**self.soft_limits}
        if limits.get(resource.RLIMIT_NOFILE, 0) < 2 * descriptors + FOR_AN_IMPORT:
            limits.pop(resource.RLIMIT_NOFILE, None)
        dispose(ignored, _signal.SIG_DFL)
        os.umask(self.umask)
        _be_scheduled(self.scheduling)
        _be_nice(self.nice)
        _be_killed_by(self.oom_score_adj)
        if self.cpus - before.cpus:  # more of them may have been given to the service since
            _run_on(self.cpus)
        _limit(limits)
        try:
            yield
        finally:
            _limit(before.soft_limits)
            _run_on(before.cpus)
            _be_killed_by(before.oom_score_adj)
            _be_scheduled(before.scheduling)
            _be_nice(before.nice)
            os.umask(before.umask)
            dispose(ignored, _signal.SIG_IGN)

    def theirs(self) -> list[int]:
        """Return the signals that the program handles, or has ignored since then: a new image notes them until it does
        so again, for their default action may end it."""
        from prefork.workers.signals import handled  # late, as above

        return sorted(handled() | self.newly_ignored())

    def newly_ignored(self) -> frozenset[int]:
        """Return the signals that the program has ignored since then."""
        return _ignored() - self.ignored


def _ignored() -> frozenset[int]:
    return frozenset(int(each) for each in _signal.valid_signals() if _signal.getsignal(each) == _signal.SIG_IGN)


def _be_nice(value: int) -> None:
    with contextlib.suppress(OSError):  # only some may become less nice; getrlimit(2), RLIMIT_NICE
        if os.getpriority(os.PRIO_PROCESS, 0) != value:
            os.setpriority(os.PRIO_PROCESS, 0, value)


def _scheduling() -> tuple[int, int] | None:
    try:
        return os.sched_getscheduler(0), os.sched_getparam(0).sched_priority
    except (AttributeError, OSError):
        return None


def _be_scheduled(asked: tuple[int, int] | None) -> None:
    if asked is not None and asked != _scheduling():
        with contextlib.suppress(OSError):  # only some may leave a policy, or take one; see sched(7)
            os.sched_setscheduler(0, asked[0], os.sched_param(asked[1]))


OOM_SCORE_ADJ = "/proc/self/oom_score_adj"


def _oom_score_adj() -> str:
    try:
        with open(OOM_SCORE_ADJ) as file:
            return file.read().strip()
    except OSError:
        return ""


def _be_killed_by(asked: str) -> None:
    if asked and asked != _oom_score_adj():
        with contextlib.suppress(OSError), open(OOM_SCORE_ADJ, "w") as file:  # only some may lower it
            file.write(asked)


def _cpus() -> frozenset[int]:
    try:
        return frozenset(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # another system; a filter of system calls
        return frozenset()


def _run_on(cpus: frozenset[int]) -> None:
    if cpus and cpus != _cpus():
        with contextlib.suppress(OSError):  # none of them is left; see cpuset(7)
            os.sched_setaffinity(0, cpus)


def _soft_limits() -> dict[int, int]:
    found = {}
    for which in LIMITS:
        with contextlib.suppress(OSError):
            found[which] = resource.getrlimit(which)[0]
    return found


def _limit(soft_limits: Mapping[int, int]) -> None:
    """Take these soft limits, as far as the hard ones allow."""
    for which, soft in soft_limits.items():
        with contextlib.suppress(OSError, ValueError):  # ValueError is what EPERM becomes
            now, hard = resource.getrlimit(which)
            above = hard != resource.RLIM_INFINITY and (soft == resource.RLIM_INFINITY or soft > hard)
            if soft != now:
                resource.setrlimit(which, (hard if above else soft, hard))
