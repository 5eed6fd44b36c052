"""KeepAliveMixIn: a handler class whose connections stay open between requests, without a worker or a thread for each.

    handler ─▶ setup ─▶ connection_opened ─▶ handle_one_request … ─▶ nothing at hand ─▶ finish ─▶ the connection is kept
                         once                 until close_connection ─▶ connection_closed ─▶ finish ─▶ it is closed

In a pool the handler object lives for one *stay* (workers/stay.py): as long as there are bytes at hand. Where a
connection cannot be kept (a plain server, `--single`, TLS, a request that the program has wrapped) it lives as long as
the connection, in a loop, and means the same. Must not close a connection, which the server does. Runs where
`finish_request()` does. Longer than most files: what is the same in a stay and in a loop can be compared here.
"""

import io
import logging
import socket
from collections.abc import Callable
from operator import methodcaller
from typing import Any

from prefork.metrics.facts import CloseReason
from prefork.metrics.log_events import LogEvent, event
from prefork.workers.http_exchange import Exchange, ParseRequest, is_http
from prefork.workers.idle_waits import wait_for_bytes, wait_until_complete
from prefork.workers.keeps import KeepsConnections, is_keeping
from prefork.workers.kept import CLOSING, decode_state, encode_state
from prefork.workers.looped import Looped, of_this_thread
from prefork.workers.stay import MOST_REQUESTS, UNREAD_MAX, KeptSocket, Stay, at_hand, bytes_wanted, is_at_end, peek

from .handlers import _SocketWriter
from .logs import say_no_effect
from .settings.in_force import value_of

__all__ = ["KeepAliveMixIn"]

log = logging.getLogger("prefork.server")


