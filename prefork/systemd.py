"""What a service manager hands to us and is told: sockets (sd_listen_fds(3)), notices (sd_notify(3)), the watchdog.

Runs in the master, as a part of the supervisor's turn, so that the watchdog is fed by that loop and by nothing else.
Owns what it found in the environment and took out of it, so that no worker and no program of theirs inherits it, and
the socket to the manager. Decides nothing about the service: facts in, messages out.
"""

import errno
import logging
import os
import socket
from array import array
from collections import deque
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass
from enum import Enum
from math import inf
from time import monotonic

from .errors import ConfigError
from .policy import Phase

__all__ = ["Facts", "Notices", "Notifying", "descriptor", "stored"]

log = logging.getLogger("prefork.supervisor")

NOT_SET = "LISTEN_FDS is not set; is the service started by its socket unit?"
FIRST_FD = 3  # SD_LISTEN_FDS_START
EXTEND_EVERY_S = 5.0
EXTEND_BY_S = 15.0
STATUS_EVERY_S = 1.0  # of a status that changes by itself
RETRY_S = 0.1  # the manager did not take a message
UNSENT_MAX = 16
STORED = "prefork "  # begins the name of a listener of ours that the manager keeps


# What the manager left in the environment.


@dataclass(frozen=True, slots=True)
class Passed:
    """A socket that the manager passed on."""

    fd: int
    name: str


@dataclass(frozen=True, slots=True)
class Given:
    """Everything that the environment said. `refusal`: why no sockets are ours."""

    passed: tuple[Passed, ...] = ()
    refusal: str = NOT_SET
    notify: str = ""
    watchdog_s: float | None = None


def take(environ: MutableMapping[str, str], pid: int) -> Given:
    """Read the variables and remove them: they are this process's, and no child's."""
    words = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
    found = {word: environ.pop(word, "") for word in words}
    passed, refusal = _passed(found["LISTEN_FDS"], found["LISTEN_PID"], found["LISTEN_FDNAMES"], pid)
    return Given(
        passed, refusal, _address(found["NOTIFY_SOCKET"]), _watchdog(found["WATCHDOG_USEC"], found["WATCHDOG_PID"], pid)
    )


def _passed(count: str, owner: str, names: str, pid: int) -> tuple[tuple[Passed, ...], str]:
    if not count:
        return (), NOT_SET
    if owner != str(pid):
        return (), f"LISTEN_PID is {owner or 'not set'}, and this process is {pid}: they are for another one"
    if not count.isdigit():
        return (), f"LISTEN_FDS is {count!r}, not a number"
    named = names.split(":") if names else []
    named += ["unknown"] * (int(count) - len(named))  # as sd_listen_fds_with_names(3) calls them
    return tuple(Passed(FIRST_FD + index, named[index]) for index in range(int(count))), ""


def _address(text: str) -> str:
    if text[:1] == "@":
        return "\0" + text[1:]
    if text and text[0] != "/":
        log.warning("could not tell the service manager anything: NOTIFY_SOCKET is %r, no path and no @name", text)
        return ""
    return text


def _watchdog(usec: str, owner: str, pid: int) -> float | None:
    if not usec.isdigit() or int(usec) == 0 or owner not in ("", str(pid)):
        return None
    return int(usec) / 1e6


_given: Given | None = None


def given() -> Given:
    """What this process was started with; taken out of the environment at the first call."""
    global _given
    if _given is None:
        _given = take(os.environ, os.getpid())
        for passed in _given.passed:
            try:
                os.set_inheritable(passed.fd, False)
            except OSError:
                pass  # who wants that one is told
    return _given


def descriptor(name: str = "") -> int:
    """The descriptor of the socket that the manager passed on under this name; of the only one without a name.

    For `--bind systemd:NAME`, and for a script: `inherited_fd = prefork.systemd.descriptor("web")`. Raises ConfigError.
    """
    found = find(name)
    if isinstance(found, str):
        raise ConfigError(f"could not take a socket from systemd: {found}")
    return found


def find(name: str) -> int | str:
    """The same, or the reason why there is none."""
    named = [passed for passed in given().passed if not passed.name.startswith(STORED)]
    found = [passed for passed in named if name in ("", passed.name)]
    if len(found) == 1:
        return found[0].fd
    names = ", ".join(sorted({passed.name for passed in named}))
    if not named:
        return given().refusal or "no socket was passed"
    if name:
        return f"{len(found) or 'none'} of the {len(named)} passed is called {name}; there is {names}"
    return f"{len(named)} were passed; say which by systemd:NAME, of {names}"


def stored(asked: str) -> int | None:
    """The listener that an earlier life of this service had there, kept by the manager (FDSTORE) when it crashed."""
    return next((passed.fd for passed in given().passed if passed.name == stored_name(asked)), None)


def stored_name(asked: str) -> str:
    """A name that FDNAME may have: printable ASCII without a colon, at most 255; sd_pid_notify_with_fds(3)."""
    printable = (c if " " <= c <= "~" and c not in ":%" else "".join(f"%{b:02X}" for b in c.encode()) for c in asked)
    return (STORED + "".join(printable))[:255]


# What the manager is told.


class Told(Enum):
    """The state in which the manager believes us; its word for it."""

    BOOTING = ""
    READY = "READY=1"
    RELOADING = "RELOADING=1"
    STOPPING = "STOPPING=1"


@dataclass(frozen=True, slots=True)
class Facts:
    """The service as the supervisor knows it. Times in seconds."""

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
        return self.phase in (Phase.DRAINING, Phase.KILLING, Phase.STOPPED)


