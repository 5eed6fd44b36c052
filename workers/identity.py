"""The file behind a descriptor of ours: known again, because the program may close any number, and another file get it.

Used in every process by what keeps a descriptor for long. Must not take a kernel that cannot tell for a descriptor that
is gone.
"""

import errno
import fcntl
import os

Identity = tuple[int, int] | None  # device and inode; None if they are not known

CLOSED_BY_PROGRAM = "the program has closed descriptors that are not its own, as os.closerange() does"


_MARK = 44  # a signal number that nobody has, but who marks: F_SETSIG of fcntl(2), of use with O_ASYNC alone


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


def mark(fd: int) -> bool:
    """Mark the open file description behind a descriptor, which must be ours alone. Return False if that cannot be."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, _MARK)
        return is_marked(fd)
    except OSError:
        return False


def is_marked(fd: int) -> bool:
    """Return whether a descriptor is that of a marked description. Costs a quarter of `lost()`."""
    try:
        return bool(fcntl.fcntl(fd, fcntl.F_GETSIG) == _MARK)
    except OSError:
        return False


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
