"""Load and build a service without occupying its addresses, for `prefork check` and `prefork config`.

Runs in the processes of these commands. Each address is only examined, and the listener is bound to an unused one
instead. It must not disturb what listens there now, perhaps this very service: a free TCP or UDP address is bound for a
moment but never listened on, and a Unix path is probed without connecting. What the program does to a Unix path itself
must do no harm and fail as little as in the service: a path that is in use is kept, a free one is there until the end,
and the listener has another in a folder of its own.
"""

import contextlib
import errno
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..run_mode import RunMode, run_as
from ..sockets.addresses import address_text
from ..sockets.kept_paths import listened_on, paths_kept
from ..sockets.listener import Beneath, bound_elsewhere
from ..sockets.ownership import owner
from ..sockets.unix_paths import identity_of, is_stale

__all__ = ["DryRun", "dry_run"]

FREE = "free"
IN_USE = "in use now, so not tried; a reload of the service there takes it over, a second start could not"
STALE = "a stale socket, which would be removed"


class DryRun:
    """The requested addresses and the state of each. `ended` undoes at the end of the dry run what it has made."""

    def __init__(self, ended: contextlib.ExitStack) -> None:
        self.seen: list[tuple[str, str]] = []
        self._ended = ended

    def instead(self, listener: Beneath, address: Any, path: str | None) -> Any:
        """Examine the address; return another for the listener. Raises OSError as bind() would, unless it is in use."""
        try:
            known = _inet(listener) or listener.family == socket.AF_UNIX
            verdict = _looked_at(listener, address, path) if known else FREE
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:
                raise
            verdict = IN_USE
        scheme = "udp://" if _inet(listener) and listener.type == socket.SOCK_DGRAM else ""
        self.seen.append((scheme + address_text(address), verdict))
        if path is not None and verdict == FREE:
            self._ended.callback(_remove, path, _take(path))
        if listener.family == socket.AF_INET6:
            return ("::1", 0)
        if _inet(listener):
            return ("127.0.0.1", 0)
        return "" if path is None else self._elsewhere()  # autobind to an abstract name, see unix(7)

    def _elsewhere(self) -> str:
        try:
            return os.path.join(self._ended.enter_context(tempfile.TemporaryDirectory(prefix="prefork-check-")), "s")
        except OSError:  # nothing may be written anywhere
            return ""


def _inet(listener: Beneath) -> bool:
    return listener.family in (socket.AF_INET, socket.AF_INET6)


def _looked_at(listener: Beneath, address: Any, path: str | None) -> str:
    if path is not None:
        return _path(listener, path)
    with socket.socket(listener.family, listener.type) as probe:
        if listener.type == socket.SOCK_STREAM:  # ignore lingering connections; takes nothing from a listener
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if listener.family == socket.AF_INET6:
            only = listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        probe.bind(address)
    return FREE


def _path(listener: Beneath, path: str) -> str:
    access = listener._prefork_.access
    if access.owner is not None:
        owner(access.owner)
    # Connecting a socket of another type always fails, with one error for a live socket and another for a stale one.
    kind = socket.SOCK_SEQPACKET if listener.type == socket.SOCK_STREAM else listener.type
    stale = is_stale(path, kind)
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    return STALE if stale else FREE


def _take(path: str) -> tuple[int, int] | None:
    """Put there what the program finds once it has bound its socket, to change its mode; nobody ever listens there."""
    with socket.socket(socket.AF_UNIX) as stand_in:
        stand_in.bind(path)
    return identity_of(path)


def _remove(path: str, identity: tuple[int, int] | None) -> None:
    if identity is not None and identity == identity_of(path):
        with contextlib.suppress(OSError):
            os.unlink(path)


@contextlib.contextmanager
def dry_run() -> Iterator[DryRun]:
    """Make the block a dry run: servers are only tried, and `prefork.rehearsing()` returns True."""
    with contextlib.ExitStack() as ended, paths_kept(listened_on, exits=True):
        tried = DryRun(ended)
        ended.callback(run_as, run_as(RunMode.CHECK))
        with bound_elsewhere(tried.instead):
            yield tried
