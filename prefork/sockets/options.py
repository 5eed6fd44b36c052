"""Options of the listener that settings ask for: set on it, and inherited by its connections.

Linux gives what accept() returns the options of its listener, so that no connection costs a system call. Runs in the
master. Set before the socket is bound; on one that came bound, when the pool begins to serve on it. A reload changes
what can be changed then, and says what cannot.
"""

import logging
import math
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from prefork.metrics.kernel import sysctl
from prefork.metrics.log_events import LogEvent, event
from prefork.workers.definitions import definer, is_standard_module

from ..errors import ConfigError, reason_of

log = logging.getLogger("prefork.supervisor")

IP_FREEBIND = 15  # ip(7)
FASTOPEN_FOR_SERVERS = 0x2  # of net.ipv4.tcp_fastopen
INTERNET = {socket.AF_INET, socket.AF_INET6}


class Option(NamedTuple):
    """A socket option. `encode` makes the kernel's value of the setting's."""

    level: int
    number: int
    encode: Callable[[Any], int | bytes]
    off: int | str | None = None  # by which it is taken back, or the sysctl that has it; None: it takes a new socket
    tcp: bool = True  # else for datagrams as well
    switch: tuple[int, int] | None = None  # another that is on while this one is
    limit: str = ""  # the sysctl by which the kernel cuts the value


def _whole(seconds: float) -> int:
    return math.ceil(seconds)


_TCP, _SOCKET = socket.IPPROTO_TCP, socket.SOL_SOCKET
_ALIVE = (_SOCKET, socket.SO_KEEPALIVE)
# By setting. Other systems than Linux have not all of them, and no pool.
OPTIONS: Mapping[str, Option] = {
    "tcp_keepalive": Option(
        _TCP, getattr(socket, "TCP_KEEPIDLE", 4), _whole, off="net.ipv4.tcp_keepalive_time", switch=_ALIVE
    ),
    "tcp_keepalive_interval": Option(
        _TCP, getattr(socket, "TCP_KEEPINTVL", 5), _whole, off="net.ipv4.tcp_keepalive_intvl"
    ),
    "tcp_keepalive_count": Option(_TCP, getattr(socket, "TCP_KEEPCNT", 6), int, off="net.ipv4.tcp_keepalive_probes"),
    "tcp_nodelay": Option(_TCP, socket.TCP_NODELAY, int, off=0),
    "tcp_defer_accept": Option(_TCP, getattr(socket, "TCP_DEFER_ACCEPT", 9), _whole, off=0),
    "tcp_fastopen": Option(_TCP, getattr(socket, "TCP_FASTOPEN", 23), int, off=0),
    "receive_buffer": Option(_SOCKET, socket.SO_RCVBUF, int, tcp=False, limit="net.core.rmem_max"),
    "send_buffer": Option(_SOCKET, socket.SO_SNDBUF, int, tcp=False, limit="net.core.wmem_max"),
    "bind_to_device": Option(_SOCKET, getattr(socket, "SO_BINDTODEVICE", 25), os.fsencode, tcp=False),
    "freebind": Option(socket.IPPROTO_IP, IP_FREEBIND, int, tcp=False),
}


class SocketOptions(dict[str, Any]):
    """The options that are asked for, by setting."""

    @classmethod
    def of(cls, setting: Any) -> "SocketOptions":
        found = ((name, getattr(setting, name, None)) for name in OPTIONS)
        return cls((name, value) for name, value in found if value is not None and value is not False)

    def check(self, sock: socket.socket) -> None:
        """Raise ConfigError for an option that is nothing for this socket, or for nothing without another."""
        for name in self:
            if sock.family not in INTERNET:
                what = "TCP" if OPTIONS[name].tcp else "TCP and UDP"
                raise ConfigError(f"could not set {name}: it is for {what}, and this is another kind of socket")
            if OPTIONS[name].tcp and sock.type != socket.SOCK_STREAM:
                raise ConfigError(f"could not set {name}: it is for TCP, and this server takes datagrams")
        for name in ("tcp_keepalive_interval", "tcp_keepalive_count"):
            if name in self and "tcp_keepalive" not in self:
                raise ConfigError(f"could not set {name}: there is no tcp_keepalive")

    def put_on(self, sock: socket.socket, before: "SocketOptions") -> None:
        """Set what is not there already: `before` was put on this socket by us. Raises ConfigError."""
        self.check(sock)
        for name in self:
            if self[name] != before.get(name):
                self._put(name, sock)
        for name in before.keys() - self.keys():
            _take_back(name, sock)

    def _put(self, name: str, sock: socket.socket) -> None:
        option, value = OPTIONS[name], self[name]
        try:
            if option.switch is not None:
                sock.setsockopt(*option.switch, 1)
            sock.setsockopt(option.level, option.number, option.encode(value))
        except OSError as exc:
            raise ConfigError(f"could not set {name} to {value}: {reason_of(exc)}") from exc
        for why in _cut(name, sock, value):
            log.warning("%s %s", name, why, extra=event(LogEvent.OPTION_CUT, setting=name, reason=why))


def _cut(name: str, sock: socket.socket, value: Any) -> Iterator[str]:
    """Yield why the kernel does not do what is asked, if so."""
    if limit := OPTIONS[name].limit:
        found = sock.getsockopt(OPTIONS[name].level, OPTIONS[name].number) // 2  # it is doubled for its own overhead
        if found < value:
            yield f"of {value} is cut to {found} by the kernel ({limit})"
    if name == "tcp_fastopen" and not (sysctl("net.ipv4.tcp_fastopen") or 0) & FASTOPEN_FOR_SERVERS:
        yield "has no effect: net.ipv4.tcp_fastopen is without its bit for servers, which is 2"


def _take_back(name: str, sock: socket.socket) -> None:
    option = OPTIONS[name]
    off = sysctl(option.off) if isinstance(option.off, str) else option.off
    if off is None:
        log.warning("%s stays as it was: it takes a restart to have the system's own again", name,
                    extra=event(LogEvent.OPTION_CUT, setting=name, reason="it takes a restart"))  # fmt: skip
        return
    if option.switch is not None:
        sock.setsockopt(*option.switch, 0)
    sock.setsockopt(option.level, option.number, off)


def check_shared_port(server: Any) -> None:
    """Raise ConfigError for a TCP listener that may be one of several at its port, in a pool: each has a queue of its
    own, and the one that closes resets what is in it. Where a class of the standard library's says so nobody chose it.
    """
    tcp = getattr(server, "socket_type", None) == socket.SOCK_STREAM and server.address_family in INTERNET
    if not tcp or not getattr(server, "allow_reuse_port", False) or sysctl("net.ipv4.tcp_migrate_req"):
        return
    cls = definer(type(server), "allow_reuse_port") or object
    if "allow_reuse_port" in vars(server) or not is_standard_module(cls.__module__):
        raise ConfigError(
            "could not set allow_reuse_port: of several listeners at a port, one that closes resets the connections in "
            "its queue, unless the sysctl net.ipv4.tcp_migrate_req is 1; the workers of a pool share one listener"
        )
