"""What a program assigns to `server.socket`, of every kind and at every time: it stays that object, and is shared."""

import contextlib
import os
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prefork import (
    BaseServer,
    DatagramRequestHandler,
    KeepAliveMixIn,
    PreForkingMixIn,
    PreForkingTCPServer,
    PreForkingUDPServer,
    PreForkingUnixStreamServer,
    StreamRequestHandler,
    ThreadingTCPServer,
)
from prefork.errors import BindError, ConfigError, PreforkError
from prefork.reload import handover
from prefork.reload.handover import Handed, pack_listener
from prefork.sockets.listener import Listener
from prefork.sockets.shared import prepared

LOOPBACK = ("127.0.0.1", 0)


class PreForkingThreadingTCPServer(PreForkingMixIn, ThreadingTCPServer):
    """A pool whose workers have threads."""


class Subclass(socket.socket):
    """A class of the program's, with methods and values of its own under every name that ours have."""

    path = asked = identity = "mine"
    inherited = resumed = quiet = serving = unreachable = access = later = "mine"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.origin = self.bound_to = "mine"

    def unlink(self) -> str:
        return "mine"

    adopt = inherit = resume = recover = tell = bind_by = serve_by_pool = served_by_pool = unlink

    def bind(self, address: Any) -> None:
        self.bound_to = "theirs first"
        super().bind(address)


class Slotted(socket.socket):
    __slots__ = ("extra",)


class Delegating:
    """No socket itself, as pyOpenSSL's Connection."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)

    def accept(self) -> tuple[Any, Any]:
        connection, address = self._socket.accept()
        return Delegating(connection), address


def plain(sock: socket.socket) -> Any:
    return sock


def subclass(sock: socket.socket) -> Any:
    return Subclass(sock.family, sock.type, sock.proto, sock.detach())


def slotted(sock: socket.socket) -> Any:
    return Slotted(fileno=sock.detach())


def secured(sock: socket.socket) -> Any:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).wrap_socket(sock, server_side=True, do_handshake_on_connect=False)


def duplicate(sock: socket.socket) -> Any:
    with sock:
        return sock.dup()


def from_a_descriptor(sock: socket.socket) -> Any:
    with sock:
        return socket.fromfd(sock.fileno(), sock.family, sock.type)


def nested(sock: socket.socket) -> Any:
    return Delegating(secured(sock))


KINDS = [plain, subclass, slotted, secured, Delegating, duplicate, from_a_descriptor, nested]
CLASSES: dict[Any, type] = {
    subclass: Subclass, slotted: Slotted, secured: ssl.SSLSocket, Delegating: Delegating, nested: Delegating,
}  # fmt: skip
# The standard library lets go of a socket that the program replaces without closing it, too.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
wrapped_as = pytest.mark.parametrize("wrap", KINDS, ids=lambda kind: kind.__name__)


class Early(PreForkingTCPServer):
    """Wraps its socket before it binds it, having none at first, and binds it by a name of its own."""

    wrap: Callable[[socket.socket], Any]

    def __init__(self, address: Any) -> None:
        BaseServer.__init__(self, address, StreamRequestHandler)
        self.socket = None  # type: ignore[assignment]
        self.mine = self.socket = type(self).wrap(socket.socket())
        assert self.socket is self.mine
        self.server_bind()
        self.mine.listen()


class Late(PreForkingTCPServer):
    """Wraps its socket when it listens."""

    wrap: Callable[[socket.socket], Any]

    def __init__(self, address: Any) -> None:
        super().__init__(address, StreamRequestHandler)
        self.mine = self.socket = type(self).wrap(self.socket)


class Second(PreForkingTCPServer):
    """Puts another socket in the place of the first, at the same address."""

    wrap: Callable[[socket.socket], Any]
    closes_first = False

    def __init__(self, address: Any) -> None:
        super().__init__(address, StreamRequestHandler)
        if self.closes_first:
            self.socket.close()
        self.mine = self.socket = type(self).wrap(socket.socket())
        self.server_bind()
        self.server_activate()


class Closing(Second):
    closes_first = True


TIMES = [Early, Late, Second, Closing]
assigned_at = pytest.mark.parametrize("time", TIMES, ids=lambda time: time.__name__)


def made(time: Any, wrap: Callable[[socket.socket], Any], address: Any = LOOPBACK, **names: Any) -> Any:
    return type("Server", (time,), {"wrap": staticmethod(wrap), **names})(address)


def accepts(server: Any) -> None:
    """A client is let in, by the program's own object, in a worker's way."""
    with socket.create_connection(server.server_address, 10), prepared(server.socket, lambda: True):
        server.socket.settimeout(60)
        server.mine.setblocking(True)
        assert not os.get_blocking(server.fileno()), "a worker would wait in accept"
        connection, _ = server.get_request()
        server.close_request(connection)
        with pytest.raises(BlockingIOError):
            server.get_request()


def is_as_it_was(server: Any, wrap: Callable[[socket.socket], Any]) -> None:
    sock: Any = server.socket
    assert sock is server.mine
    assert issubclass(type(sock), CLASSES.get(wrap, socket.socket))
    if wrap is subclass:
        assert {sock.path, sock.asked, sock.access, sock.later, sock.origin, sock.unlink(), sock.tell()} == {"mine"}
        assert sock.bound_to == "mine" if isinstance(server, Late) else "theirs first"
        assert type(sock).__name__ == "Subclass"


@pytest.fixture(autouse=True)
def nothing_stays_handed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "_handed", None)


@wrapped_as
@assigned_at
def test_made_here(time: Any, wrap: Callable[[socket.socket], Any]) -> None:
    """Whatever the program makes of its socket, and whenever: it stays that, listens, and is shared without a block."""
    with made(time, wrap) as server:
        is_as_it_was(server, wrap)
        accepts(server)
        assert server._prefork_.origin.asked.startswith("SOCK_STREAM ('127.0.0.1', 0) ")
        port = server.server_address[1]
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))  # nobody listens: no object of ours is left with the descriptor


@contextlib.contextmanager
def handed_on(address: Any, asked: str, **packed: Any) -> Iterator[Listener]:
    """A listener of a previous image, whose workers serve on: theirs is another descriptor of the same socket."""
    theirs = Listener.adopt(socket.create_server(address))
    theirs.setblocking(False)
    theirs.asked = asked
    record, _ = pack_listener(theirs, os.dup(theirs.fileno()))
    handover._handed = Handed({"listener": record | packed, "fds": []})
    with theirs:
        yield theirs


def same(server: Any, theirs: socket.socket) -> bool:
    return os.fstat(server.fileno()).st_ino == os.fstat(theirs.fileno()).st_ino


@wrapped_as
@assigned_at
def test_handed_over(time: Any, wrap: Callable[[socket.socket], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a reload it stands for the socket that was handed over, which does not begin to block meanwhile; if the
    program fails then, no object that it leaves behind closes that one."""
    monkeypatch.setattr("prefork.listening.asked_once_more", lambda address, kind: "this one")
    with handed_on(LOOPBACK, "this one") as theirs:
        server = made(time, wrap)
        is_as_it_was(server, wrap)
        assert same(server, theirs)
        assert not os.get_blocking(theirs.fileno())
        given = handover.handed()
        assert given is not None
        given.take_back()
        fd = given.values["listener"]["fd"]
        assert server.fileno() != fd
        server.socket.close()
        assert os.fstat(fd).st_ino == os.fstat(theirs.fileno()).st_ino
        given._close_spares()
        handover._handed = given = Handed(given.values)
        with made(time, wrap) as server:
            given.take()
            assert same(server, theirs)
            origin = server._prefork_.origin
            assert (origin.asked, origin.resumed, origin.inherited) == ("this one", True, False)
            accepts(server)


