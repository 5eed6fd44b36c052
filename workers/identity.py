"""The file behind a descriptor of ours: known again, because the program may close any number, and another file get it.

Used in every process by what keeps a descriptor for long. Must not take a kernel that cannot tell for a descriptor that
is gone.
"""

import errno
import os

Identity = tuple[int, int] | None  # device and inode; None if they are not known


def identity(fd: int) -> Identity:
    """Return what names the file behind a descriptor; None if it is closed, or the kernel cannot tell."""
    try:
        found = os.fstat(fd)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def lost(fd: int, known: Identity) -> bool:
    """Return True if the descriptor is closed, or names another file than the known one."""
    if known is None:
        return False
    try:
        found = os.fstat(fd)
    except OSError as exc:
        return exc.errno == errno.EBADF
    return (found.st_dev, found.st_ino) != known
