"""An address as `socket.bind()` takes it, and a hint where the kernel refuses it. Asked in constructors of servers."""

import contextlib
import errno
import os
import socket
from typing import Any

from ..errors import BindError


def bindable(address: Any) -> Any:
    """Return an address as `socket.bind()` takes it: a tuple for a list, a text for a path, a number for the text of a
    port, and the scope of an IPv6 address in its place. Anything else is returned as it is.

    Of `("fe80::1%eth0", 80)` socket.bind() itself drops the scope; see ipv6(7). Raises BindError if there is no such
    interface.
    """
    if isinstance(address, os.PathLike):
        return os.fspath(address)
    if not isinstance(address, (tuple, list)) or len(address) < 2:
        return address
    host, port, *rest = address
    if isinstance(port, str) and port.isascii() and port.isdigit():
        port = int(port)
    bare, _, interface = str(host).partition("%")
    if interface and len(rest) < 2 and family_of_host(bare) is socket.AF_INET6:
        try:
            scope = int(interface) if interface.isdigit() else socket.if_nametoindex(interface)
        except OSError:
            reason = f"could not bind [{host}]:{port}: there is no interface {interface}"
            raise BindError(errno.ENODEV, reason) from None
        return bare, port, *(rest or (0,)), scope
    return host, port, *rest


def hint_of(exc: OSError, address: Any) -> str:
    """Return what the words of the kernel leave open, for an error of bind(2) at this address; else an empty text."""
    if isinstance(address, str | bytes):
        folder = os.path.dirname(os.fsdecode(address)) or "."
        return "" if exc.errno != errno.ENOENT or os.path.isdir(folder) else f"There is no folder {folder}."
    host, port = address[:2] if isinstance(address, tuple) and len(address) > 1 else ("", 0)
    if exc.errno == errno.EACCES and port in range(1, 1024):
        return "A port below 1024 needs root or CAP_NET_BIND_SERVICE."
    if exc.errno == errno.EADDRNOTAVAIL:
        return "No interface of this host has that address."
    if exc.errno == errno.EINVAL and str(host).lower().startswith("fe80:") and len(address) == 2:
        return f"A link-local address needs its interface, as in [{host}%eth0]:{port}."
    if exc.errno == socket.EAI_NONAME and host == "*":
        return f"Every address of the host is :{port}, or [::]:{port}."
    return ""


def family_of_host(host: str) -> socket.AddressFamily | None:
    """Return the family of a numeric address; None for the name of a host."""
    address, percent, zone = host.partition("%")
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError, ValueError):  # a host name, or empty
            socket.inet_pton(family, address)
            return family if not percent or (zone and family is socket.AF_INET6) else None
    return None
