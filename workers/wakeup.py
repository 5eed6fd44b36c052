"""The wake-up: ends the wait of a loop, from a signal handler or from another thread.

Owns one non-blocking pipe and the bytes in it, which carry no meaning: the caller records what there is to do
elsewhere, before it calls `wake()`. Used in every process that has a loop. Must take no lock, so that a signal handler
may use it too. A pipe, for a pair of sockets can be shut down, shutdown(2), and then looks readable for ever.
"""

import _signal  # type: ignore[import-not-found]  # `signal` would make enums of the result
import contextlib
import os
import signal

from .identity import identity, lost


class _Pipe:
    """Both ends, closed together when nothing refers to them any more.

    A number is read, written and closed only if it is still ours. The program may have closed it, as daemons close all
    that is open; by now the listener may have it. Nothing is written where that is so of the end to read: the program
    may have restored the default action of SIGPIPE, which is deadly.
    """

    def __init__(self) -> None:
        if hasattr(os, "pipe2"):
            self.ends = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        else:
            self.ends = os.pipe()
            for end in self.ends:
                os.set_blocking(end, False)
        self.known = identity(self.ends[0]), identity(self.ends[1])

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # the constructor failed
            for end, known in zip(self.ends, self.known, strict=True):
                if not lost(end, known):
                    os.close(end)


class Wakeup:
    """One loop's wake-up. The loop waits for `fileno()` to be readable, calls `drain()` and checks what there is to do.

    The loop creates, drains and closes it; anyone may call `wake()`, at any time.
    """

    def __init__(self) -> None:
        """Create the pipe. Raises OSError when descriptors are short, and then leaves nothing open."""
        self._pipe: _Pipe | None = _Pipe()

    def fileno(self) -> int:
        """Return the descriptor of the read end; -1 when closed."""
        return -1 if self._pipe is None else self._pipe.ends[0]

    def write_fileno(self) -> int:
        """Return the descriptor of the write end, or -1 when closed.

        For `signal.set_wakeup_fd()`, which must be undone before `close()`.
        """
        return -1 if self._pipe is None else self._pipe.ends[1]

    def wake(self) -> None:
        """End the current wait, or the next one. Never blocks or raises: a full buffer means a wake-up is pending."""
        if (pipe := self._pipe) is not None:
            (read, write), (read_known, write_known) = pipe.ends, pipe.known
            try:
                if not (lost(read, read_known) or lost(write, write_known)):
                    os.write(write, b"\0")
            except OSError:
                pass

    def drain(self) -> None:
        """Discard the wake-ups so far, and run the handlers of the signals among them."""
        if (pipe := self._pipe) is not None and not lost(pipe.ends[0], pipe.known[0]):
            try:
                while len(os.read(pipe.ends[0], 4096)) == 4096:
                    pass
            except OSError:
                pass
        # This call checks for pending signals. Since CPython 3.13 nothing else does in a process that was forked by a
        # thread other than the main one, as in a pool that serves in a thread: the flag that interrupts Python code is
        # set on a thread that no longer exists.
        _signal.pthread_sigmask(signal.SIG_BLOCK, ())

    def close(self) -> None:
        """Close both descriptors, once no `wake()` is under way.

        If they were closed in the middle of one, a number could be reused for a client's connection, which would get
        the byte; and a write to a pipe that nobody can read is a SIGPIPE.
        """
        self._pipe = None
