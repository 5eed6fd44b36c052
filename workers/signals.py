"""Signals as notes: the only place that installs signal handlers, for the master and for its workers alike.

Owns the dispositions that it replaced, and restores them. A handler notes its signal and wakes the loop; the reader of
the notes decides what the signal means. Only the main thread of a process may call `take` and `put_back`
(signal.signal() raises ValueError elsewhere). Longer than most files: nobody else sets a handler or a timer.
"""

import _signal  # type: ignore[import-not-found]  # the C module that `signal` wraps
import contextlib
import faulthandler
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from time import monotonic
from types import FrameType
from typing import Any

from prefork.metrics.loggers import HeldUp

from .holding import held_back
from .wakeup import Wakeup

SignalHandler = Callable[[int, FrameType | None], Any]

# Dispositions that Python installed or the parent left to us: nobody decided to handle the signal.
UNHANDLED = (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler, None)


_TERM, _INT, _DEFAULT = int(signal.SIGTERM), int(signal.SIGINT), int(signal.SIG_DFL)
TERMINALS = (int(signal.SIGTTIN), int(signal.SIGTTOU))
EVERY = frozenset(map(int, signal.valid_signals()))
TIMERS = {
    signal.ITIMER_REAL: signal.SIGALRM, signal.ITIMER_VIRTUAL: signal.SIGVTALRM, signal.ITIMER_PROF: signal.SIGPROF,
}  # fmt: skip

GRACE_S = 0.1  # for what takes a millisecond, after an alarm that a host may have caused which took the processors away
FORGIVES_EVERY_S = 600.0

# By this a master tells its child to drain, after it has written so in the child's slot: from anybody else it does
# nothing, for Python does not tell a handler who has sent it. TERM would not do: it is sent to a whole process group by
# a terminal, a service manager or an operator. This one does nothing where nobody handles it, as in a process that the
# program forks (signal(7)).
DRAIN_SIGNAL = signal.SIGURG
# By this a master has a child write its stacks in which USR1 has had no effect, because no Python runs there.
STACKS_SIGNAL = signal.SIGRTMAX

# What a process of ours has to hear. A program that blocks signals, for a thread of its own that waits for them, does
# so in its own process: neither a child of that nor the next image has the thread.
HEARD = frozenset(
    map(
        int,
        (
            DRAIN_SIGNAL, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2,
            signal.SIGTTIN, signal.SIGTTOU, signal.SIGALRM, signal.SIGCHLD, STACKS_SIGNAL,
        ),
    )
)  # fmt: skip


def set_mask(mask: Iterable[int]) -> set[int]:
    """Set this thread's signal mask and return the previous one.

    `signal.pthread_sigmask()` would convert both to enums, which costs 0.1 ms at each fork.
    """
    before: set[int] = _signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return before


@contextlib.contextmanager
def blocked() -> Iterator[set[int]]:
    """Block every signal in this thread; yield the previous mask, which is restored at the end."""
    before = set_mask(EVERY)
    try:
        yield before
    finally:
        set_mask(before)


_forgave_at = float("-inf")


def held_up_after(seconds: float) -> AbstractContextManager[None]:
    """As `interrupted_after()`, for what takes no time unless it hangs: a host that was away is no reason."""
    return interrupted_after(seconds, GRACE_S)


@contextlib.contextmanager
def interrupted_after(seconds: float, grace: float = 0.0) -> Iterator[None]:
    """Raise HeldUp in the block once it has taken so long, and again each time it goes on for as long.

    With a grace it is let go on for so much longer, once in FORGIVES_EVERY_S: the machine may have stood still.
    In the main thread only; in another one nothing could. The timer of setitimer(2) may be in use by the program: it
    gets its signal, and what is left of its time, after the block. Nothing is raised on the way into it, or out of it.
    """
    handler = _signal.getsignal(signal.SIGALRM)
    if handler is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    began, over, theirs = monotonic(), False, False
    until = began + seconds

    def on_alarm(signum: int, frame: FrameType | None) -> None:
        global _forgave_at
        nonlocal theirs, until
        now = monotonic()
        if now < until:
            theirs = True
        elif grace and not over and now - _forgave_at >= FORGIVES_EVERY_S:
            _forgave_at, until = now, now + grace
            signal.setitimer(signal.ITIMER_REAL, grace, seconds)
        elif not over and not (frame and frame.f_code in _ON_THE_WAY):
            raise HeldUp

    _signal.signal(signal.SIGALRM, on_alarm)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    mask = _signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    try:
        try:
            yield
        finally:
            over = True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        _signal.signal(signal.SIGALRM, handler)
        set_mask(mask)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (monotonic() - began), 1e-6), interval)
        if theirs:
            signal.raise_signal(signal.SIGALRM)


