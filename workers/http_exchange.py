"""The words of a request over HTTP, and of its answer, on the connection after them (RFC 9112, sections 6 and 9).

A client must be able to tell where an answer ends, and a server where a request does: what is left of one would be
taken for the next. http.server leaves both to the program, and wsgiref's answers are for connections that close. So the
answer is watched on its way out, and of the request it is known how far it was read: where either says nothing certain,
the connection is closed. Answers that do not go through `wfile` are not seen. Must not import http.server, and must not
change a byte of an answer, but for the one line by which HTTP/1.0 keeps a connection. Runs where a handler does.
"""

import io
import socket
import sys
from collections.abc import Callable
from typing import Any

from .http_chunks import Chunks
from .idle_waits import is_plain
from .socket_files import SocketReader
from .stay import KeptFile, KeptReader, KeptSocket, peek

_END = b"\r\n\r\n"
_KEEP_ALIVE = b"Connection: keep-alive\r\n"
_INITIALS = b"cCtT"  # of the fields that matter: Connection, Content-Length, Transfer-Encoding
HEAD_MAX = 256 * 1024  # bytes of an answer; one with a longer head is the last of its connection
SKIPPED_MAX = 64 * 1024  # bytes of a request that its handler has not read

HeaderFields = dict[bytes, bytes]


def is_http(cls: type) -> bool:
    """Return True for a handler class of http.server's, and what is built on it."""
    standard = getattr(sys.modules.get("http.server"), "BaseHTTPRequestHandler", None)
    return isinstance(standard, type) and issubclass(cls, standard)


class ParseRequest:
    """The `parse_request()` of a handler class behind a mix-in, which tells an Exchange that the head was read.

    A handler has the exchange as `_prefork_.exchange`. A class without the method is none of http.server's.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._mixin = owner

    def __get__(self, handler: Any, owner: type) -> Any:
        parse: Any = getattr(super(self._mixin, owner if handler is None else handler), "parse_request")  # noqa: B009
        exchange = getattr(getattr(handler, "_prefork_", None), "exchange", None)
        if exchange is None:
            return parse

        def parse_request() -> Any:
            parsed = parse()
            if parsed:
                exchange.head_read(handler)
            return parsed

        return parse_request


class Exchange:
    """The requests and answers of one connection, one after another."""

    def __init__(self, handler: Any) -> None:
        """Watch the files of this handler. It is not held."""
        self._answer = handler.wfile = AnswerFile(handler.wfile)
        rfile = handler.rfile
        if type(rfile) is io.BufferedReader:  # of a connection that is not kept
            rfile = handler.rfile = KeptFile(CountingReader(rfile, rfile.readinto1))
        elif type(rfile) in (SocketReader, socket.SocketIO):
            rfile = handler.rfile = CountingReader(rfile, rfile.readinto)
        self._rfile: Any = rfile if isinstance(rfile, KeptFile | KeptReader | CountingReader) else None
        self._raw: Any = getattr(self._rfile, "raw", self._rfile)
        self._body_at: int | None = None  # in bytes taken from `rfile`; None until the request's head was read

    def begin(self) -> None:
        self._body_at = None
        if self._raw is not None:
            self._raw.chunks = None
        self._answer.begin()

    def head_read(self, handler: Any) -> None:
        """Note what the head of the request says, which http.server's `parse_request()` has read."""
        if self._rfile is not None:
            self._body_at = self._rfile.taken()
            if "Transfer-Encoding" in handler.headers:
                self._raw.chunks = chunks = Chunks()
                chunks.follow(self._rfile.ahead())
        self._answer.expect(keep=not handler.close_connection, old=_is_old(handler.request_version))

    def end(self, handler: Any) -> None:
        """Have the connection closed, where it would not be certain how to go on."""
        if not handler.close_connection and not (
            self._answer.leads_on(handler.command) and self._body_is_read(handler)
        ):
            handler.close_connection = True

    def _body_is_read(self, handler: Any) -> bool:
        """Return True once the request is read to its end. What its handler has left is skipped if it is there."""
        if self._body_at is None:
            return self._rfile is None  # who reads the request in his own way knows where it ends
        taken = self._rfile.taken() - self._body_at
        headers = handler.headers
        if "Transfer-Encoding" in headers:  # the program's to read, if it knows of it: RFC 9112, section 6.1
            certain = "Content-Length" not in headers and not _is_old(handler.request_version)
            return certain and taken > 0 and self._chunks_are_read(handler.request, taken)
        lengths = set(headers.get_all("Content-Length") or ["0"])
        length = lengths.pop()
        if lengths or not (length.isascii() and length.isdigit()):
            return False
        left = int(length) - taken
        return left == 0 or (0 < left <= SKIPPED_MAX and self._skip(handler.request, left))

    def _chunks_are_read(self, request: Any, taken: int) -> bool:
        """Do as `_body_is_read()`: many a program leaves the line after the last chunk."""
        chunks: Chunks = self._raw.chunks
        if not chunks.ended:
            chunks.follow(_not_received(request, SKIPPED_MAX))
        left = chunks.size - taken
        return chunks.ended and (left == 0 or (0 < left <= SKIPPED_MAX and self._skip(request, left)))

    def _skip(self, request: Any, left: int) -> bool:
        at_hand = len(self._rfile.ahead())
        if at_hand < left:
            at_hand += len(_not_received(request, left))
        return bool(at_hand >= left and len(self._rfile.read(left)) == left)