class KeepAliveMixIn(KeepsConnections):
    """Keep the connections of a stream handler open between requests. Mix in *before* a handler class.

        class Line(KeepAliveMixIn, StreamRequestHandler):
            def handle_one_request(self):
                line = self.rfile.readline()
                self.wfile.write(b"you said " + line)

    Define `handle_one_request()`, as the standard library's http.server does, whose handler classes have one: it reads
    one request, answers it, and returns. It is called when the client has sent something (or has ended the connection
    after having sent something), and again for each further request. To close the connection, set `close_connection` to
    True, or raise. A class with a `handle()` only (wsgiref's) has that called for each request.

    In a pool, a connection on which nothing is at hand is put aside: it costs no worker and no thread, any worker may
    have its next request, in a new object of this class, and a reload does not end it. So `setup()`, `handle()` and
    `finish()` are called for one *stay* of the connection in a worker, which may be several requests that come one
    after another. What is to be known at the next request stands in `state`. One that says nothing for
    `keepalive_timeout` seconds is closed.

    A plain server, `prefork run --single`, and a pool for connections over TLS, wrapped by the program's
    `get_request()`, or with handlers that a function makes, keep the object, and the thread or worker, until the
    connection ends; `keepalive_timeout` (where the server has that attribute) and `timeout` bound the time between
    requests, and a drain ends a connection that is between two. All else is the same.

    What the handler has read ahead through `rfile`, or another file of `connection.makefile()`, goes along with the
    connection, and comes first in whatever reads through its methods and files: select(2) and the descriptor know
    nothing of it. These files are closed when the stay is over; those for text read no byte ahead, which is slow. What
    a file of the program's own on top of them has read ahead (a TextIOWrapper) is lost.

    With http.server's classes, and what is built on them, give `protocol_version = "HTTP/1.1"`. A connection is closed
    after an answer whose end the client cannot tell (no Content-Length or chunks, or another length than was written),
    that does not go through `wfile`, or after a request of which something was left that is not there to be skipped; a
    client of HTTP/1.0 that asks for it is told that its connection is kept.

    TCP_NODELAY is set on each connection. One that the handler has closed, detached or wrapped is not kept; nor can one
    be that is used by a thread or a process of the program's after its request: set `close_connection`.
    """

    state: Any = None
    """What the next request of this connection is to know: None, numbers, texts, bytes, and tuples, lists, dicts and
    sets of those (see `marshal`), at most 64 KiB. It is there before `setup()`, and noted after `finish()`; what cannot
    be noted is a ValueError of this request, and its connection is closed. What a class has here is where each of its
    connections begins."""

    close_connection: bool = False
    """Set it to True to have the connection closed after this request, or in `connection_opened()` without one; in a
    pool also in `finish()`. False when `handle()` is called."""

    speaks_first: bool = False
    """Have `connection_opened()` called at once, to greet a client that waits for it, instead of with the first bytes
    that it sends."""

    complete: Callable[[bytes], Any] | None = None
    """Define it as a static or class method that returns whether the bytes it is given hold a whole request, or more:
    then a request that comes in parts costs no worker either until all is there, at most `incomplete_timeout` seconds.
    It is called again with more, and must be quick. 64 KiB are given to the handler in any case, and so is what comes
    before the client's end of file. Over TLS, and where `get_request()` has wrapped the connection, it is not asked."""

    def __init__(self, request: Any, client_address: Any, server: Any, *args: Any, **kwargs: Any) -> None:
        stay = request.stay if type(request) is KeptSocket else None
        visit: _Visit = _Loop() if stay is None else _Stay(stay)
        self._prefork_ = visit
        if stay is not None and stay.state:
            self.state = decode_state(stay.state)
        elif isinstance(self.state, dict | list | set):
            self.state = decode_state(encode_state(self.state))  # the class's: its own from here on
        try:
            super().__init__(request, client_address, server, *args, **kwargs)  # type: ignore[call-arg]
            visit.leave(self)
        except BaseException:
            visit.give_up()
            raise
        finally:
            if not visit.told:
                visit.close(self)

    parse_request = ParseRequest()
    _prefork_: "_Visit | None" = None  # where a class has not called `__init__()`

    def handle(self) -> None:
        """Serve the requests of this stay. May be extended."""
        if (visit := self._prefork_) is None:
            raise TypeError(
                f"{type(self).__qualname__}.__init__() must call super().__init__(): KeepAliveMixIn has one"
            )
        self.close_connection = False
        try:
            visit.serve(self)
        finally:
            visit.close(self)

    def connection_opened(self) -> None:
        """Called once for a connection, between `setup()` and its first request. Override it."""

    def connection_closed(self) -> None:
        """Called once for a connection whose `connection_opened()` has returned, when it ends, whoever ends it, unless
        its process is killed. Override it.

        By then the client may have gone; and after an error of `setup()` or `finish()` the files are not there.
        """


class _Visit:
    """The time for which an object of the program's class has a connection; the only attribute of ours on it."""

    __slots__ = ("exchange", "met", "told")

    def __init__(self) -> None:
        self.exchange: Exchange | None = None  # over HTTP
        self.met = False  # connection_opened() has been called
        self.told = False  # connection_closed() has been called, or is not to be, as the connection goes on

    def serve(self, handler: Any) -> None:
        raise NotImplementedError

    def leave(self, handler: Any) -> None:
        """Take what goes along with the connection, after `finish()`."""

    def give_up(self) -> None:
        """The connection does not go on after all."""

    def step(self, handler: Any) -> Callable[[Any], object]:
        """Return what serves one request of this handler."""
        cls: type = type(handler)
        step, http = _steps.get(cls) or _step_of(cls)
        if not http or not hasattr(handler, "wfile"):
            return step
        self.exchange = exchange = Exchange(handler)

        def exchanged(handler: Any) -> None:
            exchange.begin()
            step(handler)
            exchange.end(handler)

        return exchanged

    def close(self, handler: Any) -> None:
        """Call `connection_closed()`, once, if the connection ends here."""
        if self.met and not self.told:
            self.told = True
            self.note_told()
            handler.connection_closed()

    def note_told(self) -> None:
        """The handler is told of the end."""


