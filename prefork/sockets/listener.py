"""Listening sockets: bind, adopt, narrow, unlink.

Runs in the master; workers inherit the listener and must only accept. Owns the socket and its Unix path. A Listener is
put in `server.socket`, so that every `server_bind` and `server_activate`, ours, the standard library's or the user's,
runs unchanged and still does what a pool needs: it removes a stale Unix path, leaves an inherited descriptor as it was
bound, and says in a sentence that a port is taken. Longer than most files: narrow() and widen() need all of the rest.
"""

import contextlib
import ctypes
import errno
import logging
import os
import select
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

from prefork.metrics.kernel import somaxconn
from prefork.metrics.log_events import LogEvent, event

from ..errors import BindError, ConfigError, reason_of
from .addresses import UNNAMED, address_text, bindable, over
from .ownership import Access
from .unix_paths import clear_stale, identity_of

log = logging.getLogger("prefork.supervisor")

SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27
# Classic BPF. On a TCP header: drop a segment with SYN and without ACK, pass the rest. So a handshake that has begun is
# completed, a new one is not answered, and its client tries again a second later.
DROP_BARE_SYN = (
    (0x30, 0, 0, 13),  # A = flags
    (0x54, 0, 0, 0x12),  # A &= SYN | ACK
    (0x15, 0, 1, 0x02),  # if A == SYN
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFF),  # else pass
)
DROP_ALL = ((0x06, 0, 0, 0),)  # datagrams


def asked_for(address: Any, kind: int, ordinal: int = 1) -> str:
    """Return the key by which a reload finds a listener again: the address as it was asked for, and an ordinal.

    The ordinal, from 1, tells apart the listeners of one process that ask for the same address.
    """
    if isinstance(address, (str, bytes, os.PathLike)):
        address = os.fsdecode(os.fspath(address))
    return f"{socket.SocketKind(kind).name} {address!r} {ordinal}"


_asked: Counter[str] = Counter()


def asked_once_more(address: Any, kind: int) -> str:
    """Return the key of `asked_for()` for the next server of this process at this address."""
    _asked[first := asked_for(address, kind)] += 1
    return asked_for(address, kind, _asked[first])


