"""The socket of a server that has a pool: what the program assigns to `server.socket`, and what becomes of it; and the
servers, each with a socket of its own, that one pool serves beside its first.

Runs in the master, in constructors above all. Owns which Listener knows the socket, and by what name a reload finds it
again. The object that the program has assigned stays what it is, with its class and its other names: a plain socket
becomes a Listener, another class gets our methods beneath its own, and of a wrapper that is no socket (pyOpenSSL) the
socket inside is seen to.
"""

import os
import socket
import sys
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prefork.metrics.board import Board
from prefork.metrics.scoreboard import FIRST_LISTENER, LISTENERS_MAX
from prefork.workers.access_log import AccessLog, LogContext
from prefork.workers.admission import Admission, Terms
from prefork.workers.definitions import hook
from prefork.workers.identity import Descriptors
from prefork.workers.keeps import keeps

from .accompanied import Accompanied, checked
from .errors import ConfigError, PreforkError
from .inheritance.precedence import is_called_by
from .pool_settings import PoolSettings
from .reload.handover import handed
from .settings.also import is_of_a_listener, is_of_some
from .settings.effects import without_effect
from .settings.fields import settings
from .settings.in_force import InForce, default_of, value_of
from .sockets.addresses import address_text, over
from .sockets.listener import Listener, asked_once_more, beneath, listener_names, origin_of, put_beneath, take_over
from .sockets.networks import admission, asked
from .sockets.of_server import is_closed, socket_of
from .sockets.options import INTERNET, SocketOptions
from .sockets.ownership import Access
from .supervised.state import Supervised
from .systemd import stored


