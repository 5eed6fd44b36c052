"""Contexts: how a lane goes along with its request, from the thread that accepts to the one that serves.

    begin ─▶ process_request, in the thread that accepts ─▶ Carrier, in the thread that serves ─▶ its lane
                   │ finishes it there                          │ nobody refers to it any more
                   ▼                                            ▼
                its lane                               dropped ─▶ its connection is closed ─▶ handed over

Runs in any process that serves in threads. Each accept has a number of ours. ThreadingMixIn, the standard library's,
and most programs' own, start a thread, or ask an executor, for `self.process_request_thread`: what they find there is
the Carrier of this request. Never the identity of an object of the program's: a program may wrap, replace, close or
drop what its `get_request()` has returned. Where it processes requests in its own way, a connection is known by what
the kernel calls it, its Place, which a TLS wrapper leaves as it is.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any, NamedTuple

Lane = memoryview
CLOSED_LOOK_S = 0.02


class Place(NamedTuple):
    """A connection as the kernel knows it."""

    fd: int
    device: int
    inode: int

    def is_open(self) -> bool:
        try:
            found = os.fstat(self.fd)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self[1:]


def place_of(request: Any) -> Place | None:
    """Return the place of a request; None if it has none, as a datagram."""
    try:
        fd = request.fileno()
        found = os.fstat(fd)
    except (AttributeError, TypeError, ValueError, OSError):
        return None
    return Place(fd, found.st_dev, found.st_ino)


class Context(NamedTuple):
    """The things that go along with a request until somebody begins it."""

    lane: Lane
    place: Place | None


class _Accepting(threading.local):
    number = 0  # of the request that this thread has accepted and passes on now


class Carrier:
    """The `process_request_thread` of one request: whoever calls it has its lane.

    When nobody refers to it any more, nobody can call it: its request was dropped, or the program serves it otherwise.
    """

    __slots__ = ("_carry", "_contexts", "_number")
    __name__ = "process_request_thread"  # threads are named after it

    def __init__(self, contexts: "Contexts", number: int, carry: Callable[..., Any]) -> None:
        self._contexts = contexts
        self._number = number
        self._carry = carry

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._carry(self._contexts.claim_number(self._number), *args, **kwargs)

    def __del__(self) -> None:
        self._contexts.drop(self._number)


class Contexts:
    """The requests that were accepted and that nobody has begun yet.

    `hand_over` gets the lane of one that nobody will begin. `wake` ends the wait of the loop, which then calls
    `look()`, and again every `patience` seconds until that is None: nothing reports that a connection was closed.
    """

    def __init__(self, hand_over: Callable[[Lane], None], wake: Callable[[], None]) -> None:
        self.patience: float | None = None
        self._hand_over = hand_over
        self._wake = wake
        self._numbers = count(1)
        self._accepting = _Accepting()
        self._waiting: dict[int, Context] = {}
        self._numbers_at: dict[Place, int] = {}
        self._dropped: set[int] = set()

    @property
    def patience_ms(self) -> float | None:
        return None if self.patience is None else self.patience * 1000

    def begin(self, lane: Lane, place: Place | None) -> int:
        """Begin to pass on the request that this thread has just accepted; return its number."""
        number = next(self._numbers)
        self._waiting[number] = Context(lane, place)
        if place is not None:
            self._numbers_at[place] = number
        self._accepting.number = number
        return number

    def passed_on(self) -> None:
        """End `begin()`: from now on this thread has nothing to do with the request."""
        self._accepting.number = 0

    def claim_own(self) -> Context | None:
        """Return the context of the request that this thread passes on, once; None if somebody has begun it."""
        return self.claim_number(self._accepting.number)

    def claim(self, request: Any) -> Context | None:
        """Return the context of a request that the program finishes in its own way; None if no accept caused it."""
        if self._accepting.number:
            return self.claim_own()
        place = place_of(request) if self._numbers_at else None
        return None if place is None else self.claim_number(self._numbers_at.get(place, 0))

    def claim_number(self, number: int) -> Context | None:
        context = self._waiting.pop(number, None)
        if context is not None and context.place is not None:
            self._numbers_at.pop(context.place, None)
            self._dropped.discard(number)
        return context

    def drop_own(self) -> None:
        self.drop(self._accepting.number)

    def drop(self, number: int) -> None:
        """Note that nobody has the carrier any more: hand the lane over, or wait until the connection is closed."""
        context = self._waiting.get(number)
        if context is None:
            return
        if context.place is None or not context.place.is_open():
            self._give_up(number)
            return
        self._dropped.add(number)
        self.patience = CLOSED_LOOK_S
        if not self._accepting.number:
            self._wake()

    def look(self) -> None:
        """Hand over what was dropped and is closed by now."""
        for number in list(self._dropped):
            context = self._waiting.get(number)
            if context is None or context.place is None:
                self._dropped.discard(number)  # begun meanwhile
            elif not context.place.is_open():
                self._give_up(number)
        self.patience = None
        if self._dropped:  # looked at afterwards, because another thread may be dropping one
            self.patience = CLOSED_LOOK_S

    def give_up_dropped(self) -> None:
        """Hand over what was dropped, open or not: nobody is going to look any more."""
        for number in list(self._dropped):
            self._give_up(number)

    def forget(self) -> None:
        """Forget every request, in a process that the program forked."""
        self._waiting.clear()
        self._accepting.number = 0

    def _give_up(self, number: int) -> None:
        context = self.claim_number(number)
        self._dropped.discard(number)
        if context is not None:
            self._hand_over(context.lane)


class HandedOver:
    """The requests that the program's own threads or executors have, counted already, without a lane."""

    def __init__(self) -> None:
        self._at: dict[int, Place] = {}  # by descriptor, which is one connection's at a time
        self._running = 0
        self._lock = threading.Lock()
        self._finishes = False  # the program has called finish_request() from a thread of its own

    def note(self, place: Place | None) -> None:
        """Remember a connection. A datagram has no place: it is noticed only in `finish_request()`."""
        if place is not None:
            self._at[place.fd] = place

    @contextlib.contextmanager
    def finishing(self) -> Iterator[None]:
        """Cover a call of `finish_request()`."""
        self._finishes = True
        with self._lock:
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1

    def all_finished(self, *, first_may_come: bool = False) -> bool:
        """Return whether no request is in `finish_request()` or may still get there.

        In a program that has ever called it from a thread of its own, such a request may until it is closed.
        `first_may_come`: so it may in one that has not called it yet.
        """
        may_come = self._finishes or first_may_come
        waits = may_come and any(place.is_open() for place in list(self._at.values()))
        return not waits and not self._running
