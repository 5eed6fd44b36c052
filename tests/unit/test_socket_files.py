"""The files of a connection: in all that a program can see, those of the standard library's `makefile()`."""

import gc
import http.server
import io
import multiprocessing.reduction
import os
import pickle
import signal
import socket
import socketserver
import struct
import sys
import threading
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

import prefork
from prefork import BaseRequestHandler, StreamRequestHandler
from prefork.sockets.accepted import accept_for
from prefork.sockets.listener import Listener
from prefork.workers import socket_files
from prefork.workers.socket_files import AcceptedSocket, SocketReader, accepted_class, open_rfile
from tests.support.programs.serving import HUNG

Open = Callable[[Any, int], Any]
Peer = socket.socket
LINES = b"one\ntwo\nthree"


def standard(sock: socket.socket, buffering: int) -> Any:
    return socket.socket(sock.family, sock.type, sock.proto, sock.detach()).makefile("rb", buffering)


def accepted(sock: socket.socket, buffering: int) -> Any:
    return AcceptedSocket(sock.family, sock.type, sock.proto, sock.detach()).makefile("rb", buffering)


def setup(sock: socket.socket, buffering: int) -> Any:
    return open_rfile(sock, buffering)


def socket_of(file: Any) -> socket.socket:
    found = getattr(file, "raw", file)._sock
    assert isinstance(found, socket.socket)
    return found


def reading(file: Any, peer: Peer) -> Any:
    peer.sendall(LINES)
    peer.close()
    return file.readline(), file.read(2), file.read()


def attributes(file: Any, peer: Peer) -> Any:
    named = file.name == file.fileno() == socket_of(file).fileno()
    return named, file.mode, file.closed, file.readable(), file.writable(), file.seekable(), file.isatty()


def inside(file: Any, peer: Peer) -> Any:
    raw = getattr(file, "raw", file)
    return raw._mode, raw._reading, raw._writing, raw._timeout_occurred


def reading_ahead(file: Any, peer: Peer) -> Any:
    peer.sendall(LINES)
    return len(file.peek()) if isinstance(file, io.BufferedReader) else len(file.read(100))


def all_names(file: Any, peer: Peer) -> Any:
    raw = getattr(file, "raw", file)
    return type(file) is io.BufferedReader, isinstance(raw, socket.SocketIO), set(dir(socket.SocketIO)) - set(dir(raw))


def after_closing(file: Any, peer: Peer) -> Any:
    file.close()
    file.close()
    calls = [
        file.readable,
        file.writable,
        file.seekable,
        file.fileno,
        file.flush,
        file.read,
        file.readline,
        file.__enter__,
        file.tell,
        lambda: file.readinto(bytearray(1)),
        lambda: file.write(b"x"),
        lambda: next(file),
    ]
    return file.closed, file.name if "Buffered" not in repr(file) else repr(file), [failure(each) for each in calls]


def what_it_cannot(file: Any, peer: Peer) -> Any:
    calls = [file.tell, lambda: file.seek(0), lambda: file.truncate(), lambda: file.write(b"x")]
    return [failure(each) for each in calls]


def after_a_timeout(file: Any, peer: Peer) -> Any:
    socket_of(file).settimeout(0.001)
    peer.sendall(b"x")
    return file.read(1), failure(lambda: file.read(1)), failure(lambda: file.read(1)), failure(file.readline)


def without_waiting(file: Any, peer: Peer) -> Any:
    socket_of(file).setblocking(False)
    return file.read(1), file.readinto(bytearray(1)), failure(file.readline)


def without_waiting_behind_its_back(file: Any, peer: Peer) -> Any:
    """O_NONBLOCK belongs to the description: another process may set it, and Python's timeout does not tell."""
    os.set_blocking(file.fileno(), False)
    return file.read(1), file.readinto(bytearray(1))


def after_the_kernels_timeout(file: Any, peer: Peer) -> Any:
    socket_of(file).setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 1000))
    return file.read(1), file.readinto(bytearray(1))


def reset(file: Any, peer: Peer) -> Any:
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
    return failure(file.readline), failure(file.readline)


def the_socket_closes_with_its_last_file(file: Any, peer: Peer) -> Any:
    sock = socket_of(file)
    other = sock.makefile("rb")
    sock.close()
    seen = [sock.fileno() >= 0]
    peer.sendall(b"x")
    seen.append(file.read(1) == b"x")
    file.close()
    seen.append(sock.fileno() >= 0)
    other.close()
    return [*seen, sock.fileno()]