class Listened(Supervised):
    """State of a server whose socket is shared with workers, and goes over a reload."""

    def __init__(self, server: Any) -> None:
        super().__init__(server)
        self.listener: Any = None  # what the program has assigned, such as its own wrapper (TLS)
        self.assigned = False
        self.closing = False  # server_close() has been called
        self.descriptors = Descriptors()  # the socket's
        self.tls: Any = None  # the ssl.SSLContext of new workers, of the settings
        self.tls_expires_at = 0.0
        self.secured = False  # the settings have been asked for one
        self.asks: Terms | None = None  # what they ask of the connections of new workers; None: nothing
        self._asked: str | None = None
        self._inode: int | None = None  # by which a socket is known under each of its objects and descriptors

    @property
    def origin(self) -> Listener | None:
        """The Listener that knows where the socket came from: the socket itself, or one without a descriptor."""
        return origin_of(self.listener)

    def listen_on(self, sock: Any) -> None:
        """Store what the program assigns to `socket`."""
        self.closing, self.assigned = False, True
        own, self.descriptors = beneath(sock), Descriptors()
        if own is not None and own.fileno() != -1:
            self._know(own)
            self.descriptors = Descriptors(own.fileno())
        self.listener = sock

    def _know(self, own: socket.socket) -> None:
        """Let a Listener know of this socket: if the program has only wrapped it, all that the one before knew."""
        before, server = self.origin, self.server
        same = os.fstat(own.fileno()).st_ino == self._inode
        origin = self._adopted(own)
        if not same:
            self._claim(own, origin, before)
        elif before is not None and before is not origin:
            before.tell(origin)
            self._lend(before, origin, own)
        self._inode = os.fstat(own.fileno()).st_ino
        origin.access = Access(value_of(server, "socket_mode"), value_of(server, "socket_owner"))
        origin.wanted = SocketOptions.of(InForce(server))
        if keeps(server) and own.family in INTERNET and own.proto in (0, socket.IPPROTO_TCP):
            origin.wanted["tcp_nodelay"] = True  # of each connection, without a system call
        if origin.serving:
            os.set_blocking(own.fileno(), False)  # wrap_socket() of ssl changes that, and workers are serving there

    @staticmethod
    def _adopted(own: socket.socket) -> Listener:
        if (known := origin_of(own)) is not None:
            return known
        if type(own) in Listener.__bases__:  # not socket.socket, which the program may have replaced since (PySocks)
            return Listener.adopt(own)
        origin = Listener.without_descriptor()
        put_beneath(own, origin)
        return origin

    def _claim(self, own: socket.socket, origin: Listener, before: Listener | None) -> None:
        """Put what was handed over, inherited, or stored by systemd in the place of what the program made."""
        server = self.server
        fd = server.inherited_fd if isinstance(server.inherited_fd, int) else None  # else it is the program's own
        if self._asked is None:
            address = getattr(server, "server_address", None) if fd is None else f"fd://{fd}"
            self._asked = asked_once_more(address, own.type)
        origin.asked = self._asked
        passed = self._passed(fd, before)
        if passed is None:
            return
        passed.tell(origin)
        origin.asked = self._asked
        timeout = own.gettimeout()
        take_over(own, passed.detach())
        own.settimeout(timeout)
        self._lend(passed, origin, own)
        if origin.inherited:
            vars(server).update(address_family=own.family, socket_type=own.type)

    def _passed(self, fd: int | None, before: Listener | None) -> Listener | None:
        given, asked = handed(), self._asked or ""
        if before is not None and (before.inherited or before.resumed):  # the program has put one in its place
            return self._once_more(before)
        if given is not None and (listener := given.listener(asked)) is not None:
            return listener
        if fd is not None:
            return Listener.inherit(fd)
        return None if (kept := stored(asked)) is None else Listener.recover(kept)

    def _once_more(self, before: Listener) -> Listener | None:
        """Return the socket that the one before stood for; None if it is closed, and nobody else has it."""
        own, given = beneath(self.listener), handed()
        if own is not None and own.fileno() != -1:
            listener = over(own.detach(), Listener)
            before.tell(listener)
            self._lend(before, listener, listener)
            return listener
        return given.again(before) if given is not None and before.resumed else None

    @staticmethod
    def _lend(before: Listener, after: Listener, own: socket.socket) -> None:
        if (given := handed()) is not None:
            given.moved(before, after, own)

    # What is written of connections.

    def access_log(self, *, wanted: bool | None = None, where: str | None = None) -> AccessLog | None:
        """Return what writes the records of this worker, or of the only process of `--single`; the master has none.

        `wanted`: whether the pool has one, where that is another server's. `where`: the listener's name in it.
        """
        wanted = value_of(self.server, "access_log") if wanted is None else wanted
        if self.slot is None or not wanted:
            return None
        sock = socket_of(self.server)
        where = where or address_text(self.server.server_address if sock is None else sock.getsockname())
        in_order = not self.keeps_connections and not self.threaded()
        return AccessLog(LogContext(where, self.slot, address_text, self.keeps_connections, in_order))

    @property
    def keeps_connections(self) -> bool:
        """True if a pool keeps the connections of this server; over TLS they stay on their lanes."""
        return keeps(self.server) and self.tls is None

    # What connections must show.

    def admission(self) -> Admission | None:
        if not self.secured:  # handle_request() serves without serve_forever()
            self.secure()
        return None if self.asks is None else admission(self.asks, at_once=True)

    def _makes_its_own(self) -> bool:
        """Return True if the program has a `create_ssl_context()` for connections that it wraps itself."""
        handler = self.server.RequestHandlerClass
        classes = [type(self.server), *([handler] if isinstance(handler, type) else [])]
        return value_of(self.server, "tls_certificate") is None and is_called_by(classes, "create_ssl_context")

    def secure(self) -> None:
        """Make the TLS context anew, and with it what connections must show; what was before stays if that fails.
        Raises ConfigError."""
        self._make_context()
        self.asks = asked(InForce(self.server), self.tls)

    def _make_context(self) -> None:
        context = None if self._makes_its_own() else hook(self.server, "create_ssl_context")()
        if context is None:
            if value_of(self.server, "tls_certificate") is not None:  # in the clear, without a word
                raise ConfigError("could not use tls_certificate: create_ssl_context() returned None, and no context")
            for name in ("tls_key", "tls_client_ca", "tls_alpn"):
                if value_of(self.server, name) is not None:
                    raise ConfigError(f"could not set {name}: there is no tls_certificate")
            self.tls, self.secured = None, True
            return
        from .sockets.tls import SecureConnection, tried

        ssl = sys.modules["ssl"]
        if isinstance(self.listener, ssl.SSLSocket):
            raise ConfigError("could not set tls_certificate: the program has wrapped its listener in TLS itself")
        self.tls_expires_at = tried(context)
        if context.sslsocket_class is ssl.SSLSocket:  # else the program has a class of its own for them
            context.sslsocket_class = SecureConnection
        self.tls, self.secured = context, True


