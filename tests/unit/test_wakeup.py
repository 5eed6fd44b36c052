"""The wake-up: what ends a wait, from anywhere, without ever raising or waiting."""

import os
import select
import signal
import socket
import stat
import threading

import pytest

from prefork.workers.wakeup import Wakeup
from tests.support.programs.serving import HUNG, descriptors


def readable(wakeup: Wakeup, timeout: float = 0) -> bool:
    return bool(select.select([wakeup.fileno()], [], [], timeout)[0])


def test_wake_and_drain() -> None:
    """A wakeup is readable from the first wake() to drain(), however often it was woken."""
    wakeup = Wakeup()
    assert not readable(wakeup)
    for _ in range(100_000):  # more than fit
        wakeup.wake()
    assert readable(wakeup)
    wakeup.drain()
    assert not readable(wakeup)
    wakeup.drain()  # does not wait
    wakeup.wake()
    assert readable(wakeup)
    wakeup.close()


def test_closed() -> None:
    """Closed it can still be woken, drained and closed, by whoever comes late, and holds no descriptor."""
    before = descriptors()
    wakeup = Wakeup()
    wakeup.close()
    assert descriptors() == before
    for _ in range(2):
        wakeup.wake()
        wakeup.drain()
        wakeup.close()
    assert (wakeup.fileno(), wakeup.write_fileno()) == (-1, -1)


def test_closed_while_it_is_woken() -> None:
    """A wake() of another thread at the moment of close() hits nothing, not even a pipe that nobody can read, and
    nothing is left open."""
    before, sigpipe = descriptors(), signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    for _ in range(300):
        wakeup = Wakeup()
        go_on = threading.Event()

        def wake_for_long(wakeup: Wakeup = wakeup, go_on: threading.Event = go_on) -> None:
            go_on.set()
            for _ in range(50):
                wakeup.wake()

        thread = threading.Thread(target=wake_for_long)
        thread.start()
        assert go_on.wait(HUNG)
        wakeup.close()
        thread.join(HUNG)
    signal.signal(signal.SIGPIPE, sigpipe)
    assert descriptors() == before


def test_as_the_wakeup_fd_of_signals() -> None:
    """A signal whose number Python writes to it wakes it."""
    wakeup = Wakeup()
    handler = signal.signal(signal.SIGUSR1, lambda signum, frame: None)
    before = signal.set_wakeup_fd(wakeup.write_fileno(), warn_on_full_buffer=False)
    try:
        signal.raise_signal(signal.SIGUSR1)
        assert readable(wakeup, HUNG)
    finally:
        signal.set_wakeup_fd(before)
        signal.signal(signal.SIGUSR1, handler)
        wakeup.close()


def test_no_socket() -> None:
    """Nothing of it can be shut down, shutdown(2), by who shares it: that would make it readable for ever."""
    wakeup = Wakeup()
    assert not any(stat.S_ISSOCK(os.fstat(fd).st_mode) for fd in (wakeup.fileno(), wakeup.write_fileno()))
    assert not any(os.get_blocking(fd) or os.get_inheritable(fd) for fd in (wakeup.fileno(), wakeup.write_fileno()))
    wakeup.close()


@pytest.mark.parametrize("closed", [["fileno"], ["write_fileno"], ["fileno", "write_fileno"]])
def test_its_numbers_are_somebody_elses(closed: list[str]) -> None:
    """A number that the program has closed, and that is another file by now, is not written, drained or closed; and
    none is written that nobody could read, which SIGPIPE might make the end."""
    wakeup, before = Wakeup(), signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    theirs = {}
    try:
        for name in closed:
            fd = getattr(wakeup, name)()
            ours, other = socket.socketpair()
            ours.setblocking(False)
            os.close(fd)
            wakeup.wake()
            assert os.dup2(other.fileno(), fd) == fd
            other.close()
            ours.send(b"of a client")
            theirs[fd] = ours
        wakeup.wake()
        wakeup.drain()
        wakeup.close()
        for fd, ours in theirs.items():
            assert os.read(fd, 100) == b"of a client"
            with pytest.raises(BlockingIOError):
                ours.recv(100)
    finally:
        signal.signal(signal.SIGPIPE, before)
        for fd, ours in theirs.items():
            os.close(fd)
            ours.close()
