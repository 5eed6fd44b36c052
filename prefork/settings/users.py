"""The user and the groups that processes which serve become: looked up, and refused, in the process that runs the
service.

Owns the rules for `user`, `group`, `umask` and `no_new_privs`. Runs in the master before anything is bound or forked,
in a rehearsal, and in `prefork check`: a child is given numbers. workers/privileges.py takes them there.
"""

import os
import re
from collections.abc import Mapping

from prefork.workers.privileges import Privileges, may_become_another

from ..errors import ConfigError
from .in_force import owner_of, value_of

__all__ = ["privileges_of"]

MOST_ID = 2**32 - 2  # one more is "no change" (setresuid(2))


def privileges_of(target: object, origins: Mapping[str, str] | None = None) -> Privileges | None:
    """Return what a process of this server becomes; None where it stays what it is. Raises ConfigError.

    `origins` maps settings to their sources, in words for the message.
    """
    user, group = _text(target, "user"), _text(target, "group")
    privileges = Privileges(umask=value_of(target, "umask"), no_new_privs=value_of(target, "no_new_privs") is True)
    if user is None:
        if group is not None:
            raise _refused(target, "group", group, origins, "there is no user, which has to be set as well")
        return None if privileges == Privileges() else privileges
    try:
        return _permitted(privileges, user, group)
    except LookupError as exc:
        name, value = ("group", group) if exc.args[0] == "group" else ("user", user)
        raise _refused(target, name, value, origins, exc.args[1]) from None


def _text(target: object, name: str) -> str | None:
    value = value_of(target, name)
    return value if isinstance(value, str) else None  # a property is asked of the object


def _refused(target: object, name: str, value: str | None, origins: Mapping[str, str] | None, why: str) -> ConfigError:
    said_by = (origins or {}).get(name, "") or owner_of(target, name)
    origin = f" (from {said_by})" if said_by else ""
    error = ConfigError(f"could not set {name} to {value!r:.80}{origin}: {why}")
    if not (origins or {}).get(name):
        error.add_note(f"prefork takes it for its setting {name}. What is the program's own needs another name.")
    return error


def _permitted(privileges: Privileges, user: str, group: str | None) -> Privileges:
    """Return these privileges with the ids of user and group. Raises LookupError(setting, reason)."""
    uid, gid, groups = _ids(user, group)
    if may_become_another():
        _check_namespace(uid, groups)
        return privileges._replace(uid=uid, gid=gid, groups=groups)
    if set(os.getresuid()) != {uid}:
        us = os.geteuid()
        why = (
            f"this process is of user {us}, and may become no other; that takes root (CAP_SETUID, CAP_SETGID, CAP_KILL)"
        )
        raise LookupError("user", why)
    if group is not None and set(os.getresgid()) != {gid}:
        raise LookupError("group", f"this process is of group {os.getegid()}, and may become no other; that takes root")
    return privileges._replace(uid=uid, gid=os.getegid())  # it is what it should be, with the groups it was given


def _check_namespace(uid: int, groups: tuple[int, ...]) -> None:
    """Raise LookupError(setting, reason) for what root of a user namespace may not become, user_namespaces(7)."""
    if _of_namespace("setgroups").strip() == "deny":
        raise LookupError("user", "this user namespace lets nobody change his groups (/proc/self/setgroups)")
    for what, ids in (("uid", (uid,)), ("gid", groups)):
        ranges = [[*map(int, line.split())] for line in _of_namespace(f"{what}_map").splitlines()]
        for each in ids:
            if ranges and not any(first <= each < first + count for first, _, count in ranges):
                raise LookupError("user", f"this user namespace has not its {what} {each} (/proc/self/{what}_map)")


def _of_namespace(name: str) -> str:
    """Return what the kernel says of our user namespace; nothing where it says nothing, which is tried in the child."""
    try:
        with open(f"/proc/self/{name}") as file:
            return file.read()
    except OSError:
        return ""


def _ids(user: str, group: str | None) -> tuple[int, int, tuple[int, ...]]:
    """Return user, group and supplementary groups, as login(1) would have them. Raises LookupError(setting, reason)."""
    import grp  # not on every system; where they are missing there is no pool either
    import pwd

    uid = _number(user)
    try:
        entry = pwd.getpwnam(user) if uid is None else pwd.getpwuid(uid)
    except (KeyError, ValueError):  # what no name can be, such as a null byte
        if uid is None:
            raise LookupError("user", f"there is no user {user}") from None
        entry = None
    if group is None and entry is None:
        raise LookupError("user", "there is no user of that number, so that group has to be set as well")
    gid = entry.pw_gid if group is None and entry is not None else _number(group or "")
    if gid is None:
        try:
            gid = grp.getgrnam(group or "").gr_gid
        except (KeyError, ValueError):
            raise LookupError("group", f"there is no group {group}") from None
    if entry is None:
        return uid or 0, gid, (gid,)
    return entry.pw_uid, gid, tuple(sorted(set(os.getgrouplist(entry.pw_name, gid))))


def _number(text: str) -> int | None:
    """Return the id that this text is; None where it is a name."""
    return int(text) if re.fullmatch("[0-9]{1,10}", text) and int(text) <= MOST_ID else None