class Listener(socket.socket):
    """The listener of a pool: bound here, or inherited already bound.

    `inherited`: it came bound, and `bind()` leaves it alone. `flags` are added to every receive, so that a worker does
    not block for a datagram that a sibling took, while replies on the same socket may still block.
    """

    inherited = False
    resumed = False  # handed over by an earlier image of this process
    quiet = False  # in a rehearsal: it is another process's, and must not be changed
    access = Access()  # mode and owner of a Unix path that it binds
    flags = 0
    unreachable = False  # its path is removed, and no other leads to it
    bound_to: Any = None  # what the program has asked `bind()` for
    asked = ""  # the key of `asked_for()`, by which a reload finds it again
    backlog = 128  # what `listen()` was last asked for
    path: str | None = None
    identity: tuple[int, int] | None = None  # device and inode of the path: fstat of the socket gives another inode
    serving = False  # a pool serves here, and sets the timeout
    _later: float | None = None  # the timeout that the program gets back afterwards

    @classmethod
    def adopt(cls, sock: socket.socket) -> "Listener":
        """Return a listener with the descriptor of a plain socket object, which is detached from it."""
        timeout = sock.gettimeout()  # a new object begins with the program's default timeout instead
        listener = cls(sock.family, sock.type, sock.proto, fileno=sock.detach())
        listener.settimeout(timeout)
        return listener

    @classmethod
    def inherit(cls, fd: int) -> "Listener":
        """Return a listener over an inherited descriptor, already bound. Raises BindError if it is no socket."""
        try:
            listener = over(fd, cls)
            os.set_inheritable(fd, False)
        except OSError as exc:
            raise BindError(exc.errno, f"could not take over descriptor {fd}: {reason_of(exc)}") from exc
        listener.inherited = True
        listener.quiet = _instead is not None
        return listener

    @classmethod
    def resume(cls, fd: int, *, quiet: bool) -> "Listener":
        """Return a listener over a descriptor of an earlier image of this process; `quiet`: of another process."""
        listener = over(fd, cls)
        listener.resumed, listener.quiet = True, quiet
        listener.serving = True  # workers of that image serve here: the timeout of a new program must not reach them
        return listener

    @classmethod
    def recover(cls, fd: int) -> "Listener":
        """Return a listener that the service manager kept over a crash of this service: bound, with its queue."""
        listener = cls.resume(fd, quiet=False)
        name = listener.getsockname()
        log.info("going on with the socket that the service manager kept: %s", address_text(name),
                 extra=event(LogEvent.LISTENER_KEPT, address=address_text(name)))  # fmt: skip
        if isinstance(name, str) and name[:1] not in ("", "\0"):
            listener.path, listener.identity = name, identity_of(name)
        return listener

    def bind(self, address: Any) -> None:
        """Bind as socket.bind does, after removing a stale Unix path.

        Raises BindError, with the errno; ConfigError if it is no address, or if a mode or an owner is set and there is
        no Unix path to bind.
        """
        self.bound_to = address
        try:
            self._bind_or_say(address)
        except TypeError as exc:
            wanted = "a path" if self.family == socket.AF_UNIX else "(host, port)"
            raise ConfigError(f"could not bind {address!r:.80}: it must be {wanted} ({exc})") from None

    def _bind_or_say(self, address: Any) -> None:
        path = os.fsdecode(address) if self.family == socket.AF_UNIX else ""
        named = bool(path) and path[:1] != "\0" and not self.inherited
        if self.access and not named:
            where = address_text(address)
            raise ConfigError(f"could not set {self.access} of {where}: it is no Unix path, or bound by somebody else")
        if self.inherited or self.resumed:
            return
        try:
            address = bindable(address)
            self._bind(address, path if named else None)
        except OSError as exc:
            raise BindError(exc.errno, f"could not bind {address_text(address)}: {reason_of(exc)}") from exc

    def _bind(self, address: Any, path: str | None) -> None:
        if _instead is not None:
            super().bind(_instead(self, address, path))
            return
        if path is None:
            super().bind(address)
            return
        clear_stale(path, self.type)
        with self.access.given_to(self, path):
            super().bind(address)
            self.path = os.path.abspath(path)
            self.identity = identity_of(self.path)

    def listen(self, backlog: int = 128, /) -> None:
        if self.quiet:
            return
        limit = somaxconn()
        if limit is not None and backlog > limit:
            log.warning("the kernel cuts the listen queue of %d to %d (net.core.somaxconn)", backlog, limit,
                        extra=event(LogEvent.QUEUE_CUT, asked=backlog, limit=limit))  # fmt: skip
        super().listen(backlog)
        self.backlog = backlog

    @cached_property
    def _kind(self) -> tuple[int, int, int]:
        return int(self.family), int(self.type), self.proto

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept as socket.accept does, without its two enum members for each connection.

        They are a tenth of the cost of a short connection.
        """
        fd, address = self._accept()  # type: ignore[attr-defined]  # what socket.accept itself calls
        return socket.socket(*self._kind, fd), address or UNNAMED

    def settimeout(self, value: float | None, /) -> None:
        """Set the timeout as socket.settimeout does; while a pool serves here, the one to have afterwards.

        A worker that waits in an accept would not hear its master.
        """
        if self.serving:
            self._later = value
        else:
            super().settimeout(value)

    def setblocking(self, flag: bool, /) -> None:
        self.settimeout(None if flag else 0.0)

    def serve_by_pool(self, timeout: float | None) -> None:
        """Set this timeout, in seconds, and keep it whatever the program sets, until `served_by_pool()`."""
        if not self.serving:
            self.serving, self._later = True, self.gettimeout()
        super().settimeout(timeout)

    def served_by_pool(self) -> None:
        self.serving = False
        super().settimeout(self._later)

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        return super().recv(bufsize, flags | self.flags)

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, Any]:
        return super().recvfrom(bufsize, flags | self.flags)

    def recvmsg(self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /) -> Any:
        return super().recvmsg(bufsize, ancbufsize, flags | self.flags)

    def unlink(self) -> None:
        """Remove the Unix path if it is still ours.

        A path that may not be removed is left, with a warning: after a change of user the directory may be another
        user's.
        """
        if self.stands:
            self.unreachable = True
            try:
                os.unlink(str(self.path))
            except FileNotFoundError:
                pass
            except OSError as exc:
                self.unreachable = False
                log.warning(
                    "could not remove %s, it is left: %s", self.path, reason_of(exc),
                    extra=event(LogEvent.SOCKET_LEFT, address=self.path),
                )  # fmt: skip
        self.path = None

    @property
    def stands(self) -> bool:
        """True if the Unix path still leads to this socket."""
        return self.path is not None and self.identity is not None and self.identity == identity_of(self.path)


Instead = Callable[[Listener, Any, str | None], Any]
_instead: Instead | None = None


@contextlib.contextmanager
def bound_elsewhere(instead: Instead) -> Iterator[None]:
    """Have `bind()`, inside, bind to the address that `instead` returns, and leave inherited sockets unchanged."""
    global _instead
    _instead = instead
    try:
        yield
    finally:
        _instead = None


# For any listening socket: the program may have wrapped ours (TLS), and `origin` is the Listener underneath.


@contextlib.contextmanager
def prepared(sock: socket.socket, ours: Callable[[], bool], origin: Listener | None = None) -> Iterator[None]:
    """Prepare a listener for the workers, inside: none may block for what a sibling took, nor wait in an accept for as
    long as the program's own timeout.

    O_NONBLOCK belongs to the open file description, so all processes share it. Datagram sockets stay blocking because
    handlers reply on them. Both are put back at the end if the socket is `ours()` then; if not, workers of the previous
    image go on with it. Raises BindError as `widen()` does.
    """
    widen(sock, origin)
    known = _known(sock, origin)
    resumed = known is not None and known.resumed  # the previous image made it non-blocking
    blocking, timeout = resumed or os.get_blocking(sock.fileno()), sock.gettimeout()
    wanted = None if sock.type == socket.SOCK_DGRAM else 0.0
    if isinstance(sock, Listener):
        sock.flags = 0 if wanted is not None else socket.MSG_DONTWAIT
        sock.serve_by_pool(wanted)
    else:
        sock.settimeout(wanted)
    try:
        yield
    finally:
        if sock.fileno() != -1 and ours():
            try:
                _put_back(sock, timeout, blocking)
            except OSError as exc:  # the service has ended well: only a program that uses the socket will notice
                what = "put back the timeout of the program's socket"
                log.error("could not %s: %s", what, reason_of(exc), extra=event(LogEvent.STEP_FAILED, step=what))


def _put_back(sock: socket.socket, timeout: float | None, blocking: bool) -> None:
    if isinstance(sock, Listener):
        sock.flags = 0
        sock.served_by_pool()
    else:
        sock.settimeout(timeout)
    if not blocking:  # it was inherited non-blocking, which its Python timeout did not show
        os.set_blocking(sock.fileno(), False)


def _known(sock: socket.socket, origin: Listener | None) -> Listener | None:
    return sock if isinstance(sock, Listener) else origin


def queued(sock: socket.socket) -> bool:
    """Return whether something is queued now. False for a closed socket, and where the kernel does not tell."""
    if sock.fileno() == -1:
        return False
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    try:
        return bool(poll.poll(0))
    except OSError:
        return False


def narrow(sock: socket.socket, origin: Listener | None = None) -> bool:
    """Refuse new clients, and keep the accept queue, which the workers serve to its end.

    Returns False, with nothing changed, for a closed socket, and for a listener that another process holds as well
    (systemd): its queue is for the process that serves it next.
    """
    known = _known(sock, origin)
    if sock.fileno() == -1 or (known is not None and known.inherited):
        return False
    if known is not None:
        known.unlink()
    program = DROP_ALL if sock.type == socket.SOCK_DGRAM else DROP_BARE_SYN
    if sock.family == socket.AF_UNIX and sock.type != socket.SOCK_DGRAM:
        if _is_abstract(sock):
            sock.listen(0)
        return True  # without its path no client can reach it
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(program), ctypes.addressof(code)))
    except OSError:
        if sock.type != socket.SOCK_DGRAM:
            with contextlib.suppress(OSError):
                sock.listen(0)
    return True


def widen(sock: socket.socket, origin: Listener | None = None) -> None:
    """Undo `narrow()`, so that a server can serve again after `shutdown()`.

    Raises BindError for a Unix socket whose path was removed by an earlier drain.
    """
    known = _known(sock, origin)
    if known is not None and known.unreachable:
        where = address_text(sock.getsockname())
        raise BindError(errno.ENOENT, f"could not serve again on {where}: its path is removed; make a new server")
    if known is not None and _is_abstract(sock):
        known.listen(known.backlog)
    with contextlib.suppress(OSError):  # there was no filter
        sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)


def _is_abstract(sock: socket.socket) -> bool:
    """Return whether a stream socket has an abstract name, which no unlink takes from its clients."""
    name = sock.getsockname() if sock.family == socket.AF_UNIX and sock.type != socket.SOCK_DGRAM else None
    return isinstance(name, bytes) and name[:1] == b"\0"
