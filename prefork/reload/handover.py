"""The handover from one image of the master to the next over `exec`, and to a rehearsal: a versioned record, and
descriptors.

Runs in the master on both sides of the exec; the two directions of each part stand side by side here. Owns the form of
the record, and how much of it has been taken. Descriptors keep their numbers; they are inheritable only from
`handed_on()` until `receive()` has read the record in the new image, before any user code runs there.

The record is JSON in a memfd. Memory of another layout must not be read; its counters are in the record by name as
well, so that they go on wherever the name still has a meaning. Longer than most files: that is one contract.
"""

import contextlib
import fcntl
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from prefork.metrics.board import Board, Word, exit_word
from prefork.metrics.facts import ChildKind, ExitReason
from prefork.metrics.log_events import LogEvent, event
from prefork.metrics.scoreboard import FIRST_LISTENER, Slot, SlotReader, Stacks, leave_to_drain
from prefork.workers.accepting import is_shut
from prefork.workers.identity import CLOSED_BY_PROGRAM, Descriptors
from prefork.workers.signals import Signals

from .. import systemd
from ..errors import PreforkError
from ..master.children import Child, ChildState
from ..sockets.addresses import over
from ..sockets.kept_paths import is_one_of, keep_path_of, listened_on
from ..sockets.listener import Listener, listener_names
from ..sockets.mending import LISTENS_AGAIN, listen_again, say_shut
from ..sockets.options import SocketOptions
from ..sockets.unix_paths import identity_of

log = logging.getLogger("prefork.supervisor")

VERSION = 6  # raised when the record needs a new value, or one changes its meaning
READABLE = (2, 3, 4, 5, 6)  # the versions that this code can go on with
# The counters with which a board of another layout can go on.
NAMED = (
    Word.SPAWNED, Word.LOST, Word.TIMED_OUT, Word.WORDS_REJECTED, Word.SATURATED_NS, Word.CPU_USER_NS,
    Word.CPU_SYSTEM_NS, Word.LOG_DROPPED, Word.STARTED_AT_NS, Word.DATAGRAMS_TRUNCATED,
)  # fmt: skip


class Record:
    """The record to hand on: values that JSON can hold, and the descriptors that they name."""

    def __init__(self, values: dict[str, Any], fds: Sequence[int] = ()) -> None:
        self.values = values
        self.fds = list(fds)

    def add(self, name: str, packed: tuple[Any, Sequence[int]]) -> None:
        """Add the values and descriptors of one part, as its `pack()` returns them."""
        self.values[name], fds = packed
        self.fds += fds


@contextlib.contextmanager
def handed_on(record: Record) -> Iterator[int]:
    """Yield a descriptor of the record. Inside, it and all descriptors of the record survive an exec.

    Undone on the way out, which is reached only if there was no exec.
    """
    import json

    fd = os.memfd_create("prefork-handover", 0)  # closed by the image that receives it
    try:
        os.write(fd, json.dumps({"version": VERSION, "fds": record.fds, **record.values}).encode())
        for each in record.fds:
            os.set_inheritable(each, True)
        yield fd
    finally:
        for each in record.fds:
            with contextlib.suppress(OSError):
                os.set_inheritable(each, False)
        os.close(fd)


SPARES_FROM = 512  # above what such programs close, below the usual soft limit
METRICS = "metrics"
# By whoever serves; the program may have another listener.
NEEDED = ("metrics", "control", "board", "companions", "connections", "queues")


