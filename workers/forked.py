"""What happens in a process that *user code* forks from master or worker (multiprocessing, os.fork): it is neither.

One hook, registered once, run by os.fork() in the new process. It takes the slot away (the copy counts privately),
closes the listener (a stranger must not hold the port) and gives the signals back (so that TERM ends it).
"""

import contextlib
import ctypes
import mmap
import os
from collections.abc import Callable, Iterator

_undo: Callable[[], None] | None = None
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
MAP_FIXED = 0x10


def on_fork_by_user(undo: Callable[[], None] | None) -> None:
    """Run `undo` in every process that user code forks from this one; None: no longer."""
    global _undo
    _undo = undo


@contextlib.contextmanager
def own_fork() -> Iterator[None]:
    """A fork inside is ours: its child is no stranger. On the way out the hook is back, in the parent only."""
    global _undo
    undo, _undo = _undo, None
    pid = os.getpid()
    try:
        yield
    finally:
        if os.getpid() == pid:
            _undo = undo


def make_private(memory: mmap.mmap, size: int) -> None:
    """Replace the first `size` bytes of a shared mapping, and what shares their last page, by a private copy.

    At the same address, because the windows into it are in the local variables of running code.
    """
    size = min(len(memory), -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
    window = (ctypes.c_char * size).from_buffer(memory)
    content = bytes(window)
    address = ctypes.addressof(window)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED
    if _libc.mmap(address, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0) != address:
        os._exit(1)  # better no child than one that writes into its parent's memory
    ctypes.memmove(address, content, size)


def _after_fork() -> None:
    global _undo
    undo, _undo = _undo, None
    if undo is not None:
        undo()


os.register_at_fork(after_in_child=_after_fork)