class _Stay(_Visit):
    """A stay in a worker of a pool."""

    __slots__ = ("_at_hand", "stay")

    def __init__(self, stay: Stay) -> None:
        self.exchange, self.told = None, False
        self._at_hand: tuple[int, bytes] | None = None
        self.stay, self.met = stay, stay.met

    def serve(self, handler: Any) -> None:
        stay = self.stay
        if stay.kept.flags & CLOSING:
            return
        if not self.met:
            handler.connection_opened()
            self.met = stay.met = True
            if handler.close_connection:
                return
        if not stay.begun and not self._finds_more(handler):
            return
        step = self.step(handler)
        while True:
            step(handler)
            if handler.close_connection or not self._finds_more(handler):
                return

    def _finds_more(self, handler: Any) -> bool:
        """Return True if the next request has begun. Else the stay is over, and may go on later."""
        stay, request = self.stay, handler.request
        if not _flushed(handler):
            stay.hung_up = True
        if stay.hung_up or request.fileno() == -1 or request._closed:
            return False
        ahead = stay.ahead()
        complete = handler.complete
        if not ahead:
            found = peek(request) if stay.looks or complete is not None else None
            if not found:
                stay.hung_up = found is not None
                stay.goes_on = self.told = found is None
                return False
        if complete is not None:
            stay.wanted = bytes_wanted(request, ahead, complete)
        if stay.begun >= MOST_REQUESTS and not stay.wanted and self._ends_unread(handler, ahead):
            return False
        if stay.wanted or stay.more:
            stay.goes_on = self.told = True
            return False
        stay.next_request()
        return True

    def _ends_unread(self, handler: Any, ahead: bytes) -> bool:
        """After so many requests, have others come first. But a handler that reads nothing would be called for the same
        bytes for ever: after one request more in which nothing is read, its connection waits for others to come. Return
        True where none will."""
        stay, request = self.stay, handler.request
        before, self._at_hand = self._at_hand, None if ahead or stay.has_read else at_hand(request)
        if self._at_hand is not None and before is None:
            return False
        if self._at_hand is None or before != self._at_hand:
            stay.more = not stay.ends()
            return False
        _say_nothing_read(type(handler))
        stay.wanted = self._at_hand[0] + 1
        return is_at_end(request)

    def note_told(self) -> None:
        self.stay.met = False

    def give_up(self) -> None:
        if self.stay.goes_on:
            self.stay.goes_on = self.told = False

    def leave(self, handler: Any) -> None:
        stay, request = self.stay, handler.request
        if not stay.goes_on:
            return
        stay.goes_on = self.told = False  # unless all this succeeds
        if handler.close_connection:
            return
        if request._io_refs:
            stay.close_files()
        state = handler.state
        stay.state = b"" if state is None else encode_state(state)
        if len(stay.unread) > UNREAD_MAX:
            raise ValueError(
                f"{len(stay.unread)} bytes of a connection were read ahead, more than the {UNREAD_MAX} that can be kept"
            )
        stay.goes_on = self.told = True


class _Loop(_Visit):
    """All of a connection that cannot be kept: http.server's loop, with a limit to the time between requests."""

    __slots__ = ()

    def serve(self, handler: Any) -> None:
        if handler.speaks_first and not self._open(handler):
            return
        step = self.step(handler)
        loop = of_this_thread()
        if loop is None and hasattr(handler.server, "worker_started"):
            _say_why_not_kept(handler)
        while _flushed(handler) and self._finds_more(handler, loop):
            if not self.met and not self._open(handler):
                return
            step(handler)
            if handler.close_connection:
                return
            if loop is not None:
                loop.rest()

    def _open(self, handler: Any) -> bool:
        """Call `connection_opened()`, which is once. Return whether it leaves the connection open."""
        try:
            handler.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        except (AttributeError, OSError):
            pass  # a Unix socket, or the program's own object
        handler.connection_opened()
        self.met = True
        return not handler.close_connection

    def _finds_more(self, handler: Any, loop: Looped | None) -> bool:
        """Return True if the next request has begun, False if the connection is over."""
        server, request, complete = handler.server, handler.request, handler.complete
        rfile = getattr(handler, "rfile", None)
        if _is_closed(request, rfile):
            return False
        resting = loop if loop is not None and loop.resting else None
        reason = CloseReason.CLIENT
        try:
            found = wait_for_bytes(request, rfile, _seconds(server, "keepalive_timeout"), _goes_on(server, loop))
            if found and complete is not None:
                wait_until_complete(request, rfile, complete, _seconds(server, "incomplete_timeout"))
        except TimeoutError:
            found, reason = False, CloseReason.IDLE_TIMEOUT
        if loop is not None and not found and loop.reason == CloseReason.HANDLER:
            loop.reason = reason
        if resting is not None and found:
            resting.next_request()
        return found


