"""The serving loop of a process that serves by itself: wait, accept, process, and in between do what is pending.

Owns the wait and the wake-up that ends it, both only while it runs, and what is said of an error. Must not start a
thread, fork, or install a signal handler. In a pool the master's loop is the supervisor's and the worker's its own.
"""

import contextlib
import logging
import select
import selectors
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator
from functools import cache
from time import monotonic
from typing import TYPE_CHECKING, Any

from prefork.metrics.log_events import LogEvent, event
from prefork.workers.accepting import ACCEPT_PAUSE, is_resource_error
from prefork.workers.wakeup import Wakeup

from .sockets.addresses import address_text

log = logging.getLogger("prefork.server")

# Neither needs a descriptor of its own, nor is shared with a child as an epoll would be.
_Selector: type[selectors.BaseSelector] = getattr(selectors, "PollSelector", selectors.SelectSelector)

LOG_SHORTAGE_EVERY = 10.0  # seconds
LISTENING = "listening"  # marks what the loop accepts from
_CONNECTION_LOST = (ConnectionResetError, ConnectionAbortedError, BrokenPipeError)


class Own:
    """The one attribute of ours on a program's server object: all else that we keep of a server is in the object there.

    Made at first use. A class says by it of what kind the object is; where several classes of a server do, the object
    is of all their kinds, in the order of the server's own bases.
    """

    def __init__(self, kind: "type[ServingLoop]") -> None:
        self.kind = kind
        self._name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, server: Any, owner: type) -> Any:
        if server is None:
            return self
        kinds = tuple(own.kind for cls in owner.__mro__ if isinstance(own := vars(cls).get(self._name), Own))
        return vars(server).setdefault(self._name, _of_kinds(kinds)(server))


@cache
def _of_kinds(kinds: "tuple[type[ServingLoop], ...]") -> "type[ServingLoop]":
    bases = tuple(kind for kind in kinds if not any(kind in other.__mro__[1:] for other in kinds))
    return bases[0] if len(bases) == 1 else type("Own", bases, {})


