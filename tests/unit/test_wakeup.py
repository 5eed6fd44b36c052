"""The wake-up: what ends a wait, from anywhere, without ever raising or waiting."""

import select
import signal
import threading

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
    """A wake() of another thread at the moment of close() hits nothing, and nothing is left open."""
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


def test_as_the_wakeup_fd_of_signals() -> None:
    """A signal whose number Python writes to it wakes it; sigpipe being deadly does not matter."""
    wakeup = Wakeup()
    handler = signal.signal(signal.SIGUSR1, lambda signum, frame: None)
    sigpipe = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    before = signal.set_wakeup_fd(wakeup.write_fileno(), warn_on_full_buffer=False)
    try:
        signal.raise_signal(signal.SIGUSR1)
        assert readable(wakeup, HUNG)
        wakeup._read.close()
        wakeup.wake()
    finally:
        signal.set_wakeup_fd(before)
        signal.signal(signal.SIGPIPE, sigpipe)
        signal.signal(signal.SIGUSR1, handler)
        wakeup.close()
