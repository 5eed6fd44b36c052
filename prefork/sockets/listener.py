"""Listening sockets: bind, adopt, inherit, unlink.

Runs in the master; workers inherit the listener and must only accept. Owns the socket and its Unix path. What a program
assigns to `server.socket` becomes a Listener, or gets one beneath its own class, so that every `server_bind` and
`server_activate`, ours, the standard library's or the user's, runs unchanged and still does what a pool needs: it
removes a stale Unix path, leaves an inherited descriptor as it was bound, and says in a sentence that a port is taken.
Longer than most files: all that is known of a listener stands in one place.
"""

import contextlib
import errno
import logging
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, Self, TypeVar, overload
from weakref import WeakKeyDictionary

from prefork.metrics.kernel import somaxconn
from prefork.metrics.log_events import LogEvent, event
from prefork.workers.plain_accept import STANDARD_ACCEPT
from prefork.workers.unnamed_peer import UNNAMED

from ..errors import BindError, ConfigError, reason_of
from .addresses import address_text, over
from .bindable import bindable, hint_of
from .kept_paths import keep_path_of, unlink_ours
from .options import SocketOptions
from .ownership import Access
from .unix_paths import clear_stale, identity_of

log = logging.getLogger("prefork.supervisor")

Side = TypeVar("Side")
family_of, type_of = socket.SocketType.family.__get__, socket.SocketType.type.__get__  # without an enum member


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


SERVICE = "listener"  # the role of a service's first listener; the others are "listener 2" and so on


def listener_names(roles: Iterable[str]) -> list[str]:
    """Return those of these roles that are listeners of the service itself, in their order."""
    return [name for name in roles if name.partition(" ")[0] == SERVICE]


class SideValue(Generic[Side]):
    """A value of a listener. It is kept apart from the object, which was a plain socket: that has no place for it."""

    def __init__(self, default: Side) -> None:
        self.default = default
        self._values: WeakKeyDictionary[socket.socket, Side] = WeakKeyDictionary()

    @overload
    def __get__(self, listener: None, owner: type) -> Self: ...
    @overload
    def __get__(self, listener: socket.socket, owner: type) -> Side: ...

    def __get__(self, listener: socket.socket | None, owner: type) -> Self | Side:
        return self if listener is None else self._values.get(listener, self.default)

    def __set__(self, listener: socket.socket, value: Side) -> None:
        self._values[listener] = value


