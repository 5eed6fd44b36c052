"""The path of a Unix socket: its identity, and whether a server still listens there.

Used in the master before anything is forked, and by `prefork check`. Owns nothing; must not remove a path on which a
server listens, or which is no socket.
"""

import errno
import logging
import os
import socket
import stat

from prefork.metrics.log_events import LogEvent, event

log = logging.getLogger("prefork.supervisor")


def identity_of(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def clear_stale(path: str, kind: int) -> None:
    """Remove a socket on which no server listens. Raises OSError if one does, or if the path is no socket."""
    if is_stale(path, kind):
        log.info("removing the stale socket %s", path, extra=event(LogEvent.STALE_SOCKET_REMOVED, address=path))
        os.unlink(path)


def is_stale(path: str, kind: int) -> bool:
    """Return whether the path is a socket on which no server listens; False if there is no path.

    Raises OSError if one does, or if the path is no socket.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(found.st_mode):
        raise OSError(errno.EEXIST, "it exists and is not a socket")
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        answer = probe.connect_ex(path)
    if answer != errno.ECONNREFUSED:  # EAGAIN: alive with a full queue; EPROTOTYPE: alive, of the other kind
        raise OSError(errno.EADDRINUSE, "another server is listening there")
    return True