class Joined(Accompanied, Listened):
    """State of a server whose pool may serve others, or that is served by the pool of another one."""

    def __init__(self, server: Any) -> None:
        super().__init__(server)
        self.others: tuple[Any, ...] = ()  # the servers that this one's pool serves as well
        self._first: Any = None  # weakly, the server whose pool serves this one

    @property
    def first(self) -> Any:
        """The server whose pool serves this one; None if that is its own, or nobody's yet."""
        return None if self._first is None else self._first()

    @property
    def each(self) -> "tuple[Joined, ...]":
        """The state of each server of this pool, its own first."""
        return (self, *(other._prefork_ for other in self.others))

    def sockets(self) -> tuple[Any, ...]:
        return tuple(each.listener for each in self.each if each.listener is not None)

    def number_listeners(self, board: Board, before: Mapping[str, Any]) -> None:
        """Give each listener that has none a number: that of the one before it at the same address, whose path is lost,
        by the record of the previous image; else one that counts for no other, nor for one that its children serve."""
        origins = [origin for each in self.each if (origin := each.origin) is not None]
        taken = sum({1 << origin.number for origin in origins if origin.number is not None})
        for child in before.get("children", ()):
            taken |= child.get("listeners", FIRST_LISTENER)
        known = {before[name]["asked"]: before[name].get("number", 0) for name in listener_names(before)}
        for origin in origins:
            if origin.number is None and origin.asked in known:
                origin.number = known[origin.asked]
            elif origin.number is None:
                origin.number = next((n for n in range(LISTENERS_MAX) if not taken >> n & 1), None)
                if origin.number is None:
                    raise ConfigError(f"could not serve {len(origins)} listeners: it must be at most {LISTENERS_MAX}, "
                                      "and those of before a reload count until its end")  # fmt: skip
                taken |= 1 << origin.number
                board.begin_listener(origin.number)

    def serve_also(self, other: Any) -> None:
        """Implement `serve_also()`. Raises ConfigError."""
        refused = f"could not serve {type(other).__qualname__} as well"
        own = getattr(other, "_prefork_", None)
        if not isinstance(own, Joined):
            raise ConfigError(f"{refused}: it has no PreForkingMixIn among its bases")
        if self.done is not None or own.done is not None:
            raise ConfigError(f"{refused}: the pool serves already; call serve_also() before serve_forever()")
        if other is self.server or own.first is not None or own.others or self.first is not None:
            raise ConfigError(f"{refused}: a server belongs to one pool, which is that of its first server")
        if is_closed(other):
            raise ConfigError(f"{refused}: it is closed, or not bound")
        if (companions := checked(other)) not in ((), checked(self.server)):  # of one class, they are the first's
            named = ", ".join(each.name for each in companions)
            raise ConfigError(f"{refused}: the companions of a pool are its first server's, and this one has {named}")
        self._check_kind(refused, own)
        self.others += (other,)
        own._first = weakref.ref(self.server)

    def _check_kind(self, refused: str, own: Supervised) -> None:
        """Raise ConfigError unless workers can serve both in the same way."""
        if self.threaded() != own.threaded():
            raise ConfigError(f"{refused}: one of the two has a ThreadingMixIn, and the other has none")
        if hasattr(self.server, "collect_children") != hasattr(own.server, "collect_children"):
            raise ConfigError(f"{refused}: one of the two has a ForkingMixIn, and the other has none")

    def refuse_another_pool(self) -> None:
        """Raise PreforkError if this server is served by another one's pool."""
        if (first := self.first) is not None:
            name, its = type(self.server).__qualname__, type(first).__qualname__
            raise PreforkError(f"could not serve {name} from a pool of its own: the pool of {its} serves it")

    def statistics(self) -> Any:
        return super().statistics() if self.first is None else self.first._prefork_.statistics()

    def shutdown(self, *, wait: bool) -> None:
        if self.first is None or self.ask_to_drain():
            super().shutdown(wait=wait)
        else:
            self.first._prefork_.shutdown(wait=wait)

    def in_vain(self, said: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        """Yield those of these settings, without effect on the first server, that have none on any other: one of a
        listener's, or of kept connections, may be said for all, and be for some."""
        fields = settings(type(self.server))
        others = [set(without_effect(other, PoolSettings)) for other in self.others]
        for each in said:
            name = each[0]
            if name not in fields or not is_of_some(fields[name]) or all(each in its for its in others):
                yield each

    def without_effect(self) -> Iterator[tuple[str, str]]:
        """Yield each setting that is set for nothing on another server than the first, and why: one of the pool's, or
        of its own listener's."""
        first, why = self.server, f"the settings of the pool are those of {type(self.server).__qualname__}"
        for other in self.others:
            defaults = settings(type(first))
            for name, field in settings(type(other)).items():
                if is_of_a_listener(field) or name not in defaults:
                    continue
                if value_of(other, name) not in (value_of(first, name), default_of(other, name)):
                    yield f"{name} of {type(other).__qualname__}", why
            for name, its in without_effect(other, PoolSettings):
                if is_of_a_listener(defaults[name]) and value_of(other, name) != value_of(first, name):
                    yield f"{name} of {type(other).__qualname__}", its
