"""The last flush of what the program has printed and logged, where a process ends without Python's own end.

Runs in the master before an exec, and in a child at its end. A stream or a handler is the program's: it may raise, it
may block on a pipe that nobody reads, and its lock may be held for ever by a thread that did not survive the fork. Must
not wait longer than FLUSH_S in all, nor raise: output that nobody takes, or whose disk is full, is lost.
"""

import _signal  # type: ignore[import-not-found]  # the C module that `signal` wraps, without its enums
import _thread
import contextlib
import ctypes
import logging
import os
import select
import signal
import sys
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any, TypeVar

from prefork.metrics.loggers import HeldUp, Limit, without_sigpipe, writable

from .log_locks import is_alone
from .signals import interrupted_after

FLUSH_S = 0.5
DISOWN_S = 0.1  # for what takes a millisecond: a buffer into /dev/null

Targets = list[tuple[str, Any]]
_T = TypeVar("_T")

_DEFAULT, _ALRM, _PIPE = int(signal.SIG_DFL), int(signal.SIGALRM), int(signal.SIGPIPE)
_OUTPUT = select.poll()
for _fd in (1, 2):
    _OUTPUT.register(_fd, select.POLLOUT)  # one that is closed is reported, too

_alone = False  # in a child: at its fork there was no other thread, which could have held a lock


def _note_threads() -> None:
    global _alone
    _alone = is_alone()


os.register_at_fork(before=_note_threads)


def flush_last() -> list[str]:
    """Flush in a child that is about to end; return the names of what is left.

    A thread costs more than a short request, so it is started only where a lock may be held for ever, and for what
    comes after a flush that does not end.
    """
    todo = _all()
    if not (_alone and is_alone()):
        return flush_beside(todo)
    try:
        with without_sigpipe(), interrupted_after(FLUSH_S / 2):
            while todo:
                with contextlib.suppress(Exception):
                    _flush(todo[0][1])
                del todo[0]
    except HeldUp:
        return [todo[0][0], *flush_beside(todo[1:], FLUSH_S / 2)] if todo else []
    return []


def leave_nothing() -> bool:
    """Flush the standard streams, before a fork; return True if the child finds nothing in its copies.

    CPython flushes them before its own forks, too. Only where that waits for nothing, and the streams are Python's.
    """
    if not (is_alone() and sys.stdout is sys.__stdout__ and sys.stderr is sys.__stderr__ and len(_OUTPUT.poll(0)) == 2):
        return False
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except Exception:  # the disk is full, the reader is gone
        return False
    return True


def flush_briefly() -> bool:
    """Flush in a child that is about to end; return False if it takes more care, as `flush_last()` does.

    If something hangs all the same, SIGALRM ends the child: a limit that lets it live costs more than the flush.
    """
    quiet = _signal.getsignal(_ALRM) == _DEFAULT and _signal.getsignal(_PIPE) != _DEFAULT
    if not (quiet and _alone and is_alone()):
        return False
    # As in leave_nothing(), written out: what one more function writes costs a child more than it does.
    if not (sys.stdout is sys.__stdout__ and sys.stderr is sys.__stderr__ and len(_OUTPUT.poll(0)) == 2):
        return False
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, (_ALRM,))
    _signal.setitimer(_signal.ITIMER_REAL, FLUSH_S)
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except Exception:
            pass
    for reference in logging._handlerList:  # type: ignore[attr-defined]
        handler = reference()
        if handler is not None and handler is not logging.lastResort:  # whose stream is stderr
            with contextlib.suppress(Exception):
                _flush(handler)
    return True


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


def flush_beside(left: Targets | None = None, within_s: float = FLUSH_S) -> list[str]:
    """Flush in a thread beside this one, which nothing can hold up; return the names of what is left after that."""
    todo = targets() if left is None else left
    ended = _thread.allocate_lock()

    def run() -> None:
        while todo:
            with contextlib.suppress(BaseException):
                _flush(todo[0][1])
            del todo[0]
        ended.release()

    ended.acquire()
    with without_sigpipe():
        try:
            _thread.start_new_thread(run, ())
        except RuntimeError:  # no more threads: the master's deadline has to do
            run()
        ended.acquire(timeout=within_s)
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
        _empty("stdout" if target is sys.stdout else "stderr", target, FLUSH_S)


def flush_into_nothing(stream: Any, flush: Callable[[], _T]) -> _T:
    """Discard what is in the stream; return what `flush` does. Raises whatever that raises, and OSError."""
    fd = stream.fileno()
    inheritable, kept = os.get_inheritable(fd), os.dup(fd)
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, fd, inheritable)
        os.close(null)
        return flush()
    finally:
        os.dup2(kept, fd, inheritable)
        os.close(kept)


def disown_output() -> None:
    """Discard, in a new child, our copy of what the master has printed but not flushed; the master writes it itself.

    A thread of the master that was printing at the fork holds the stream's lock for ever here: the child then gets a
    stream of its own in that place.
    """
    for name in ("stdout", "stderr"):
        in_place, pythons = getattr(sys, name), getattr(sys, f"__{name}__")
        # What the program has in that place may be no file, and write into Python's own: that is emptied first.
        for stream in [in_place] if in_place is pythons else [pythons, in_place]:
            if not _alone:
                _empty(name, stream, DISOWN_S)
            else:
                with contextlib.suppress(Exception):  # as there
                    flush_into_nothing(stream, stream.flush)


def disown_records() -> None:
    """Forget, in a new child, the log records that the master's handlers hold back; the master writes them itself."""
    if (handlers := sys.modules.get("logging.handlers")) is None:
        return
    for reference in logging._handlerList:  # type: ignore[attr-defined]
        if isinstance(handler := reference(), handlers.BufferingHandler):
            with contextlib.suppress(Exception):  # it is the program's
                handler.buffer.clear()


def _empty(name: str, stream: Any, within_s: float) -> None:
    """Discard what is in the stream; put a new one in the place of one that a thread hangs in, with its lock."""
    with contextlib.suppress(Exception):  # not a file, or no descriptor is left
        if flush_into_nothing(stream, partial(flush_beside, [(name, stream)], within_s)):
            _renew(name, stream)


def _renew(name: str, stream: Any) -> None:
    fresh = open(  # noqa: SIM115
        stream.fileno(), "w", 1 if stream.line_buffering else -1, stream.encoding, stream.errors, closefd=False
    )
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(stream))  # for good: if it were collected, its close() would hang
    for each in (name, f"__{name}__"):
        if getattr(sys, each) is stream:
            setattr(sys, each, fresh)
    for _, handler in targets():
        if isinstance(handler, logging.StreamHandler) and handler.stream is stream:
            handler.stream = fresh


def targets() -> Targets:
    """Return the streams and log handlers, each with its name; those that take nothing now are last."""
    return sorted(_all(), key=lambda pair: not writable(pair[1]))


def _all() -> Targets:
    found = [("stdout", sys.stdout), ("stderr", sys.stderr)]
    handlers = [reference() for reference in logging._handlerList]  # type: ignore[attr-defined]
    found += [(f"the log handler {type(each).__name__}", each) for each in handlers]
    return [pair for pair in found if pair[1] is not None]


def given_up_sentence(names: list[str]) -> str:
    return f"could not flush {', '.join(names)} within {FLUSH_S:g} s: what that held is lost"
