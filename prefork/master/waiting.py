"""The supervisor's wait: one epoll with the wake-up, the nudge, the pidfds, and at times the listeners.

Runs in the process that serves. Owns the descriptors that are the supervisor's alone, and when each is waited for.
Must not act on what was heard: it returns that, and the rest is the supervisor's business.
"""

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable, Sequence

from prefork.workers.accepting import is_shut
from prefork.workers.kept import QueueEnd
from prefork.workers.wakeup import Wakeup

from .guard import say_failed

NUDGE_EVERY_S = 0.01  # nudges are heard at most this often: a worker cannot keep the master busy with them
REFUSED_S = 0.1  # pause after a wait that the kernel refused
WAIT_AGAIN_S = 1.0  # until a registration that the kernel refused is tried again
RELISTEN_S = 0.02  # until the listeners are waited for again, after one has told of saturation


class Waiting:
    """One wait for everything.

    The nudge is an eventfd that every child may write, created and read here. It means "look at the slots", and nothing
    else.

    The listeners, and the queue of kept connections that are ready, are waited for only to learn of saturation. The
    supervisor is the *last* exclusive waiter, so that a connection wakes it only when no worker waits. Exclusive
    waiters are woken in the order of their registration: in front of a worker it would take that worker's wake-ups. So
    it leaves once it was woken, and whenever a worker became READY, and comes back at the end of the waiters. Workers
    with threads go behind it with each request, and policy has them woken.
    """

    def __init__(
        self,
        wakeup: Wakeup,
        now: Callable[[], float],
        listeners: Sequence[socket.socket | QueueEnd] = (),
        nudge: int | None = None,
    ) -> None:
        """`nudge`: the eventfd of an earlier image of this process, which its children hold."""
        # Both are set here, and reset by the supervisor when it has read them.
        self.saturated = False  # a connection came while no worker was waiting for one
        self.nudged = False
        self._wakeup = wakeup
        self._now = now
        self._listeners = listeners
        self._listening = False
        self._relisten_at = 0.0
        self._deaf_until: float | None = None
        self._nudge = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) if nudge is None else nudge
        try:
            self._epoll = select.epoll()
        except OSError:
            if nudge is None:
                os.close(self._nudge)
            raise
        # For a plain server, which calls them at each fork, without a function of ours:
        self.add_pidfd: Callable[[int], None] = self._epoll.register  # as add(), for a pidfd has one event only
        self.leave = self._epoll.close  # in a new child that ends soon: close what would go on reporting to it
        self._woken = wakeup.fileno()
        self._epoll.register(self._woken, select.EPOLLIN)
        self._epoll.register(self._nudge, select.EPOLLIN | select.EPOLLONESHOT)

    def fileno(self) -> int:
        return self._epoll.fileno()

    def descriptors(self) -> tuple[int, ...]:
        return self._epoll.fileno(), self._wakeup.fileno(), self._wakeup.write_fileno(), self._nudge

    def add(self, fd: int) -> None:
        """Wait for this one, too. Raises OSError when memory is short or max_user_watches is reached; see epoll(7)."""
        self._epoll.register(fd, select.EPOLLIN)

    def take_out(self, fd: int) -> None:
        """Stop waiting for this descriptor, if it was waited for."""
        try:
            self._epoll.unregister(fd)
        except (OSError, ValueError):
            pass

    def pack_nudge(self) -> tuple[int, list[int]]:
        return self._nudge, [self._nudge]

    def remove(self, pidfd: int) -> None:
        """Stop waiting for this pidfd, and close it.

        Closing it alone does not take it out of the epoll while a child that was just forked has a copy.
        """
        try:
            self._epoll.unregister(pidfd)
        except (OSError, ValueError):
            pass
        try:
            os.close(pidfd)
        except OSError:
            pass

    def wait(self, seconds: float) -> set[int]:
        """Wait until something happens, at most `seconds`; return the readable descriptors, pidfds among them."""
        try:
            heard = {*dict(self._epoll.poll(seconds))}  # by no function of ours, which at each fork costs its pages
        except OSError as exc:
            say_failed("wait for what happens", exc)
            time.sleep(min(seconds, REFUSED_S))  # else the master would spin while the kernel goes on refusing
            heard = set()
        if self._woken in heard:
            self._wakeup.drain()
        if self._nudge in heard:
            with contextlib.suppress(OSError):
                os.eventfd_read(self._nudge)
            self.nudged = True
            self._deaf_until = self._now() + NUDGE_EVERY_S
        if self._listening and any(each.fileno() in heard for each in self._listeners):
            self.saturated = True
            self.step_back(RELISTEN_S)
        return heard

    def step_back(self, seconds: float = 0.0) -> None:
        """Leave the listeners to the workers; `listen()` may come back, behind them, after `seconds`."""
        if self._listening:
            self._listening = False
            for each in self._listeners:
                self.take_out(each.fileno())
            self._relisten_at = self._now() + seconds

    def listen(self, wanted: bool) -> None:
        """Learn of saturation from now on if `wanted`, else no longer."""
        if not wanted:
            self.step_back()
        elif not self._listening and self._listeners and self._now() >= self._relisten_at:
            self._listening = True
            try:
                for each in self._listeners:
                    if isinstance(each, QueueEnd) or not is_shut(each.fileno()):  # else it would be told of for ever
                        self._epoll.register(each.fileno(), select.EPOLLIN | select.EPOLLEXCLUSIVE)
            except OSError:
                self.step_back(WAIT_AGAIN_S)  # until then only the tick finds saturation

    def hear_nudges(self) -> None:
        """Wait for the nudge again, once NUDGE_EVERY_S have passed since the last one."""
        if self._deaf_until is not None and self._now() >= self._deaf_until:
            try:
                self._epoll.modify(self._nudge, select.EPOLLIN | select.EPOLLONESHOT)
            except OSError:
                self._deaf_until = self._now() + NUDGE_EVERY_S
            else:
                self._deaf_until = None

    def hear_again(self) -> None:
        """Wait for the nudge again after something was raised in a wait, which may have heard it and forgotten."""
        self.nudged, self._deaf_until = True, self._now()

    def next_at(self, listening: bool) -> float:
        """Return when `hear_nudges()`, or `listen()` if `listening`, must be called again."""
        nudge = self._deaf_until if self._deaf_until is not None else float("inf")
        returns = listening and not self._listening and bool(self._listeners)
        return min(nudge, self._relisten_at if returns else float("inf"))

    def nudge(self) -> None:
        """Wake the master to look at the slots; else it looks when its next turn is due. Called by the children."""
        with contextlib.suppress(OSError):  # BlockingIOError: its counter is full, and the master is woken anyway
            os.eventfd_write(self._nudge, 1)

    def forget(self) -> None:
        """Called in a new child: close its copies of the descriptors, all but the nudge."""
        self._epoll.close()
        self._wakeup.close()

    def close(self) -> None:
        self.forget()
        os.close(self._nudge)