class Handed:
    """The record that this image received. `rehearsal`: this process is a trial, and owns none of it.

    The program gets the descriptors themselves, and may close them by failing; a spare of each is kept until a
    supervisor has taken them over.
    """

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values
        self.rehearsal = "pipe" in values
        self.taken = False  # a supervisor has taken over: from here on the end of the program ends the service
        self.early: Signals | None = None  # notes the signals that come before the pool takes them
        self.on_taken: Callable[[], None] = lambda: None
        self._board: Board | None = None
        self._given: dict[str, Listener] = {}
        self._lent: list[socket.socket] = []
        self._spares: dict[int, int] = {}
        first = _fds_of(values, *listener_names(values), *NEEDED)
        self._descriptors = Descriptors(*first)
        try:
            for fd in dict.fromkeys((*first, *values.get("fds", ()))):
                self._spares[fd] = _spare(fd)
        except OSError:  # none is free: without spares of the children the service goes on, without the first it cannot
            if not {*first} <= {*self._spares}:
                self._close_spares()
                raise

    @property
    def roles(self) -> list[str]:
        """The names of the listeners in the record: those of the service, and that of its metrics."""
        return [*listener_names(self.values), *([METRICS] if METRICS in self.values else [])]

    def listener(self, asked: str) -> Listener | None:
        """Return the listener of the service that was asked for by the same `asked`, once; None if there is none."""
        found = (self._asked_for(name, asked) for name in listener_names(self.values))
        return next(filter(None, found), None)

    def metrics(self, asked: str) -> Listener | None:
        """Return the listener of the metrics, as `listener()` does one of the service's."""
        return self._asked_for(METRICS, asked)

    def _asked_for(self, name: str, asked: str) -> Listener | None:
        """Return the socket of that role if it was asked for so.

        None as well if its Unix path was removed or replaced: a new one has to be bound, or no client finds us.
        """
        packed = self.values.get(name)
        if packed is None or packed["asked"] != asked or name in self._given or has_lost_its_path(packed):
            return None
        return self.resume(name)

    def resume(self, name: str) -> Listener:
        """Return the socket of that role as it is, whoever asks for it."""
        self.require(name)
        return self._resumed(name, self.values[name]["fd"])

    def again(self, before: Listener) -> Listener:
        """Return this socket once more, under another descriptor: the program has closed the first."""
        name = next(name for name, listener in self._given.items() if listener is before)
        return self._resumed(name, os.dup(self._spares[self.values[name]["fd"]]))

    def _resumed(self, name: str, fd: int) -> Listener:
        packed = self.values[name]
        listener = self._given[name] = Listener.resume(fd, quiet=self.rehearsal)
        self.lend(listener)
        if (where := packed.get("name")) is not None and not self.rehearsal and is_shut(fd):
            # An old worker has shut it down since the exec; the program would only listen.
            with contextlib.suppress(OSError):
                listen_again(listener, tuple(where), listener.backlog)
                say_shut(tuple(where), LISTENS_AGAIN)
        listener.asked, listener.inherited = packed["asked"], packed["inherited"]
        listener.options = SocketOptions(packed.get("options", ()))
        listener.number = packed.get("number", 0)
        if listener.inherited:
            keep_path_of(listener)
        return listener

    def moved(self, before: Listener, after: Listener, sock: socket.socket) -> None:
        """Note that `after` knows from now on what `before` did, and that `sock` has the descriptor (TLS).

        One of another number, such as a duplicate, is the program's own to close.
        """
        for name, listener in self._given.items():
            if listener is before:
                self._given[name] = after
                if sock.fileno() == self.values[name]["fd"]:
                    self.lend(sock)

    def board(self) -> Board:
        if self._board is None:
            self._board = resume_board(self.values["board"])
            fold_own(self.values["own"], self._board)
            self.values["own"] = []
        return self._board

    def take(self) -> None:
        """Give the program for good what was lent to it, and with it the duty to remove Unix paths.

        `on_taken` is called first, while a program that fails can still be gone on without.
        """
        self.on_taken()
        self.taken = True
        for name, listener in self._given.items():
            packed = self.values[name]
            listener.path, listener.identity = packed["path"], tuple(packed["identity"] or ()) or None
        self._lent.clear()
        self._close_spares()

    def lend(self, sock: socket.socket) -> None:
        """Note a socket object whose descriptor is only lent until `take()`."""
        self._lent.append(sock)

    def keeps(self, path: str) -> bool:
        """Return whether the service is found by this path: the program must not remove it before it serves."""
        paths = [self.values.get("control_path"), *((self.values[name] or {}).get("path") for name in self.roles)]
        return not self.taken and is_one_of(path, filter(None, paths)) and listened_on(path)

    def detach(self) -> None:
        """Detach every lent socket after the program failed, so that no object left behind closes its descriptor."""
        while self._lent:
            self._lent.pop().detach()

    def forget(self) -> None:
        """Leave it all to the service, in a process that the program has forked, which must not hold the ports."""
        global _handed
        _handed = None
        for name in () if self.taken else {*self.roles} - {*self._given}:
            with contextlib.suppress(OSError):
                os.close(self.values[name]["fd"])
        self._close_spares()

    @property
    def spares(self) -> int:
        """The number of descriptors that are open only until the program has taken over."""
        return len(self._spares)

    def require(self, *names: str) -> None:
        """Raise PreforkError if the program has closed what was handed over under one of these names."""
        fds = _fds_of(self.values, *names)
        if fds and self._descriptors.lost(*fds):
            raise PreforkError(f"could not take over: {CLOSED_BY_PROGRAM}")

    def _close_spares(self) -> None:
        while self._spares:
            with contextlib.suppress(OSError):  # the program has closed it
                os.close(self._spares.popitem()[1])

    def vanished(self, name: str) -> Listener | None:
        """Return the socket of that role if the program did not ask for it; else None."""
        return None if self.values.get(name) is None or name in self._given else self.resume(name)

    def take_back(self) -> None:
        """Restore, after the program failed, the descriptors that it may have closed. Raises PreforkError if it has
        closed the spares as well."""
        self.detach()
        self._given.clear()
        self._board = None
        for fd, spare in self._spares.items():
            with contextlib.suppress(OSError):
                os.dup2(spare, fd, inheritable=False)
        self.require(*listener_names(self.values), *NEEDED)


