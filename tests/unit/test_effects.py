"""Settings without effect, and hooks that nobody calls: each with its reason, and none beside."""

import http.server
import socket
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

import prefork
from prefork.logs import say_no_effect
from prefork.pool_settings import PoolSettings
from prefork.settings.effects import (
    PROTECTING,
    hooks_without_a_pool,
    misspelt,
    misspelt_in_handler,
    no_effect,
    unread,
    without_effect,
)
from prefork.settings.fields import settings
from prefork.workers.keeps import KeepsConnections


class Pool(PoolSettings):
    """What of a server is looked at, of one worker after another: a TCP server over IPv4."""

    socket_type = socket.SOCK_STREAM
    address_family = socket.AF_INET
    dual_stack = False


def of(**values: object) -> dict[str, str]:
    return dict(without_effect(type("Server", (Pool,), values)(), PoolSettings))


def test_defaults_are_nobodys_mistake() -> None:
    """A server that sets nothing is told nothing, of whatever kind it is."""
    for name in ("TCP", "UDP", "UnixStream", "UnixDatagram"):
        cls = getattr(prefork, f"PreForking{name}Server")
        assert list(no_effect(cls.__new__(cls), PoolSettings, {})) == []


@pytest.mark.parametrize(
    ("values", "name", "why"),
    [
        ({"max_threads": 4}, "max_threads", "no ThreadingMixIn"),
        ({"max_children": 4, "min_spare_children": 2}, "min_spare_children", "one size"),
        ({"max_children": 4, "min_children": 4, "max_spare_children": 2}, "max_spare_children", "one size"),
        ({"max_requests": 4, "collect_children": None}, "max_requests", "one request"),
        ({"drain_connections": "eof", "socket_type": socket.SOCK_DGRAM}, "drain_connections", "no connection"),
        ({"control_mode": 0o660}, "control_mode", "no control_socket"),
        ({"control_owner": "root"}, "control_owner", "no control_socket"),
        ({"control_allow": "root"}, "control_allow", "no control_socket"),
        ({"control_allow_read": "root"}, "control_allow_read", "no control_socket"),
        ({"proxy_header_timeout": 1.0}, "proxy_header_timeout", "no proxy_trusted"),
        ({"tls_minimum_version": "1.3"}, "tls_minimum_version", "no tls_certificate"),
        ({"tls_handshake_timeout": 1.0}, "tls_handshake_timeout", "no tls_certificate"),
        ({"tls_certificate": "c", "tls_verify_client": "optional"}, "tls_verify_client", "no tls_client_ca"),
        ({"keepalive_timeout": 5.0}, "keepalive_timeout", "no KeepAliveMixIn"),
        ({"keepalive_timeout": None, "RequestHandlerClass": object}, "keepalive_timeout", "no KeepAliveMixIn"),
        ({"max_idle_connections": 9}, "max_idle_connections", "no KeepAliveMixIn"),
        ({"max_idle_connections": 1 << 40, "RequestHandlerClass": KeepsConnections}, "max_idle_connections", "ulimit"),
        ({"incomplete_timeout": 5.0}, "incomplete_timeout", "no KeepAliveMixIn"),
        ({"dual_stack": True}, "dual_stack", "no IPv6"),
        ({"max_queue_wait": 1.0, "address_family": socket.AF_UNIX}, "max_queue_wait", "Unix socket"),
        (
            {"max_connections_per_client": 1, "address_family": socket.AF_UNIX},
            "max_connections_per_client",
            "no address",
        ),
    ],
)
def test_no_effect(values: dict[str, object], name: str, why: str) -> None:
    """Each is told by its name, with the reason."""
    found = of(**values)
    assert list(found) == [name]
    assert why in found[name]


@pytest.mark.parametrize(
    "values",
    [
        {"max_threads": 4, "process_request_thread": None},
        {"max_children": 4, "min_children": 2, "min_spare_children": 2},
        {"max_requests": 4},
        {"keepalive_timeout": 5.0, "RequestHandlerClass": KeepsConnections},
        {"max_idle_connections": 9, "RequestHandlerClass": KeepsConnections},
        {"drain_connections": "eof"},
        {"control_mode": 0o660, "control_socket": "/c"},
        {"dual_stack": True, "address_family": socket.AF_INET6},
        {"max_connections_per_client": 1, "address_family": socket.AF_UNIX, "proxy_trusted": "unix"},
    ],
)
def test_an_effect(values: dict[str, object]) -> None:
    """Where it has one, nothing is told."""
    assert of(**values) == {}


