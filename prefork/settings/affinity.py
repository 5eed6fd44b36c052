"""The refusal of `peer_affinity` where it cannot be. Pure. Asked before anything is served, and by `prefork check`."""

import socket
from typing import Any

from ..errors import ConfigError
from .in_force import value_of


def check_affinity(server: Any, *, inherited: bool, alone: bool) -> None:
    """Raise ConfigError where each worker cannot have a socket. `inherited`: the listener is, as from systemd;
    `alone`: it is the only one."""
    if not value_of(server, "peer_affinity"):
        return
    low, high = value_of(server, "min_children"), value_of(server, "max_children")
    inet = getattr(server, "address_family", None) in (socket.AF_INET, socket.AF_INET6)
    for wrong, why in (
        (getattr(server, "socket_type", None) != socket.SOCK_DGRAM or not inet, "it is for UDP"),
        (low not in (None, high), f"min_children is {low} and max_children {high}, and each worker has a place"),
        (hasattr(server, "collect_children"), "below a ForkingMixIn each worker serves one request"),
        (value_of(server, "proxy_trusted") is not None, "with proxy_trusted every datagram is from the proxy"),
        (getattr(server, "allow_reuse_port", False), "allow_reuse_port lets others have the port as well"),
        (not alone, "the service has several listeners, and a worker has one place"),
        (inherited, "the socket is inherited, and others may have it"),
    ):
        if wrong:
            raise ConfigError(f"could not set peer_affinity: {why}")
