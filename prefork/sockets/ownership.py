"""Mode and owner of the path of a Unix socket, from the first moment that the path is there.

Runs in the process that binds. Linux gives a new path the mode of the socket itself, less the umask: one that
is narrowed before its bind() is never open to more than it shall be.
"""

import contextlib
import errno
import os
import re
import socket
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError

KEEP = -1  # chown(2): this one stays as it is


@dataclass(frozen=True, slots=True)
class Access:
    """What was asked for; None leaves it to the umask, and to who we are."""

    mode: int | None = None
    owner: str | None = None
    setting: str = "socket"  # what the names of its settings begin with

    def __bool__(self) -> bool:
        return self.mode is not None or self.owner is not None

    def __str__(self) -> str:
        return f"{self.setting}_owner" if self.mode is None else f"{self.setting}_mode"

    @contextlib.contextmanager
    def given_to(self, sock: socket.socket, path: str) -> Iterator[None]:
        """Bind `sock` to `path` inside. Raises ConfigError before, OSError after, and then the path is not there."""
        if not self:
            yield
            return
        uid, gid = self._ids()
        mode = self._mode()
        os.fchmod(sock.fileno(), mode & stat.S_IRWXU)  # the user is still us, the group ours: only then the rest
        yield
        try:
            if (uid, gid) != (KEEP, KEEP):  # a hardened unit may forbid even a chown that changes nothing
                os.chown(path, uid, gid, follow_symlinks=False)
            _chmod(path, mode)
        except OSError:
            os.unlink(path)
            raise

    def change(self, path: str) -> None:
        """Of a path that was bound with another; what was not asked for is who we are. Raises OSError."""
        uid, gid = (mine if asked == KEEP else asked for asked, mine in zip(self._ids(), _us(), strict=True))
        found = os.lstat(path)
        if (found.st_uid, found.st_gid) != (uid, gid):
            _chmod(path, self._mode() & found.st_mode & stat.S_IRWXU)
            os.chown(path, uid, gid, follow_symlinks=False)
        _chmod(path, self._mode())

    def _ids(self) -> tuple[int, int]:
        return owner(self.owner, f"{self.setting}_owner") if self.owner is not None else (KEEP, KEEP)

    def _mode(self) -> int:
        return 0o777 & ~_umask() if self.mode is None else self.mode


def _us() -> tuple[int, int]:
    return os.geteuid(), os.getegid()


def _chmod(path: str, mode: int) -> None:
    """Of this path and of nothing that a link put in its place leads to: chmod(2) has no flag for it."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.chmod(f"/proc/self/fd/{fd}", mode)
    except PermissionError as exc:
        if exc.errno != errno.EACCES:
            raise
        os.chmod(path, mode)  # this process has given up root, and may not look into its own /proc any more
    finally:
        os.close(fd)


def owner(text: str, setting: str = "socket_owner") -> tuple[int, int]:
    """The ids that USER, USER:GROUP or :GROUP names, each by name or number. Raises ConfigError."""
    import grp  # not on every system, and there is no pool there
    import pwd

    user, _, group = text.partition(":")
    wrong = f"could not set {setting} to {text!r}"
    if not user and not group:
        raise ConfigError(f"{wrong}: it must be USER, USER:GROUP or :GROUP")
    return _id(wrong, user, "user", lambda name: pwd.getpwnam(name).pw_uid), _id(
        wrong, group, "group", lambda name: grp.getgrnam(name).gr_gid
    )


def _id(wrong: str, name: str, what: str, find: Callable[[str], int]) -> int:
    if not name:
        return KEEP
    if re.fullmatch("[0-9]{1,9}", name):
        return int(name)
    try:
        return find(name)
    except KeyError:
        raise ConfigError(f"{wrong}: there is no {what} {name}") from None


def _umask() -> int:
    """Asked of /proc: umask(2) can only be set, which another thread would feel."""
    found = re.search(r"^Umask:\s*([0-7]+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1], 8) if found else 0o077
