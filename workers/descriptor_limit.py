"""The soft limit of descriptors: raised to the hard one in a master, and given back in every child.

A program that calls select(2) must not get a descriptor above 1023, hence the low default of service managers; a master
never does. Runs in the process that serves, and right after the fork. Owns the limit of before.
"""

import contextlib
from collections.abc import Iterator

from . import user_forks

with contextlib.suppress(ModuleNotFoundError):  # not on every system; an import that fails for a moment must not pass
    import resource

DESCRIPTORS_MAX = 1 << 20  # where the hard limit is a thousand times that, a program may try to close every one

_before: int | None = None  # in a process that has raised its limit


def hard_limit() -> int:
    """Return how many descriptors this process can have."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Raise the soft limit for the block; a new image goes on with what its previous one has raised."""
    global _before
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    to = max(soft, min(hard, DESCRIPTORS_MAX))
    if _before is None or soft != to:
        _before = soft
        _set_soft(to)
    try:
        yield
    finally:
        give_back()


def pack_limit() -> int | None:
    return _before


def resume_limit(packed: int | None) -> None:
    """Note in a new image what the soft limit was before a previous one raised it."""
    global _before
    _before = packed


def give_back() -> None:
    """Restore the soft limit. Called at the end of the service, and in a child that has closed what is the master's."""
    global _before
    if _before is not None:
        before, _before = _before, None
        _set_soft(before)


def _set_soft(limit: int) -> None:
    """Set the soft limit, at most to the hard one; where that is refused, go on with the limit that there is."""
    with contextlib.suppress(OSError, ValueError):  # ValueError is what EPERM becomes
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(limit, hard), hard))


user_forks.always_on_fork_by_user(give_back)
