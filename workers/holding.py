"""Signal handlers of the program's, held back while the master is in the middle of something.

A handler may raise, as one that calls sys.exit(), and Python runs it between any two instructions of the main thread.
Runs in the master. Owns what is held back. Must not install a handler: signals.py does.
"""

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any


class Holding:
    """Says if handlers are held back. To set it is one step; before a call, a handler could still come."""

    __slots__ = ("on",)

    def __init__(self) -> None:
        self.on = False


_holding = Holding()  # on inside of `held()`
_held: deque[Callable[[], object]] = deque()  # the program's handlers whose signals came meanwhile
_forgets = list[bool]()  # not empty once children do


@contextlib.contextmanager
def held() -> Iterator[Holding]:
    """Hold back the program's signal handlers until the end of the outermost such block, where they may raise.

    Anywhere inside they could raise between two steps that belong together, as a fork and its entry in a table. For the
    main thread: handlers run in no other. Holds back only what `Signals.hold_back()` has prepared.
    """
    if _holding.on or threading.current_thread() is not threading.main_thread():
        yield Holding()
        return
    _forget_in_children()
    _holding.on = True
    try:
        yield _holding
    finally:
        _holding.on = False
        while _held:
            _held.popleft()()


class LetThrough:
    """Let them run in this block of a `held()` one, where they may raise; first those whose signals came before.

    One that raises just as the block ends leaves them let through: set `Holding.on` first where it is caught.
    """

    def __enter__(self) -> None:
        self._lets = _holding.on and threading.current_thread() is threading.main_thread()
        if self._lets:
            _holding.on = False
            try:
                while _held:
                    _held.popleft()()
            except BaseException:
                _holding.on = True
                raise

    def __exit__(self, *exc: object) -> None:
        if self._lets:
            _holding.on = True


def holds_some() -> bool:
    """Return True if a handler of the program's is being held back."""
    return bool(_held)


def _forget_in_children() -> None:
    """Have a new process hold nothing back. Done by no function of Python's, whose first call would cost each child 50
    kB; and not at all in a plain server, which holds nothing back while it serves."""
    if not _forgets:
        _forgets.append(True)
        os.register_at_fork(after_in_child=partial(setattr, _holding, "on", False))
        os.register_at_fork(after_in_child=_held.clear)


def held_back(handler: Callable[[int, FrameType | None], Any]) -> Callable[[int, FrameType | None], Any]:
    """Return a handler that runs this one, or holds it back."""

    def handle(signum: int, frame: FrameType | None) -> object:
        if not _holding.on:
            return handler(signum, frame)
        _held.append(lambda: handler(signum, frame))
        return None

    return handle
