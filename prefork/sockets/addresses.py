"""Addresses as text: parse what `--bind` accepts into a record, and write an address for people.

Owns the forms below, and no socket. Must not change a descriptor that is given by number. Addresses are parsed in the
process of the command line, and written in every process.

    host:port  :port  [::]:port     TCP
    udp://host:port                 UDP
    unix:/path  unixgram:/path      Unix stream and datagram sockets
    unix:@name  unixgram:@name      the same with an abstract name, unix(7); a file of such a name is unix:./@name
    fd://N                          a bound socket inherited as descriptor N; its kind is read from the socket
    systemd  systemd:NAME           the sockets that systemd passed on, or those of that name
"""

import os
import re
import socket
from typing import Any, Literal, NamedTuple, TypeVar

from .. import systemd
from ..errors import ConfigError, reason_of
from ..log_formats import escaped
from .bindable import family_of_host
from .kept_paths import keep_path_of

__all__ = ["Address", "Kind", "address_text", "control_path", "parse_address", "parse_addresses"]

Kind = Literal["tcp", "udp", "unix", "unixgram"]

_UNIX_PATH_MAX = 107  # bytes: sun_path less its final zero, unix(7)
_HOST_PORT = re.compile(r"(?P<bracketed>\[[^\[\]]+\])?(?P<host>[^:\[\]/,\s]*):(?P<port>[0-9]{1,5})")
_HINTS = {  # what a text that is none begins with: what was probably meant
    r"(udp|fd):": "; other kinds are written udp://127.0.0.1:9999, fd://3",
    r".*[,\s]": "; several are given one by one, as in --bind A --bind B",
    r"\.{0,2}/": "; a path is written unix:/path",
    r"[0-9]+$": " or :9999",
    r".*:.*:": ", and an IPv6 address stands in brackets: [::1]:9999",
}
_KINDS: dict[tuple[bool, int], Kind] = {
    (False, socket.SOCK_STREAM): "tcp",
    (False, socket.SOCK_DGRAM): "udp",
    (True, socket.SOCK_STREAM): "unix",
    (True, socket.SOCK_DGRAM): "unixgram",
}


class Address(NamedTuple):
    """An address to listen on. `text` is the address as it was asked for."""

    kind: Kind
    address: tuple[str, int] | str
    fd: int | None
    text: str
    family: socket.AddressFamily | None = None  # None: the server class chooses


def parse_address(text: str) -> Address:
    """Return the address that `text` means. Raises ConfigError, which says what is wrong with it."""
    scheme, separator, rest = text.partition(":")
    if scheme == "systemd":
        found = systemd.find(rest)
        if isinstance(found, str):
            raise _refused(text, found)
        return _inherited(str(found), text)
    if separator and scheme in ("unix", "unixgram"):
        return _unix("unix" if scheme == "unix" else "unixgram", rest, text)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return _inet("tcp", text, text)
    if scheme == "fd":
        return _inherited(rest, text)
    if scheme in ("tcp", "udp"):
        return _inet("tcp" if scheme == "tcp" else "udp", rest, text)
    forms = (
        "host:port, :port, [::]:port, udp://host:port, unix:/path, unix:@name, unixgram:/path, fd://N, systemd[:name]"
    )
    raise _refused(text, f"it is none of {forms}")


def parse_addresses(text: str) -> tuple[Address, ...]:
    """Return the addresses that `text` means: one, or every socket that systemd has passed, or has by that name."""
    scheme, _, name = text.partition(":")
    if scheme != "systemd" or isinstance(found := systemd.find_all(name), str):
        return (parse_address(text),)
    return tuple(_inherited(str(fd), text) for fd in found)


def _refused(text: str, reason: str) -> ConfigError:
    return ConfigError(f"could not read the address {text!r}: {reason}")


