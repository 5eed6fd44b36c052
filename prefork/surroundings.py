"""What a pool changes around itself in the master's process while it serves, each as a context that puts it back.

Runs in the master. Signals are pool.py's, because a takeover hands them over.
"""

import contextlib
import gc
from collections.abc import Iterator
from socket import socket

import setproctitle

from .listeners import prepare, release


@contextlib.contextmanager
def prepared(listener: socket) -> Iterator[None]:
    """No worker may block in an accept."""
    prepare(listener)
    try:
        yield
    finally:
        release(listener)


@contextlib.contextmanager
def titled(name: str) -> Iterator[None]:
    """`prefork: master NAME` in ps."""
    before = setproctitle.getproctitle()
    setproctitle.setproctitle(f"prefork: master {name}")
    try:
        yield
    finally:
        setproctitle.setproctitle(before)


@contextlib.contextmanager
def frozen() -> Iterator[None]:
    """What is there before the first fork is no work for the workers' garbage collectors: its memory stays shared."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
