"""A load of ours beside other threads: forks are kept apart from it, or the child has its locks, held for ever.

Runs in any process that imports prefork. Owns the lock that a load and a fork take. Must not import what not every
program needs.
"""

import _thread  # `threading` may never be needed
import os
import sys
from contextlib import suppress
from functools import cache

LOADED_WITHIN_S = 10.0  # what a fork waits for at most: it may hold what the load needs

_LOADING = _thread.RLock()  # a thread may fork in what it loads itself


def apart_from_forks() -> _thread.RLock:
    """Return the lock to load under: no other thread forks meanwhile."""
    if _thread._count():  # threads but the main one
        _keep_forks_apart()
    return _LOADING


@cache
def _keep_forks_apart() -> None:
    # For good, and a cost of each fork: only where threads need it. Before a fork the last to be registered is first:
    # `logging` takes a lock that a load needs.
    if "logging" not in sys.modules:
        _register()
        with _LOADING:
            import logging  # noqa: F401
    _register()


def _register() -> None:
    os.register_at_fork(before=wait_for_load, after_in_parent=let_load, after_in_child=let_load_in_child)


def wait_for_load() -> None:
    """Keep others from loading, until `let_load()`: before a fork, and before any lock is taken that a load needs."""
    _LOADING.acquire(timeout=LOADED_WITHIN_S)


def let_load() -> None:
    with suppress(RuntimeError):  # it took too long, and is another thread's
        _LOADING.release()


def let_load_in_child() -> None:
    try:
        _LOADING.release()
    except RuntimeError:
        _LOADING._at_fork_reinit()  # type: ignore[attr-defined]  # of a thread that is not here