class ServingLoop:
    """The loop of one server, and what it remembers of being served.

    Nothing is locked, so that a signal handler may call `shutdown()` wherever it interrupts; the order of the lines
    does it. It refers to the server weakly: a server that nobody holds any more goes at once, and its socket with it.
    """

    def __init__(self, server: Any) -> None:
        self._server = weakref.ref(server)
        self.shutdown_requested = False  # set by shutdown(), taken back by the serve_forever() that heard it
        self.done: threading.Event | None = None  # there while serve_forever() runs, set when it has left
        self.wakeup: Wakeup | None = None  # made and closed by the serving thread
        self.serving_thread: int | None = None
        self.family_chosen = False  # by the constructor, because of the address
        self._accept_again_at: float | None = None  # monotonic; descriptors or memory are short until then
        self._shortage_logged_at: float | None = None

    @property
    def server(self) -> Any:
        """The program's server. Whoever asks runs in one of its methods, or holds it."""
        return self._server()

    # Hooks, to be overridden.

    def has_room(self) -> bool:
        """Whether one more request may be accepted now. When that changes, one of `extra_fds()` must be readable."""
        return True

    def extra_fds(self) -> Iterable[int]:
        """Descriptors that end the wait when they are readable; asked once, when a wait begins to be possible."""
        return ()

    def next_turn(self) -> float | None:
        """The monotonic time at which `service_actions()` must have run; None when nothing is pending."""
        return None

    def accept(self) -> None:
        """Accept one request, which is there, and process it. When it is gone by now, nothing happens."""
        server = self.server
        try:
            request, client_address = server.get_request()
        except OSError as exc:
            if is_resource_error(exc):
                self.pause_accepting(exc)
            return
        try:
            if server.verify_request(request, client_address):
                server.process_request(request, client_address)
            else:
                server.shutdown_request(request)
        except Exception:
            server.handle_error(request, client_address)
            server.shutdown_request(request)
        except BaseException:
            server.shutdown_request(request)
            raise

    # Serving.

    def serve(self, poll_interval: float | None) -> None:
        """Be `serve_forever()`."""
        with self.serving() as wakeup:
            self._serve(wakeup, poll_interval if self.wants_polling() else None)

    @contextlib.contextmanager
    def serving(self) -> Iterator[Wakeup]:
        """The time between the first look at the flag of `shutdown()` and the return that it waits for."""
        done = threading.Event()
        self.serving_thread = threading.get_ident()
        try:
            wakeup = self.wakeup = Wakeup()
            self.done = done  # from here on shutdown() waits, and what it needs is there; then look at the flag
            yield wakeup
        finally:
            # First `done`: a shutdown() that finds it gone waits for nobody; one that sets the flag after the next
            # line means the next serve_forever(). `serving_thread` later, or a signal handler here would wait for us.
            self.done = None
            self.shutdown_requested = False
            self.serving_thread = None
            if self.wakeup is not None:
                self.wakeup.close()
                self.wakeup = None
            done.set()

    def shutdown(self, *, wait: bool) -> None:
        self.shutdown_requested = True
        done = self.done
        self.tell_to_end()
        if wait and done is not None and self.serving_thread != threading.get_ident():
            done.wait()

    def tell_to_end(self) -> None:
        """Have the loop look at the flag."""
        self.wake()

    def handle_one(self) -> None:
        """Be `handle_request()`."""
        server = self.server
        times = [t for t in (server.socket.gettimeout(), server.timeout) if t is not None]
        deadline = monotonic() + min(times) if times else None
        if not self._wait_for_room(deadline):
            server.handle_timeout()
            return
        with _Selector() as selector:
            selector.register(server, selectors.EVENT_READ)
            while not selector.select(_left(deadline)):
                if deadline is not None and monotonic() >= deadline:
                    server.handle_timeout()
                    return
        server._handle_request_noblock()

    def pause_accepting(self, reason: object = "descriptors or memory are short") -> None:
        """Leave the listener alone for a moment: what fails for want of descriptors or memory fails again at once."""
        now = monotonic()
        self._accept_again_at = now + ACCEPT_PAUSE
        if self._shortage_logged_at is None or now >= self._shortage_logged_at + LOG_SHORTAGE_EVERY:
            self._shortage_logged_at = now
            log.warning(
                "could not accept: %s; trying again every %g s",
                reason,
                ACCEPT_PAUSE,
                extra=event(LogEvent.ACCEPT_FAILED),
            )

    def wake(self) -> None:
        wakeup = self.wakeup
        if wakeup is not None:
            wakeup.wake()

    def wants_polling(self) -> bool:
        """Whether somebody other than us overrides `service_actions()`, and so counts on `poll_interval`."""
        server = self.server
        owners = [cls for cls in type(server).__mro__ if "service_actions" in vars(cls)]
        return "service_actions" in vars(server) or not all(map(_is_ours, owners))

    # Inside the loop.

    def _serve(self, wakeup: Wakeup, poll_interval: float | None) -> None:
        server = self.server
        with _Selector() as selector:
            selector.register(server, selectors.EVENT_READ, LISTENING)  # a closed listener is an error here, as ever
            selector.register(wakeup, selectors.EVENT_READ)
            for fd in self.extra_fds():
                selector.register(fd, selectors.EVENT_READ)
            listening = True
            while not self.shutdown_requested:
                # The socket of a server that was closed under us would read as ready for ever.
                if listening is not (server.fileno() >= 0 and self._may_accept()):
                    listening = not listening
                    if listening:
                        selector.register(server, selectors.EVENT_READ, LISTENING)
                    else:
                        selector.unregister(server)
                self._turn(selector.select(self._patience(poll_interval)), wakeup)

    def _turn(self, ready: list[tuple[selectors.SelectorKey, int]], wakeup: Wakeup) -> None:
        if self.shutdown_requested:
            return
        for key, _ in ready:
            if key.fileobj is wakeup:
                wakeup.drain()
            elif key.data == LISTENING:
                self.server._handle_request_noblock()
        self.server.service_actions()

    def _may_accept(self) -> bool:
        if self._accept_again_at is not None:
            if monotonic() < self._accept_again_at:
                return False
            self._accept_again_at = None
        return self.has_room()

    def _patience(self, longest: float | None) -> float | None:
        """How long the next wait may take."""
        moments = [moment for moment in (self.next_turn(), self._accept_again_at) if moment is not None]
        if moments:
            left = max(0.0, min(moments) - monotonic())
            return left if longest is None else min(left, longest)
        return longest

    def _wait_for_room(self, deadline: float | None) -> bool:
        """Let turns pass until a request may be accepted; False when it is too late for one."""
        server = self.server
        if self._may_accept():
            return True
        server.service_actions()
        with _Selector() as selector:
            for fd in self.extra_fds():
                selector.register(fd, selectors.EVENT_READ)
            while not self._may_accept():
                if deadline is not None and monotonic() >= deadline:
                    return False
                selector.select(self._patience(_left(deadline)))
                server.service_actions()
        return True


