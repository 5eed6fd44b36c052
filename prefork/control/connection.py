"""One client of the control socket: its input, its output and its deadline.

Runs in the master's turns and must never wait. Owns the descriptor and both buffers. A client must complete a request,
and read an answer, within REQUEST_WITHIN_S; while the master works on the answer there is no deadline.
"""

import socket
from typing import Any, NamedTuple

from . import protocol

REQUEST_WITHIN_S = 5.0


class Peer(NamedTuple):
    """The process at the other end (SO_PEERCRED, see unix(7)); `looks_only` if it has read-only access."""

    pid: int
    uid: int
    looks_only: bool = False

    def __str__(self) -> str:
        return f"uid={self.uid} pid={self.pid}"


class Connection:
    """A client. While `busy`, its request is being answered and nothing is read."""

    def __init__(self, sock: socket.socket, peer: Peer, now: float) -> None:
        self.sock = sock
        self.peer = peer
        self.busy = False
        self.closing = False  # close it when the answer is sent
        self._in = b""
        self.out = b""
        self._ended = False  # the client has shut down its side
        self.deadline: float | None = now + REQUEST_WITHIN_S

    def fileno(self) -> int:
        return self.sock.fileno()

    @property
    def reads(self) -> bool:
        return not (self.busy or self.closing or self._ended or self.out)

    def read(self) -> bytes | None:
        """Return the next line, or None. Raises BadRequest if it is too long, OSError if the client is gone."""
        try:
            line, self._in = protocol.split(self._in)
            if line is None and not self._ended:
                line = self._receive()
        except protocol.BadRequest:  # the start of the next line is unknown
            self.closing = True
            raise
        if line is None and self._ended:
            self.closing = True
        return line

    def _receive(self) -> bytes | None:
        try:
            data = self.sock.recv(protocol.FRAME_MAX + 1 - len(self._in))
        except BlockingIOError:
            return None
        self._ended = not data
        line, self._in = protocol.split(self._in + data, ended=self._ended)
        return line

    def begin(self) -> None:
        """Start answering a request, without a deadline."""
        self.busy = True
        self.deadline = None

    def say(self, message: dict[str, Any], now: float) -> None:
        """Queue a line and send what is possible. The last line of an answer starts the deadline for reading it."""
        self.out += protocol.line(message)
        if "ok" in message:
            self.busy = False
            self.deadline = now + REQUEST_WITHIN_S
        self.flush(now)

    def flush(self, now: float) -> None:
        """Send as much as the client takes now. Raises OSError if it is gone."""
        if self.out:
            try:
                sent = self.sock.send(self.out, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            self.out = self.out[sent:]
            if not self.out and not self.busy:
                self.deadline = now + REQUEST_WITHIN_S

    @property
    def has_line(self) -> bool:
        """True if the next request is in the buffer already, which no event will report."""
        return self.fileno() != -1 and self.reads and b"\n" in self._in

    @property
    def done(self) -> bool:
        return not self.out and not self.busy and (self.closing or (self._ended and not self._in))

    def pack(self) -> dict[str, Any]:
        """Return the state to hand over to the next image of this process."""
        return {
            "fd": self.fileno(), "pid": self.peer.pid, "uid": self.peer.uid, "looks_only": self.peer.looks_only,
            "in": self._in.decode("latin-1"), "out": self.out.decode("latin-1"), "ended": self._ended,
        }  # fmt: skip

    @classmethod
    def resume(cls, packed: dict[str, Any], now: float) -> "Connection":
        sock = socket.socket(fileno=packed["fd"])
        sock.setblocking(False)
        peer = Peer(packed["pid"], packed["uid"], packed["looks_only"])
        connection = cls(sock, peer, now)
        connection._in, connection.out = packed["in"].encode("latin-1"), packed["out"].encode("latin-1")
        connection._ended = packed["ended"]
        return connection
