"""What a program puts into the module's own classes, as those do that measure or silence a server, is in force."""

import contextlib
import functools
import socket
import socketserver
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

import prefork
from tests.process.test_precedence import LOOPBACK, MIXINS, Answer, Ledger
from tests.support.clients.connections import ask
from tests.support.programs.serving import HUNG, serving

# Together, where one does not lead to another's call.
NAMES = [("verify_request",), ("finish_request",), ("handle_error",), ("get_request", "shutdown_request")]
THREADED = [name for name in MIXINS if "thread" in name]
PLAIN = ["counted", "pool"]
ROWS = [
    *((mixins, names) for mixins in MIXINS for names in NAMES),
    *((mixins, ("process_request_thread",)) for mixins in THREADED),
    *((mixins, ("process_request",)) for mixins in (*PLAIN, *THREADED)),
]


@pytest.mark.parametrize("module", [prefork, socketserver])
@pytest.mark.parametrize(("mixins", "names"), ROWS)
def test_a_patched_class(mixins: str, names: tuple[str, ...], module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is called, whatever shorter way there is without it, and though the class is not the program's."""
    with contextlib.closing(Ledger()) as ledger:
        bases = (*MIXINS[mixins], module.TCPServer)
        for name in names:
            cls = patched(bases, name, module)
            monkeypatch.setattr(cls, name, noting(ledger, getattr(cls, name), name))
        server: Any = type("Server", bases, {"max_children": 1})(LOOPBACK, Answer)
        with serving(server):
            ask(server.server_address, b"fail")
            assert ask(server.server_address, b"word") == b"word"
        assert set(names) <= ledger.called()


@pytest.mark.parametrize("module", [prefork, socketserver])
@pytest.mark.parametrize(
    ("patched", "name", "value", "mixins", "server"),
    [
        ("TCPServer", "request_queue_size", 77, ("PreForkingMixIn",), "TCPServer"),
        ("TCPServer", "request_queue_size", 77, ("PreForkingMixIn", "ThreadingMixIn"), "UnixStreamServer"),
        ("UDPServer", "allow_reuse_address", True, ("PreForkingMixIn",), "UDPServer"),
        ("ForkingMixIn", "max_children", 3, ("PreForkingMixIn", "ForkingMixIn"), "TCPServer"),
    ],
)
def test_a_setting_of_a_class(
    patched: str, name: str, value: Any, mixins: tuple[str, ...], server: str, module: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What a program sets for all servers, in the module's own class, holds in a pool as well; unless it sets another
    for its own class. Where it sets none, the pool's is in force."""
    mixed = tuple(getattr(module, each, None) or getattr(prefork, each) for each in mixins)

    def defined(**own: Any) -> Any:
        return type("Server", (*mixed, getattr(module, server)), own)

    its_own = getattr(defined(), name)
    monkeypatch.setattr(getattr(module, patched), name, value)
    assert getattr(defined(), name) == value != its_own
    assert getattr(defined(**{name: its_own}), name) == its_own
    monkeypatch.undo()
    assert getattr(defined(), name) == its_own


def test_the_queue_that_a_class_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel is asked for it."""
    monkeypatch.setattr(socketserver.TCPServer, "request_queue_size", 7)
    cls: Any = type("Server", (prefork.PreForkingMixIn, socketserver.TCPServer), {})
    with cls(LOOPBACK, Answer) as server:
        assert server.socket._prefork_.backlog == 7


CHANGED = ["get_request", "verify_request", "shutdown_request", "close_request", "handle_error"]


@pytest.mark.parametrize("module", [prefork, socketserver])
@pytest.mark.parametrize("mixins", [name for name in MIXINS if "forked" not in name])
def test_hooks_that_change_while_it_serves(mixins: str, module: Any) -> None:
    """A program may put others in the place of its own, in its class: those are called from then on."""
    with contextlib.closing(Ledger()) as ledger:

        def of(word: str) -> dict[str, Any]:
            hooks = {name: noting(ledger, getattr(module.TCPServer, name), f"{word}-{name}") for name in CHANGED}
            for hook in hooks.values():
                hook.__module__ = __name__  # a wrapper has that of what it wraps
            return hooks

        base = type("Base", (module.TCPServer,), {**of("first"), "max_children": 1})

        class Handler(Answer):
            def handle(self) -> None:
                super().handle()
                for name, hook in of("second").items():
                    setattr(base, name, hook)
                raise LookupError("asked to")

        server: Any = type("Server", (*MIXINS[mixins], base), {})(LOOPBACK, Handler)
        with serving(server):
            ask(server.server_address, b"word")
            ask(server.server_address, b"word")
        assert {f"second-{name}" for name in CHANGED} <= ledger.called()


@pytest.mark.parametrize("module", [prefork, socketserver])
@pytest.mark.parametrize("mixins", MIXINS)
def test_a_class_in_the_place_of_the_socket(mixins: str, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program may have its own class made wherever a socket is, as PySocks has: listeners and connections are."""

    class Proxied(socket.socket):
        def __init__(self, *args: Any, **named: Any) -> None:
            super().__init__(*args, **named)
            self.proxy = "nowhere"

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(100)
            self.request.sendall(f"{self.request.proxy} {self.server.socket.proxy}".encode())  # type: ignore[attr-defined]

    monkeypatch.setattr(socket, "socket", Proxied)
    server: Any = type("Server", (*MIXINS[mixins], module.TCPServer), {"max_children": 1})(LOOPBACK, Handler)
    with serving(server):
        assert ask(server.server_address, b"word") == b"nowhere nowhere"


class Reader(Answer, socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(self.rfile.read())


@pytest.mark.parametrize("module", [prefork, socketserver])
@pytest.mark.parametrize("mixins", [name for name in MIXINS if name != "standard threads"])
@pytest.mark.parametrize("handler", [Answer, Reader])
def test_methods_of_every_socket(handler: type, mixins: str, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that watches what all sockets do, as tracers and debuggers have it, sees ours as well."""
    with contextlib.closing(Ledger()) as ledger:
        names = ["accept", *(["makefile"] if handler is Reader else [])]
        for name in names:
            monkeypatch.setattr(socket.socket, name, noting(ledger, getattr(socket.socket, name), name))
        server: Any = type("Server", (*MIXINS[mixins], module.TCPServer), {"max_children": 1})(LOOPBACK, handler)
        with serving(server):
            assert ask(server.server_address, b"word") == b"word"
        assert ledger.called() == set(names)


@pytest.mark.parametrize("module", [prefork, socketserver])
@pytest.mark.parametrize("mixins", ["counted", "pool", "pool of threads", "forked ahead"])
def test_datagrams_of_every_socket(mixins: str, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """So it sees what is received from a socket of datagrams."""
    with contextlib.closing(Ledger()) as ledger:
        server: Any = type("Server", (*MIXINS[mixins], module.UDPServer), {"max_children": 1})(LOOPBACK, Echo)
        monkeypatch.setattr(
            socket.socket, "recvfrom", noting(ledger, socket.socket.recvfrom, "recvfrom"), raising=False
        )
        with serving(server), socket.socket(type=socket.SOCK_DGRAM) as client:
            client.settimeout(HUNG)
            client.sendto(b"word", server.server_address)
            assert client.recv(100) == b"word"
        assert "recvfrom" in ledger.called()


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        data, sock = self.request
        sock.sendto(data, self.client_address)


def noting(ledger: Ledger, theirs: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return a wrapper that looks as the method does."""

    @functools.wraps(theirs)
    def noted(*args: Any, **named: Any) -> Any:
        ledger.note(name)
        return theirs(*args, **named)

    return noted


def patched(bases: tuple[type, ...], name: str, module: ModuleType) -> type:
    """Return the class of the module's that a program has to patch: by the name of the one that the standard library
    defines it in."""
    mixins = [base for base in bases if base.__name__ in ("ThreadingMixIn", "ForkingMixIn")]
    named = {base.__name__: base for base in mixins}
    for each in (*named, "TCPServer", "BaseServer"):
        if name in vars(getattr(socketserver, each)):
            found: type = named.get(each) or getattr(module, each)
            return found
    raise LookupError(name)
