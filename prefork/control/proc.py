"""CPU, memory and peers of a worker, read from outside: from /proc, and from its sockets.

Runs in the master, only on request. All of it ends by a deadline that the caller gives, so that the master is not held
up.
"""

import os
import socket
from collections.abc import Sequence
from time import monotonic
from typing import NamedTuple

from ..sockets.peers import PEERS_MAX, peers_at

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Seen(NamedTuple):
    cpu_s: float | None = None
    rss: int | None = None
    peers: tuple[str, ...] = ()


def look(
    pid: int, pidfd: int, listeners: Sequence[socket.socket], *, busy: bool, until: float,
    at_most: int | None = PEERS_MAX,
) -> Seen:  # fmt: skip
    """Return what can be found out about this worker until `until` (monotonic), with so many peers at most."""
    if monotonic() >= until:
        return Seen()
    return Seen(*_cost(pid), peers_at(listeners, pid, pidfd, until, at_most) if busy else ())


def _cost(pid: int) -> tuple[float | None, int | None]:
    """Return CPU seconds and resident bytes, from fields 14, 15 and 24 of /proc/PID/stat; see proc(5)."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS, int(fields[21]) * _PAGE
    except (OSError, ValueError, IndexError):
        return None, None
