"""What happens in a process that *user code* forks from master or worker (multiprocessing, os.fork): it is neither.

One hook, registered once, run by os.fork() in the new process. It takes the slot away (the copy counts privately),
closes the listener (a stranger must not hold the port) and gives the signals back (so that TERM ends it). Where a plain
server serves there is no such process to protect: only the request in hand is left to the parent's count.
"""

import contextlib
import ctypes
import mmap
import os
from collections.abc import Callable, Iterator

_undo: Callable[[], None] | None = None
_always: list[Callable[[], None]] = []
_ours = False  # the fork that is being made
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
MAP_FIXED = 0x10


def on_fork_by_user(undo: Callable[[], None] | None) -> None:
    """Run `undo` in every process that user code forks from this one; None: no longer."""
    global _undo
    _undo = undo


def always_on_fork_by_user(undo: Callable[[], None]) -> None:
    """Run `undo` in every process that user code forks from any of ours, whatever that serves."""
    _always.append(undo)


@contextlib.contextmanager
def own_fork() -> Iterator[None]:
    """A fork inside is ours: its child is no stranger. On the way out the hook is back, in the parent only."""
    global _undo, _ours
    undo, _undo, _ours = _undo, None, True
    pid = os.getpid()
    try:
        yield
    finally:
        if os.getpid() == pid:
            _undo, _ours = undo, False


def make_private(memory: mmap.mmap, size: int) -> None:
    """Replace the first `size` bytes of a shared mapping, and what shares their last page, by a private copy.

    At the same address, because the windows into it are in the local variables of running code.
    """
    size = min(len(memory), -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
    window = (ctypes.c_char * size).from_buffer(memory)
    content = bytes(window)
    _map_over(window, size, mmap.MAP_ANONYMOUS, -1)
    ctypes.memmove(ctypes.addressof(window), content, size)


def write_privately(memory: mmap.mmap, fd: int) -> None:
    """Let what this process writes into a shared mapping of `fd` stay in this process; nothing is copied before that.

    For a child of ours, which goes on to have windows into memory that is its parent's.
    """
    size = len(memory)
    _map_over((ctypes.c_char * size).from_buffer(memory), size, 0, fd)


def _map_over(window: "ctypes.Array[ctypes.c_char]", size: int, flags: int, fd: int) -> None:
    address = ctypes.addressof(window)
    flags |= mmap.MAP_PRIVATE | MAP_FIXED
    if _libc.mmap(address, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, 0) != address:
        os._exit(1)  # better no child than one that writes into its parent's memory


def _after_fork() -> None:
    global _undo, _ours
    undo, ours, _undo, _ours = _undo, _ours, None, False
    if undo is not None:
        undo()
    if not ours:
        for each in _always:
            each()


os.register_at_fork(after_in_child=_after_fork)
