"""The ports of other servers, and the locks of files, that the program has taken before the fork, and that the old
workers still have after an exec.

The master's own descriptors close with the exec, but each old worker has a copy, by which a port stays in use and a
lock is held: the new program could have neither. They go over the exec, and are let go of for all processes at once
before the program runs. Runs in the master on both sides of the exec. Must not touch what is prefork's, what the
program has made inheritable, or what it shares on purpose (SO_REUSEPORT).
"""

import contextlib
import fcntl
import os
import socket
import stat
from collections.abc import Iterable, Iterator
from typing import Any

from ..sockets.addresses import address_text, over
from ..sockets.mending import listen_again

INET = (socket.AF_INET, socket.AF_INET6)
LOCKS = {"READ": fcntl.LOCK_SH, "WRITE": fcntl.LOCK_EX}
REMEDY = "open it in worker_started() or in a companion, or with SO_REUSEPORT; of TCP SO_REUSEADDR is enough"


def found(ours: Iterable[int]) -> list[int]:
    """Return the descriptors of this process's program that old workers would hold. `ours` are those of prefork."""
    known, held = set(), []
    for fd in ours:
        with contextlib.suppress(OSError):  # the program has closed it
            known.add(os.fstat(fd).st_ino)
    for fd in _open():
        with contextlib.suppress(OSError):  # closed meanwhile
            if os.get_inheritable(fd) or os.fstat(fd).st_ino in known:
                continue
            if _is_bound(fd) if stat.S_ISSOCK(os.fstat(fd).st_mode) else _lock(fd):
                held.append(fd)
    return held


def _open() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:  # there is no /proc
        return []


class StillHeld:
    """The descriptors of `found()` in the new image."""

    def __init__(self, fds: Iterable[int]) -> None:
        self._fds = [*fds]
        self._locks: dict[int, int] = {}
        self._ports: dict[int, Any] = {}  # their names

    def let_go(self) -> None:
        """Give up locks, and the ports of listeners that may be bound anew (SO_REUSEADDR)."""
        for fd in self._fds:
            with contextlib.suppress(OSError):
                if lock := _lock(fd):
                    fcntl.flock(fd, fcntl.LOCK_UN)
                    self._locks[fd] = lock
            with contextlib.suppress(OSError), _borrowed(fd) as sock:
                if _may_be_bound_anew(sock):
                    name = sock.getsockname()
                    sock.shutdown(socket.SHUT_RDWR)  # for a listener the opposite of listen(), in every process
                    self._ports[fd] = name

    def take_again(self) -> None:
        """Take all of it again: the program has failed, and the old workers serve on."""
        for fd, lock in self._locks.items():
            with contextlib.suppress(OSError):
                fcntl.flock(fd, lock | fcntl.LOCK_NB)
        for fd, name in self._ports.items():
            with contextlib.suppress(OSError), _borrowed(fd) as sock:
                listen_again(sock, name, socket.SOMAXCONN)
        self._fds.clear()  # they stay open, for the next image

    def close(self) -> None:
        """Close them in this process: the program has its own by now."""
        while self._fds:
            with contextlib.suppress(OSError):
                os.close(self._fds.pop())

    def told(self) -> str:
        """Return in half a sentence which addresses the old workers have; empty if none."""
        names = ", ".join(addresses(set(self._fds).difference(self._ports)))
        return names and f"the old workers still have {names}, which the program opened before the fork: {REMEDY}"


def addresses(fds: Iterable[int]) -> Iterator[str]:
    """Yield the names of those that are sockets."""
    for fd in fds:
        with contextlib.suppress(OSError), _borrowed(fd) as sock:
            name = address_text(sock.getsockname())
            yield f"udp://{name}" if sock.family in INET and sock.type == socket.SOCK_DGRAM else name


def locked(fds: Iterable[int]) -> Iterator[str]:
    """Yield the paths of those that are locked files."""
    for fd in fds:
        with contextlib.suppress(OSError):
            if _lock(fd):
                yield os.readlink(f"/proc/self/fd/{fd}")


@contextlib.contextmanager
def _borrowed(fd: int) -> Iterator[socket.socket]:
    sock = over(fd, socket.socket)
    try:
        yield sock
    finally:
        sock.detach()


def _is_bound(fd: int) -> bool:
    """Return whether it is a socket whose address a new one cannot have while this one is open anywhere."""
    with _borrowed(fd) as sock:
        name = sock.getsockname()
        if sock.family == socket.AF_UNIX:
            return name[:1] == b"\0" and _serves(sock)  # a path can be bound anew once it is removed
        return (
            sock.family in INET
            and bool(name[1])
            and not sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
            and _serves(sock)
        )


def _serves(sock: socket.socket) -> bool:
    if sock.type != socket.SOCK_DGRAM:
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    try:
        sock.getpeername()
    except OSError:
        return True
    return False  # a client


def _may_be_bound_anew(sock: socket.socket) -> bool:
    return (
        sock.family in INET
        and sock.type == socket.SOCK_STREAM
        and bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR))
        and _serves(sock)  # not by another descriptor of the same one, which is let go of already
    )


def _lock(fd: int) -> int:
    """Return how the file is locked by flock(2): LOCK_SH, LOCK_EX, or 0. Locks of fcntl(2) are not shared by a fork."""
    with open(f"/proc/self/fdinfo/{fd}") as lines:
        for line in lines:
            words = line.split()  # lock: 1: FLOCK ADVISORY WRITE 4711 08:01:1234 0 EOF; see proc_pid_fdinfo(5)
            if words[:1] == ["lock:"] and words[2] == "FLOCK":
                return LOCKS.get(words[4], 0)
    return 0
