"""The standard library's classes under a mix-in of ours: the parts of them that ours cannot replace by standing first.

A class of the program's over the standard library's has methods of its own in front of these, and calls the next ones,
which know nothing of a mix-in. Runs in any process that has the server object.
"""

import sys
from collections.abc import Callable, Container
from typing import Any

from prefork.metrics.late_imports import apart_from_forks

from .own import load_for

POLL_INTERVAL = 0.5  # seconds; the default of `serve_forever()`
EVENT, REQUESTED = "_BaseServer__is_shut_down", "_BaseServer__shutdown_request"


def beside_classes(name: str, ours: Container[str]) -> Any:
    """Return what the standard module has by a name that is none of ours: a private one, or that of a module.

    Raises AttributeError. An import of a module of ours asks for its name first.
    """
    if name not in ours and (name.startswith("_") or name in sys.stdlib_module_names):
        with apart_from_forks():
            import socketserver  # which a program that asks for nothing of it is spared

        if name in vars(socketserver):
            return vars(socketserver)[name]
    raise AttributeError(f"module 'prefork' has no attribute {name!r}")


def process_in_place(server: Any) -> None:
    """Have all mix-ins process this server's requests in the thread that accepts them, in this process.

    The program may call the standard library's from a `process_request()` of its own, so they are changed themselves.
    """
    server._prefork_.in_place = True
    for cls in type(server).__mro__:
        if cls.__module__ == "socketserver" and cls.__name__ in ("ForkingMixIn", "ThreadingMixIn"):
            setattr(cls, "process_request", _in_place(server, vars(cls)["process_request"]))  # noqa: B010


def _in_place(server: Any, elsewhere: Callable[[Any, Any, Any], None]) -> Callable[[Any, Any, Any], None]:
    def process_request(self: Any, request: Any, client_address: Any) -> None:
        if self is not server:
            elsewhere(self, request, client_address)
            return
        if hasattr(self, "process_request_thread"):  # what is begun before it may be ended there
            self.process_request_thread(request, client_address)
        else:
            self.finish_request(request, client_address)
            self.shutdown_request(request)

    return process_request


class StandardLoop:
    """The loop of BaseServer: where its `serve_forever()` and `shutdown()` are called, ours run instead.

    All they have in common is a flag (Requested), and an event, cleared as the loop begins and waited for by
    `shutdown()`; this stands in for the one of one server."""

    def __init__(self, server: Any, loop: Any, poll_interval: float | None) -> None:
        self._attributes = vars(server)
        self._loop = loop
        self._poll_interval = poll_interval

    @classmethod
    def stand_in(cls, server: Any, loop: Any, poll_interval: float | None = None) -> None:
        """Take the event's place, where this server has one and nobody has taken it."""
        attributes = vars(server)
        if EVENT in attributes and not isinstance(attributes[EVENT], cls):
            attributes[EVENT] = cls(server, loop, poll_interval)

    def is_set(self) -> bool:
        return self._loop.done is None

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end of our loop."""
        ended: bool = self._loop.wait(self._loop.done, timeout)
        return ended

    def clear(self) -> None:
        """Serve; then let the loop that begins here end at once, also where the listener is closed by now."""
        self._loop.serve(self._poll_interval)
        self._attributes[REQUESTED] = True
        self._attributes["fileno"] = lambda: 0

    def set(self) -> None:
        self._attributes.pop("fileno", None)


class Ended:
    """That event, of a server whose class is ours from the start: a program may know it by its name."""

    def __get__(self, server: Any, owner: type) -> Any:
        return self if server is None else StandardLoop(server, server._prefork_, None)


class Requested:
    """That flag. Programs set it in a handler or a signal handler, where the standard `shutdown()` would wait for ever,
    and ask it in requests that last: it ends our loop, and says whether that is to end."""

    def __get__(self, server: Any, owner: type) -> Any:
        if server is None:
            return self
        return vars(server).get(REQUESTED, False) or server._prefork_.is_to_end()

    def __set__(self, server: Any, value: Any) -> None:
        vars(server)[REQUESTED] = False  # as the constructor does; it is the loop that remembers
        if value:
            server._prefork_.shutdown(wait=False)
        else:  # the constructor
            load_for(server)
