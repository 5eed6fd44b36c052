"""One client of the control socket: its bytes in and out, and how long it may take.

Runs in the master, in its turns; never waits. Owns the descriptor and both buffers. A request must be whole, and an
answer taken, within DEADLINE_S; while the master is at work on an answer the client waits for as long as that takes.
"""

import socket
from dataclasses import dataclass
from typing import Any

from . import protocol

REQUEST_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Peer:
    """Who connected, as the kernel says (SO_PEERCRED), and whether he may only look."""

    pid: int
    uid: int
    looks_only: bool = False

    def __str__(self) -> str:
        return f"uid={self.uid} pid={self.pid}"


class Connection:
    """A client. `busy`: its request is being answered, and nothing more is read."""

    def __init__(self, sock: socket.socket, peer: Peer, now: float) -> None:
        self.sock = sock
        self.peer = peer
        self.busy = False
        self.closing = False  # once the answer is out
        self._in = b""
        self.out = b""
        self._ended = False  # the client has said all
        self.deadline: float | None = now + REQUEST_WITHIN_S

    def fileno(self) -> int:
        return self.sock.fileno()

    @property
    def reads(self) -> bool:
        return not (self.busy or self.closing or self._ended or self.out)

    def read(self) -> bytes | None:
        """The next line, when it is there. Raises BadRequest when it is too long, OSError when the client is gone."""
        try:
            line, self._in = protocol.split(self._in)
            if line is None and not self._ended:
                line = self._receive()
        except protocol.BadRequest:  # nobody knows where the next line would begin
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
        """A request was read: its answer takes as long as it takes."""
        self.busy = True
        self.deadline = None

    def say(self, message: dict[str, Any], now: float) -> None:
        """Put a line out; whatever ends an answer begins the time in which it must be taken."""
        self.out += protocol.line(message)
        if "ok" in message:
            self.busy = False
            self.deadline = now + REQUEST_WITHIN_S
        self.flush(now)

    def flush(self, now: float) -> None:
        """Send what the client takes now. Raises OSError when it is gone."""
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
        """Whether the next request is here already: no event will tell."""
        return self.fileno() != -1 and self.reads and b"\n" in self._in

    @property
    def done(self) -> bool:
        return not self.out and not self.busy and (self.closing or (self._ended and not self._in))

    def pack(self) -> dict[str, Any]:
        """For the next image of this process."""
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
