"""Handlers and hooks that can never work, found before anything is bound: what is async or a generator, which a plain
call would not run, and a handler for the other kind of socket.

Owns the checks. Runs in the process that makes the server and calls `serve_forever()`. Must not call the program's
code, and must not refuse what a program may have made to work: a class that runs its `handle()` by itself, a server
that gives the handler something else than the request.
"""

import socket
from functools import partial
from types import FunctionType
from typing import Any

from prefork.workers.definitions import is_the_programs, is_the_programs_module
from prefork.workers.keeps import KeepsConnections

from ..errors import ConfigError

__all__ = ["check_handler", "check_there_is_one", "unwrapped", "why_not_run"]

PLAIN_HOOKS = (
    "worker_started", "worker_draining", "worker_stopping", "get_request", "verify_request", "process_request",
    "process_request_thread", "finish_request", "handle_error", "shutdown_request", "close_request", "service_actions",
    "server_bind", "server_activate", "server_close",
)  # fmt: skip
# Of these any may set a handler, or serve without one.
BEFORE_THE_HANDLER = (
    "worker_started", "get_request", "verify_request", "process_request", "process_request_thread", "finish_request",
)  # fmt: skip
STEPS = ("setup", "handle", "finish")
KEPT_STEPS = ("handle_one_request", "complete", "connection_opened", "connection_closed")
_OWNERS = ("socketserver", "http.server", "prefork.handlers", "prefork.keepalive")
_KINDS: dict[int, tuple[str, str, str]] = {
    socket.SOCK_DGRAM: ("StreamRequestHandler", "a stream", "datagrams"),
    socket.SOCK_STREAM: ("DatagramRequestHandler", "datagrams", "a stream"),
}

# Of code objects, as in `inspect`, whose import takes 3 ms (Include/cpython/code.h).
GENERATOR, COROUTINE, ASYNC_GENERATOR = 0x20, 0x80, 0x200


def check_handler(server: Any, kind: int) -> None:
    """Raise ConfigError, with one sentence, for a handler or a hook that can never work on a socket of this kind."""
    for name in PLAIN_HOOKS:
        if (why := why_not_run(getattr(server, name, None))) is not None:
            raise ConfigError(f"could not serve with {type(server).__qualname__}: its {name}() {why}")
    handler = unwrapped(getattr(server, "RequestHandlerClass", None))
    if isinstance(handler, type):
        why = _why_not_class(server, handler, kind)
    elif (why := why_not_run(handler)) is not None:
        why = f"it {why}"
    if why is not None:
        raise ConfigError(f"could not serve with {getattr(handler, '__qualname__', repr(handler))}: {why}")


def check_there_is_one(server: Any) -> None:
    """Raise ConfigError for a server of a pool that has no handler, and no hook of the program's that may do without.

    The standard library would fail at each request. What is set later is set by such a hook, in the worker.
    """
    handler = getattr(server, "RequestHandlerClass", None)
    if not callable(handler) and not any(is_the_programs(server, name) for name in BEFORE_THE_HANDLER):
        kind = "Datagram" if getattr(server, "socket_type", 0) == socket.SOCK_DGRAM else "Stream"
        raise ConfigError(
            f"could not serve with {type(server).__qualname__}: its RequestHandlerClass is {handler!r:.80}, which each "
            f"request calls; it must be a handler, as a class over {kind}RequestHandler"
        )


def unwrapped(handler: Any) -> Any:
    """Return what a partial calls in the end; anything else as it is."""
    while isinstance(handler, partial):
        handler = handler.func
    return handler


def why_not_run(function: object) -> str | None:
    """Return why calling this runs nothing of it, as the end of a sentence; None if it does."""
    flags = _code_flags(function) | _code_flags(getattr(function, "__call__", None))  # noqa: B004
    if flags & (COROUTINE | ASYNC_GENERATOR):
        return "is async, and nobody would await it; call asyncio.run() in a plain function"
    return "is a generator, and calling it would run nothing" if flags & GENERATOR else None


def _code_flags(function: object) -> int:
    while isinstance(function, partial):
        function = function.func
    return getattr(getattr(getattr(function, "__func__", function), "__code__", None), "co_flags", 0)


def _why_not_class(server: Any, handler: type, kind: int) -> str | None:
    keeps = issubclass(handler, KeepsConnections)
    if keeps and (why := _why_not_before(handler)) is not None:
        return why
    runs = list(STEPS) if _reaches(handler, "__init__", "BaseRequestHandler") else []
    if _reaches(handler, "handle_one_request", "BaseHTTPRequestHandler"):
        runs += [name for name in dir(handler) if name.startswith("do_")]
    if keeps:
        runs += KEPT_STEPS
    for name in runs:
        if (why := why_not_run(getattr(handler, name, None))) is not None:
            return f"its {name}() {why}"
    if keeps and (why := _why_not_kept(server, handler, kind)) is not None:
        return why
    other, its, ours = _KINDS.get(kind, ("", "", ""))
    if other and _reaches(handler, "setup", other) and _gives_requests(server):
        return f"it is a handler for {its}, and the socket is one for {ours}"
    return None


def _why_not_before(handler: type) -> str | None:
    """Return why KeepAliveMixIn does not do its work in this class, from where it stands."""
    mro = handler.__mro__
    mixin = next(base for base in mro if KeepsConnections in base.__bases__)
    before = [base.__name__ for base in mro[: mro.index(mixin)]]
    if "BaseRequestHandler" in before:
        hides = before[1] if before[1] in {base.__name__ for base in handler.__bases__} else "the handler class"
        return f"KeepAliveMixIn must stand before {hides} in its bases"
    if not _reaches(handler, "handle", "KeepAliveMixIn"):
        return (
            "its handle() hides that of KeepAliveMixIn; define handle_one_request() instead, which serves one request"
        )
    return None


def _why_not_kept(server: Any, handler: type, kind: int) -> str | None:
    if kind == socket.SOCK_DGRAM and _gives_requests(server):
        return "it keeps connections (KeepAliveMixIn), and the socket is one for datagrams"
    found = [name for name in ("handle_one_request", "handle") for base in _serving(handler) if name in vars(base)]
    if not found:
        return "it has no handle_one_request(), which KeepAliveMixIn calls for each request"
    complete = next(vars(base)["complete"] for base in handler.__mro__ if "complete" in vars(base))
    if isinstance(complete, FunctionType) or not (complete is None or callable(getattr(handler, "complete", None))):
        return "its complete() must be a staticmethod or a classmethod: it is asked before there is a handler"
    return None


def _serving(handler: type) -> list[type]:
    """Return the classes that may say what one request is: not the mix-in, nor the one whose `handle()` is empty."""
    return [base for base in handler.__mro__ if base.__name__ not in ("KeepAliveMixIn", "BaseRequestHandler")]


def _gives_requests(server: Any) -> bool:
    """Return whether the handler gets the request as the socket has it: no hook of the program's is in between."""
    hooks = (getattr(server, name) for name in ("get_request", "process_request", "finish_request"))
    return not any(is_the_programs_module(hook.__module__) for hook in hooks)


def _reaches(cls: type, name: str, owner: str) -> bool:
    """Return whether a call of this method comes to that of the class `owner`: it is inherited, or calls the next."""
    for base in cls.__mro__:
        method = vars(base).get(name)
        if method is None:
            continue
        if base.__name__ == owner and base.__module__ in _OWNERS:
            return True
        code = getattr(method, "__code__", None)
        if code is None or name not in code.co_names:
            return False
    return False