class Beneath(socket.socket):
    """The methods that a pool needs of its listener, above those of a plain socket and beneath the program's class.

    `_prefork_` is the Listener that knows where the socket came from. It is the object itself, or one without a
    descriptor where the object is of a class of the program's, as ssl.SSLSocket.
    """

    __slots__ = ()

    _prefork_: "Listener"

    def bind(self, address: Any) -> None:
        """Bind as socket.bind does, after removing a stale Unix path.

        Raises BindError, with the errno; ConfigError if it is no address, or if a mode or an owner is set and there is
        no Unix path to bind.
        """
        self._prefork_.bind_by(self, super().bind, address)

    def listen(self, backlog: int = 128, /) -> None:
        if self._prefork_.quiet:
            return
        limit = somaxconn()
        if limit is not None and backlog > limit:
            log.warning(
                "the kernel cuts the listen queue of %d to %d (net.core.somaxconn)",
                backlog,
                limit,
                extra=event(LogEvent.QUEUE_CUT, asked=backlog, limit=limit),
            )
        super().listen(backlog)
        self._prefork_.backlog = backlog

    def setsockopt(self, level: int, option: int, *value: Any) -> None:
        """Set an option as socket.setsockopt does. IPV6_V6ONLY stays as it is on one that came bound: the kernel would
        refuse it, ipv6(7)."""
        came_bound = self._prefork_.inherited or self._prefork_.resumed
        if not (came_bound and (level, option) == (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)):
            super().setsockopt(level, option, *value)

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept as socket.accept does, without its two enum members for each connection.

        They are a tenth of the cost of a short connection.
        """
        if socket.socket.accept is not STANDARD_ACCEPT:  # the program's own
            connection, address = super().accept()
            return connection, address or UNNAMED
        fd, address = self._accept()  # type: ignore[attr-defined]  # what socket.accept itself calls
        return socket.socket(family_of(self), type_of(self), self.proto, fd), address or UNNAMED

    def settimeout(self, value: float | None, /) -> None:
        """Set the timeout as socket.settimeout does; while a pool serves here, the one to have afterwards.

        A worker that waits in an accept would not hear its master.
        """
        if self._prefork_.serving:
            self._prefork_.later = value
        else:
            super().settimeout(value)

    def setblocking(self, flag: bool, /) -> None:
        self.settimeout(None if flag else 0.0)


class Listener(Beneath, socket.socket):
    """The listener of a pool: bound here, or inherited already bound.

    `inherited`: it came bound, and `bind()` leaves it alone.
    """

    __slots__ = ()

    inherited = SideValue(False)
    resumed = SideValue(False)  # handed over by an earlier image of this process
    quiet = SideValue(False)  # in a rehearsal: it is another process's, and must not be changed
    access = SideValue(Access())  # mode and owner of a Unix path that it binds
    wanted = SideValue(SocketOptions())
    options = SideValue(SocketOptions())  # of those, what is on it
    unreachable = SideValue(False)  # its path is removed, and no other leads to it
    bound_to: SideValue[Any] = SideValue(None)  # what the program has asked `bind()` for
    number: SideValue[int | None] = SideValue(None)  # by which a pool counts what comes by it
    asked = SideValue("")  # the key of `asked_for()`, by which a reload finds it again
    backlog = SideValue(128)  # what `listen()` was last asked for
    path: SideValue[str | None] = SideValue(None)
    identity: SideValue[tuple[int, int] | None] = SideValue(None)  # device and inode of the path, not fstat's
    serving = SideValue(False)  # a pool serves here, and sets the timeout
    later: SideValue[float | None] = SideValue(None)  # the timeout that the program gets back afterwards

    @property
    def _prefork_(self) -> "Listener":  # type: ignore[override]
        return self

    @classmethod
    def adopt(cls, sock: socket.socket) -> "Listener":
        """Make a listener of a plain socket object, which the program may hold by another name as well."""
        sock.__class__ = cls
        assert isinstance(sock, Listener)
        return sock

    @classmethod
    def without_descriptor(cls) -> "Listener":
        """Return one that only knows: of a socket whose object is of the program's class."""
        listener = cls(socket.AF_INET)
        listener.close()
        return listener

    def tell(self, other: "Listener") -> None:
        """Give all that this one knows to another, which has the socket from now on."""
        for value in vars(Listener).values():
            if isinstance(value, SideValue):
                value.__set__(other, value.__get__(self, Listener))

    @classmethod
    def inherit(cls, fd: int) -> "Listener":
        """Return a listener over an inherited descriptor, already bound. Raises BindError if it is no socket."""
        try:
            listener = over(fd, cls)
            os.set_inheritable(fd, False)
        except OSError as exc:
            raise BindError(exc.errno, f"could not take over descriptor {fd}: {reason_of(exc)}") from exc
        keep_path_of(listener)
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

    def bind_by(self, sock: Beneath, bind: Callable[[Any], None], address: Any) -> None:
        """Implement `bind()` of the socket, by what is its own `bind` otherwise."""
        self.bound_to = address
        try:
            self._bind_or_say(sock, bind, address)
        except TypeError as exc:
            wanted = "a path" if sock.family == socket.AF_UNIX else "(host, port)"
            raise ConfigError(f"could not bind {address!r:.80}: it must be {wanted} ({exc})") from None

    def _bind_or_say(self, sock: Beneath, bind: Callable[[Any], None], address: Any) -> None:
        path = os.fsdecode(address) if sock.family == socket.AF_UNIX and not self.inherited else ""
        named = bool(path) and path[:1] != "\0"
        if self.access and not named:
            where = address_text(address)
            raise ConfigError(f"could not set {self.access} of {where}: it is no Unix path, or bound by somebody else")
        if self.inherited or self.resumed:
            self.wanted.check(sock)
            return
        self.put_options(sock)
        address = bindable(address)
        try:
            self._bind_by(sock, bind, address, path if named else None)
        except OSError as exc:
            error = BindError(exc.errno, f"could not bind {address_text(address)}: {reason_of(exc)}")
            if hint := hint_of(exc, address):
                error.add_note(hint)
            raise error from exc

    def _bind_by(self, sock: Beneath, bind: Callable[[Any], None], address: Any, path: str | None) -> None:
        if _instead is not None:
            bind(_instead(sock, address, path))
            return
        if path is None:
            bind(address)
            return
        clear_stale(path, sock.type)
        with self.access.given_to(sock, path):
            bind(address)
            self.path = os.path.abspath(path)
            self.identity = identity_of(self.path)

    def put_options(self, sock: socket.socket) -> None:
        """Set the options that are wanted, on the object that has the descriptor. Raises ConfigError."""
        if not self.quiet:
            self.wanted.put_on(sock, self.options)
            self.options = self.wanted

    def serve_by_pool(self, timeout: float | None, sock: socket.socket | None = None) -> None:
        """Set this timeout, in seconds, and keep it whatever the program sets, until `served_by_pool()`.

        `sock` is the object that has the descriptor, where this one has none.
        """
        sock = self if sock is None else sock
        if not self.serving:
            self.serving, self.later = True, sock.gettimeout()
        socket.socket.settimeout(sock, timeout)

    def served_by_pool(self, sock: socket.socket | None = None) -> None:
        self.serving = False
        socket.socket.settimeout(self if sock is None else sock, self.later)

    def close(self) -> None:
        """Close as socket.close does, also where the program has closed the number already."""
        try:
            super().close()
        except OSError as exc:
            if exc.errno != errno.EBADF:
                raise

    def unlink(self) -> None:
        """Remove the Unix path if it is still ours.

        A path that may not be removed is left, with a warning: after a change of user the directory may be another
        user's.
        """
        if self.stands:
            self.unreachable = True
            try:
                unlink_ours(str(self.path))
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