def the_file_closes_before_the_socket(file: Any, peer: Peer) -> Any:
    sock = socket_of(file)
    file.close()
    open_still = sock.fileno() >= 0
    sock.close()
    return open_still, sock.fileno(), getattr(file, "raw", file)._sock


def the_socket_taken_away(file: Any, peer: Peer) -> Any:
    sock = socket.socket(fileno=socket_of(file).detach())
    seen = failure(lambda: file.read(1)), file.name
    sock.close()
    return seen


def pickled(file: Any, peer: Peer) -> Any:
    return failure(lambda: pickle.dumps(file), said=False)


def detached(file: Any, peer: Peer) -> Any:
    if not isinstance(file, io.BufferedReader):
        return None
    raw = file.detach()
    peer.sendall(b"raw")
    return raw.read(3), raw.closed, failure(lambda: file.read(1))


def interrupted(file: Any, peer: Peer) -> Any:
    """A signal in a read is handled and the read goes on (PEP 475)."""
    seen: list[bool] = []

    def answer(signum: int, frame: object) -> None:
        seen.append(True)
        if len(seen) == 2:
            peer.sendall(b"x")

    before = signal.signal(signal.SIGALRM, answer)
    signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
    try:
        return file.read(1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


CASES = (
    reading, attributes, inside, reading_ahead, all_names, after_closing, what_it_cannot, after_a_timeout,
    without_waiting, without_waiting_behind_its_back, after_the_kernels_timeout, reset,
    the_socket_closes_with_its_last_file, the_file_closes_before_the_socket, the_socket_taken_away,
    pickled, detached, interrupted,
)  # fmt: skip


def failure(call: Callable[[], object], *, said: bool = True) -> Any:
    """Return the exception of this call, its class and message; else what it has returned."""
    try:
        return call()
    except Exception as exc:
        return (type(exc), str(exc)) if said else type(exc)


def outcome(of: Open, buffering: int, case: Callable[[Any, Peer], Any]) -> Any:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname(), HUNG)
        request, _ = listener.accept()
    with peer, warnings.catch_warnings(action="ignore", category=ResourceWarning):
        with request:
            return case(of(request, buffering), peer)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
@pytest.mark.parametrize("buffering", [-1, 0, 1, 2])
@pytest.mark.parametrize("of", [accepted, setup], ids=lambda of: of.__name__)
def test_as_the_standard_library(of: Open, buffering: int, case: Callable[[Any, Peer], Any]) -> None:
    """Whatever is done with a file, the result is that of the standard library's."""
    assert outcome(of, buffering, case) == outcome(standard, buffering, case)


@pytest.mark.parametrize("buffering", [-1, 0])
@pytest.mark.parametrize("of", [accepted, setup, standard], ids=lambda of: of.__name__)
def test_without_references(of: Open, buffering: int) -> None:
    """A file that nobody closes closes with its last reference, its socket too, without a collection; that warns."""
    ours, peer = socket.socketpair()
    with peer:
        file = of(ours, buffering)
        fd = file.fileno()
        del ours
        gc.disable()
        try:
            with pytest.warns(ResourceWarning, match="unclosed"):
                del file
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(fd)
        finally:
            gc.enable()


@pytest.mark.parametrize("mode", ["r", "w", "rw", "rb", "wb", "rwb", "br", "b", "x", "rt", "a", "+"])
@pytest.mark.parametrize("buffering", [None, -1, 0, 16])
def test_modes(mode: str, buffering: int | None) -> None:
    """Every mode and buffering is, or is refused, as in the standard library."""

    def opened(kind: type[socket.socket]) -> Any:
        with kind() as sock:
            try:
                options: Any = {"newline": None if "b" in mode else "\n"}
                file = sock.makefile(mode, buffering, **options)  # type: ignore[call-overload]
            except Exception as exc:
                return type(exc), str(exc)
            with file:
                named = [getattr(file, name, None) for name in ("mode", "encoding", "newlines")]
                return type(file), file.readable(), file.writable(), named

    ours, theirs = opened(AcceptedSocket), opened(socket.socket)
    assert ours == theirs or (ours[0] is SocketReader and theirs[0] is socket.SocketIO and ours[1:] == theirs[1:])


