"""A listener that a process of the service has shut down (shutdown(2)), for all that have it: mended, where it can be.

Runs in the master. One of TCP listens again. A Unix socket never does: another one is bound at its path and put under
the same descriptor, in this process alone, so that whoever has a copy of the one before has to be replaced. Must not
touch a path that leads elsewhere.
"""

import contextlib
import errno
import logging
import os
import socket
from math import inf
from typing import Any, NamedTuple

from prefork.metrics.log_events import LogEvent, event

from .addresses import address_text
from .kept_paths import unlink_ours
from .listener import Listener, beneath, origin_of
from .ownership import Access
from .unix_paths import identity_of

log = logging.getLogger("prefork.supervisor")

PATH_MOST = 107  # bytes, unix(7)
BUFFERS = (socket.SO_RCVBUF, socket.SO_SNDBUF)  # of which the kernel tells twice what was asked for
PASSES = tuple(getattr(socket, name) for name in ("SO_PASSCRED", "SO_PASSSEC") if hasattr(socket, name))
LISTEN_TRIES = 5  # while others go on to shut it down
ANEW_EVERY_S = 1.0  # at most: all workers have to be replaced
LISTENS_AGAIN = "it listens again, and what was queued there is lost"


class Mended(NamedTuple):
    """The outcome: what follows, for the log; whether it is another socket now; after how many seconds it may be shut
    down again, inf if it is for good; whether clients come there."""

    text: str
    anew: bool = False
    again_after_s: float = inf
    reachable: bool = True


def say_shut(name: Any, what: str) -> None:
    """Log that a listener was shut down, and what follows."""
    where = address_text(name)
    log.error("%s was shut down by a process of the service: %s", where, what,
              extra=event(LogEvent.LISTENER_SHUT, address=where, reason=what))  # fmt: skip


def mend(sock: socket.socket, name: Any, *, starts_workers: bool) -> Mended:
    """See to a listener that was shut down, once bound to this name. Raises OSError where nothing can be done.

    Without `starts_workers` nobody would serve another socket, and its path is removed, so that a reload binds it anew.
    """
    origin, own = origin_of(sock), beneath(sock)
    if own is None or origin is None:
        raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
    if own.family == socket.AF_UNIX:
        return _mend_unix(origin, own, name, starts_workers)
    if own.type == socket.SOCK_DGRAM:  # its port is taken until every process has closed it
        return Mended("datagrams come there still, but answers may fail until a restart")
    listen_again(own, name, origin.backlog)
    return Mended(LISTENS_AGAIN, again_after_s=0.0)


def listen_again(sock: socket.socket, name: Any, backlog: int) -> None:
    """Have a socket of TCP, which was shut down, listen where it did. Raises OSError."""
    # Where two have shut it down, the kernel remembers the second time, and would cut off each client that it accepts
    # from now on. It forgets that when one that listens is shut down.
    for _ in range(LISTEN_TRIES):
        socket.socket.listen(sock, backlog)
        try:
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
            break
        except OSError as exc:
            if exc.errno != errno.ENOTCONN:  # somebody was faster
                raise
    if sock.getsockname() != name:  # it has not kept a port that it had chosen itself
        socket.socket.bind(sock, name)
    socket.socket.listen(sock, backlog)


def _mend_unix(origin: Listener, own: socket.socket, name: Any, starts_workers: bool) -> Mended:
    if origin.path is None:  # an abstract name, or a socket that was passed on to us
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    if not origin.stands:
        return Mended("its path leads elsewhere, and a reload binds it anew", reachable=False)
    if not starts_workers:
        unlink_ours(origin.path)
        return Mended("its path is removed, and a reload binds it anew", reachable=False)
    _bind_anew(origin, own, name if os.path.abspath(name) == origin.path else origin.path)
    return Mended("its path is bound anew, what was queued there is lost, and the workers are replaced", True,
                  ANEW_EVERY_S)  # fmt: skip


def _bind_anew(origin: Listener, own: socket.socket, path: str) -> None:
    if len(os.fsencode(path)) > PATH_MOST:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    with socket.socket(own.family, own.type, own.proto) as anew:
        for option in PASSES:
            anew.setsockopt(socket.SOL_SOCKET, option, own.getsockopt(socket.SOL_SOCKET, option))
        for option in BUFFERS:
            anew.setsockopt(socket.SOL_SOCKET, option, own.getsockopt(socket.SOL_SOCKET, option) // 2)
        os.set_blocking(anew.fileno(), os.get_blocking(own.fileno()))
        access = Access.of(path)
        unlink_ours(path)
        with access.given_to(anew, path):
            anew.bind(path)  # where it fails, the path may be another server's by now
        try:
            if own.type == socket.SOCK_STREAM:
                anew.listen(origin.backlog)
            os.dup2(anew.fileno(), own.fileno(), inheritable=False)
        except OSError:
            with contextlib.suppress(OSError):
                unlink_ours(path)
            raise
    origin.identity = identity_of(path)