class ServingMixIn:
    """The public side of the loop, for BaseServer and, brought along by the mix-ins, over the standard library's
    classes."""

    if TYPE_CHECKING:  # not defined here: this class stands before the standard library's in the MRO

        def fileno(self) -> int: ...

    _prefork_: Any = Own(ServingLoop)

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Handle requests, one after another, until `shutdown()`; `timeout` plays no part here.

        `service_actions()` is called after every wait. A class that overrides it is called at least every
        `poll_interval` seconds; where nobody does, the loop waits for as long as there is nothing to do.
        """
        self._prefork_.serve(poll_interval)

    def shutdown(self) -> None:
        """Make `serve_forever()` return, and wait until it has. May be called from any thread or signal handler.

        In the thread that serves it does not wait, for that could never end. When nobody is serving it returns at once,
        and the next `serve_forever()` will.
        """
        self._prefork_.shutdown(wait=True)

    def shutdown_nowait(self) -> None:
        """Like `shutdown()`, but do not wait for `serve_forever()` to return."""
        self._prefork_.shutdown(wait=False)

    def handle_request(self) -> None:
        """Wait for one request and handle it, or call `handle_timeout()` when none came in time.

        The time is the shorter one of `timeout` and the listener's own; without either the wait is endless.
        """
        self._prefork_.handle_one()

    def _handle_request_noblock(self) -> None:
        """The standard library's own private name: whoever overrides it there is heard here."""
        self._prefork_.accept()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log the error that is being handled, with its traceback. Override it.

        Called in the `except` block of whatever processes the request. That the client broke the connection is no news:
        it goes to DEBUG, everything else to ERROR.
        """
        exc = sys.exception()
        peer = address_text(client_address or "an unnamed client")  # Unix sockets have a path, or none
        if isinstance(exc, _CONNECTION_LOST) and _is_broken(request):
            log.debug(
                "connection from %s lost: %s", peer, exc, exc_info=exc, extra=event(LogEvent.CONNECTION_LOST, peer=peer)
            )
        else:
            log.error(
                "could not finish the request from %s: %r",
                peer,
                exc,
                exc_info=exc,
                extra=event(LogEvent.REQUEST_FAILED, peer=peer),
            )


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - monotonic())


def _is_ours(cls: type) -> bool:
    """Whether this class's `service_actions()` is ours, or does nothing."""
    name = f"{cls.__module__}.{cls.__qualname__}"
    return name.startswith("prefork.") or name == "socketserver.BaseServer"


def _is_broken(request: Any) -> bool:
    """Whether this connection is the one that was lost, and not some other one that the handler had."""
    fileno = getattr(request, "fileno", None)
    if fileno is None:
        return False  # a datagram
    if fileno() < 0 or not hasattr(select, "poll"):
        return True  # nobody can tell any more
    poll = select.poll()
    poll.register(fileno(), 0)
    return bool(poll.poll(0))  # POLLHUP or POLLERR: neither side can send; poll(2)
