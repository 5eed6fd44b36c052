"""The file behind a descriptor of ours: known again, because the program may close any number, and another file get it.

Used in every process by what keeps a descriptor for long. Must not take a kernel that cannot tell for a descriptor that
is gone.
"""

import errno
import os

Identity = tuple[int, int] | None  # device and inode; None if they are not known

CLOSED_BY_PROGRAM = "the program has closed descriptors that are not its own, as os.closerange() does"


class DescriptorsLost(Exception):
    """The program has closed descriptors without which a process of ours cannot go on. Said without a traceback."""

    def __init__(self) -> None:
        super().__init__(CLOSED_BY_PROGRAM)


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


class Descriptors:
    """Descriptors of ours in a process that runs the program."""

    def __init__(self, *fds: int) -> None:
        self._known = {fd: identity(fd) for fd in fds}

    def lost(self, *fds: int) -> bool:
        """Return True if the program has closed one of them, or of these."""
        return any(lost(fd, self._known[fd]) for fd in fds or self._known)

    def told(self, exc: BaseException) -> BaseException:
        """Return the exception that ended our loop, or DescriptorsLost if that is the reason for it."""
        return DescriptorsLost() if isinstance(exc, OSError | ValueError) and self.lost() else exc
