"""Mistakes of a program that show only under load: what `prefork check` warns of.

Runs in the process of the command, when the program is loaded and its server made. Must not change anything. A finding
is no refusal: a program may know what it does.
"""

import inspect
import os
import re
import socket
import stat
import sys
import threading
from collections.abc import Iterator
from typing import Any

from prefork.workers.definitions import is_base_servers, is_the_programs
from prefork.workers.handshake import FIRST_HOOKS, HANDSHAKE_TIMEOUT_S
from prefork.workers.privileges import Privileges

from ..inheritance.precedence import loop_not_called
from ..pool import PreForkingMixIn, pool_of
from ..pool_settings import PoolSettings
from ..settings.effects import no_effect
from ..settings.handlers import unwrapped
from ..settings.units import number_text
from ..settings.users import privileges_of
from ..sockets.of_server import socket_of

__all__ = ["findings"]


def findings(server: Any) -> Iterator[str]:
    """Yield a sentence for each mistake."""
    yield from _threads()
    yield from _default_timeout()
    yield from _handshakes(server)
    yield from _handler(server)
    yield from _code(server)
    for name, why in (*no_effect(server, PoolSettings, {}), *loop_not_called(type(server), PreForkingMixIn)):
        yield f"{name} has no effect: {why}"


def _threads() -> Iterator[str]:
    for thread in threading.enumerate():
        if thread is not threading.main_thread():
            yield (
                f"the thread {thread.name} is alive at the fork: no worker has it, and a lock that it holds at a fork "
                "is never released there; start it in worker_started(), or make it a companion"
            )


def _default_timeout() -> Iterator[str]:
    timeout = socket.getdefaulttimeout()
    if timeout is not None:
        yield (
            f"socket.setdefaulttimeout({number_text(timeout)}) is in force: each socket that a handler or a library "
            "makes gives up after that time; set the timeout of each connection, or of the handler class"
        )


def _handshakes(server: Any) -> Iterator[str]:
    remedy = "say do_handshake_on_connect=False"
    if getattr(socket_of(server), "do_handshake_on_connect", False):
        what = "its worker" if any(is_the_programs(server, name) for name in FIRST_HOOKS) else "its lane"
        yield (
            "the listener is wrapped so that the TLS handshake is waited for: a client that says nothing holds "
            f"{what} for {HANDSHAKE_TIMEOUT_S:g} s; {remedy}, and the handler's timeout counts"
        )
    for name in ("get_request", "verify_request", "process_request"):
        if _waits_in(getattr(server, name)):
            yield f"{name}() waits for the TLS handshake: a client that says nothing stops its worker; {remedy}"


def _handler(server: Any) -> Iterator[str]:
    if not is_base_servers(server, "finish_request"):  # which may need none
        return
    made: Any = getattr(server, "RequestHandlerClass", None)
    handler = unwrapped(made)
    name = getattr(handler, "__name__", repr(handler))
    try:
        inspect.signature(made).bind(None, None, None)
    except TypeError:
        yield f"{name} cannot be called with a request, an address and a server, as each request will do"
    except ValueError:  # it is written in C, and tells nothing
        pass
    if isinstance(handler, type) and all(_does_nothing(handler, each) for each in ("__init__", "setup", "handle")):
        yield f"{name} does nothing with a request: nobody has written its handle()"


def _code(server: Any) -> Iterator[str]:
    privileges = privileges_of(server)
    if privileges is None or not privileges.uid or os.geteuid() != 0:
        return
    files = {
        file for module in list(sys.modules.values()) if isinstance(file := getattr(module, "__file__", None), str)
    }
    folders = {*map(os.path.dirname, files), *(path or os.curdir for path in sys.path)}
    for path in sorted({*files, *folders, *pool_of(server).watched}):
        if _may_change(privileges, path):
            yield (
                f"{path} can be changed by the user of the service, so that who takes over a worker is root at the "
                "next reload; let it belong to root, and be written by nobody else"
            )
            return


def _may_change(privileges: Privileges, path: str) -> bool:
    try:
        found = os.stat(path)
    except OSError:
        return False
    group = found.st_gid == privileges.gid or found.st_gid in (privileges.groups or ())
    return (
        found.st_uid == privileges.uid
        or (group and bool(found.st_mode & stat.S_IWGRP))
        or bool(found.st_mode & stat.S_IWOTH)
    )


def _does_nothing(handler: type, name: str) -> bool:
    """Return whether a handler class has this method as socketserver's own classes have it."""
    owner = next((cls for cls in handler.__mro__ if name in vars(cls)), object)
    return owner.__module__ in ("socketserver", "prefork.handlers")


_WAITS_NOT = re.compile(r"do_handshake_on_connect\s*=\s*False")


def _waits_in(hook: Any) -> bool:
    """Return whether this hook's own lines wait for a TLS handshake, as long as a client likes."""
    try:
        source = inspect.getsource(hook)
    except (OSError, TypeError):
        return False
    if "settimeout" in source:
        return False
    return ".do_handshake(" in source or (".wrap_socket(" in source and not _WAITS_NOT.search(source))
