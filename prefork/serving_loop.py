"""The serving loop of a single-process server: wait, accept, process, and do pending work in between.

Owns the wait, the wake-up that ends it (both exist only while the loop runs), and the logging of errors. Must not start
a thread, fork, or install a signal handler. Runs in the serving process; in a pool the master runs the supervisor's
loop and each worker its own.
"""

import contextlib
import errno
import logging
import select
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from time import monotonic, sleep
from typing import Any

from prefork.metrics.log_events import LogEvent, event
from prefork.workers.accepting import ACCEPT_PAUSE, RESOURCES_SHORT, SHUT_DOWN, Shortage, is_resource_error, is_shut
from prefork.workers.definitions import is_the_programs_class
from prefork.workers.handshake import failure
from prefork.workers.polling import READ, Poll, ms, patience
from prefork.workers.wakeup import Wakeup

from .inheritance.standard_classes import POLL_INTERVAL, StandardLoop
from .logs import say_no_effect
from .settings.effects import hooks_without_a_pool
from .sockets.addresses import address_text
from .sockets.of_server import is_closed, socket_of

log = logging.getLogger("prefork.server")

SERVER_CLOSED = "Invalid file descriptor: -1"
_CONNECTION_LOST = (ConnectionResetError, ConnectionAbortedError, BrokenPipeError)


