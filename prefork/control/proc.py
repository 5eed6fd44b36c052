"""CPU, memory and peers of a worker, read from outside: from /proc, and from the worker's sockets through its pidfd.

Runs in the master, only on request. To find the peers of requests, it duplicates the worker's sockets (pidfd_getfd(2))
and asks those that are connections of the listener. It must not read the kernel's table of all connections: that took
12 s with 111,000 of them. All of it ends by a deadline that the caller gives, so that the master is not held up.
"""

import contextlib
import ctypes
import os
import socket
from dataclasses import dataclass
from time import monotonic

from prefork.metrics.kernel import unix_peer_text

from ..sockets.addresses import address_text, over

PIDFD_GETFD = 438  # the same on every architecture
FDS_MAX = 256  # examined per worker
PEERS_MAX = 16
_libc = ctypes.CDLL(None, use_errno=True)
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Seen:
    cpu_s: float | None = None
    rss: int | None = None
    peers: tuple[str, ...] = ()


def look(pid: int, pidfd: int, listener: socket.socket | None, *, busy: bool, until: float) -> Seen:
    """Return what can be found out about this worker until `until` (monotonic)."""
    if monotonic() >= until:
        return Seen()
    cpu, rss = _cost(pid)
    peers: tuple[str, ...] = ()
    if busy and listener is not None and listener.fileno() != -1 and listener.type == socket.SOCK_STREAM:
        with contextlib.suppress(OSError):
            peers = _peers(pid, pidfd, listener, until)
    return Seen(cpu, rss, peers)


def _cost(pid: int) -> tuple[float | None, int | None]:
    """Return CPU seconds and resident bytes, from fields 14, 15 and 24 of /proc/PID/stat; see proc(5)."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS, int(fields[21]) * _PAGE
    except (OSError, ValueError, IndexError):
        return None, None


def _peers(pid: int, pidfd: int, listener: socket.socket, until: float) -> tuple[str, ...]:
    found: list[str] = []
    here = listener.getsockname()
    for name in os.listdir(f"/proc/{pid}/fd")[:FDS_MAX]:
        if monotonic() >= until or len(found) == PEERS_MAX:
            break
        if os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:"):
            peer = _peer(pidfd, int(name), listener.family, here)
            if peer is not None:
                found.append(peer)
    return tuple(found)


def _peer(pidfd: int, number: int, family: int, here: object) -> str | None:
    """Return the peer of a worker's socket; None unless it is a connection of the listener at `here`."""
    fd = _libc.syscall(PIDFD_GETFD, pidfd, number, 0)
    if fd < 0:
        return None
    with over(fd, socket.socket) as sock:  # held for some microseconds
        try:
            if sock.family != family or _port(sock.getsockname()) != _port(here):
                return None
            peer = sock.getpeername()  # a listener has none
        except OSError:
            return None
        return address_text(peer) if peer else unix_peer_text(sock)


def _port(address: object) -> object:
    return address[1] if isinstance(address, tuple) else address
