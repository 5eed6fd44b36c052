"""Signal handlers of the program's, held back while the master is in the middle of something.

A handler may raise, as one that calls sys.exit(), and Python runs it between any two instructions of the main thread.
Runs in the master. Owns what is held back. Must not install a handler: signals.py does.
"""

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

_holding = False  # inside of `held()`
_held: deque[Callable[[], object]] = deque()  # the program's handlers whose signals came meanwhile


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Hold back the program's signal handlers until the end of the outermost such block, where they may raise.

    Anywhere inside they could raise between two steps that belong together, as a fork and its entry in a table. For the
    main thread: handlers run in no other. Holds back only what `Signals.hold_back()` has prepared.
    """
    global _holding
    if _holding or threading.current_thread() is not threading.main_thread():
        yield
        return
    _holding = True
    try:
        yield
    finally:
        _holding = False
        while _held:
            _held.popleft()()


@contextlib.contextmanager
def let_through() -> Iterator[None]:
    """Let them run in this block of a `held()` one, where they may raise; first those whose signals came before."""
    global _holding
    if not _holding or threading.current_thread() is not threading.main_thread():
        yield
        return
    _holding = False
    try:
        while _held:
            _held.popleft()()
        yield
    finally:
        _holding = True


def holds_some() -> bool:
    """Return True if a handler of the program's is being held back."""
    return bool(_held)


def _in_child() -> None:
    global _holding
    _holding = False
    _held.clear()


os.register_at_fork(after_in_child=_in_child)


def held_back(handler: Callable[[int, FrameType | None], Any]) -> Callable[[int, FrameType | None], Any]:
    """Return a handler that runs this one, or holds it back."""

    def handle(signum: int, frame: FrameType | None) -> object:
        if not _holding:
            return handler(signum, frame)
        _held.append(lambda: handler(signum, frame))
        return None

    return handle
