"""Settings that have no effect as they are set, and hooks that nobody calls. Pure.

Asked in the process that calls `serve_forever()`, which logs a line for each, and by `prefork check`. Must not refuse
anything: what cannot work at all is refused elsewhere.
"""

import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prefork.workers.definitions import is_ours, is_the_programs, is_the_programs_class
from prefork.workers.descriptor_limit import hard_limit
from prefork.workers.keeps import keeps

from .fields import Field, settings, show
from .handlers import unwrapped
from .in_force import default_of, is_own, owner_of
from .other_servers import THEIR_HOOKS, THEIR_SETTINGS

__all__ = ["hooks_without_a_pool", "misspelt", "misspelt_in_handler", "no_effect", "unread", "without_effect"]

OF_KEPT_HANDLERS = (
    "handle_one_request", "close_connection", "connection_opened", "connection_closed", "speaks_first", "complete",
)  # fmt: skip
POOL_HOOKS = ("worker_started", "worker_stopping", "worker_draining")
# Settings of a pool without which a server is open to everybody.
PROTECTING = (
    "tls_certificate", "allowed_clients", "denied_clients", "proxy_trusted", "first_byte_timeout", "max_queue_wait",
    "user", "group", "umask", "no_new_privs",
    "max_connections", "max_connections_per_client",
)  # fmt: skip
READ_BY_OTHERS = ("PREFORK_CONTROL", "PREFORK_METRICS")  # prefork ctl and top, which ask the service
LONG = 6  # letters of a name that is taken for misspelt: users, groups and the like are words of programs
ALIKE = 0.8  # of two names, one of which is then taken for the other misspelt


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


def _is_at_a_path(server: Any) -> bool:
    return bool(server.address_family == getattr(socket, "AF_UNIX", None))


def _tells_no_clients(server: Any) -> bool:
    return _is_at_a_path(server) and server.proxy_trusted is None


def _has_places(server: Any) -> bool:
    return server.peer_affinity is True


def _trusts_no_proxy(server: Any) -> bool:
    return server.proxy_trusted is None and not _takes_datagrams(server)


def _has_no_tls(server: Any) -> bool:
    return server.tls_certificate is None and not is_the_programs(server, "create_ssl_context")


def _asks_for_no_certificates(server: Any) -> bool:
    return server.tls_client_ca is None and not is_the_programs(server, "create_ssl_context")


def _keeps_nothing(server: Any) -> bool:
    return not keeps(server)


def _has_fewer_descriptors(server: Any) -> bool:
    return keeps(server) and server.max_idle_connections is not None and server.max_idle_connections >= hard_limit()


def _is_not_ipv6(server: Any) -> bool:
    return bool(server.address_family != socket.AF_INET6)


_NO_CONTROL = "there is no control_socket"
_NO_TLS = "there is no tls_certificate"
_NOT_KEPT = "the handler class has no KeepAliveMixIn among its bases"
_ONE_SIZE = "min_children is max_children, so that the pool has one size"
_WITHOUT_EFFECT: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("max_threads", _has_no_threads, "the class has no ThreadingMixIn among its bases"),
    ("min_spare_children", _has_one_size, _ONE_SIZE),
    ("max_spare_children", _has_one_size, _ONE_SIZE),
    ("max_requests", _serves_one_request, "below a ForkingMixIn each worker serves one request"),
    ("drain_connections", _takes_datagrams, "datagrams have no connection"),
    ("proxy_header_timeout", _takes_datagrams, "a datagram has its header with it, or it has none"),
    ("stall_timeout", _has_places, "with peer_affinity nobody else may take what a worker leaves in its queue"),
    ("proxy_header_timeout", _trusts_no_proxy, "there is no proxy_trusted"),
    ("tls_minimum_version", _has_no_tls, _NO_TLS),
    ("tls_handshake_timeout", _has_no_tls, _NO_TLS),
    ("tls_verify_client", _asks_for_no_certificates, "there is no tls_client_ca"),
    ("keepalive_timeout", _keeps_nothing, _NOT_KEPT),
    ("max_idle_connections", _keeps_nothing, _NOT_KEPT),
    ("max_idle_connections", _has_fewer_descriptors, "the hard limit of descriptors (ulimit -Hn) is less"),
    ("incomplete_timeout", _keeps_nothing, _NOT_KEPT),
    ("control_mode", _has_no_control_socket, _NO_CONTROL),
    ("control_owner", _has_no_control_socket, _NO_CONTROL),
    ("control_allow", _has_no_control_socket, _NO_CONTROL),
    ("control_allow_read", _has_no_control_socket, _NO_CONTROL),
    ("max_queue_wait", _is_at_a_path, "the kernel does not tell how long a client of a Unix socket has waited"),
    ("max_connections_per_client", _tells_no_clients, "clients of a Unix socket have no address"),
    ("dual_stack", _is_not_ipv6, "the address is no IPv6 address"),
)