def test_the_warning_of_an_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """EncodingWarning names the line that has called `makefile()`."""
    seen: list[int] = []

    def text_encoding(encoding: str | None, stacklevel: int = 2) -> str:
        if encoding is None:
            seen.append(sys._getframe(stacklevel).f_lineno)
        return "utf-8"

    monkeypatch.setattr(io, "text_encoding", text_encoding)
    with AcceptedSocket() as sock:
        line = sys._getframe().f_lineno + 1
        sock.makefile("r").close()
    assert seen == [line]


def test_a_program_that_replaces_makefile(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `makefile()` of the program's own is what a handler's file comes from, in a class of its own or in the
    standard library's."""

    class Own(socket.socket):
        def makefile(self, mode: str, buffering: int) -> Any:  # type: ignore[override]
            return "its own", mode, buffering

    with Own() as own, socket.socket() as plain:
        assert open_rfile(own, 7) == ("its own", "rb", 7)
        monkeypatch.setattr(socket.socket, "makefile", Own.makefile)
        assert open_rfile(plain, 7) == ("its own", "rb", 7)


def test_the_file_of_a_handler() -> None:
    """`rfile` of a stream handler costs one call of a Python function a read: that of SocketReader."""
    ours, peer = socket.socketpair()
    called: list[str] = []

    class Handler(StreamRequestHandler):
        def handle(self) -> None:
            sys.setprofile(lambda frame, what, arg: called.append(frame.f_code.co_name) if what == "call" else None)
            self.rfile.readline()
            sys.setprofile(None)

    with ours, peer:
        peer.sendall(LINES)
        Handler(ours, "somebody", None)
    assert called == ["readinto"]
    assert socket_files.__name__ == SocketReader.__module__


def test_multiprocessing() -> None:
    """multiprocessing sends it to another process as it does socket.socket; other picklers refuse both."""
    ours, peer = socket.socketpair()
    sock = AcceptedSocket(ours.family, ours.type, ours.proto, ours.detach())
    with sock, peer:
        packed: Any = multiprocessing.reduction.ForkingPickler.dumps(sock)
        received: list[socket.socket] = []
        thread = threading.Thread(target=lambda: received.append(pickle.loads(packed)))  # from our resource sharer
        thread.start()
        thread.join(HUNG)
        multiprocessing.resource_sharer.stop(HUNG)
        with received.pop() as other:
            peer.sendall(b"x")
            assert type(other) is socket.socket
            assert other.recv(1) == b"x"
        with pytest.raises(TypeError, match="cannot pickle"):
            pickle.dumps(sock)


class Standard(socketserver.StreamRequestHandler):
    """A handler of the standard library's, as those of http.server."""


@pytest.mark.parametrize(
    ("handler", "kind"),
    [
        (Standard, AcceptedSocket),
        (http.server.SimpleHTTPRequestHandler, AcceptedSocket),
        (partial(http.server.SimpleHTTPRequestHandler, directory="/"), AcceptedSocket),
        (StreamRequestHandler, socket.socket),
        (BaseRequestHandler, socket.socket),
        (socketserver.BaseRequestHandler, socket.socket),
        (lambda *arguments: Standard(*arguments), socket.socket),
        (None, socket.socket),
    ],
)
def test_the_class_of_a_connection(handler: Any, kind: type) -> None:
    """Only handlers that ask the connection itself for their file get one of our class."""
    with socket.create_server(("127.0.0.1", 0)) as sock, Listener.adopt(sock) as listener:
        accept_for(listener, handler)
        with socket.create_connection(listener.getsockname(), HUNG):
            request, _ = listener.accept()
            with request:
                assert type(request) is kind
                assert (request.family, request.type) == (socket.AF_INET, socket.SOCK_STREAM)


def test_a_wrapped_listener_is_left() -> None:
    """The program's own listener accepts as it does."""

    class Own(socket.socket):
        pass

    with Own() as sock:
        accept_for(sock, Standard)
        assert type(sock) is Own


def test_a_class_of_the_programs_keeps_its_way() -> None:
    """Its files are the standard library's, whatever it overrides."""

    class Own(socket.socket):
        pass

    with Own() as sock, open_rfile(sock, -1) as file:
        assert type(file.raw) is socket.SocketIO


@pytest.mark.parametrize("stands_in", [None, prefork])
def test_no_handler_of_the_standard_librarys(stands_in: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has imported socketserver, or prefork stands in its place: nobody asks a connection for a file."""
    monkeypatch.setitem(sys.modules, "socketserver", stands_in)
    assert accepted_class(StreamRequestHandler) is socket.socket
    assert accepted_class(Standard) is socket.socket
