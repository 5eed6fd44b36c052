"""To load and build a service without taking an address from anybody: `prefork check`, `prefork config`.

Each address is looked at and left alone; the listener gets another, which nobody knows. Whatever listens there now,
this service perhaps, does not feel it: a TCP or UDP address is bound for a moment where it is free and never listened
on, a Unix path is asked without connecting.
"""

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..process import RunMode, run_as
from ..sockets.addresses import address_text
from ..sockets.listener import Listener, bound_elsewhere
from ..sockets.ownership import owner
from ..sockets.unix_paths import is_stale

__all__ = ["DryRun", "dry_run"]

FREE = "free"
IN_USE = "in use now, so not tried; a reload of the service there takes it over, a second start could not"
STALE = "a stale socket, which would be removed"


class DryRun:
    """What was asked for, and how it was found."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def instead(self, listener: Listener, address: Any, path: str | None) -> Any:
        """Look at the address; another one for the listener. Raises OSError as its bind() would, except when in use."""
        try:
            verdict = FREE if path is None and not _inet(listener) else _looked_at(listener, address, path)
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:
                raise
            verdict = IN_USE
        self.seen.append((address_text(address), verdict))
        if listener.family == socket.AF_INET6:
            return ("::1", 0)
        return ("127.0.0.1", 0) if _inet(listener) else ""  # unix(7): autobind, to an abstract name


def _inet(listener: Listener) -> bool:
    return listener.family in (socket.AF_INET, socket.AF_INET6)


def _looked_at(listener: Listener, address: Any, path: str | None) -> str:
    if path is not None:
        return _path(listener, path)
    with socket.socket(listener.family, listener.type) as probe:
        if listener.type == socket.SOCK_STREAM:  # connections of an earlier server may linger; nobody is shut out
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if listener.family == socket.AF_INET6:
            only = listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        probe.bind(address)
    return FREE


def _path(listener: Listener, path: str) -> str:
    if listener.access.owner is not None:
        owner(listener.access.owner)
    # A socket of another type is refused where somebody listens, and where nobody does: in two ways.
    kind = socket.SOCK_SEQPACKET if listener.type == socket.SOCK_STREAM else listener.type
    stale = is_stale(path, kind)
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    return STALE if stale else FREE


@contextlib.contextmanager
def dry_run() -> Iterator[DryRun]:
    """Inside, what is built is only tried, and `prefork.rehearsing()` is true."""
    tried, before = DryRun(), run_as(RunMode.CHECK)
    try:
        with bound_elsewhere(tried.instead):
            yield tried
    finally:
        run_as(before)