def test_all_of_it() -> None:
    """A server is told of each kind: a setting without effect, a name that is nearly one, a variable nobody reads."""
    cls: Any = type("Server", (prefork.PreForkingTCPServer,), {"max_threads": 4, "max_childern": 4})
    found = [name for name, _ in no_effect(cls.__new__(cls), PoolSettings, {"PREFORK_MAX_REQUESTS": "4"})]
    assert found == ["max_threads", "max_childern", "PREFORK_MAX_REQUESTS"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("max_childern", "max_children"),
        ("request_timout", "request_timeout"),
        ("graceful_timeouts", "graceful_timeout"),
        ("worker_start", "worker_started"),
        ("worker_stop", "worker_stopping"),
        ("worker_drain", "worker_draining"),
    ],
)
def test_a_name_that_is_nearly_one(name: str, meant: str) -> None:
    """A setting or hook whose name is misspelt is told, wherever in the program's classes it stands."""
    value = (lambda self: None) if name.startswith("worker_") else 4
    base = type("Base", (prefork.PreForkingTCPServer,), {name: value})
    cls: Any = type("Server", (base,), {})
    (found,) = misspelt(cls.__new__(cls), settings(cls))
    assert found == (name, f"it is none that prefork knows; did you mean {meant}?")


def test_names_of_the_program() -> None:
    """Names that a program has for things of its own are nobody's mistake."""
    names = dict.fromkeys(("max_size", "timeout", "socket", "requests", "control", "server_name", "metrics"), 1)
    hooks = dict.fromkeys(("worker_loop", "worker_count", "process", "handle_error"), lambda self: None)
    cls: Any = type("Server", (prefork.PreForkingTCPServer,), {**names, **hooks})
    assert list(misspelt(cls.__new__(cls), settings(cls))) == []


def test_variables_that_nobody_reads() -> None:
    """They set nothing in a program that serves by itself; those that `prefork ctl` and `top` read, and empty ones, are
    left alone."""
    environ = {"PREFORK_MAX_CHILDREN": "4", "PREFORK_CONTROL": "/c", "PREFORK_LOG": "x", "PREFORK_MAX_THREADS": ""}
    assert [name for name, _ in unread(settings(PoolSettings), environ)] == ["PREFORK_MAX_CHILDREN"]


def test_hooks_of_a_pool_without_one() -> None:
    """They are told for a class that is none, and not for a pool, nor for a class that defines none."""
    hooks = {"worker_started": lambda self: None, "worker_draining": lambda self: None}
    plain: Any = type("Plain", (prefork.ThreadingTCPServer,), hooks)
    pool: Any = type("Pool", (prefork.PreForkingTCPServer,), hooks)
    assert [name for name, _ in hooks_without_a_pool(plain.__new__(plain))] == ["worker_started()", "worker_draining()"]
    bare: Any = type("Bare", (prefork.TCPServer,), dict.fromkeys(PROTECTING, "x"))
    assert [name for name, _ in hooks_without_a_pool(bare.__new__(bare))] == list(PROTECTING)
    for cls in (pool, prefork.ThreadingTCPServer):
        assert list(hooks_without_a_pool(cls.__new__(cls))) == []


def test_looking_keeps_nobody_from_serving(caplog: pytest.LogCaptureFixture) -> None:
    """What raises meanwhile, an attribute of the program's or an import after a chroot, is said and no more."""

    def found() -> Iterator[tuple[str, str]]:
        yield "max_threads", "of a reason"
        raise ModuleNotFoundError("No module named 'difflib'")

    say_no_effect(found())
    assert [record.getMessage() for record in caplog.records] == [
        "max_threads has no effect: of a reason",
        "could not look for settings without effect: ModuleNotFoundError: No module named 'difflib'",
    ]


def kept(**names: object) -> Any:
    """A server whose handler class has these names."""
    handler = type("Handler", (prefork.KeepAliveMixIn, prefork.StreamRequestHandler), names)
    server: Any = prefork.PreForkingTCPServer.__new__(prefork.PreForkingTCPServer)
    server.RequestHandlerClass = partial(handler)
    return server


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("connection_close", "connection_closed"), ("connection_open", "connection_opened"),
        ("speak_first", "speaks_first"), ("completed", "complete"), ("handle_request", "handle_one_request"),
        ("close_connections", "close_connection"),
    ],
)  # fmt: skip
def test_misspelt_names_of_a_kept_handler(name: str, meant: str) -> None:
    """They are told, unless the class has the right one, too: then it is another thing of the program's."""
    (found,) = misspelt_in_handler(kept(**{name: 1}))
    assert found == (f"{name} of the handler class", f"KeepAliveMixIn does not know it; did you mean {meant}?")
    assert list(misspelt_in_handler(kept(**{name: 1, meant: 1}))) == []


@pytest.mark.parametrize("handler", [http.server.SimpleHTTPRequestHandler, prefork.StreamRequestHandler])
def test_other_names_of_a_handler(handler: Any) -> None:
    """Those of the standard library's classes, of the program's own, and of a class that keeps nothing."""
    names = dict.fromkeys(("connection", "handle_get", "complaint", "state", "speaks", "do_GET", "connect"), 1)
    kept_one = type("Handler", (prefork.KeepAliveMixIn, handler), {**names, "handle_one_request": 1})
    other = type("Handler", (handler,), {"speak_first": True})
    for each in (kept_one, other):
        cls: Any = type("Server", (prefork.PreForkingTCPServer,), {"RequestHandlerClass": each})
        assert list(misspelt_in_handler(cls.__new__(cls))) == []
