"""Settings that have no effect as they are set, and hooks that nobody calls. Pure.

Asked in the process that calls `serve_forever()`, which logs a line for each, and by `prefork check`. Must not refuse
anything: what cannot work at all is refused elsewhere.
"""

import socket
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["hooks_without_a_pool", "without_effect"]

POOL_HOOKS = ("worker_started", "worker_stopping", "worker_draining")


def _has_no_threads(server: Any) -> bool:
    return not hasattr(server, "process_request_thread")


def _has_one_size(server: Any) -> bool:
    return server.min_children in (None, server.max_children)


def _takes_datagrams(server: Any) -> bool:
    return bool(server.socket_type == socket.SOCK_DGRAM)


def _serves_one_request(server: Any) -> bool:
    return hasattr(server, "collect_children")


def _has_no_control_socket(server: Any) -> bool:
    return server.control_socket is None


def _is_not_ipv6(server: Any) -> bool:
    return bool(server.address_family != socket.AF_INET6)


_NO_CONTROL = "there is no control_socket"
_ONE_SIZE = "min_children is max_children, so that the pool has one size"
_WITHOUT_EFFECT: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("max_threads", _has_no_threads, "the class has no ThreadingMixIn among its bases"),
    ("min_spare_children", _has_one_size, _ONE_SIZE),
    ("max_spare_children", _has_one_size, _ONE_SIZE),
    ("max_requests", _serves_one_request, "below a ForkingMixIn each worker serves one request"),
    ("drain_connections", _takes_datagrams, "datagrams have no connection"),
    ("control_mode", _has_no_control_socket, _NO_CONTROL),
    ("control_owner", _has_no_control_socket, _NO_CONTROL),
    ("control_allow", _has_no_control_socket, _NO_CONTROL),
    ("control_allow_read", _has_no_control_socket, _NO_CONTROL),
    ("dual_stack", _is_not_ipv6, "the address is no IPv6 address"),
)


def without_effect(server: Any, defaults: type) -> Iterator[tuple[str, str]]:
    """Yield the name of each setting of a pool that was changed from its default for nothing, and why it is nothing."""
    for name, useless, why in _WITHOUT_EFFECT:
        default = getattr(defaults, name, False)
        if getattr(server, name, default) != default and useless(server):
            yield name, why


def hooks_without_a_pool(server: Any) -> Iterator[tuple[str, str]]:
    """Yield each hook of a pool that the class of a server without one defines, and why nobody will call it."""
    if not hasattr(server, "control_socket"):  # a pool has them all, also where it serves in one process
        for name in POOL_HOOKS:
            if callable(getattr(server, name, None)):
                yield f"{name}()", "it is called in the workers of a pool, and this class has no PreForkingMixIn"
