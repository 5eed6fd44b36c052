"""The worker in front of a queue of datagrams, and the others, which stand aside while it keeps up.

    woken ─▶ in front? ─ yes ─▶ serves; while others are aside it winds the timer
                 └─ no ──▶ serves what is queued; was that short? ─ yes ─▶ aside, until the timer ends ─▶ waits again

A worker that has just answered is not waiting yet when the next datagram comes, so the kernel wakes another one, though
the first would have been there in 4 µs. Then each datagram costs a sleep and a wake-up, half of what it costs at all.
So who finds that another one is in front, and that nothing is left in the queue, stays away from it for a while. It
sleeps until a timer ends that all of them share. The one in front winds that up. If it does not, be it that its handler
takes long, that more comes than it can serve, that it has ended or that nothing comes any more, one of the others is
back after BACK_AFTER_NS, and each further one after NEXT_NS more. Whichever finds a datagram then is in front.

Made by the master before the first fork, for a pool of one datagram socket without threads. Owns two words of memory
and a timer (timerfd_create(2)), which every worker writes, without a lock: a race of two costs a wake-up. No word is
used as an address, a pid or an index, and whatever stands there, nobody is away for longer than MOST_NS at a time.
"""

import ctypes
import mmap
import os
import select
import struct
from collections.abc import Callable, Sequence
from time import CLOCK_MONOTONIC, monotonic_ns
from typing import Any

from .lanes import NEVER_NS

BACK_AFTER_NS = 2_000_000
NEXT_NS = 1_000_000
WOUND_EVERY_NS = 700_000  # by the one in front, which costs it a microsecond
MOST_NS = 50_000_000  # each looks so often; with 20 ms sixteen workers cost a tenth more
SHORT_NS = 50_000  # beside a handler that takes longer a wake-up costs little, and others are wanted meanwhile
RECENTLY_NS = 10_000_000  # who is not woken again in this time need not stay away

IN_FRONT, UNTIL = 0, 1  # the words: who is (its pid, known to itself alone); when nobody is aside any more

_libc = ctypes.CDLL(None, use_errno=True)
_create: Any = getattr(_libc, "timerfd_create", None)
_settime: Any = getattr(_libc, "timerfd_settime", None)


Note = Callable[[list[tuple[int, int]]], None]


def _once(after_ns: int) -> bytes:
    return struct.pack("@4l", 0, 0, 0, after_ns)  # struct itimerspec: no interval, then seconds and nanoseconds


_BACK, _NEXT = _once(BACK_AFTER_NS), _once(NEXT_NS)


class Front:
    """The memory and the timer that the workers of a pool share."""

    def __init__(self) -> None:
        """Raises OSError where there is no memory or no descriptor for it."""
        self.words = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")
        self.timer: int = _create(CLOCK_MONOTONIC, os.O_CLOEXEC)
        if self.timer == -1:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def wind(self) -> None:
        """Have the timer end BACK_AFTER_NS from now."""
        _settime(self.timer, 0, _BACK, None)

    def let_next(self) -> None:
        """Have it end NEXT_NS from now, for the next one that is aside."""
        _settime(self.timer, 0, _NEXT, None)

    def close(self) -> None:
        os.close(self.timer)


class Standing:
    """The place of one worker among the others; without a `front` there are none.

    `heard`: what it must hear while it is aside; `note` is called with what has become readable then.
    """

    def __init__(self, front: Front | None, heard: Sequence[int], note: Note) -> None:
        self.words: Any = (0,) if front is None else front.words
        self.me = 0 if front is None else os.getpid()
        self.at_ns = NEVER_NS if front is None else 0  # when to call `came()` for the first time
        self._note = note
        self._back = False  # the timer has ended, and no datagram come since
        self._beside_ns = 0  # when it last found that it was not needed
        if front is not None:
            self._front = front
            self._epoll = select.epoll()
            self._epoll.register(front.timer, select.EPOLLIN | select.EPOLLEXCLUSIVE)  # of several, one is back
            for fd in heard:
                self._epoll.register(fd, select.EPOLLIN)

    def came(self, now_ns: int) -> int:
        """Note that a wait has ended. Return when to call this again; 0, at once, where another is in front."""
        words = self.words
        if words[IN_FRONT] != self.me:
            if words[IN_FRONT] and not self._back:
                return 0
            words[IN_FRONT] = self.me
        self._back = False
        if words[UNTIL] > now_ns:
            self._front.wind()
        return now_ns + WOUND_EVERY_NS

    def stand_aside(self, now_ns: int, took_ns: int) -> None:
        """Leave the queue, which is empty, to who is in front, as long as that keeps up; return when it does not.

        `took_ns`: the last handler of this worker's. Returns at once after a long one, and if it seldom comes to this.
        """
        beside_ns, self._beside_ns = self._beside_ns, now_ns
        if took_ns > SHORT_NS or now_ns - beside_ns > RECENTLY_NS:
            return
        self.words[UNTIL] = now_ns + MOST_NS
        self._front.wind()
        ready = self._epoll.poll(MOST_NS / 1_000_000_000, 3)
        self._beside_ns = monotonic_ns()
        if (self._front.timer, select.EPOLLIN) in ready:
            self._front.let_next()
            self._back = True
        self._note(ready)

    def leave(self) -> None:
        """Let the next one be in front at once."""
        if self.me and self.words[IN_FRONT] == self.me:
            self.words[IN_FRONT] = 0
