"""The serving loop of a process that serves by itself: wait, accept, process, and in between do what is pending.

Owns the wait and the wake-up that ends it, both only while it runs, and what is said of an error. Must not start a
thread, fork, or install a signal handler. In a pool the master's loop is the supervisor's and the worker's its own.
"""

import contextlib
import logging
import select
import selectors
import socket
import sys
import threading
from collections.abc import Iterable, Iterator
from time import monotonic
from typing import TYPE_CHECKING, Any

from prefork.workers.accepting import ACCEPT_PAUSE, is_resource_error
from prefork.workers.wakeup import Wakeup

from .sockets.addresses import address_text

log = logging.getLogger("prefork.server")

# Neither needs a descriptor of its own, nor is shared with a child as an epoll would be.
_Selector: type[selectors.BaseSelector] = getattr(selectors, "PollSelector", selectors.SelectSelector)

LOG_SHORTAGE_EVERY = 10.0  # seconds
_CONNECTION_LOST = (ConnectionResetError, ConnectionAbortedError, BrokenPipeError)


class _ServingLoop:
    """The loop, for BaseServer and, brought along by the mix-ins, over the standard library's classes.

    There is no constructor to rely on: state starts as class attributes, and the rest is the public hooks. Nothing is
    locked, so that a signal handler may call `shutdown()` wherever it interrupts; the order of the lines does it.
    """

    if TYPE_CHECKING:  # not defined here: this class stands before the standard library's in the MRO
        socket: socket.socket
        timeout: float | None

        def fileno(self) -> int: ...
        def get_request(self) -> tuple[Any, Any]: ...
        def verify_request(self, request: Any, client_address: Any) -> bool: ...
        def process_request(self, request: Any, client_address: Any) -> None: ...
        def shutdown_request(self, request: Any) -> None: ...
        def service_actions(self) -> None: ...
        def handle_timeout(self) -> None: ...

    _shutdown_requested = False  # set by shutdown(), taken back by the serve_forever() that heard it
    _done: threading.Event | None = None  # there while serve_forever() runs, set when it has left
    _wakeup: Wakeup | None = None  # made and closed by the serving thread
    _serving_thread: int | None = None
    _accept_again_at: float | None = None  # monotonic; descriptors or memory are short until then
    _shortage_logged_at: float | None = None

    # Hooks of the mix-ins.

    def _has_room(self) -> bool:
        """Whether one more request may be accepted now. When that changes, one of `_extra_fds()` must be readable."""
        return True

    def _extra_fds(self) -> Iterable[int]:
        """Descriptors that end the wait when they are readable; asked once, when a wait begins to be possible."""
        return ()

    def _next_turn(self) -> float | None:
        """The monotonic time at which `service_actions()` must have run; None when nothing is pending."""
        return None

    # Serving.

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Handle requests, one after another, until `shutdown()`; `timeout` plays no part here.

        `service_actions()` is called after every wait. A class that overrides it is called at least every
        `poll_interval` seconds; where nobody does, the loop waits for as long as there is nothing to do.
        """
        with self._serving() as wakeup:
            self._serve(wakeup, poll_interval if self._wants_polling() else None)

    @contextlib.contextmanager
    def _serving(self) -> Iterator[Wakeup]:
        """The time between the first look at the flag of `shutdown()` and the return that it waits for."""
        done = threading.Event()
        self._serving_thread = threading.get_ident()
        try:
            wakeup = self._wakeup = Wakeup()
            self._done = done  # from here on shutdown() waits, and what it needs is there; then look at the flag
            yield wakeup
        finally:
            # First `_done`: a shutdown() that finds it gone waits for nobody; one that sets the flag after the next
            # line means the next serve_forever(). `_serving_thread` later, or a signal handler here would wait for us.
            self._done = None
            self._shutdown_requested = False
            self._serving_thread = None
            if self._wakeup is not None:
                self._wakeup.close()
                self._wakeup = None
            done.set()

    def shutdown(self) -> None:
        """Make `serve_forever()` return, and wait until it has. May be called from any thread or signal handler.

        In the thread that serves it does not wait, for that could never end. When nobody is serving it returns at once,
        and the next `serve_forever()` will.
        """
        self._shutdown_requested = True
        done = self._done
        self._tell_loop_to_end()
        if done is not None and self._serving_thread != threading.get_ident():
            done.wait()

    def shutdown_nowait(self) -> None:
        """Like `shutdown()`, but do not wait for `serve_forever()` to return."""
        self._shutdown_requested = True
        self._tell_loop_to_end()

    def _tell_loop_to_end(self) -> None:
        self._wake()

    def handle_request(self) -> None:
        """Wait for one request and handle it, or call `handle_timeout()` when none came in time.

        The time is the shorter one of `timeout` and the listener's own; without either the wait is endless.
        """
        times = [t for t in (self.socket.gettimeout(), self.timeout) if t is not None]
        deadline = monotonic() + min(times) if times else None
        if not self._wait_for_room(deadline):
            return self.handle_timeout()
        with _Selector() as selector:
            selector.register(self, selectors.EVENT_READ)
            while not selector.select(_left(deadline)):
                if deadline is not None and monotonic() >= deadline:
                    return self.handle_timeout()
        return self._handle_request_noblock()

    def _handle_request_noblock(self) -> None:
        """Accept one request, which is there, and process it. When it is gone by now, nothing happens."""
        try:
            request, client_address = self.get_request()
        except OSError as exc:
            if is_resource_error(exc):
                self._pause_accepting(exc)
            return
        try:
            if self.verify_request(request, client_address):
                self.process_request(request, client_address)
            else:
                self.shutdown_request(request)
        except Exception:
            self.handle_error(request, client_address)
            self.shutdown_request(request)
        except BaseException:
            self.shutdown_request(request)
            raise

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log the error that is being handled, with its traceback. Override it.

        Called in the `except` block of whatever processes the request. That the client broke the connection is no news:
        it goes to DEBUG, everything else to ERROR.
        """
        exc = sys.exception()
        peer = address_text(client_address or "an unnamed client")  # Unix sockets have a path, or none
        if isinstance(exc, _CONNECTION_LOST) and _is_broken(request):
            log.debug("connection from %s lost: %s", peer, exc, exc_info=exc)
        else:
            log.error("could not finish the request from %s: %r", peer, exc, exc_info=exc)

    # Inside the loop.

    def _serve(self, wakeup: Wakeup, poll_interval: float | None) -> None:
        with _Selector() as selector:
            selector.register(self, selectors.EVENT_READ)  # a closed listener is an error here, as ever
            selector.register(wakeup, selectors.EVENT_READ)
            for fd in self._extra_fds():
                selector.register(fd, selectors.EVENT_READ)
            listening = True
            while not self._shutdown_requested:
                # The socket of a server that was closed under us would read as ready for ever.
                if listening is not (self.fileno() >= 0 and self._may_accept()):
                    listening = not listening
                    if listening:
                        selector.register(self, selectors.EVENT_READ)
                    else:
                        selector.unregister(self)
                self._turn(selector.select(self._patience(poll_interval)), wakeup)

    def _turn(self, ready: list[tuple[selectors.SelectorKey, int]], wakeup: Wakeup) -> None:
        if self._shutdown_requested:
            return
        for key, _ in ready:
            if key.fileobj is self:
                self._handle_request_noblock()
            elif key.fileobj is wakeup:
                wakeup.drain()
        self.service_actions()

    def _may_accept(self) -> bool:
        if self._accept_again_at is not None:
            if monotonic() < self._accept_again_at:
                return False
            self._accept_again_at = None
        return self._has_room()

    def _patience(self, longest: float | None) -> float | None:
        """How long the next wait may take."""
        moments = [moment for moment in (self._next_turn(), self._accept_again_at) if moment is not None]
        if moments:
            left = max(0.0, min(moments) - monotonic())
            return left if longest is None else min(left, longest)
        return longest

    def _wait_for_room(self, deadline: float | None) -> bool:
        """Let turns pass until a request may be accepted; False when it is too late for one."""
        if self._may_accept():
            return True
        self.service_actions()
        with _Selector() as selector:
            for fd in self._extra_fds():
                selector.register(fd, selectors.EVENT_READ)
            while not self._may_accept():
                if deadline is not None and monotonic() >= deadline:
                    return False
                selector.select(self._patience(_left(deadline)))
                self.service_actions()
        return True

    def _pause_accepting(self, reason: object = "descriptors or memory are short") -> None:
        """Leave the listener alone for a moment: what fails for want of descriptors or memory fails again at once."""
        now = monotonic()
        self._accept_again_at = now + ACCEPT_PAUSE
        if self._shortage_logged_at is None or now >= self._shortage_logged_at + LOG_SHORTAGE_EVERY:
            self._shortage_logged_at = now
            log.warning("could not accept: %s; trying again every %g s", reason, ACCEPT_PAUSE)

    def _wake(self) -> None:
        wakeup = self._wakeup
        if wakeup is not None:
            wakeup.wake()

    def _wants_polling(self) -> bool:
        """Whether somebody other than us overrides `service_actions()`, and so counts on `poll_interval`."""
        owners = [cls for cls in type(self).__mro__ if "service_actions" in vars(cls)]
        return "service_actions" in vars(self) or not all(map(_is_ours, owners))


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