Instead = Callable[[Beneath, Any, str | None], Any]
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


def beneath(sock: Any) -> socket.socket | None:
    """Return the socket object that has the descriptor: this one or, of a wrapper that is none (pyOpenSSL), its own.

    None where no such object is found.
    """
    if isinstance(sock, socket.socket) or not hasattr(sock, "fileno"):
        return sock if isinstance(sock, socket.socket) else None
    fd, own = sock.fileno(), getattr(sock, "__dict__", {})
    return next((each for each in own.values() if isinstance(each, socket.socket) and each.fileno() == fd), None)


def leave_descriptor(sock: Any) -> None:
    """Have the object close nothing: the program has closed its descriptor, whose number may be another file's."""
    if (own := beneath(sock)) is not None:
        own.detach()


def origin_of(sock: Any) -> Listener | None:
    """Return the Listener that knows where this socket came from, whatever the program has wrapped it in (TLS)."""
    found = beneath(sock)
    return found._prefork_ if isinstance(found, Beneath) else None


def number_of(sock: Any) -> int:
    """Return the number by which a pool counts what comes by this socket; 0 where there is none."""
    origin = origin_of(sock)
    return 0 if origin is None or origin.number is None else origin.number


def names_of(socks: Sequence[Any]) -> list[str]:
    """Return a name for each of these listeners, in logs, metrics and reports: its address.

    A datagram socket at the address of another one is called udp://…, and one more of the same kind by its place.
    """
    addresses = [address_text(sock.getsockname()) for sock in socks]
    names: list[str] = []
    for sock, address in zip(socks, addresses, strict=True):
        shared = addresses.count(address) > 1 and sock.type == socket.SOCK_DGRAM
        name = f"udp://{address}" if shared else address
        names.append(f"{name} {names.count(name) + 1}" if name in names else name)
    return names


def put_beneath(sock: socket.socket, origin: Listener) -> None:
    """Put our methods beneath the class of the program's socket object, which keeps its own. Raises ConfigError."""
    kind = type(sock)
    own = {"__slots__": (), "__module__": kind.__module__, "__doc__": kind.__doc__, "_prefork_": origin}
    try:
        sock.__class__ = type(kind.__name__, (kind, Beneath), own)
    except TypeError as exc:
        raise ConfigError(f"could not use a socket of the class {kind.__qualname__} as the listener: {exc}") from exc


def take_over(sock: socket.socket, fd: int) -> None:
    """Have this socket object stand for that descriptor, instead of its own, which is closed."""
    before = sock.detach()
    default = socket.getdefaulttimeout()
    socket.setdefaulttimeout(None)  # as in `over()`
    try:
        socket.socket.__init__(sock, fileno=fd)
    finally:
        socket.setdefaulttimeout(default)
    os.close(before)