def _fds_of(values: Mapping[str, Any], *names: str) -> list[int]:
    """Return the descriptors that the record has under these names."""
    found = (values[name] for name in names if values.get(name))
    return [fd for packed in found for fd in (packed["fds"] if "fds" in packed else [packed["fd"]])]


def _spare(fd: int) -> int:
    """Return a duplicate, with a high number if there may be such: a program that closes what it has not opened begins
    at the low ones."""
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, SPARES_FROM)
    except (OSError, ValueError):
        return os.dup(fd)


def has_lost_its_path(packed: Mapping[str, Any]) -> bool:
    """Return whether the Unix path of this packed listener was removed, or leads to something else by now."""
    return packed["path"] is not None and identity_of(packed["path"]) != tuple(packed["identity"] or ())


_handed: Handed | None = None


def receive(fd: int) -> Handed:
    """Read the record that the previous image left in `fd`. Raises ValueError for a version this code cannot read."""
    global _handed
    import json

    values = json.loads(os.pread(fd, os.fstat(fd).st_size, 0))
    for each in values["fds"]:
        os.set_inheritable(each, False)
    if values["version"] not in READABLE:
        os.close(fd)
        raise ValueError(f"the record is of version {values['version']}, not {VERSION}")
    systemd.keep_only(set(values.get("passed", values["fds"])))
    _handed = Handed(values)
    os.close(fd)  # last of all: if anything before fails, the record can be read again
    return _handed


def handed() -> Handed | None:
    """Return what this process received at its start; None if nothing, or if it has been taken."""
    return None if _handed is None or _handed.taken else _handed


def pack_listener(listener: Listener, fd: int) -> tuple[dict[str, Any], list[int]]:
    """Pack a listener. `fd` is given because an object of the program's may have the descriptor (TLS)."""
    return {
        "fd": fd, "asked": listener.asked, "inherited": listener.inherited, "path": listener.path,
        "identity": listener.identity, "options": listener.options, "number": listener.number, "name": _port(fd),
    }, [fd]  # fmt: skip


