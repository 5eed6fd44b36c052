"""Giving up privileges for good: user, groups and capabilities of a process that serves.

Runs in a child, before any code of the program's but what it has registered for a fork, and with `--single` in the only
process. Names are looked up in the master (prefork/settings/users.py): no child asks a directory service. Must not
return from what it could not do: the kernel is asked afterwards, and a process that kept anything does not serve.

A process that gave up root is not dumpable (prctl(2)): no other process of its user reads its memory, where the key of
a certificate may be. It stays so, for it can still measure itself: of its own /proc it lacks `environ` and what is
behind the links of `fd`.
"""

import ctypes
import os
from collections.abc import Callable
from typing import NamedTuple

PR_SET_NO_NEW_PRIVS, PR_GET_NO_NEW_PRIVS = 38, 39
CAP_KILL, CAP_SETGID, CAP_SETUID = 5, 6, 7  # linux/capability.h
_VERSION = 0x20080522  # of the two structs of capget(2)
_OF_A_THREAD = ("Uid:", "Gid:", "Groups:", "Cap", "NoNewPrivs:")  # lines of /proc/PID/status

_libc = ctypes.CDLL(None, use_errno=True)


class PrivilegesKept(Exception):
    """The sentence about what this process could not give up: it must not serve."""


class Privileges(NamedTuple):
    """The privileges that a process which serves is left with. None: as they are."""

    uid: int | None = None
    gid: int | None = None
    groups: tuple[int, ...] | None = None  # the supplementary ones; None where it may not change its ids
    umask: int | None = None
    no_new_privs: bool = False

    def drop(self) -> None:
        """Give up all else, and ask the kernel whether it is gone. Raises PrivilegesKept.

        What is so already is not asked for: a filter of system calls, as in a hardened unit, may make that deadly.
        """
        step = ""
        try:
            if self.umask is not None:
                os.umask(self.umask)
            if self.no_new_privs:
                step = "set no_new_privs"
                _prctl(PR_SET_NO_NEW_PRIVS, 1)
            if self.groups is not None:
                step = f"set the groups of user {self.uid}"
                os.setgroups(self.groups)
            if self.gid is not None and set(os.getresgid()) != {self.gid}:
                step = f"become group {self.gid}"
                os.setresgid(self.gid, self.gid, self.gid)
            if self.uid is not None and set(os.getresuid()) != {self.uid}:
                step = f"become user {self.uid}"
                os.setresuid(self.uid, self.uid, self.uid)
            step = "give up its capabilities"
            if self.uid and any(capabilities()):
                _call("capset", *_capability_structs())
            step = "ask what it has left"
            kept = self._kept()
        except OSError as exc:
            raise PrivilegesKept(f"could not {step}: {_reason(exc)}") from exc
        if kept:
            raise PrivilegesKept(f"could not give up all privileges: it has kept {kept}")

    def _kept(self) -> str:
        """Return what this process has that it should not have; empty if that is nothing."""
        if self.no_new_privs and _prctl(PR_GET_NO_NEW_PRIVS) != 1:
            return "what an exec may give it"
        if self.uid is not None and set(os.getresuid()) != {self.uid}:
            return f"another user than {self.uid}"
        if self.gid is not None and set(os.getresgid()) != {self.gid}:
            return f"another group than {self.gid}"
        if self.groups is not None and set(os.getgroups()) != set(self.groups):
            return "other groups than its user's"
        if self.uid and any(capabilities()):
            return "capabilities"
        if self.uid and self.groups is not None and (_can(os.setresuid, 0) or (self.gid and _can(os.setresgid, 0))):
            return "the way back to root"
        return "" if _threads_alike() else "more in a thread that the program started at the fork"


def capabilities() -> tuple[int, int, int]:
    """Return the effective, permitted and inheritable capabilities of this thread, as bits. Raises OSError."""
    head, words = _capability_structs()
    _call("capget", head, words)
    effective, permitted, inheritable = (words[each] | words[each + 3] << 32 for each in range(3))
    return effective, permitted, inheritable


def may_become_another() -> bool:
    """Return whether this process may give its children another user, and can still signal them then."""
    effective, _, _ = capabilities()
    return all(effective >> each & 1 for each in (CAP_KILL, CAP_SETGID, CAP_SETUID))


def _capability_structs() -> tuple[ctypes.Array[ctypes.c_uint32], ctypes.Array[ctypes.c_uint32]]:
    """Return the two structs of capset(2): of the calling thread, and without any capability."""
    return (ctypes.c_uint32 * 2)(_VERSION, 0), (ctypes.c_uint32 * 6)()


def _call(name: str, *args: object) -> int:
    result: int = getattr(_libc, name)(*args)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _prctl(operation: int, argument: int = 0) -> int:
    return _call("prctl", operation, *map(ctypes.c_ulong, (argument, 0, 0, 0)))


def _can(become: Callable[[int, int, int], None], number: int) -> bool:
    """Return whether this process could take that id as its effective one; it has it then."""
    try:
        become(-1, number, -1)
    except OSError:
        return False
    return True


def _threads_alike() -> bool:
    """Return whether no thread has more than another: ids are changed in all of them, all else in the calling one."""
    try:
        threads = os.listdir("/proc/self/task")
    except OSError:
        return True
    return len(threads) == 1 or len({_of_thread(each) for each in threads}) == 1


def _of_thread(thread: str) -> tuple[str, ...]:
    with open(f"/proc/self/task/{thread}/status") as lines:
        return tuple(line for line in lines if line.startswith(_OF_A_THREAD))


def _reason(exc: OSError) -> str:
    return os.strerror(exc.errno or 0).lower()