class ServingLoop:
    """The loop of one server, and its state between runs.

    There are no locks, so that a signal handler may call `shutdown()` wherever it interrupts; correctness depends on
    the order of the lines. The server is a weak reference, so that an unreferenced server is freed at once, with its
    socket.
    """

    def __init__(self, server: Any) -> None:
        self._server = weakref.ref(server)
        self.shutdown_requested = False  # set by shutdown(), cleared by the serve_forever() that obeys it
        self.done: threading.Event | None = None  # exists while serve_forever() runs, set when it has returned
        self.wakeup: Wakeup | None = None  # created and closed by the serving thread
        self.serving_thread: int | None = None
        self.within_theirs = False  # the program's own serve_forever() runs, and calls ours
        self.family_chosen = False  # the constructor chose AF_INET6, from the address
        self._accept_again_at: float | None = None  # monotonic; descriptors or memory are short until then
        self._shortage = Shortage()

    @property
    def server(self) -> Any:
        """The program's server. Callers run in one of its methods or hold a reference."""
        return self._server()

    # Hooks, to be overridden.

    def begin(self) -> None:
        """Start what runs beside the loop, unless it does."""

    def end(self) -> None:
        """End what runs beside the loop: before `shutdown()` returns, where the loop is ours."""

    def has_room(self) -> bool:
        """Return True if a request may be accepted now. When that changes, one of `extra_fds()` must be readable."""
        return True

    def extra_fds(self) -> Iterable[int]:
        """Return the descriptors that end the wait when readable. Called once, before the first wait."""
        return ()

    def note_heard(self, others: bool) -> None:
        """Note the end of a wait, before `service_actions()` is called; `others`: one of `extra_fds()` is readable."""

    def next_turn(self) -> float | None:
        """Return the monotonic time by which `service_actions()` must run; None if nothing is pending."""
        return None

    def accept(self) -> None:
        """Accept and process the request that is waiting. Do nothing if it is gone."""
        server = self.server
        try:
            request, client_address = server.get_request()
        except OSError as exc:
            if is_resource_error(exc):
                self.pause_accepting(exc)
            elif exc.errno == errno.EINVAL and is_shut(server.fileno()):
                self.pause_accepting(SHUT_DOWN)
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
        """Implement `serve_forever()`."""
        self.refuse_closed()
        say_no_effect(hooks_without_a_pool(self.server))
        with self.serving() as wakeup:
            self.refuse_closed()  # checked now: a later server_close() finds us serving
            try:
                self.begin()
                self._serve(wakeup, patience(poll_interval) if self.wants_polling() else None)
            finally:
                self.end()

    def serve_within(self, theirs: Callable[..., None], poll_interval: float | None) -> None:
        """Run the program's own `serve_forever()`, which calls the standard library's; that is ours."""
        self.within_theirs = True
        StandardLoop.stand_in(self.server, self, poll_interval)
        try:
            self.begin()
            theirs(self.server, *(() if poll_interval == POLL_INTERVAL else (poll_interval,)))
        finally:
            self.within_theirs = False
            self.end()

    @contextlib.contextmanager
    def serving(self) -> Iterator[Wakeup]:
        """Cover the time from the first check of the shutdown flag to the return that `shutdown()` waits for."""
        done = threading.Event()
        StandardLoop.stand_in(self.server, self)
        self.serving_thread = threading.get_ident()
        try:
            wakeup = self.wakeup = Wakeup()
            self.done = done  # from here on shutdown() waits; the flag is checked after this
            yield wakeup
        finally:
            # Clear `done` first: a shutdown() that finds None does not wait, and one that sets the flag after the next
            # line means the next serve_forever(). Clear `serving_thread` later, or a shutdown() in a signal handler
            # that interrupts here would wait for its own thread.
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
        if wait:
            self.wait(done)

    def wait(self, done: threading.Event | None, timeout: float | None = None) -> bool:
        """Wait until the loop that had this event has returned, but never in its own thread; return whether it has."""
        return done is None or (self.serving_thread != threading.get_ident() and done.wait(timeout))

    def is_to_end(self) -> bool:
        """Return True if this process takes nothing new."""
        return self.shutdown_requested

    def refuse_closed(self) -> None:
        """Raise ValueError, with the words of the standard library, if the server is closed: before anything is made
        that nobody would close any more."""
        if self.server.fileno() == -1:
            raise ValueError(SERVER_CLOSED)

    def tell_to_end(self) -> None:
        """Make the loop check the flag."""
        self.wake()

    def handle_one(self) -> None:
        """Implement `handle_request()`."""
        self.refuse_closed()
        server = self.server
        own = socket_of(server)
        times = [t for t in (own and own.gettimeout(), server.timeout) if t is not None]
        deadline = monotonic() + min(times) if times else None
        if not self._wait_for_room(deadline):
            server.handle_timeout()
            return
        poll = Poll()
        poll.register(server.fileno(), READ)
        while not poll.poll(ms(_left(deadline))):
            if deadline is not None and monotonic() >= deadline:
                server.handle_timeout()
                return
        server._handle_request_noblock()

    def pause_accepting(self, reason: object = RESOURCES_SHORT) -> None:
        """Stop accepting for a moment: after running out of descriptors or memory, a retry would fail at once."""
        self._accept_again_at = monotonic() + ACCEPT_PAUSE
        self._shortage.say(reason)

    def wake(self) -> None:
        wakeup = self.wakeup
        if wakeup is not None:
            wakeup.wake()

    def wants_polling(self) -> bool:
        """Return True if the program overrides `service_actions()`, and so depends on `poll_interval`."""
        server = self.server
        owners = (cls for cls in type(server).__mro__ if "service_actions" in vars(cls))
        return "service_actions" in vars(server) or any(map(is_the_programs_class, owners))

    def log_error(self, request: Any, client_address: Any) -> None:
        """Implement `handle_error()`."""
        exc = sys.exception()
        peer = address_text(client_address or "an unnamed client")  # a Unix client may have no name
        if (why := failure(exc)) is not None:
            log.info("TLS handshake with %s failed: %s", peer, why,
                     extra=event(LogEvent.HANDSHAKE_FAILED, peer=peer, reason=why))  # fmt: skip
        elif isinstance(exc, _CONNECTION_LOST) and _is_broken(request):
            log.debug(
                "connection from %s lost: %s", peer, exc, exc_info=exc, extra=event(LogEvent.CONNECTION_LOST, peer=peer)
            )
        else:
            log.error("could not finish the request from %s: %r", peer, exc, exc_info=exc,
                      extra=event(LogEvent.REQUEST_FAILED, peer=peer))  # fmt: skip

    # Inside the loop.

    def _serve(self, wakeup: Wakeup, poll_interval: float | None) -> None:
        server, poll, woken = self.server, Poll(), wakeup.fileno()
        listener = server.fileno()
        if listener == -1:  # closed meanwhile
            raise ValueError(SERVER_CLOSED)
        poll.register(listener, READ)
        for fd in (woken, *self.extra_fds()):
            poll.register(fd, READ)
        listening = True
        while not self.shutdown_requested:
            # If another thread closes the server, its socket would be reported as ready for ever.
            may_accept = self.has_room if self._accept_again_at is None else self._may_accept
            if listening is not (not is_closed(server) and may_accept()):
                listening = not listening
                if listening:
                    listener = server.fileno()
                    poll.register(listener, READ)
                else:
                    poll.unregister(listener)
            moment, seconds = self.next_turn(), poll_interval
            if moment is not None or self._accept_again_at is not None:
                seconds = self._patience(poll_interval, moment)
            try:
                ready = poll.poll(None if seconds is None else ms(seconds))
            except OSError as exc:
                ready = self._rest(exc)
            if self.shutdown_requested:
                return  # type: ignore[unreachable]  # set meanwhile
            come = others = False
            for fd, _ in ready:
                if fd == listener:
                    come = True
                elif fd == woken:
                    wakeup.drain()
                else:
                    others = True
            self.note_heard(others)
            if come:
                server._handle_request_noblock()
            server.service_actions()

    def _rest(self, exc: OSError) -> list[tuple[int, int]]:
        """Pause where the kernel is short of memory for a wait, in which nothing is ready. Raises what else it is."""
        if not is_resource_error(exc):
            raise exc
        self.pause_accepting(exc)
        sleep(ACCEPT_PAUSE)
        return []

    def _may_accept(self) -> bool:
        if self._accept_again_at is not None:
            if monotonic() < self._accept_again_at:
                return False
            self._accept_again_at = None
        return self.has_room()

    def _patience(self, longest: float | None, moment: float | None) -> float | None:
        """Return how long the next wait may take, in seconds; `moment`: what `next_turn()` has returned."""
        again_at = self._accept_again_at
        if again_at is not None:
            moment = again_at if moment is None else min(moment, again_at)
        if moment is None:
            return longest
        left = max(0.0, moment - monotonic())
        return left if longest is None else min(left, longest)

    def _wait_for_room(self, deadline: float | None) -> bool:
        """Run turns until a request may be accepted. Return False if the deadline has passed."""
        server = self.server
        if self._may_accept():
            return True
        server.service_actions()
        poll = Poll()
        for fd in self.extra_fds():
            poll.register(fd, READ)
        while not self._may_accept():
            if deadline is not None and monotonic() >= deadline:
                return False
            poll.poll(ms(self._patience(_left(deadline), self.next_turn())))
            server.service_actions()
        return True


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - monotonic())


def _is_broken(request: Any) -> bool:
    """Return True if this connection was lost, rather than another one that the handler had opened."""
    fileno = getattr(request, "fileno", None)
    if fileno is None:
        return False  # a datagram
    if fileno() < 0 or not hasattr(select, "poll"):
        return True  # can no longer be determined
    poll = select.poll()
    poll.register(fileno(), 0)
    return bool(poll.poll(0))  # POLLHUP or POLLERR: neither side can send; poll(2)
