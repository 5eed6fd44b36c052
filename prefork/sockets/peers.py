"""The clients of a worker's connections, found from outside by its pidfd.

Runs in the master. Duplicates the worker's sockets (pidfd_getfd(2)) and asks those that are connections of the
listener. It must not read the kernel's table of all connections: that took 12 s with 111,000 of them. It ends by a
deadline that the caller gives, so that the master is not held up.
"""

import ctypes
import os
import socket
from collections.abc import Sequence
from time import monotonic

from prefork.metrics.kernel import unix_peer_text

from .addresses import address_text, over

PIDFD_GETFD = 438  # the same on every architecture
PEERS_MAX = 16
_libc = ctypes.CDLL(None, use_errno=True)


def peers_at(
    listeners: Sequence[socket.socket], pid: int, pidfd: int, until: float, at_most: int | None = PEERS_MAX
) -> tuple[str, ...]:
    """Return the peers of a worker's connections at any of these listeners, as `peers_of()` does for one."""
    found = [peer for each in listeners for peer in peers_of(pid, pidfd, each, until, at_most)]
    return tuple(found[:at_most])


def peers_of(
    pid: int, pidfd: int, listener: socket.socket | None, until: float, at_most: int | None = PEERS_MAX
) -> tuple[str, ...]:
    """Return the peers of a worker's connections, those that can be found by `until` (monotonic).

    None for datagrams, and where the kernel does not let us look.
    """
    found: list[str] = []
    if listener is None or listener.fileno() == -1 or listener.type != socket.SOCK_STREAM:
        return ()
    try:
        here = listener.getsockname()
        for name in os.listdir(f"/proc/{pid}/fd"):
            if monotonic() >= until or len(found) == at_most:
                break
            if os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:"):
                peer = _peer(pidfd, int(name), listener.family, here)
                if peer is not None:
                    found.append(peer)
    except OSError:  # it has ended, or is another user's
        pass
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
