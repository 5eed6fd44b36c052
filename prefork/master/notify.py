"""Messages to the service manager: notices (sd_notify(3)) and the watchdog.

Runs in the master, as a part of the supervisor's turn, so that the watchdog is fed by that loop and by nothing else.
Owns the socket to the manager. Must not decide anything about the service: facts in, messages out.
"""

import errno
import logging
import socket
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from math import inf
from time import monotonic
from typing import NamedTuple

from prefork.metrics.log_events import LogEvent, event

from ..errors import reason_of
from ..systemd import given, stored_name
from .policy import Phase

log = logging.getLogger("prefork.supervisor")


EXTEND_EVERY_S = 5.0
EXTEND_BY_S = 15.0
STATUS_EVERY_S = 1.0  # between two status lines while the state stays the same
RETRY_S = 0.1  # after a message that the manager did not take


class Announced(Enum):
    """The state that the manager was last told, with its assignment for it."""

    BOOTING = ""
    READY = "READY=1"
    RELOADING = "RELOADING=1"
    STOPPING = "STOPPING=1"


class NotifyFacts(NamedTuple):
    """The service as the supervisor knows it. Times are in seconds."""

    phase: Phase
    ready: int
    starting: int
    leaving: int
    enough: int  # workers that must be READY before the service is
    boot_timeout: float
    reloading: bool = False
    degraded: str = ""

    @property
    def ending(self) -> bool:
        return self.phase in (Phase.DRAINING, Phase.STOPPING, Phase.STOPPED)


def status_line(facts: NotifyFacts) -> str:
    """Return the state of the service in one line, for people."""
    left = facts.ready + facts.starting + facts.leaving
    match facts.phase:
        case Phase.STOPPED:
            return "stopped"
        case Phase.DRAINING | Phase.STOPPING:
            return f"{'draining' if facts.phase is Phase.DRAINING else 'stopping'}: {_workers(left)} left"
    word = "starting" if facts.phase is Phase.STARTING else "reloading" if facts.reloading else "serving"
    short = f" of {facts.enough}" if facts.ready < facts.enough else ""
    text = f"{word}: {facts.ready}{short} {'worker' if facts.ready == 1 and not short else 'workers'}"
    text += f", {facts.starting} starting" if facts.starting else ""
    text += f", {facts.leaving} draining" if facts.leaving else ""
    return f"degraded: {facts.degraded.splitlines()[0]}; {text}" if facts.degraded else text


def _workers(count: int) -> str:
    return f"{count} worker" if count == 1 else f"{count} workers"


class Notices:
    """Decide what to send and when. Pure: no clock, no socket. `resumed`: the previous image announced a reload."""

    def __init__(self, watchdog_s: float | None, now: float, *, resumed: bool = False) -> None:
        self.next_at = now
        self._told = Announced.RELOADING if resumed else Announced.BOOTING
        self._watchdog_s = watchdog_s
        self._watchdog_at = now if watchdog_s is not None else inf
        self._extend_at = now
        self._began = now
        self._status = ""
        self._status_at = now

    def turn(self, facts: NotifyFacts, now: float) -> list[str]:
        """Return the messages to send now, in order; `next_at` is when to call again at the latest."""
        lines = [*self._state(facts, now), *self._extension(facts, now), *self._words(facts, now)]
        messages = ["\n".join(lines)] if lines else []
        if now >= self._watchdog_at and self._watchdog_s is not None:
            self._watchdog_at = now + self._watchdog_s / 2
            messages.append("WATCHDOG=1")
        waiting = self._status_at if status_line(facts) != self._status else inf
        self.next_at = min(self._watchdog_at, self._extend_at if self._extends(facts, now) else inf, waiting)
        return messages

    def _state(self, facts: NotifyFacts, now: float) -> Iterator[str]:
        wanted = self._wanted(facts)
        if wanted is self._told:
            return
        before, self._told = self._told, wanted
        self._extend_at = self._status_at = now  # both are sent with the new state
        yield wanted.value
        if wanted is Announced.RELOADING:
            yield f"MONOTONIC_USEC={int(now * 1e6)}"
        if self._watchdog_s is not None and Announced.RELOADING in (before, wanted):
            # While the new image imports its program the watchdog is not fed.
            pause = facts.boot_timeout if wanted is Announced.RELOADING else 0.0
            yield f"WATCHDOG_USEC={int((self._watchdog_s + pause) * 1e6)}"

    def _wanted(self, facts: NotifyFacts) -> Announced:
        if facts.ending:
            return Announced.STOPPING
        if self._told is Announced.BOOTING:
            return (
                Announced.READY if facts.phase is Phase.RUNNING and facts.ready >= facts.enough else Announced.BOOTING
            )
        return Announced.RELOADING if facts.reloading and not facts.degraded else Announced.READY

    def _extends(self, facts: NotifyFacts, now: float) -> bool:
        """Return whether to ask the manager for more time: it would give up on what outlasts its own timeout."""
        if self._told is Announced.BOOTING:
            return now < self._began + facts.boot_timeout
        return self._told is Announced.RELOADING or (
            self._told is Announced.STOPPING and facts.phase is not Phase.STOPPED
        )

    def _extension(self, facts: NotifyFacts, now: float) -> Iterator[str]:
        if now >= self._extend_at and self._extends(facts, now):
            self._extend_at = now + EXTEND_EVERY_S
            yield f"EXTEND_TIMEOUT_USEC={int(EXTEND_BY_S * 1e6)}"

    def _words(self, facts: NotifyFacts, now: float) -> Iterator[str]:
        words = status_line(facts)
        if words != self._status and (now >= self._status_at or facts.phase is Phase.STOPPED):
            self._status, self._status_at = words, now + STATUS_EVERY_S
            yield f"STATUS={words}"


