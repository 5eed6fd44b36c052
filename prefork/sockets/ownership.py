"""Mode and owner of the path of a Unix socket, from the moment that the path exists.

Runs in the process that binds. Owns nothing; must not leave a path open to more users than asked for, not even for a
moment. Linux gives a new path the mode of the socket itself, less the umask, so the mode is narrowed before bind().
"""

import contextlib
import errno
import os
import re
import socket
import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ..errors import ConfigError, reason_of
from .kept_paths import unlink_ours

KEEP = -1  # chown(2): this id is not changed
NOBODYS = (1 << 32) - 1  # the same, as the kernel has it: ids are less


class Access(NamedTuple):
    """The mode and owner asked for. None leaves the mode to the umask, and the owner to that of this process."""

    mode: int | None = None
    owner: str | None = None
    setting: str = "socket"  # the prefix of its settings' names

    @classmethod
    def of(cls, path: str) -> "Access":
        """Return the mode and owner that a path has, to be asked for anew. Raises OSError."""
        found, folder = os.lstat(path), os.stat(os.path.dirname(path) or ".")
        ours = os.geteuid(), folder.st_gid if folder.st_mode & stat.S_ISGID else os.getegid()
        owner = None if (found.st_uid, found.st_gid) == ours else f"{found.st_uid}:{found.st_gid}"
        return cls(stat.S_IMODE(found.st_mode), owner)

    def __bool__(self) -> bool:
        return self.mode is not None or self.owner is not None

    def __str__(self) -> str:
        return f"{self.setting}_owner" if self.mode is None else f"{self.setting}_mode"

    @contextlib.contextmanager
    def given_to(self, sock: socket.socket, path: str) -> Iterator[None]:
        """Give the path its owner and mode; inside, the caller binds `sock` to `path`.

        Raises ConfigError before the bind; OSError after it, and then the path is removed.
        """
        if not self:
            yield
            return
        uid, gid = self._ids()
        mode = self._mode()
        os.fchmod(sock.fileno(), mode & stat.S_IRWXU)  # user and group are still ours: the rest follows the chown
        yield
        try:
            if (uid, gid) != (KEEP, KEEP):  # a hardened unit may forbid even a chown that changes nothing
                os.chown(path, uid, gid, follow_symlinks=False)
            _chmod(path, mode)
        except OSError as exc:
            unlink_ours(path)
            setting = f"{self.setting}_{'mode' if self.owner is None else 'owner'}"
            raise OSError(exc.errno, f"its {setting} could not be set: {reason_of(exc)}") from exc

    def change(self, path: str) -> None:
        """Change owner and mode of a path that was bound with others. Raises OSError.

        An id that was not asked for becomes that of this process.
        """
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
    """Change the mode of this path, but never of the target of a link put in its place: chmod(2) has no flag for
    that."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.chmod(f"/proc/self/fd/{fd}", mode)
    except PermissionError as exc:
        if exc.errno != errno.EACCES:
            raise
        os.chmod(path, mode)  # this process has given up root, and may no longer read its own /proc
    finally:
        os.close(fd)


def owner(text: str, setting: str = "socket_owner") -> tuple[int, int]:
    """Return the user and group ids of USER, USER:GROUP or :GROUP, each a name or a number.

    KEEP stands for one that is left out. Raises ConfigError.
    """
    user, _, group = text.partition(":")
    wrong = f"could not set {setting} to {text!r}"
    if not user and not group:
        raise ConfigError(f"{wrong}: it must be USER, USER:GROUP or :GROUP")
    return _id(wrong, user, "user", _uid_of), _id(wrong, group, "group", _gid_of)


def _uid_of(name: str) -> int:
    import pwd  # not on every system; where it is missing there is no pool either

    return pwd.getpwnam(name).pw_uid


def _gid_of(name: str) -> int:
    import grp

    return grp.getgrnam(name).gr_gid


def _id(wrong: str, name: str, what: str, find: Callable[[str], int]) -> int:
    if not name:
        return KEEP
    if re.fullmatch("[0-9]{1,10}", name) and int(name) < NOBODYS:
        return int(name)
    try:
        return find(name)
    except KeyError:
        raise ConfigError(f"{wrong}: there is no {what} {name}") from None


def _umask() -> int:
    """Return the umask, read from /proc: umask(2) would have to set it, which affects other threads."""
    with open("/proc/self/status") as status:
        found = re.search(r"^Umask:\s*([0-7]+)$", status.read(), re.MULTILINE)
    return int(found[1], 8) if found else 0o077
