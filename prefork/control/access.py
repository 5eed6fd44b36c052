"""The path of the control socket and its permissions.

Runs in the master, before the pool serves and after a reload; in a rehearsal it binds for a moment. Owns nothing: the
listener belongs to the control server. The path must never have a wider mode than asked for, not even when it is
created; see sockets/ownership.py.
"""

import logging
import os
import pwd
import socket
from typing import Any, NamedTuple

from prefork.metrics.log_events import LogEvent, event

from ..errors import BindError, ConfigError, reason_of
from ..reload.handover import handed, has_lost_its_path
from ..sockets import ownership
from ..sockets.addresses import control_path
from ..sockets.listener import Listener
from .connection import Peer

log = logging.getLogger("prefork.supervisor")


CLIENTS_MAX = 16


class ControlTerms(NamedTuple):
    """The path of the socket and its permissions. Made from the settings, before anything is bound."""

    path: str
    mode: int
    owner: str | None
    may_command: frozenset[int]
    may_look: frozenset[int]

    @classmethod
    def read(cls, path: str, mode: int, owner: str | None, allow: str | None, allow_read: str | None) -> "ControlTerms":
        """Return the terms that these settings describe. Raises ConfigError."""
        where = control_path(path)
        if owner is not None:
            ownership.owner(owner, "control_owner")  # raises now rather than at the bind
        return cls(where, mode, owner, _uids("control_allow", allow),
                   _uids("control_allow_read", allow_read))  # fmt: skip

    @property
    def access(self) -> ownership.Access:
        return ownership.Access(self.mode, self.owner, "control")

    def peer(self, pid: int, uid: int) -> Peer | None:
        """Return the peer, or None if it has no access. Root and this process's own user may use every verb."""
        if uid in (0, os.geteuid()) or uid in self.may_command:
            return Peer(pid, uid)
        return Peer(pid, uid, looks_only=True) if uid in self.may_look else None


def _uids(name: str, text: str | None) -> frozenset[int]:
    try:
        return frozenset(_uid(user.strip()) for user in (text or "").split(",") if user.strip())
    except KeyError as exc:
        raise ConfigError(f"could not set {name} to {text!r}: there is no user {exc.args[0]}") from None


def _uid(user: str) -> int:
    if user.isascii() and user.isdigit():
        return int(user)
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise KeyError(user) from None


def listen(terms: ControlTerms, packed: dict[str, Any] | None) -> Listener:
    """Return the control listener: the previous image's if its path is the same, otherwise a new one.

    Raises BindError, and leaves the previous image's listener as it was.
    """
    if packed is None or not _is_at(packed["path"], terms) or has_lost_its_path(packed):
        return bind_control(terms)
    listener, before = resumed_listener(packed), resumed_terms(packed)
    try:
        if (terms.mode, terms.owner) != (before.mode, before.owner):
            terms.access.change(terms.path)
    except OSError as exc:
        listener.detach()
        raise BindError(exc.errno, f"could not set mode and owner of {terms.path}: {reason_of(exc)}") from exc
    return listener


def try_out(terms: ControlTerms, path: str | None) -> Listener | None:
    """Bind for a moment what `listen()` would bind anew, in a rehearsal. `path` is the service's current path."""
    return None if _is_at(path, terms) else bind_control(terms)


def _is_at(path: str | None, terms: ControlTerms) -> bool:
    return path == os.path.abspath(terms.path)


def bind_control(terms: ControlTerms) -> Listener:
    """Return a new control listener, which never has a wider mode than asked for. Raises BindError."""
    listener = Listener(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.access = terms.access
        listener.bind(terms.path)
        listener.listen(CLIENTS_MAX)
        listener.setblocking(False)
    except BaseException:
        listener.unlink()
        listener.close()
        raise
    log.info("control socket at %s", terms.path, extra=event(LogEvent.CONTROL_LISTENING, address=terms.path))
    return listener


def resumed_terms(packed: dict[str, Any]) -> ControlTerms:
    path, mode, owner, may_command, may_look = packed["terms"]
    return ControlTerms(path, mode, owner, frozenset(may_command), frozenset(may_look))


def resumed_listener(packed: dict[str, Any]) -> Listener:
    listener = Listener.resume(packed["fd"], quiet=False)
    listener.serve_by_pool(0.0)
    if (given := handed()) is not None:
        given.lend(listener)
    listener.path, listener.identity = packed["path"], tuple(packed["identity"] or ()) or None
    return listener
