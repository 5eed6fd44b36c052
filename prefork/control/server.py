"""The server of the control socket: it accepts clients, reads their commands and answers them.

Runs in the master, as part of the supervisor's turn; it must not start a thread or wait. Owns the listener, an epoll of
it and its clients (one descriptor in the supervisor's own epoll), and the work in progress for each client. A slow,
broken or silent client only loses its connection.
"""

import contextlib
import logging
import select
import socket
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from prefork.metrics.board import Board, Word, control_requests
from prefork.metrics.facts import ControlCommand, ControlResult
from prefork.metrics.kernel import unix_peer
from prefork.metrics.log_events import LogEvent, event

from ..commands import Row
from ..master.guard import attempt, say_failed
from ..master.supervisor import Supervisor
from ..reload.generations import Generations
from ..reload.handover import Record, handed
from ..sockets.listener import Listener
from . import protocol
from .access import CLIENTS_MAX, ControlTerms, resumed_listener, resumed_terms
from .connection import Connection
from .protocol import BadRequest
from .verbs import Answer, PlaceInQueue, Verbs, Work

log = logging.getLogger("prefork.supervisor")

ACCEPTS_A_TURN = 16
LINES_A_TURN = 16  # per client
CONTROL_PAUSE_S = 1.0  # pause after an accept that failed for want of descriptors
WORK_EVERY_S = 0.1


class Session:
    """A connection and the work on its answer."""

    def __init__(self, connection: Connection, since: float, place: PlaceInQueue | None = None) -> None:
        self.connection = connection
        self.since = since  # when it connected or got its last answer
        self.work: Work | None = None
        self.place = place or PlaceInQueue()


