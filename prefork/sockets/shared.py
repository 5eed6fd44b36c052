"""A listening socket that several processes share: prepared, narrowed, widened.

Runs in the master. The socket is whatever the program has assigned: a Listener, or its own wrapper (TLS).
"""

import contextlib
import ctypes
import errno
import logging
import os
import select
import socket
import struct
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any, TypeVar

from prefork.metrics.log_events import LogEvent, event
from prefork.workers.contexts import Lane
from prefork.workers.cut_datagrams import CutDatagrams
from prefork.workers.kept import QueueEnd
from prefork.workers.lanes import Lanes

from ..errors import BindError, ConfigError, reason_of
from .addresses import address_text
from .kept_paths import may_be_gone
from .listener import Listener, beneath, origin_of

log = logging.getLogger("prefork.supervisor")

Received = TypeVar("Received")

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
SHUT = select.POLLHUP | select.POLLRDHUP  # the socket was shut down
DROP_ALL = ((0x06, 0, 0, 0),)  # datagrams


class SharedDatagrams(socket.socket):
    """The receives of a datagram socket that a pool serves.

    In `get_request()` none blocks for what a sibling took. A handler that receives waits for its client, as it would
    without a pool: as long as the timeout says that the program has given the socket. Replies may block as well. The
    descriptor is blocking throughout, because O_NONBLOCK would be every worker's.
    """

    __slots__ = ()

    in_get_request: Callable[[], bool] = staticmethod(lambda: True)
    note_cut: Callable[[int, Any], None] = staticmethod(lambda most, client_address: None)

    @classmethod
    def receive_on(cls, *lanes: Lanes) -> None:
        """Say whose requests this process receives, for each listener. Called in a worker, for itself."""

        def accepting_lane() -> Lane | None:
            return next((lane for each in lanes if (lane := each.accepting_lane()) is not None), None)

        one = lanes[0] if len(lanes) == 1 else None  # a call less
        cls.in_get_request = staticmethod(one.in_get_request if one else lambda: accepting_lane() is not None)
        cls.note_cut = staticmethod(CutDatagrams(one.accepting_lane if one else accepting_lane, address_text).note)

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        return self._received(lambda flags: super(SharedDatagrams, self).recv(bufsize, flags), flags)

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, Any]:
        if flags or not SharedDatagrams.in_get_request():
            return self._received(lambda flags: super(SharedDatagrams, self).recvfrom(bufsize, flags), flags)
        data, address = super().recvfrom(bufsize + 1, socket.MSG_DONTWAIT)
        return fitting(data, bufsize, address), address

    def recvmsg(self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /) -> Any:
        return self._received(lambda flags: super(SharedDatagrams, self).recvmsg(bufsize, ancbufsize, flags), flags)

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        return self._received(lambda flags: super(SharedDatagrams, self).recv_into(buffer, nbytes, flags), flags)

    def recvfrom_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> tuple[int, Any]:
        return self._received(lambda flags: super(SharedDatagrams, self).recvfrom_into(buffer, nbytes, flags), flags)

    def recvmsg_into(self, buffers: Any, ancbufsize: int = 0, flags: int = 0, /) -> Any:
        return self._received(
            lambda flags: super(SharedDatagrams, self).recvmsg_into(buffers, ancbufsize, flags), flags
        )

    def gettimeout(self) -> float | None:
        """Return the program's own, which `settimeout()` has kept: what its receives wait."""
        own: Listener = self._prefork_  # type: ignore[attr-defined]
        return own.later if own.serving else super().gettimeout()

    def _received(self, receive: Callable[[int], Received], flags: int) -> Received:
        if SharedDatagrams.in_get_request():
            return receive(flags | socket.MSG_DONTWAIT)
        timeout = self.gettimeout()
        if not timeout:
            return receive(flags if timeout is None else flags | socket.MSG_DONTWAIT)
        until, poll = monotonic() + timeout, select.poll()
        poll.register(self, select.POLLIN)
        while True:
            with contextlib.suppress(BlockingIOError):
                return receive(flags | socket.MSG_DONTWAIT)
            left = until - monotonic()
            if left <= 0 or flags & socket.MSG_DONTWAIT:
                raise TimeoutError("timed out")
            poll.poll(left * 1000)


def fitting(data: bytes, most: int, client_address: Any) -> bytes:
    """Return what `max_packet_size` allows of a datagram that was received with a byte more, and note if it is cut."""
    if len(data) <= most:
        return data
    SharedDatagrams.note_cut(most, client_address)
    return data[:most]


@contextlib.contextmanager
def prepared(sock: socket.socket, ours: Callable[[], bool]) -> Iterator[None]:
    """Prepare a listener for the workers, inside: none may block for what a sibling took, nor wait in an accept for as
    long as the program's own timeout.

    O_NONBLOCK belongs to the open file description, so all processes share it. Datagram sockets stay blocking because
    handlers reply on them. Both are put back at the end if the socket is `ours()` then; if not, workers of the previous
    image go on with it. Raises BindError as `widen()` does, ConfigError for a socket on which nobody can come.
    """
    origin, own = _known(sock)
    origin.put_options(own)
    widen(sock)
    blocking = origin.resumed or os.get_blocking(own.fileno())  # if resumed, the previous image made it non-blocking
    kind = type(own)
    if datagrams := own.type == socket.SOCK_DGRAM:
        own.__class__ = type(kind.__name__, (kind, SharedDatagrams), {"__slots__": (), "__module__": kind.__module__})
    origin.serve_by_pool(None if datagrams else 0.0, own)
    try:
        yield
    finally:
        own.__class__ = kind
        if own.fileno() != -1 and ours():
            try:
                origin.served_by_pool(own)
                if not blocking:  # it was inherited non-blocking, which its Python timeout did not show
                    os.set_blocking(own.fileno(), False)
            except OSError as exc:  # the service has ended well: only a program that uses the socket will notice
                what = "put back the timeout of the program's socket"
                log.error("could not %s: %s", what, reason_of(exc), extra=event(LogEvent.STEP_FAILED, step=what))


