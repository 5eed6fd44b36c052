"""The clean-up in a process that *user code* forks from master or worker (multiprocessing, os.fork): it is neither.

Owns one hook, registered once, which os.fork() runs in the new process. It detaches the slot (the copy counts
privately), closes the listener (a foreign process must not hold the port; but one may be there to answer a datagram)
and restores the signals (so that TERM ends it). Under a plain server nothing needs that protection: only the current
request is left for the parent to count. In a process that prefork forks the hook takes the first step, if there is one.
"""

import ctypes
import mmap
import os
from collections.abc import Callable

from prefork.metrics.scoreboard import map_over


class _Next:
    """The things that the hook finds in the process that is forked next. Written by assignment: a function that is
    called at each fork would cost the pages that it writes."""

    __slots__ = ("first", "ours", "undo")
    undo: Callable[[], None] | None
    ours: bool  # the fork under way is prefork's own
    first: Callable[[], None] | None  # in that process

    def __init__(self) -> None:
        self.undo, self.ours, self.first = None, False, None


NEXT = _Next()
_always: list[Callable[[], None]] = []


def on_fork_by_user(undo: Callable[[], None] | None) -> None:
    """Run `undo` in every process that user code forks from this one; None ends that."""
    NEXT.undo = undo


def first_in_child(step: Callable[[], None] | None) -> None:
    """Run `step` in each process that prefork forks from now on, ahead of what the program has registered for that.

    It must not raise. None ends that. What was registered before prefork was imported runs earlier.
    """
    NEXT.first = step


def always_on_fork_by_user(undo: Callable[[], None]) -> None:
    """Run `undo` in every process that user code forks from any of ours, whichever way that one serves."""
    _always.append(undo)


def make_private(memory: mmap.mmap, size: int) -> None:
    """Replace the first `size` bytes of a shared mapping, rounded up to whole pages, with a private copy.

    The address stays the same, because local variables of running code hold views of it.
    """
    size = min(len(memory), -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
    window = (ctypes.c_char * size).from_buffer(memory)
    content = bytes(window)
    _map_over(window, size, mmap.MAP_ANONYMOUS, -1)
    ctypes.memmove(ctypes.addressof(window), content, size)


def write_privately(memory: mmap.mmap, fd: int) -> None:
    """Make a shared mapping of `fd` copy-on-write, so that what this process writes there stays in this process.

    For a child of ours, which still holds views of its parent's memory.
    """
    size = len(memory)
    _map_over((ctypes.c_char * size).from_buffer(memory), size, 0, fd)


def _map_over(window: "ctypes.Array[ctypes.c_char]", size: int, flags: int, fd: int) -> None:
    try:
        map_over(ctypes.addressof(window), size, mmap.PROT_READ | mmap.PROT_WRITE, flags | mmap.MAP_PRIVATE, fd)
    except OSError:
        os._exit(1)  # better no child than one that writes into its parent's memory


def _after_fork() -> None:
    undo, ours, first, NEXT.undo, NEXT.ours, NEXT.first = NEXT.undo, NEXT.ours, NEXT.first, None, False, None
    if ours and first is not None:
        first()
    if undo is not None:
        undo()
    if not ours:
        for each in _always:
            each()


os.register_at_fork(after_in_child=_after_fork)
