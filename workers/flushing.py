"""What the program has printed and logged, flushed where a process ends without Python's own end.

Runs in the master before an exec, and in a child at its end. A stream or a handler is the program's: it may raise, it
may block on a pipe that nobody reads, and its lock may be held for ever by a thread that did not survive the fork. Must
not wait longer than FLUSH_S in all, nor raise: output that nobody takes, or whose disk is full, is lost.
"""

import _thread
import contextlib
import logging
import os
import sys
from collections.abc import Callable
from time import monotonic
from typing import Any

from prefork.metrics.loggers import HeldUp, Limit, without_sigpipe, writable

FLUSH_S = 0.5

Targets = list[tuple[str, Any]]


def flush_here(limit: Limit, *, discard: bool = False) -> list[str]:
    """Flush in this thread, which has no lock to fear but those of living threads; return the names of what is left.

    `discard`: throw away what nobody takes, so that Python's own flush at the end of this process does not fail, hang,
    or end it by SIGPIPE.
    """
    given_up = []
    until = monotonic() + FLUSH_S
    with without_sigpipe():
        for name, each in targets():
            left = max(0.0, until - monotonic())
            try:
                if not writable(each, left):
                    raise HeldUp
                with limit(max(left, 0.01)):
                    _flush(each)
            except HeldUp:
                given_up.append(name)
            except Exception:
                pass
            else:
                continue
            if discard:
                _discard(each)
    return given_up


def flush_beside(left: Targets | None = None) -> list[str]:
    """Flush in a thread beside this one, which nothing can hold up; return the names of what is left after FLUSH_S."""
    todo = targets() if left is None else left
    ended = _thread.allocate_lock()

    def run() -> None:
        while todo:
            try:
                _flush(todo[0][1])
            except BaseException:
                pass
            del todo[0]
        ended.release()

    ended.acquire()
    with without_sigpipe():
        try:
            _thread.start_new_thread(run, ())
        except RuntimeError:  # no more threads: the master's deadline has to do
            run()
        ended.acquire(timeout=FLUSH_S)
    return [name for name, _ in todo]


def _flush(target: Any) -> None:
    if not isinstance(target, logging.Handler):
        target.flush()
        return
    target.acquire()  # as logging.shutdown() does: who holds it for ever would hold that up, too
    try:
        target.flush()
    finally:
        target.release()


def _discard(target: Any) -> None:
    """Make Python's own end do without this stream's text, or this handler's flush and close."""
    if isinstance(target, logging.Handler):
        references = logging._handlerList  # type: ignore[attr-defined]
        references[:] = [each for each in references if each() is not target]
    else:
        with contextlib.suppress(Exception):
            flush_into_nothing(target, target.flush)


def flush_into_nothing(stream: Any, flush: Callable[[], object]) -> None:
    """Discard what is in the stream. Raises whatever its methods raise, and OSError."""
    fd = stream.fileno()
    inheritable, kept = os.get_inheritable(fd), os.dup(fd)
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, fd, inheritable)
        os.close(null)
        flush()
    finally:
        os.dup2(kept, fd, inheritable)
        os.close(kept)


def targets() -> Targets:
    """Return the streams and log handlers, each with its name; those that take nothing now are last."""
    found = [("stdout", sys.stdout), ("stderr", sys.stderr)]
    handlers = [reference() for reference in logging._handlerList]  # type: ignore[attr-defined]
    found += [(f"the log handler {type(each).__name__}", each) for each in handlers]
    present = [pair for pair in found if pair[1] is not None]
    return sorted(present, key=lambda pair: not writable(pair[1]))


def given_up_sentence(names: list[str]) -> str:
    return f"could not flush {', '.join(names)} within {FLUSH_S:g} s: what that held is lost"