def _inet(kind: Kind, rest: str, text: str) -> Address:
    match = _HOST_PORT.fullmatch(rest)
    if match is None or (match["bracketed"] and match["host"]) or match["host"] in ("udp", "fd"):
        hint = next((hint for begins, hint in _HINTS.items() if re.match(begins, rest, re.DOTALL)), "")
        raise _refused(text, f"it must be host:port, as in 127.0.0.1:9999{hint}")
    if int(match["port"]) > 65535:
        raise _refused(text, f"the port {match['port']} is above 65535")
    host = match["host"]
    if match["bracketed"]:
        host = match["bracketed"][1:-1]
        if family_of_host(host) is not socket.AF_INET6:
            raise _refused(text, f"{host!r} is not an IPv6 address")
    return Address(kind, (host, int(match["port"])), None, text, family_of_host(host))


def _unix(kind: Kind, path: str, text: str) -> Address:
    if path in ("", "@"):
        raise _refused(text, f"it must be {kind}:/path or {kind}:@name")
    if "\0" in path:
        raise _refused(text, "a path has no zero byte")
    if len(os.fsencode(path)) > _UNIX_PATH_MAX:
        raise _refused(text, f"its path is longer than {_UNIX_PATH_MAX} bytes")
    return Address(kind, "\0" + path[1:] if path[0] == "@" else path, None, text, socket.AF_UNIX)


def control_path(text: str) -> str:
    """Return the path of a control socket, which is said as /PATH or unix:/PATH. Raises ConfigError.

    It has no abstract name: the mode of its path is what keeps others away.
    """
    said = text if ":" in text.partition("/")[0] else f"unix:{text}"
    path = parse_address(said).address if said.startswith("unix:") else None
    if not isinstance(path, str) or path[0] == "\0":
        raise _refused(text, "a control socket is at /path or unix:/path")
    return path


def _inherited(number: str, text: str) -> Address:
    if not re.fullmatch(r"[0-9]{1,7}", number):
        raise _refused(text, "it must be fd://N, the number of an inherited descriptor")
    try:
        sock = over(int(number), socket.socket)
    except OSError as exc:
        raise _refused(text, f"descriptor {number} is no open socket ({reason_of(exc)})") from None
    try:
        keep_path_of(sock)  # before the program is imported
        return _described(sock, int(number), text)
    finally:
        sock.detach()


def _described(sock: socket.socket, fd: int, text: str) -> Address:
    kind = _KINDS.get((sock.family == socket.AF_UNIX, sock.type))
    if kind is None or sock.family not in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6):
        raise _refused(text, f"descriptor {fd} is a socket of another kind ({sock.family.name}, {sock.type.name})")
    if sock.type == socket.SOCK_STREAM and not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise _refused(text, f"descriptor {fd} is not a listening socket")
    name = sock.getsockname()
    address = name if isinstance(name, str) else (name[0], name[1]) if isinstance(name, tuple) else os.fsdecode(name)
    return Address(kind, address, fd, text, socket.AddressFamily(sock.family))


S = TypeVar("S", bound=socket.socket)


def over(fd: int, cls: type[S]) -> S:
    """Return a socket object over a descriptor, without changing the flags of its open file description.

    Other processes may use the same description. If the object were made under the program's default timeout, it would
    be non-blocking for them as well, if only for a moment.
    """
    default = socket.getdefaulttimeout()
    socket.setdefaulttimeout(None)
    try:
        return cls(fileno=fd)
    finally:
        socket.setdefaulttimeout(default)


def address_text(address: Any) -> str:
    """Return an address as people write it: host:port, [host]:port, a path, or @name for an abstract one; unix(7).

    What is no text in it (a path may have any bytes) is escaped, so that the address can be logged, shown and scraped.
    """
    if isinstance(address, tuple) and len(address) >= 2:
        host, port = address[:2]
        if len(address) == 4 and address[3] and "%" not in str(host):
            host = f"{host}%{_interface(address[3])}"
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
    if isinstance(address, bytes):
        address = os.fsdecode(address)
    return escaped(str(address).replace("\0", "@", 1))


def _interface(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:  # it is gone
        return str(index)
