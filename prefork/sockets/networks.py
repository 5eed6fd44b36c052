"""Networks: a list of addresses and their neighbours, as a setting names them, and whether a client is in one.

Pure. Parsed in the process that reads the settings, asked in the one that serves. Must not import ipaddress, which
would be in the memory of every worker.
"""

import socket
from typing import Any

from prefork.workers.admission import Admission, Terms
from prefork.workers.connection_table import ConnectionLimits, ConnectionTable

from .addresses import address_text

UNIX = "unix"
_BITS = {socket.AF_INET: 32, socket.AF_INET6: 128}
_MAPPED = 0xFFFF << 32  # ::ffff:0:0/96, IPv4 as a dual-stack socket shows it
REMEMBERED = 1024  # hosts


class Networks:
    """Networks, of which "unix" is every client of a Unix socket.

    `Networks("10.0.0.0/8, ::1, unix")`. Raises ValueError, which says of which word what is wrong with it.
    """

    def __init__(self, text: str) -> None:
        words = text.replace(",", " ").split()
        if not words:
            raise ValueError(f"could not read the networks {text!r}: there is none")
        self._unix = UNIX in words
        self._networks = [_network(word) for word in words if word != UNIX]
        self._known: dict[str, bool] = {}

    def __contains__(self, client_address: Any) -> bool:
        """Return whether a client is in one of them, by the address that accept() or recvfrom() gave."""
        if not isinstance(client_address, tuple):
            return self._unix
        host = client_address[0]
        known = self._known.get(host)
        if known is None:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            known = self._known[host] = self._has(host)
        return known

    def _has(self, host: str) -> bool:
        try:
            family, number = _number(host.partition("%")[0])
        except OSError:
            return False
        return any(family == its and number >> rest == prefix for its, prefix, rest in self._networks)


def _number(host: str) -> tuple[int, int]:
    """Return the family and the number of an address, an IPv4 address in IPv6 form as the IPv4 address it is."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    number = int.from_bytes(socket.inet_pton(family, host), "big")
    if family == socket.AF_INET6 and number >> 32 == _MAPPED >> 32:
        return socket.AF_INET, number & 0xFFFFFFFF
    return family, number


def _network(word: str) -> tuple[int, int, int]:
    """Return family, prefix, and the number of bits behind it."""
    host, slash, length = word.partition("/")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        number, bits = int.from_bytes(socket.inet_pton(family, host), "big"), _BITS[family]
    except OSError:
        raise ValueError(f"could not read the network {word!r}: it is no address, network or {UNIX!r}") from None
    if slash and not (length.isascii() and length.isdigit() and int(length) <= bits):
        raise ValueError(f"could not read the network {word!r}: its prefix is no number up to {bits}")
    rest = bits - int(length) if slash else 0
    if number & ((1 << rest) - 1):
        raise ValueError(f"could not read the network {word!r}: it has bits behind its prefix")
    if family == socket.AF_INET6 and rest <= 32 and number >> 32 == _MAPPED >> 32:
        return socket.AF_INET, (number & 0xFFFFFFFF) >> rest, rest
    return family, number >> rest, rest


def client_of(host: Any) -> int | None:
    """Return the number of the client that has this address: an IPv4 address, or the /64 of an IPv6 address, which is
    what one client is given. None if it is no address."""
    try:
        family, number = _number(host.partition("%")[0])
    except (AttributeError, OSError):
        return None
    return number >> 64 if family == socket.AF_INET6 else 1 << 64 | number


def counted(setting: Any) -> bool:
    """Return True if the number of connections is limited by these settings, in all or of one client."""
    return setting.max_connections is not None or setting.max_connections_per_client is not None


def asked(setting: Any, tls: Any) -> Terms | None:
    """Return what these settings and this ssl.SSLContext ask of each connection; None if they ask for nothing."""
    allowed, denied, proxies = (
        None if text is None else Networks(text)
        for text in (setting.allowed_clients, setting.denied_clients, setting.proxy_trusted)
    )
    terms = Terms(
        allowed, denied, proxies, setting.proxy_header_timeout, setting.first_byte_timeout, setting.max_queue_wait,
        setting.max_connections, setting.max_connections_per_client, tls, setting.tls_handshake_timeout,
    )  # fmt: skip
    return None if terms.ask_nothing() else terms


def admission(
    terms: Terms, table: ConnectionTable | None = None, number: int = 0, *, at_once: bool = False,
    counts_clients: bool = False,
) -> Admission:  # fmt: skip
    """Return what admits connections by these terms.

    `table`: where the worker of this number counts its connections, if the pool limits their number at any of its
    listeners; `counts_clients`: of one client.
    """
    limits = None
    if table is not None:
        limits = ConnectionLimits(
            table, number, client_of, most=terms.max_connections, most_of_client=terms.max_connections_per_client,
            counts_clients=counts_clients,
        )  # fmt: skip
    return Admission(terms, address_text, at_once=at_once, limits=limits)