def _port(fd: int) -> Any:
    """Return the name of a listener of TCP; None of any other."""
    sock = over(fd, socket.socket)
    try:
        return None if sock.type != socket.SOCK_STREAM or sock.family == socket.AF_UNIX else sock.getsockname()
    finally:
        sock.detach()


# The board and the totals.


def pack_board(board: Board) -> tuple[dict[str, Any], list[int]]:
    words = board.words
    return {
        "fd": board.fd,
        "words": {word.name: words[word] for word in NAMED},
        "exits": {reason.name: words[exit_word(reason)] for reason in ExitReason},
    }, [board.fd]


def resume_board(packed: dict[str, Any]) -> Board:
    """Return the same board; or, if it is of another layout, a new one that goes on with the counters by name."""
    try:
        return Board(packed["fd"])
    except ValueError as exc:
        why = str(exc)  # a log record that keeps the exception would keep its frames, and with them the memory
        log.warning(
            "the totals of the previous image cannot be read whole (%s): those without a name begin anew",
            why,
            extra=event(LogEvent.TOTALS_PARTLY_READ),
        )
    os.close(packed["fd"])
    board = Board()
    with board.change() as words:
        for name, value in packed["words"].items():
            if name in Word.__members__:
                words[Word[name]] = value
        for name, value in packed["exits"].items():
            if name in ExitReason.__members__:
                words[exit_word(ExitReason[name])] = value
    return board


# Children.

_PLAIN = ("serial", "number", "generation", "pid", "pidfd", "started", "changed", "booted", "deadline", "lifetime",
          "cut_at")  # fmt: skip


def pack_child(child: Child) -> tuple[dict[str, Any], list[int]]:
    values = {name: getattr(child, name) for name in _PLAIN}
    values |= {
        "kind": child.kind.name, "state": child.state.name, "reason": child.reason and child.reason.name,
        "slot": child.slot.fd, "name": child.name, "drain_signal": int(child.drain_signal),
        "cut_for": child.cut_for.name, "cut_tried_ns": child.cut_tried_ns, "listeners": child.slot.listeners,
    }  # fmt: skip
    return values, [child.pidfd, child.slot.fd]


def resume_child(packed: dict[str, Any], board: Board) -> Child:
    """Return the child, with its row on the board; with an empty slot if its own is of another layout."""
    kind, number = ChildKind[packed["kind"]], packed["number"]
    if "stacks" in packed:  # version 2 had a separate descriptor for them
        os.close(packed["stacks"])
    try:
        slot = Slot.resume(packed["slot"], packed.get("listeners", FIRST_LISTENER))
        reader = SlotReader(slot, number)
        board.resume(packed["serial"], reader)
    except (ValueError, KeyError):
        leave_to_drain(packed["slot"])
        slot = Slot(0)
        reader = SlotReader(slot, number)
        packed["serial"] = board.enter(kind, reader)
    return Child(
        kind=kind, state=ChildState[packed["state"]], slot=slot, stacks=Stacks(slot), reader=reader,
        reason=None if packed["reason"] is None else ExitReason[packed["reason"]], name=packed.get("name", ""),
        drain_signal=packed.get("drain_signal", signal.SIGTERM),
        cut_for=ExitReason[packed.get("cut_for", "TIMEOUT")], cut_tried_ns=packed.get("cut_tried_ns", 0),
        **{name: packed[name] for name in _PLAIN},
    )  # fmt: skip


def pack_own(own: Sequence[tuple[int, Slot]]) -> tuple[list[dict[str, int]], list[int]]:
    """Pack the slots of the master itself, which end with this image: the next one folds them into the totals."""
    return [{"serial": serial, "slot": slot.fd} for serial, slot in own], [slot.fd for _, slot in own]


def fold_own(packed: Sequence[dict[str, int]], board: Board) -> None:
    for each in packed:
        try:
            slot = Slot.resume(each["slot"])
            board.resume(each["serial"], SlotReader(slot))
            board.fold(each["serial"])
        except (ValueError, KeyError):
            os.close(each["slot"])
        else:
            slot.close()