def no_effect(server: Any, defaults: type, environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the name of each setting and hook of a pool that is set or defined for nothing, and why.

    `environ`: the environment, where nobody reads settings from it.
    """
    fields = settings(type(server))
    yield from without_effect(server, defaults)
    yield from own_values(server, fields)
    yield from misspelt(server, fields)
    yield from misspelt_in_handler(server)
    yield from unread(fields, environ)


def without_effect(server: Any, defaults: type) -> Iterator[tuple[str, str]]:
    """Yield the name of each setting of a pool that was changed from its default for nothing, and why it is nothing."""
    for name, useless, why in _WITHOUT_EFFECT:
        default = getattr(defaults, name, False)
        if getattr(server, name, default) != default and useless(server):
            yield name, why


def own_values(server: Any, fields: Mapping[str, Field]) -> Iterator[tuple[str, str]]:
    """Yield each attribute of the program's that has the name of a setting or a hook of ours, and can be neither."""
    for name, field in fields.items():
        if is_own(value := getattr(server, name)):
            allowed, stays = field.allowed, show(default_of(server, name), field.setting.unit)
            why = f"it is a {type(value).__name__}, and prefork's setting of that name is {allowed}; that stays {stays}"
            yield f"{name} of {owner_of(server, name)}", why
    for name in POOL_HOOKS:
        value = getattr(server, name, None)
        if value is not None and not callable(value):
            yield f"{name} of {owner_of(server, name)}", f"it is {value!r:.40}, and prefork calls a method of that name"


def misspelt(server: Any, fields: Mapping[str, Field]) -> Iterator[tuple[str, str]]:
    """Yield each name that the program's classes define, which is none of ours and close to a setting or a hook."""
    for cls in type(server).__mro__:
        if cls is not object and not is_ours(cls):
            for name, value in vars(cls).items():
                known = POOL_HOOKS if callable(value) else fields
                if name in known:
                    continue
                if near := _near(name, known):
                    yield name, f"it is none that prefork knows; did you mean {near}?"
                elif (ours := _called_here(name, value, fields)) and not _is_the_programs_own(name, type(server)):
                    yield name, f"it is none that prefork knows; here it is {ours}"


def _called_here(name: str, value: object, fields: Mapping[str, Field]) -> str:
    """Return the name of ours for a setting or hook of another server's, if the value can be one of it."""
    if callable(value):
        return THEIR_HOOKS.get(name, "")
    field = next((each for each in fields.values() if each.key == THEIR_SETTINGS.get(name)), None)
    return field.name if field is not None and value is not None and field.takes(value) else ""


def _is_the_programs_own(name: str, cls: type) -> bool:
    """Return True for a name with a meaning of its own: the standard library's, or one that the program's class uses;
    a short one is a word of programs anyway."""
    if len(name) < LONG or any(name in vars(base) for base in cls.__mro__ if not is_the_programs_class(base)):
        return True
    found = (each for base in cls.__mro__ if is_the_programs_class(base) for each in vars(base).values())
    codes = (getattr(getattr(each, "__func__", each), "__code__", None) for each in found)
    return any(name in code.co_names for code in codes if code is not None)


def misspelt_in_handler(server: Any) -> Iterator[tuple[str, str]]:
    """Yield each name that a handler class with KeepAliveMixIn defines, and that is close to one which that has."""
    if not keeps(server):
        return
    classes = [cls for cls in unwrapped(server.RequestHandlerClass).__mro__ if is_the_programs_class(cls)]
    defined = {name for cls in classes for name in vars(cls)}
    for name in sorted(defined.difference(OF_KEPT_HANDLERS)):
        if (near := _near(name, OF_KEPT_HANDLERS)) and near not in defined:
            yield f"{name} of the handler class", f"KeepAliveMixIn does not know it; did you mean {near}?"


def _near(name: str, known: Iterable[str]) -> str:
    alike = [each for each in known if each[:4] == name[:4] and len(each) >= LONG]
    if not alike:
        return ""
    import difflib  # only needed after a mistake, or nearly so

    return next(iter(difflib.get_close_matches(name, alike, n=1, cutoff=ALIKE)), "")


def unread(fields: Mapping[str, Field], environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield each variable that sets a setting, in the environment of a program that `prefork run` has not started."""
    for field in fields.values():
        if environ.get(field.variable) and field.variable not in READ_BY_OTHERS:
            yield field.variable, "only `prefork run` reads it, and this program serves by itself"


def hooks_without_a_pool(server: Any) -> Iterator[tuple[str, str]]:
    """Yield each hook of a pool that the class of a server without one defines, and why nobody will call it; and the
    settings by which it would be protected."""
    if not hasattr(server, "control_socket"):  # a pool has them all, also where it serves in one process
        for name in POOL_HOOKS:
            if callable(getattr(server, name, None)):
                yield f"{name}()", "it is called in the workers of a pool, and this class has no PreForkingMixIn"
        for name in PROTECTING:
            if getattr(server, name, None) is not None:
                yield name, "it is a setting of a pool, and this class has no PreForkingMixIn"