def _known(sock: Any) -> tuple[Listener, socket.socket]:
    """Return the Listener that knows the socket, and the object that has it. Raises ConfigError for one on which nobody
    can come: workers would try to accept for ever."""
    origin, own = origin_of(sock), beneath(sock)
    if own is not None and own.fileno() == -1:
        raise ConfigError("could not serve from a pool: the listening socket is closed")
    if origin is None or own is None:
        raise ConfigError(f"could not serve from a pool: no socket is found in {sock!r}, which stands for the listener")
    if own.type == socket.SOCK_STREAM and not own.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        where = address_text(own.getsockname()) or "a socket without a name"
        raise ConfigError(
            f"could not serve on {where}: it does not listen; server_bind() and server_activate() see to it"
        )
    return origin, own


def check_shared(sock: Any, server: Any) -> None:
    """Raise ConfigError unless workers can wait for this server, each in its own epoll, and one wakes at a time.

    Not so for an epoll, in which a program waits for several sockets (EINVAL, epoll_ctl(2)).
    """
    name, alone = type(server).__qualname__, "serve it without PreForkingMixIn"
    if sock is None:
        raise ConfigError(
            f"could not serve from a pool: {name} has no socket that workers could share; {alone}, or with --single"
        )
    if not hasattr(sock, "fileno"):
        return  # no socket, which is said elsewhere
    with select.epoll() as epoll:
        try:
            epoll.register(server.fileno(), select.EPOLLIN | select.EPOLLEXCLUSIVE)
        except (OSError, ValueError) as exc:
            if sock.fileno() == -1:
                return  # closed, which is said elsewhere
            why = reason_of(exc) if isinstance(exc, OSError) else exc
            raise ConfigError(
                f"could not serve from a pool: workers cannot wait together for what {name}.fileno() names ({why}); "
                f"make a server of each socket, or {alone}"
            ) from None


def queued(sock: socket.socket | QueueEnd) -> bool:
    """Return whether something is queued now. False for a closed socket, for a listener that was shut down, which is
    reported as readable for ever, and where the kernel does not tell."""
    found = _polled(sock.fileno())
    if isinstance(sock, QueueEnd) or not found & SHUT:
        return bool(found & select.POLLIN)
    return sock.type == socket.SOCK_DGRAM and _has_datagram(sock)


def _polled(fd: int) -> int:
    if fd == -1:
        return 0
    poll = select.poll()
    poll.register(fd, select.POLLIN | SHUT)
    try:
        return sum(flags for _, flags in poll.poll(0))
    except OSError:
        return 0


def _has_datagram(sock: socket.socket) -> bool:
    own = beneath(sock)
    try:
        socket.SocketType.recv(own or sock, 1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:
        return False
    return True


def narrow(sock: socket.socket) -> bool:
    """Refuse new clients, and keep the accept queue, which the workers serve to its end.

    Returns False, with nothing changed, for a closed socket, and for a listener that another process holds as well
    (systemd): its queue is for the process that serves it next.
    """
    origin = origin_of(sock)
    if sock.fileno() == -1 or (origin is not None and origin.inherited):
        return False
    if origin is not None:
        take_away_path(origin)
    program = DROP_ALL if sock.type == socket.SOCK_DGRAM else DROP_BARE_SYN
    if sock.family == socket.AF_UNIX and sock.type != socket.SOCK_DGRAM:
        if _is_abstract(sock) and (own := beneath(sock)) is not None:
            socket.socket.listen(own, 0)
        return True  # without its path no client can reach it
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(program), ctypes.addressof(code)))
    except OSError:
        if sock.type != socket.SOCK_DGRAM:
            with contextlib.suppress(OSError):
                sock.listen(0)
    return True


def take_away_path(origin: Listener) -> None:
    """Remove the Unix path, which the program may do as well afterwards."""
    path = origin.path
    origin.unlink()
    if path is not None:
        may_be_gone(path)


def widen(sock: socket.socket) -> None:
    """Undo `narrow()`, so that a server can serve again after `shutdown()`.

    Raises BindError for a Unix socket whose path was removed by an earlier drain.
    """
    origin = origin_of(sock)
    if origin is not None and origin.unreachable:
        where = address_text(sock.getsockname())
        raise BindError(errno.ENOENT, f"could not serve again on {where}: its path is removed; make a new server")
    if origin is not None and _is_abstract(sock):
        sock.listen(origin.backlog)
    with contextlib.suppress(OSError):  # there was no filter
        sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)


def _is_abstract(sock: socket.socket) -> bool:
    """Return whether a stream socket has an abstract name, which no unlink takes from its clients."""
    name = sock.getsockname() if sock.family == socket.AF_UNIX and sock.type != socket.SOCK_DGRAM else None
    return isinstance(name, bytes) and name[:1] == b"\0"