def _goes_on(server: Any, loop: Looped | None) -> Callable[[], bool] | None:
    """Return what says whether a connection may go on that is between two requests; None: it may."""
    if loop is not None:
        return loop.goes_on
    return (lambda: server.draining is not True) if hasattr(server, "draining") else None


def _say_why_not_kept(handler: Any) -> None:
    """Log, once for each class, that a pool could not know of it before there was a connection. A process of its own
    for each connection would say it each time."""
    made_by, cls = getattr(handler.server, "RequestHandlerClass", None), type(handler)
    forked = any(base.__name__ == "ForkingMixIn" for base in type(handler.server).__mro__)
    if not (forked or is_keeping(made_by) or cls in _said):
        _said.add(cls)
        why = f"a pool keeps connections of a handler class or a functools.partial of one, not of {made_by!r}"
        say_no_effect([(f"KeepAliveMixIn of {cls.__qualname__}", why)])


def _say_nothing_read(cls: type) -> None:
    if (cls, "read") not in _said:
        _said.add((cls, "read"))
        log.warning(
            "%s reads nothing of what its client sends: the connection waits for more, and is closed if none comes",
            cls.__qualname__,
            extra=event(LogEvent.NOTHING_READ, handler=cls.__qualname__),
        )


_said: set[Any] = set()


_Step = tuple[Callable[[Any], object], bool]
_steps: dict[type, _Step] = {}  # an lru_cache costs three times as much
STEPS_MOST = 64


def _step_of(cls: type) -> _Step:
    """Return what serves one request, and whether that is one over HTTP; and note it.

    It is `handle_one_request()`, or the nearest `handle()` below the mix-in, where a class has replaced the one that
    would call it. Raises TypeError where there is none.
    """
    for base in cls.__mro__:
        step: Callable[[Any], object] | None = None
        if "handle_one_request" in vars(base):
            step = methodcaller("handle_one_request")
        elif "handle" in vars(base) and issubclass(cls, KeepAliveMixIn) and not _is_no_handler(cls, base):
            step = vars(base)["handle"]
        if step is not None:
            if len(_steps) >= STEPS_MOST:
                _steps.clear()
            return _steps.setdefault(cls, (step, is_http(cls)))
    raise TypeError(f"{cls.__qualname__} has no handle_one_request()")


def _is_no_handler(cls: type, base: type) -> bool:
    """Return True for a `handle()` that is no request's: that of the mix-in or before it, or BaseRequestHandler's."""
    before = cls.__mro__.index(base) <= cls.__mro__.index(KeepAliveMixIn)
    return before or base.__name__ == "BaseRequestHandler"


def _seconds(server: Any, name: str) -> float | None:
    """Return this setting, where the server has it."""
    value = value_of(server, name) if hasattr(server, name) else None
    return value if isinstance(value, int | float) else None


_FILES = (io.RawIOBase, io.BufferedReader)  # of connections


def _is_closed(request: Any, rfile: Any) -> bool:
    """Return True for a connection that its handler has closed, or given away, or whose file it has closed."""
    if isinstance(rfile, _FILES) and rfile.closed:
        return True
    return getattr(request, "fileno", int)() == -1 or getattr(request, "_closed", False) is True


def _flushed(handler: Any) -> bool:
    """Flush `wfile`; return False if the client has gone."""
    wfile = getattr(handler, "wfile", None)
    if wfile is None or type(wfile) is _SocketWriter or wfile.closed:  # that one keeps nothing back
        return True
    try:
        wfile.flush()
    except OSError:
        return False
    return True