class ControlServer:
    """The task of the supervisor that serves the control socket."""

    def __init__(self, terms: ControlTerms, listener: Listener, verbs: Verbs, board: Board) -> None:
        self._terms = terms
        self._listener = listener
        self._verbs = verbs
        self._board = board
        self._epoll = select.epoll()
        self._open = listener.fileno() != -1  # otherwise only clients of the previous image are answered
        if self._open:
            self._epoll.register(listener.fileno(), select.EPOLLIN)
        self._accept_again_at: float | None = None
        self._clients: dict[int, Session] = {}
        board.words[Word.CONTROL_OPEN] = self._open

    def fileno(self) -> int:
        return self._epoll.fileno()

    def turn(self, now: float) -> float:
        """Read, work, answer, and drop late clients. Return the time by which to call it again."""
        for fd, _ in self._epoll.poll(0):
            if fd == self._listener.fileno():
                self._accept(now)
            elif fd in self._clients:
                self._guarded(self._hear, self._clients[fd], now)
        for client in list(self._clients.values()):
            self._guarded(self._attend, client, now)
        self._listen_again(now)
        return self._next_at(now)

    def _guarded(self, step: Callable[[Session, float], None], client: Session, now: float) -> None:
        """Run a step for a client. If it raises, drop the client: a bug in an answer must not end the master."""
        if not attempt(f"answer {client.connection.peer} at the control socket", partial(step, client, now)):
            self._drop(client)

    def _attend(self, client: Session, now: float) -> None:
        for _ in range(LINES_A_TURN):
            if client.connection.has_line:
                self._hear(client, now)
        if client.work is not None:
            self._go_on(client, now)
        self._tidy(client, now)

    def _next_at(self, now: float) -> float:
        moments = [self._accept_again_at] if self._accept_again_at is not None else []
        for client in self._clients.values():
            connection = client.connection
            if connection.deadline is not None:
                moments.append(connection.deadline)
            if client.work is not None:
                moments.append(now + WORK_EVERY_S)
            if connection.has_line:
                moments.append(now)
        return min(moments, default=float("inf"))

    # Accepting.

    def _accept(self, now: float) -> None:
        for _ in range(ACCEPTS_A_TURN):
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as exc:
                say_failed("accept on the control socket", exc, f"trying again after {CONTROL_PAUSE_S:g} s")
                self._leave(self._listener.fileno())
                self._accept_again_at = now + CONTROL_PAUSE_S
                return
            try:
                sock.setblocking(False)
                self._admit(sock, now)
            except OSError as exc:
                say_failed("take a client of the control socket", exc)
                self._clients.pop(sock.fileno(), None)
                sock.close()

    def _listen_again(self, now: float) -> None:
        if self._accept_again_at is not None and now >= self._accept_again_at:
            register = partial(self._epoll.register, self._listener.fileno(), select.EPOLLIN)
            heard = attempt("listen at the control socket again", register)
            self._accept_again_at = None if heard else now + CONTROL_PAUSE_S

    def _admit(self, sock: socket.socket, now: float) -> None:
        pid, uid = unix_peer(sock) or (-1, -1)
        peer = self._terms.peer(pid, uid)
        if peer is None:
            self._count(ControlCommand.OTHER, ControlResult.DENIED)
            log.warning(
                "control: uid=%d pid=%d may not use the control socket",
                uid,
                pid,
                extra=event(LogEvent.CONTROL_DENIED, peer=f"uid={uid} pid={pid}"),
            )
            self._turn_away(sock, f"could not ask: uid {uid} may not use this socket; control_allow says who may")
        elif len(self._clients) >= CLIENTS_MAX and not self._make_room():
            self._turn_away(sock, f"there are {CLIENTS_MAX} clients already")
        else:
            self._add(Session(Connection(sock, peer, now), now))

    @staticmethod
    def _turn_away(sock: socket.socket, sentence: str) -> None:
        with sock, contextlib.suppress(OSError):
            sock.send(protocol.line(protocol.error(sentence)), socket.MSG_NOSIGNAL)

    def _make_room(self) -> bool:
        """Drop the client that has been silent for longest. Return True if there was one."""
        silent = [client for client in self._clients.values() if client.connection.reads]
        if silent:
            self._drop(min(silent, key=lambda client: client.since))
        return bool(silent)

    def _add(self, client: Session) -> None:
        fd = client.connection.fileno()
        self._clients[fd] = client
        self._epoll.register(fd, self._wanted(client.connection))

    @staticmethod
    def _wanted(connection: Connection) -> int:
        events = select.EPOLLIN if connection.reads else 0
        return events | (select.EPOLLOUT if connection.out else 0)

    # Reading requests.

    def _hear(self, client: Session, now: float) -> None:
        connection = client.connection
        try:
            if connection.out:
                connection.flush(now)
                return
            line = connection.read() if connection.reads else None
            if line is not None:
                self._obey(client, line, now)
            elif connection.busy:  # an event with nothing to read or write is a hang-up
                self._drop(client)
        except BadRequest as exc:
            self._count(_counted(exc.row), ControlResult.BAD)
            self._say(client, protocol.error(str(exc)), now)
        except OSError:
            self._drop(client)

    def _obey(self, client: Session, line: bytes, now: float) -> None:
        request = protocol.read(line)
        command = _counted(request.row)
        connection = client.connection
        if connection.peer.looks_only and not request.row.looks:
            self._count(command, ControlResult.DENIED)
            log.warning(
                "control: %s may not %s",
                connection.peer,
                request.row.verb,
                extra=event(LogEvent.CONTROL_DENIED, peer=str(connection.peer), verb=request.row.verb),
            )
            self._say(client, protocol.error(f"could not {request.row.verb}: {connection.peer} may only look"), now)
            return
        self._count(command, ControlResult.OK)
        connection.begin()
        answer = self._verbs.answer(request, connection.peer, client.place)
        if isinstance(answer, dict):
            self._say(client, answer, now)
        else:
            client.work = answer

    def _count(self, command: ControlCommand, result: ControlResult) -> None:
        self._board.add(control_requests(command, result))

    # Answering.

    def _say(self, client: Session, message: Answer, now: float) -> None:
        client.since = now
        try:
            client.connection.say(message, now)
        except OSError:
            self._drop(client)

    def _go_on(self, client: Session, now: float) -> None:
        assert client.work is not None
        try:
            said = next(client.work)
            while said is not None:
                self._say(client, protocol.progress(said), now)
                said = next(client.work)
        except StopIteration as ended:
            client.work = None
            client.place = PlaceInQueue()
            self._say(client, ended.value, now)

    def _tidy(self, client: Session, now: float) -> None:
        connection = client.connection
        if connection.fileno() == -1:
            return
        if connection.done or (connection.deadline is not None and now >= connection.deadline):
            self._drop(client)
        else:
            self._epoll.modify(connection.fileno(), self._wanted(connection))

    def _drop(self, client: Session) -> None:
        fd = client.connection.fileno()
        if fd == -1:
            return
        if client.work is not None:
            client.work.close()
            client.work = None
        self._clients.pop(fd, None)
        self._leave(fd)  # close(2) does not unregister while a new child has a copy
        client.connection.sock.close()

    def _leave(self, fd: int) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._epoll.unregister(fd)

    # Handover and end.

    def pack(self, record: Record, now: float) -> None:
        """Hand over the listener and its clients, including those that wait for this reload.

        Nothing is read and nothing is obeyed here: what a client asks for now is for the next image to do.
        """
        for client in list(self._clients.values()):
            if client.work is not None:
                self._guarded(self._go_on, client, now)
        if not self._open:
            return
        clients = list(self._clients.values())
        record.add("control", ({
            "fd": self._listener.fileno(), "path": self._listener.path, "identity": self._listener.identity,
            "terms": [self._terms.path, self._terms.mode, self._terms.owner, sorted(self._terms.may_command),
                      sorted(self._terms.may_look)],
            "clients": [{**client.connection.pack(), "skip": client.place.skip} for client in clients],
        }, [self._listener.fileno(), *(client.connection.fileno() for client in clients)]))  # fmt: skip

    def resume(self, packed: Iterable[dict[str, Any]], now: float) -> None:
        """Take over the clients of the previous image."""
        for values in packed:
            client = Session(Connection.resume(values, now), now, place=PlaceInQueue(values["skip"]))
            if (given := handed()) is not None:
                given.lend(client.connection.sock)
            if client.place.skip is not None:
                client.connection.begin()
                client.work = self._verbs.reload(client.place, asked=True)
            self._add(client)

    def forget(self) -> None:
        """Close the copies in a new child."""
        self._epoll.close()
        self._listener.close()
        for client in self._clients.values():
            client.connection.sock.close()

    def close(self) -> None:
        """Close for good, and remove the path if it is still ours."""
        self._board.words[Word.CONTROL_OPEN] = 0
        self._listener.unlink()
        self.forget()
        self._clients.clear()


def _counted(row: Row | None) -> ControlCommand:
    return ControlCommand.OTHER if row is None else ControlCommand[row.command.name]


def open_control(
    supervisor: Supervisor,
    generations: Generations,
    terms: ControlTerms | None,
    listener: Listener | None,
    packed: dict[str, Any] | None,
) -> None:
    """Listen according to the terms and take over the previous image's clients.

    The clients are taken over even if this image has no control socket, because those that wait for a reload must get
    its result.
    """
    if packed is not None and (listener is None or listener.fileno() != packed["fd"]):
        before = resumed_listener(packed)
        before.unlink()
        before.close()
        listener, terms = listener or before, terms or resumed_terms(packed)
    if listener is None or terms is None:
        return
    control = ControlServer(terms, listener, Verbs(supervisor, generations), supervisor.board)
    control.resume([] if packed is None else packed["clients"], supervisor.clock.now())
    supervisor.tasks.control(control)
    supervisor.tasks.paths.add(listener)
    generations.pack_more = lambda record: control.pack(record, supervisor.clock.now())