_MANAGER: Any = type(interrupted_after(0.0))
_ON_THE_WAY = {
    each.__code__
    for each in (interrupted_after.__wrapped__, _MANAGER.__enter__, _MANAGER.__exit__)  # type: ignore[attr-defined]
}


def disarm() -> None:
    """Disarm the interval timers of the previous image, and take the signals that they have sent.

    They outlive an exec and their handlers do not, so the next one would end this process; see setitimer(2). Their
    signals must be blocked.
    """
    for timer in TIMERS:
        signal.setitimer(timer, 0)
    while signal.sigtimedwait(TIMERS.values(), 0):
        pass


def dispose(signums: Iterable[int], how: signal.Handlers) -> None:
    """Give these signals their default action, or have the kernel ignore them."""
    for signum in signums:
        signal.signal(signum, how)


def ignore(signum: int, frame: FrameType | None) -> None:
    """Do nothing. Unlike SIG_IGN, a handler is not inherited by subprocesses (execve(2))."""
    let_terminal(signum)


def let_terminal(signum: int) -> bool:
    """Return True for a TTIN or TTOU of a terminal: this process is a background job of it.

    The kernel sends them to the whole group when one of it reads the terminal, or writes there under `stty tostop`, and
    again when the call is repeated after a handler. Ignored, as the signal is from then on, it lets the write through,
    and the read fails (setpgid(2), "A background process group").
    """
    if signum not in TERMINALS or not in_background():
        return False
    signal.signal(signum, signal.SIG_IGN)
    return True


def in_background() -> bool:
    """Return True if this process is a background job of its controlling terminal."""
    for fd in (2, 1, 0, None):
        try:
            return _foreground(fd) != os.getpgrp()
        except OSError:  # not our terminal
            pass
    return False


def _foreground(fd: int | None) -> int:
    """Return the foreground process group of the terminal in `fd`; by default, of the controlling one."""
    if fd is not None:
        return os.tcgetpgrp(fd)
    terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        return os.tcgetpgrp(terminal)
    finally:
        os.close(terminal)