def status(facts: Facts) -> str:
    """The service in one line, for people."""
    left = facts.ready + facts.starting + facts.leaving
    match facts.phase:
        case Phase.STOPPED:
            return "stopped"
        case Phase.DRAINING | Phase.KILLING:
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
    """What to say when. Pure: no clock, no socket. `resumed`: an image before has announced a reload."""

    def __init__(self, watchdog_s: float | None, now: float, *, resumed: bool = False) -> None:
        self.next_at = now
        self._told = Told.RELOADING if resumed else Told.BOOTING
        self._watchdog_s = watchdog_s
        self._watchdog_at = now if watchdog_s is not None else inf
        self._extend_at = now
        self._began = now
        self._status = ""
        self._status_at = now

    def turn(self, facts: Facts, now: float) -> list[str]:
        """The messages of this moment, in their order; `next_at` is when to come again at the latest."""
        lines = [*self._state(facts, now), *self._extension(facts, now), *self._words(facts, now)]
        messages = ["\n".join(lines)] if lines else []
        if now >= self._watchdog_at and self._watchdog_s is not None:
            self._watchdog_at = now + self._watchdog_s / 2
            messages.append("WATCHDOG=1")
        waiting = self._status_at if status(facts) != self._status else inf
        self.next_at = min(self._watchdog_at, self._extend_at if self._extends(facts, now) else inf, waiting)
        return messages

    def _state(self, facts: Facts, now: float) -> Iterator[str]:
        wanted = self._wanted(facts)
        if wanted is self._told:
            return
        before, self._told = self._told, wanted
        self._extend_at = self._status_at = now  # with it, at once
        yield wanted.value
        if wanted is Told.RELOADING:
            yield f"MONOTONIC_USEC={int(now * 1e6)}"
        if self._watchdog_s is not None and Told.RELOADING in (before, wanted):
            # While the new image imports its program nobody feeds the watchdog.
            pause = facts.boot_timeout if wanted is Told.RELOADING else 0.0
            yield f"WATCHDOG_USEC={int((self._watchdog_s + pause) * 1e6)}"

    def _wanted(self, facts: Facts) -> Told:
        if facts.ending:
            return Told.STOPPING
        if self._told is Told.BOOTING:
            return Told.READY if facts.phase is Phase.RUNNING and facts.ready >= facts.enough else Told.BOOTING
        return Told.RELOADING if facts.reloading and not facts.degraded else Told.READY

    def _extends(self, facts: Facts, now: float) -> bool:
        """Whether the manager has to be asked for time: it would give up on what takes longer than it was told."""
        if self._told is Told.BOOTING:
            return now < self._began + facts.boot_timeout
        return self._told is Told.RELOADING or (self._told is Told.STOPPING and facts.phase is not Phase.STOPPED)

    def _extension(self, facts: Facts, now: float) -> Iterator[str]:
        if now >= self._extend_at and self._extends(facts, now):
            self._extend_at = now + EXTEND_EVERY_S
            yield f"EXTEND_TIMEOUT_USEC={int(EXTEND_BY_S * 1e6)}"

    def _words(self, facts: Facts, now: float) -> Iterator[str]:
        words = status(facts)
        if words != self._status and (now >= self._status_at or facts.phase is Phase.STOPPED):
            self._status, self._status_at = words, now + STATUS_EVERY_S
            yield f"STATUS={words}"


class Notifying:
    """Keeps the manager told: a part of the supervisor's turn.

    `listener`: the descriptor to be kept over a crash, and what it was asked for, where it is ours alone. `before`:
    what the image before had it asked for.
    """

    def __init__(
        self, facts: Callable[[], Facts], *, resumed: bool, listener: tuple[int, str] | None, before: str = ""
    ) -> None:
        environment = given()
        self._facts = facts
        self._address = environment.notify
        self._notices = Notices(environment.watchdog_s, monotonic(), resumed=resumed)
        self._unsent: deque[tuple[str, int | None]] = deque(maxlen=UNSENT_MAX)
        self._kept = ""
        self._socket: socket.socket | None = None
        if not self._address:
            return
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        if before and (listener is None or before != listener[1]):
            self._unsent.append((_forget(stored_name(before)), None))
        if listener is not None:
            self._kept = stored_name(listener[1])
            self._unsent.append((f"FDSTORE=1\nFDNAME={self._kept}", listener[0]))

    def turn(self, now: float) -> float:
        """Say what is new; when to be called again, on the supervisor's clock, which stops while we are stopped."""
        if self._socket is None:
            return inf
        facts, real = self._facts(), monotonic()
        self._unsent.extend((message, None) for message in self._notices.turn(facts, real))
        if facts.ending and self._kept:
            self._unsent.append((_forget(self._kept), None))  # whoever connects from now on finds nobody, not a queue
            self._kept = ""
        self._send(self._socket)
        return now + (RETRY_S if self._unsent else self._notices.next_at - real)

    def _send(self, sock: socket.socket) -> None:
        while self._unsent:
            message, fd = self._unsent[0]
            try:
                # socket.send_fds() forgets its address on 3.11.
                rights = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd]))]
                sock.sendmsg([message.encode()], rights, 0, self._address)
            except OSError as exc:
                if exc.errno in (errno.EAGAIN, errno.ENOBUFS):
                    return
                log.debug("could not tell the service manager %r: %s", message, exc.strerror)
            self._unsent.popleft()

    def forget(self) -> None:
        """In a new child, and at the end: close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _forget(name: str) -> str:
    return f"FDSTOREREMOVE=1\nFDNAME={name}"
