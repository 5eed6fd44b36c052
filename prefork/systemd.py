"""Read what a service manager passes on: sockets (sd_listen_fds(3)), and where to notify it (sd_notify(3)).

Runs in the process that becomes the master. Owns the variables, which it removes from the environment, so that no
worker, and no program that a worker starts, inherits them; and which descriptors are those sockets, for a reload hands
all of them on. Must not send anything to the manager.
"""

import contextlib
import os
import stat
from collections.abc import Mapping, MutableMapping
from typing import NamedTuple

from prefork.workers.identity import lost

from .errors import ConfigError

__all__ = ["descriptor", "stored"]

NOT_SET = "LISTEN_FDS is not set; is the service started by its socket unit?"
FIRST_FD = 3  # SD_LISTEN_FDS_START
VARIABLES = (  # sd_listen_fds(3), where LISTEN_PIDFDID is the pidfs inode of LISTEN_PID; sd_notify(3)
    "LISTEN_FDS", "LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID",
)  # fmt: skip
STORED = "prefork "  # prefix of the names of our listeners that the manager stores


class Passed(NamedTuple):
    """A socket that the manager passed."""

    fd: int
    name: str


class Given(NamedTuple):
    """Everything that the environment said. `refusal` is the reason why no sockets are ours."""

    passed: tuple[Passed, ...] = ()
    refusal: str = NOT_SET
    notify: str = ""  # as NOTIFY_SOCKET has it
    watchdog_s: float | None = None


def take(environ: MutableMapping[str, str], pid: int) -> Given:
    """Read the variables and remove them, because they are for this process and not for its children."""
    found = {word: environ.pop(word, "") for word in VARIABLES}
    passed, refusal = _passed(found["LISTEN_FDS"], found["LISTEN_PID"], found["LISTEN_FDNAMES"], pid)
    return Given(passed, refusal, found["NOTIFY_SOCKET"], _watchdog(found["WATCHDOG_USEC"], found["WATCHDOG_PID"], pid))


def _passed(count: str, owner: str, names: str, pid: int) -> tuple[tuple[Passed, ...], str]:
    if not count:
        return (), NOT_SET
    if owner != str(pid):
        return (), f"LISTEN_PID is {owner or 'not set'}, and this process is {pid}: they are for another one"
    if not count.isdigit():
        return (), f"LISTEN_FDS is {count!r}, not a number"
    named = names.split(":") if names else []
    named += ["unknown"] * (int(count) - len(named))  # the name that sd_listen_fds_with_names(3) gives them
    return tuple(Passed(FIRST_FD + index, named[index]) for index in range(int(count))), ""


def _watchdog(usec: str, owner: str, pid: int) -> float | None:
    if not usec.isdigit() or int(usec) == 0 or owner not in ("", str(pid)):
        return None
    return int(usec) / 1e6


def sockets_at_start(environ: Mapping[str, str], pid: int) -> dict[int, tuple[int, int]]:
    """Return the descriptors that were passed and are sockets, and by what each is known: its device and inode."""
    passed, _ = _passed(environ.get("LISTEN_FDS", ""), environ.get("LISTEN_PID", ""), "", pid)
    known: dict[int, tuple[int, int]] = {}
    for each in passed:
        with contextlib.suppress(OSError):  # nothing is open there
            found = os.fstat(each.fd)
            if stat.S_ISSOCK(found.st_mode):
                known[each.fd] = found.st_dev, found.st_ino
    return known


_at_start: dict[int, tuple[int, int]] = {}
_only: set[int] | None = None  # in a new image: the sockets that the previous one still had
_given: Given | None = None


def note_sockets(environ: Mapping[str, str]) -> None:
    """Note which descriptors are the sockets that were passed, by the environment that this process was started with.

    To be called before any of them can be closed.
    """
    _at_start.update(sockets_at_start(environ, os.getpid()))


def still_open() -> list[int]:
    """Return the descriptors of the sockets that were passed and that the program has not closed."""
    return [fd for fd, known in _at_start.items() if not lost(fd, known)]


def keep_only(fds: set[int]) -> None:
    """Forget each socket that is not among these: the previous image did not hand it on, whatever has its number."""
    global _only
    _only = fds
    for fd in _at_start.keys() - fds:
        del _at_start[fd]


def given() -> Given:
    """Return what this process was started with. The first call removes it from the environment."""
    global _given
    if _given is None:
        _given = take(os.environ, os.getpid())
        if _only is not None:
            _given = _given._replace(passed=tuple(each for each in _given.passed if each.fd in _only))
        for passed in _given.passed:
            with contextlib.suppress(OSError):  # a bad descriptor is reported to the caller that uses it
                os.set_inheritable(passed.fd, False)
    return _given


def descriptor(name: str = "") -> int:
    """Return the descriptor of the socket that the manager passed under this name; without a name, of the only one.

    Used by `--bind systemd:NAME`; in a script: `inherited_fd = prefork.systemd.descriptor("web")`. Raises ConfigError
    if there is no such socket, or more than one. See sd_listen_fds(3), systemd.socket(5) (FileDescriptorName=).
    """
    found = find(name)
    if isinstance(found, str):
        raise ConfigError(f"could not take a socket from systemd: {found}")
    return found


def find_all(name: str) -> list[int] | str:
    """Return the descriptors that the manager passed under this name, or all of them, in their order; or the reason why
    there is none."""
    found = [each.fd for each in given().passed if not each.name.startswith(STORED) and name in ("", each.name)]
    return found or str(find(name))


def find(name: str) -> int | str:
    """Return the descriptor as `descriptor()` does, or the reason why there is none."""
    named = [passed for passed in given().passed if not passed.name.startswith(STORED)]
    found = [passed for passed in named if name in ("", passed.name)]
    if len(found) == 1:
        return found[0].fd
    names = ", ".join(sorted({passed.name for passed in named}))
    if not named:
        return given().refusal or "no socket was passed"
    if len(found) > 1 and len({passed.name for passed in found}) == 1:
        remedy = "an empty ListenStream= before that of a drop-in takes back the unit's own"
        return f"{len(found)} were passed as {found[0].name}: {remedy}"
    if name:
        return f"none of the {len(named)} passed is called {name}; there is {names}"
    return f"{len(named)} were passed; say which by systemd:NAME, of {names}"


def stored(asked: str) -> int | None:
    """Return the listener for this address that the manager kept (FDSTORE) when the service crashed; None without one.

    See sd_pid_notify_with_fds(3).
    """
    return next((passed.fd for passed in given().passed if passed.name == stored_name(asked)), None)


def stored_name(asked: str) -> str:
    """Return a valid FDNAME: printable ASCII without a colon, at most 255 characters; sd_pid_notify_with_fds(3)."""
    printable = (c if " " <= c <= "~" and c not in ":%" else "".join(f"%{b:02X}" for b in c.encode()) for c in asked)
    return (STORED + "".join(printable))[:255]
