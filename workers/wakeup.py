"""The wake-up: ends the wait of a loop, from a signal handler or from another thread.

Owns one non-blocking socket pair and the bytes in it, which carry no meaning: the caller records what there is to do
elsewhere, before it calls `wake()`. Used in every process that has a loop. Must take no lock, so that a signal handler
may use it too.
"""

import _signal  # type: ignore[import-not-found]  # `signal` would make enums of the result
import contextlib
import signal
import socket

from .identity import identity, lost

_QUIET = getattr(socket, "MSG_NOSIGNAL", 0)  # the program may have restored the default action of SIGPIPE


class _End(socket.socket):
    """An end of the pair; closed without a ResourceWarning when nothing refers to it any more.

    It closes its number only if that is still its own. The program may have closed it, as daemons close all that is
    open; by now the listener may have it.
    """

    def __init__(self, end: socket.socket) -> None:
        super().__init__(fileno=end.fileno())
        end.detach()
        self._identity = identity(self.fileno())
        self.setblocking(False)

    def close(self) -> None:
        if lost(self.fileno(), self._identity):
            self.detach()
        else:
            super().close()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # the constructor failed
            self.close()


class Wakeup:
    """One loop's wake-up. The loop waits for `fileno()` to be readable, calls `drain()` and checks what there is to do.

    The loop creates, drains and closes it; anyone may call `wake()`, at any time.
    """

    def __init__(self) -> None:
        """Create the socket pair. Raises OSError when descriptors are short, and then leaves nothing open."""
        read, write = socket.socketpair()
        with read, write:  # which both are detached, unless one of the next steps fails
            self._read = _End(read)
            self._write: _End | None = _End(write)

    def fileno(self) -> int:
        """Return the descriptor of the read end; -1 when closed."""
        return self._read.fileno()

    def write_fileno(self) -> int:
        """Return the descriptor of the write end, or -1 when closed.

        For `signal.set_wakeup_fd()`, which must be undone before `close()`.
        """
        return -1 if self._write is None else self._write.fileno()

    def wake(self) -> None:
        """End the current wait, or the next one. Never blocks or raises: a full buffer means a wake-up is pending."""
        end = self._write
        if end is not None:
            try:
                end.send(b"\0", _QUIET)
            except OSError:
                pass

    def drain(self) -> None:
        """Discard the wake-ups so far, and run the handlers of the signals among them."""
        try:
            while len(self._read.recv(4096)) == 4096:
                pass
        except OSError:
            pass
        # This call checks for pending signals. Since CPython 3.13 nothing else does in a process that was forked by a
        # thread other than the main one, as in a pool that serves in a thread: the flag that interrupts Python code is
        # set on a thread that no longer exists.
        _signal.pthread_sigmask(signal.SIG_BLOCK, ())

    def close(self) -> None:
        """Close both descriptors; that of the write end only once no `wake()` is under way.

        If it were closed in the middle of one, its number could be reused for a client's connection, which would get
        the byte.
        """
        self._read.close()
        self._write = None