@wrapped_as
@pytest.mark.parametrize("time", [Early, Late, Second], ids=lambda time: time.__name__)
def test_inherited(time: Any, wrap: Callable[[socket.socket], Any]) -> None:
    """What a manager has passed on is bound already, is used in its place, and keeps its number."""
    with socket.create_server(LOOPBACK) as theirs:
        fd = os.dup(theirs.fileno())
        with made(time, wrap, inherited_fd=fd) as server:
            is_as_it_was(server, wrap)
            assert same(server, theirs)
            assert server._prefork_.origin.inherited
            if wrap not in (duplicate, from_a_descriptor):
                assert server.fileno() == fd
            accepts(server)


def test_of_another_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrapped socket of the class's family stands for a Unix socket, if that is what was passed on."""
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind("s")
        theirs.listen()
        with made(Early, secured, inherited_fd=os.dup(theirs.fileno())) as server:
            assert (server.socket.family, server.address_family) == (socket.AF_UNIX, socket.AF_UNIX)
            assert server.server_address == "s"


@wrapped_as
def test_a_unix_path(wrap: Callable[[socket.socket], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stale one is taken over, its mode is set, who else listens there is told of, and it is removed at the end."""
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind("s")

    class Server(PreForkingUnixStreamServer):
        socket_mode = 0o640

        def __init__(self, address: str) -> None:
            BaseServer.__init__(self, address, StreamRequestHandler)
            self.socket = wrap(socket.socket(socket.AF_UNIX))
            self.server_bind()
            self.server_activate()

    with Server("s"):
        assert os.stat("s").st_mode & 0o777 == 0o640
        with pytest.raises(BindError, match="could not bind s: another server is listening there"):
            Server("s")
    assert not os.path.lexists("s")


def test_a_datagram_socket_of_the_programs_class() -> None:
    """A receive does not block for what a sibling took, whoever's method is called."""

    class Own(socket.socket):
        def recvfrom(self, size: int) -> Any:  # type: ignore[override]
            return super().recvfrom(size)

    class Server(PreForkingUDPServer):
        def __init__(self, address: Any) -> None:
            BaseServer.__init__(self, address, DatagramRequestHandler)
            self.socket = Own(socket.AF_INET, socket.SOCK_DGRAM)
            self.server_bind()

    with Server(LOOPBACK) as server, prepared(server.socket, lambda: True):
        assert os.get_blocking(server.fileno()), "a reply may block"
        with pytest.raises(BlockingIOError):
            server.get_request()


def test_the_first_one_is_let_go() -> None:
    """Where the program puts another socket in the place of one that is bound, that one's port is free."""
    server = PreForkingTCPServer(LOOPBACK, StreamRequestHandler)
    address = server.server_address
    server.socket = socket.socket()
    server.socket.bind(address)
    server.server_close()


@pytest.mark.parametrize("value", [None, object(), 7])
def test_no_socket(value: Any) -> None:
    """What is no socket is kept as in the standard library, and is nothing that can be served."""
    server = PreForkingTCPServer(LOOPBACK, StreamRequestHandler)
    server.socket = value
    assert server.socket is value
    said = "PreForkingTCPServer has no socket that workers" if value is None else "no socket is found in"
    with pytest.raises(ConfigError, match=f"could not serve from a pool: {said}"):
        server.serve_forever()


def deaf(sock: socket.socket) -> socket.socket:
    return sock


def bound(sock: socket.socket) -> socket.socket:
    sock.bind(LOOPBACK)
    return sock


def paired(sock: socket.socket) -> socket.socket:
    sock.close()
    ours, theirs = socket.socketpair()
    theirs.close()
    return ours


@pytest.mark.parametrize("made_by", [deaf, bound, paired])
@pytest.mark.parametrize("wrap", [plain, subclass, Delegating])
def test_nobody_can_come(wrap: Callable[[socket.socket], Any], made_by: Callable[[socket.socket], Any]) -> None:
    """A socket that does not listen, or is closed, is refused by a sentence: workers would try for ever."""
    server = PreForkingTCPServer(LOOPBACK, StreamRequestHandler, bind_and_activate=False)
    server.socket.close()
    server.socket = wrap(made_by(socket.socket()))
    with pytest.raises(ConfigError, match=r"could not serve on .*: it does not listen; server_bind\(\)"):
        server.serve_forever()
    server.socket.close()
    with pytest.raises(PreforkError, match="could not serve"):
        server.serve_forever()


def test_none_yet() -> None:
    """Before any was assigned there is none, and that is an AttributeError, as of any object."""
    server = PreForkingTCPServer.__new__(PreForkingTCPServer)
    with pytest.raises(AttributeError, match="this server has no socket yet"):
        server.socket  # noqa: B018


@pytest.mark.parametrize("setting", [True, False])
def test_access_log_of_a_pool(setting: bool) -> None:
    """A server beside the first has one where the pool has, whatever stands on its own class."""
    with type("Server", (PreForkingTCPServer,), {"access_log": setting})(LOOPBACK, StreamRequestHandler) as server:
        listened = server._prefork_
        assert listened.access_log() is None  # in the master
        listened.slot = 1
        assert (listened.access_log() is not None) is setting
        assert listened.access_log(wanted=True) is not None
        assert listened.access_log(wanted=False) is None


class Kept(KeepAliveMixIn, StreamRequestHandler):
    """Its connections are kept."""

    def handle_one_request(self) -> None:
        """Serve nobody."""


@pytest.mark.parametrize(
    ("base", "handler", "in_order"),
    [(PreForkingTCPServer, StreamRequestHandler, True), (PreForkingTCPServer, Kept, False),
     (PreForkingThreadingTCPServer, StreamRequestHandler, False)],
)  # fmt: skip
def test_whose_connections_begin_in_order(base: Any, handler: Any, in_order: bool) -> None:
    """Those that one thread accepts, each at once after the one before."""
    with type("Server", (base,), {"access_log": True})(LOOPBACK, handler) as server:
        server._prefork_.slot = 1
        assert server._prefork_.access_log()._place.in_order is in_order
