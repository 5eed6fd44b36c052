"""Mistakes of a program that show only under load: what `prefork check` warns of.

Runs in the process of the command, when the program is loaded and its server made. Must not change anything. A finding
is no refusal: a program may know what it does.
"""

import inspect
import socket
import threading
from collections.abc import Iterator
from typing import Any

from ..pool_settings import PoolSettings
from ..settings.effects import no_effect
from ..settings.units import number_text

__all__ = ["findings"]


def findings(server: Any) -> Iterator[str]:
    """Yield a sentence for each mistake."""
    yield from _threads()
    yield from _default_timeout()
    yield from _handshakes(server)
    for name, why in no_effect(server, PoolSettings, {}):
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
    if getattr(server.socket, "do_handshake_on_connect", False):
        yield f"the TLS handshake is waited for in accept(): a client that says nothing stops its worker; {remedy}"
    elif _waits_in(type(server).get_request):
        yield f"get_request() waits for the TLS handshake: a client that says nothing stops its worker; {remedy}"


def _waits_in(get_request: Any) -> bool:
    try:
        source = inspect.getsource(get_request)
    except (OSError, TypeError):
        return False
    return ".wrap_socket(" in source and "do_handshake_on_connect" not in source
