"""The wake-up: ends the wait of a loop from a signal handler or from another thread.

Owns one non-blocking socket pair and the bytes in it, which mean nothing: what there is to do stands elsewhere, and is
written before `wake()`. Used in every process that has a loop; takes no lock, so that a signal handler may use it too.
"""

import contextlib
import signal
import socket

_QUIET = getattr(socket, "MSG_NOSIGNAL", 0)  # a program may have given SIGPIPE its default action back


class _End(socket.socket):
    """The write end: closed, without a complaint, when nobody holds it any more."""

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # its constructor has failed
            self.close()


class Wakeup:
    """One loop's wake-up. The loop waits for `fileno()` to be readable, then calls `drain()` and looks around.

    Created, drained and closed by the loop; `wake()` is for everybody, at any time.
    """

    def __init__(self) -> None:
        """Raises OSError when descriptors are short, and leaves nothing behind then."""
        self._read, write = socket.socketpair()
        try:
            self._write: _End | None = _End(write.family, write.type, write.proto, write.fileno())
            write.detach()
            self._read.setblocking(False)
            self._write.setblocking(False)
        except OSError:
            self._read.close()
            write.close()
            raise

    def fileno(self) -> int:
        """The read end; -1 when closed."""
        return self._read.fileno()

    def write_fileno(self) -> int:
        """The write end, for `signal.set_wakeup_fd()`, which must be undone before `close()`; -1 when closed."""
        return -1 if self._write is None else self._write.fileno()

    def wake(self) -> None:
        """End the wait that is going on, or the next one. Never waits, never raises: full is as good as written."""
        end = self._write
        if end is not None:
            try:
                end.send(b"\0", _QUIET)
            except OSError:
                pass

    def drain(self) -> None:
        """Forget the wakes until now; the handler of every signal among them has run."""
        try:
            while len(self._read.recv(4096)) == 4096:
                pass
        except OSError:
            pass
        # A call that looks for signals. Since CPython 3.13 nothing else does in a process that was forked by another
        # thread than the main one, as in a pool that serves in a thread: the flag that interrupts Python code is set on
        # the thread that is not there any more.
        signal.pthread_sigmask(signal.SIG_BLOCK, ())

    def close(self) -> None:
        """Give both descriptors back; the write end's only once no `wake()` is under way.

        Closed in the middle of one, its number might by then be a client's connection, and the byte would go there.
        """
        self._read.close()
        self._write = None