class Signals:
    """The signals that one process has taken over, and the notes of those that arrived."""

    def __init__(self, wakeup: Wakeup, post: Callable[[int], None] | None = None) -> None:
        """Call `post` with each signal that arrives; without it, keep them for `hand_over()`."""
        self._notes: deque[int] = deque()
        self._post = post or self._notes.append
        self._wakeup = wakeup
        self._before: dict[int, Any] = {}
        self._ours: dict[int, SignalHandler] = {}
        self._wrappers: dict[int, SignalHandler] = {}  # of the program's handlers; see `hold_back()`
        self._wakeup_before: int | None = None
        self._stacks: int | None = None  # the descriptor that they are written to

    def note(self, signum: int, frame: FrameType | None = None) -> None:
        self._post(signum)

    def take(self, handlers: Mapping[int, SignalHandler]) -> None:
        """Install these handlers, and the wake-up descriptor that ends a wait when a signal arrives."""
        self._wakeup_before = signal.set_wakeup_fd(self._wakeup.write_fileno(), warn_on_full_buffer=False)
        for signum, handler in handlers.items():
            self._before[signum] = _signal.signal(signum, handler)
            self._ours[signum] = handler

    def write_stacks(self, fd: int) -> None:
        """Have USR1 write the stack of every thread to `fd` while none of them runs: the process would crash if a frame
        ended that is being read. STACKS_SIGNAL writes them at once, wherever the process is.

        Both must be taken. Unchained, faulthandler would leave errno at 0 to the call that the signal came after: an
        EAGAIN or EINTR would be raised as `OSError: [Errno 0]`, which nobody expects.
        """
        self._stacks = fd
        self._ours[signal.SIGUSR1] = self._write_stacks
        _signal.signal(signal.SIGUSR1, self._write_stacks)
        faulthandler.register(STACKS_SIGNAL, file=fd, all_threads=True, chain=True)

    def _write_stacks(self, signum: int, frame: FrameType | None) -> None:
        if self._stacks is not None:
            faulthandler.dump_traceback(self._stacks)

    def keep(self) -> None:
        """Reinstall the handlers of signals that went back to their default action.

        An event loop that ran in a request handler leaves the signals that it used in that state. A handler of the
        program's own stays. Called between requests: two cheap calls tell whether there is anything to do.
        """
        if _signal.getsignal(_TERM) == _DEFAULT or _signal.getsignal(_INT) is signal.default_int_handler:
            for signum, handler in self._ours.items():
                if signal.getsignal(signum) in UNHANDLED:
                    signal.signal(signum, handler)

    def take_unhandled(self, signums: Iterable[int]) -> list[int]:
        """Take over each of these signals that the program does not handle itself; return the others."""
        wanted = list(signums)
        theirs = [signum for signum in wanted if signal.getsignal(signum) not in UNHANDLED]
        self.take(
            {
                signum: self._note_unless_job if signum in TERMINALS else self.note
                for signum in wanted
                if signum not in theirs
            }
        )
        return theirs

    def hold_back(self) -> None:
        """Have the program's handlers wait for the end of a `held()` block; outside of any they run at once."""
        for signum in EVERY:
            handler = _signal.getsignal(signum)
            if callable(handler) and signum not in self._before and handler is not signal.default_int_handler:
                wrapper = self._wrappers[signum] = held_back(handler)
                self._before[signum] = signal.signal(signum, wrapper)

    def outlive_readers(self) -> None:
        """Undo the default action of SIGPIPE: a log whose reader is gone, or a pipe of the program's, would end us.

        By a handler, which leaves the default to subprocesses (execve(2)) and is undone in children.
        """
        if _signal.getsignal(signal.SIGPIPE) == _DEFAULT:
            self._before[signal.SIGPIPE] = signal.signal(signal.SIGPIPE, ignore)

    def _note_unless_job(self, signum: int, frame: FrameType | None = None) -> None:
        if not let_terminal(signum):
            self.note(signum, frame)

    def reap_ourselves(self) -> None:
        """Undo an inherited SIG_IGN of SIGCHLD: the kernel would reap children and discard their status (wait(2))."""
        if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
            self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def leave(self) -> None:
        """Restore the dispositions and close our wake-up. A handler that the program installed over ours stays."""
        for signum in list(self._before):
            if signal.getsignal(signum) != self._ours.get(signum):
                del self._before[signum]
        self.put_back()
        self._wakeup.close()

    def hand_over(self, to: "Signals") -> None:
        """Pass the notes taken so far to `to`, after `leave()`."""
        self.leave()
        while self._notes:
            to.note(self._notes.popleft())

    def forget(self) -> None:
        """Restore in a new child what `take` found. SIGCHLD keeps its default action: the child has children, too."""
        self._before.pop(signal.SIGCHLD, None)
        self.put_back()

    def put_back(self, then_block: Iterable[int] = ()) -> None:
        """Restore the dispositions and the wake-up descriptor that `take` found; `then_block` these signals."""
        if self._stacks is not None:
            faulthandler.unregister(STACKS_SIGNAL)
            self._stacks = None
        while self._before:
            signum, handler = self._before.popitem()
            if (wrapper := self._wrappers.pop(signum, None)) is not None and _signal.getsignal(signum) is not wrapper:
                continue  # the program has another handler by now
            # None: the handler was not installed from Python, so Python cannot restore it either.
            _signal.signal(signum, handler if callable(handler) else int(handler or _DEFAULT))
        if self._wakeup_before is not None:
            signal.set_wakeup_fd(self._wakeup_before)
            self._wakeup_before = None
        _signal.pthread_sigmask(signal.SIG_BLOCK, then_block)

    def close(self) -> None:
        """Block every signal, restore the dispositions and close the wake-up. For a process that is about to end."""
        set_mask(EVERY)
        self.put_back()
        self._wakeup.close()

    @staticmethod
    def hold_still(signums: Iterable[int]) -> None:
        """Do nothing on these signals: they are for the master, and came here because a process group was sent them."""
        for signum in signums:
            signal.signal(signum, ignore)

    @staticmethod
    def kill_me_after(seconds: float) -> None:
        """Have the kernel end this process after `seconds`, even inside a C call (SIGALRM with its default action)."""
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))


def handled() -> set[int]:
    """Return the signals for which there is a handler in Python, whoever has installed it."""
    return {int(signum) for signum in signal.valid_signals() if callable(signal.getsignal(signum))}


class Alarm:
    """A deadline for the program in the main thread: `ring` is called when it has passed, and then again and again.

    Made of SIGALRM and the real timer, which a program may take for itself: what it has put there is left alone. The
    period tells our timer from any other.
    """

    PERIOD_S = 0.500_123  # nobody else's

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._cancelled = False
        self._before: Any = signal.SIG_DFL

    def set(self, seconds: float) -> None:
        """Ring in `seconds` for the first time, whatever was set before."""
        before = signal.signal(signal.SIGALRM, self._note)
        if before != self._note:
            self._before = before
        signal.setitimer(signal.ITIMER_REAL, seconds, self.PERIOD_S)

    def cancel(self) -> None:
        """Never ring again. The handler and the timer are put back, each only if it is still ours."""
        self._cancelled = True
        if round(signal.getitimer(signal.ITIMER_REAL)[1], 6) == self.PERIOD_S:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if signal.getsignal(signal.SIGALRM) == self._note:
            signal.signal(signal.SIGALRM, self._before)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if not self._cancelled:
            self._ring()