def address_of(text: str) -> str:
    """Return the address that NOTIFY_SOCKET means; empty, and logged, where it is no path and no abstract name."""
    if text[:1] == "@":
        return "\0" + text[1:]
    if text and text[0] != "/":
        log.warning(
            "could not tell the service manager anything: NOTIFY_SOCKET is %r, no path and no @name",
            text,
            extra=event(LogEvent.NOTIFY_FAILED),
        )
        return ""
    return text


class Notifier:
    """Keep the manager informed, as a part of the supervisor's turn.

    `listeners`: the descriptors that the manager is to keep over a crash, and the addresses asked for, of those that
    are ours alone. `before`: the same of the previous image.
    """

    def __init__(
        self, facts: Callable[[], NotifyFacts], *, resumed: bool,
        listeners: Sequence[tuple[int, str]] = (), before: Sequence[tuple[int, str]] = (),
    ) -> None:  # fmt: skip
        environment = given()
        self._facts = facts
        self._address = address_of(environment.notify)
        self._notices = Notices(environment.watchdog_s, monotonic(), resumed=resumed)
        self._unsent: deque[tuple[str, int | None]] = deque()
        self._kept: list[str] = []
        self._socket: socket.socket | None = None
        if not self._address:
            return
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._unsent.extend((_forget(stored_name(each[1])), None) for each in before if each not in listeners)
        for fd, asked in listeners:
            self._kept.append(stored_name(asked))
            self._unsent.append((f"FDSTORE=1\nFDNAME={self._kept[-1]}", fd))

    def turn(self, now: float) -> float:
        """Send what is new; return when to be called again, on the supervisor's clock, which leaves out our pauses."""
        if self._socket is None:
            return inf
        facts, real = self._facts(), monotonic()
        self._send(self._socket)
        if not self._unsent:  # else the manager is slow, and is told the state of a later turn: nothing piles up
            self._unsent.extend((message, None) for message in self._notices.turn(facts, real))
        while facts.ending and self._kept:  # new clients are to be refused, not queued for nobody
            self._unsent.append((_forget(self._kept.pop()), None))
        self._send(self._socket)
        return now + (RETRY_S if self._unsent else self._notices.next_at - real)

    def _send(self, sock: socket.socket) -> None:
        while self._unsent:
            message, fd = self._unsent[0]
            try:
                # socket.send_fds() ignores its address argument on 3.11.
                rights = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd]))]
                sock.sendmsg([message.encode(errors="backslashreplace")], rights, socket.MSG_NOSIGNAL, self._address)
            except OSError as exc:
                if exc.errno in (errno.EAGAIN, errno.ENOBUFS):
                    return
                log.debug(
                    "could not tell the service manager %r: %s",
                    message,
                    reason_of(exc),
                    extra=event(LogEvent.NOTIFY_FAILED),
                )
            self._unsent.popleft()

    def forget(self) -> None:
        """Close the socket: in a new child, and at the end."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _forget(name: str) -> str:
    return f"FDSTOREREMOVE=1\nFDNAME={name}"