def _not_received(request: Any, most: int) -> bytes:
    """Return what the handler's file has not asked for yet: of what the kernel has at most so many bytes."""
    unread = request.stay.unread if type(request) is KeptSocket and request.stay is not None else b""
    return unread + ((peek(request, most) if is_plain(request) else None) or b"")


class AnswerFile(io.BufferedIOBase):
    """The `wfile` of a handler, over the one that was there: it reads the head of an answer, and counts its body."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.begin()

    def begin(self) -> None:
        """Expect another answer."""
        self._fields: HeaderFields | None = None  # of the answer; None while its head has not ended
        self._head = bytearray()
        self._version = self._status = b""
        self._size = 0  # of the body so far
        self._chunks: Chunks | None = None  # it is in chunks
        self.expect(keep=False, old=False)

    def expect(self, *, keep: bool, old: bool) -> None:
        """`keep`: the client would have the connection kept. `old`: over HTTP/1.0, which must be told that it is."""
        self._keep, self._old = keep, old

    def leads_on(self, command: str) -> bool:
        """Return True if the client knows where this answer ends, and that the connection goes on."""
        fields = self._fields
        if fields is None or not self._version.startswith(b"HTTP/1."):
            return False
        if self._status == b"101":  # another protocol now, of the program's
            return True
        said = fields.get(b"connection", b"").lower()
        if b"close" in said or (self._must_say() and b"keep-alive" not in said):
            return False
        if command == "HEAD" or self._status in (b"204", b"304"):
            return self._size == 0
        if self._chunks is not None:
            return self._chunks.ended and self._chunks.size == self._size
        return fields.get(b"content-length") == b"%d" % self._size

    def _must_say(self) -> bool:
        return self._old or self._version == b"HTTP/1.0"

    def write(self, data: Any, /) -> int:
        size = len(data) if type(data) is bytes else memoryview(data).nbytes
        if self._fields is None:
            self._file.write(self._read_head(bytes(data)))
        else:
            self._file.write(data)
            self._size += size
            if self._chunks is not None:
                self._chunks.follow(bytes(data))
        return size

    def _read_head(self, data: bytes) -> bytes:
        """Return what is to be written for these bytes."""
        head = self._head
        before = len(head)
        head += data
        while (end := head.find(_END)) != -1:
            fields = self._parsed(bytes(head[:end]))
            if self._status.startswith(b"1") and self._status != b"101":  # an answer is still to come
                del head[: end + len(_END)]
                before -= end + len(_END)
                continue
            self._fields = fields
            rest = bytes(head[end + len(_END) :])
            self._size = len(rest)
            if fields.get(b"transfer-encoding", b"").lower().endswith(b"chunked"):
                self._chunks = Chunks()
                self._chunks.follow(rest)
            at = end + 2 - before  # of the empty line that ends the head
            if (
                self._keep
                and self._must_say()
                and b"connection" not in fields
                and b"content-length" in fields
                and at >= 0
            ):
                fields[b"connection"] = b"keep-alive"
                data = data[:at] + _KEEP_ALIVE + data[at:]
            return data
        if len(head) > HEAD_MAX or not (head.startswith(b"HTTP/") or b"HTTP/".startswith(head)):
            self._fields, self._version = {}, b""  # it is none
        return data

    def _parsed(self, head: bytes) -> HeaderFields:
        first, *lines = head.split(b"\r\n")
        self._version, _, rest = first.partition(b" ")
        self._status = rest[:3]
        fields: HeaderFields = {}
        for line in lines:
            if line[:1] not in _INITIALS:
                continue
            name, _, value = line.partition(b":")
            name, value = name.strip().lower(), value.strip()
            fields[name] = fields[name] + b"," + value if name in fields else value
        return fields

    def writable(self) -> bool:
        return True

    def flush(self) -> None:
        self._file.flush()

    def fileno(self) -> int:
        return self._file.fileno()  # type: ignore[no-any-return]

    @property
    def closed(self) -> bool:
        return self._file.closed  # type: ignore[no-any-return]

    def close(self) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class CountingReader(io.RawIOBase):
    """A raw file that counts, over one that was opened for the connection."""

    def __init__(self, file: Any, readinto: Callable[[Any], int | None]) -> None:
        self._file = file
        self._readinto = readinto
        self.dry = False
        self.received = 0
        self.chunks: Chunks | None = None  # what is read is a body in chunks
        self.emptied = -1

    def readinto(self, buffer: Any, /) -> int | None:
        if self.dry:
            return None
        count = self._readinto(buffer)  # None where it is asked without waiting
        self.received += count or 0
        if self.chunks is not None and count:
            self.chunks.follow(bytes(memoryview(buffer)[:count]))
        return count

    def taken(self) -> int:
        return self.received

    def ahead(self) -> bytes:
        return b""

    def give_back(self, data: bytes) -> None:
        """Nobody wants it."""

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._file.fileno()  # type: ignore[no-any-return]

    def close(self) -> None:
        super().close()
        self._file.close()


def _is_old(version: str) -> bool:
    """Return True for the version of a request after which a connection is closed unless both say otherwise."""
    return version in ("HTTP/0.9", "HTTP/1.0")
