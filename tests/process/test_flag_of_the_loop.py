"""What programs use of the standard library's loop by its private names, with real servers.

They set its flag where `shutdown()` would wait for its own thread, ask it in requests that last, wait for its event.
"""

import signal
import socketserver
import threading
from collections.abc import Callable
from typing import Any

import pytest

import prefork
from tests.process.test_precedence import BASES, LOOPBACK, MIXINS
from tests.support.clients.connections import ask
from tests.support.programs.serving import HUNG

FLAG, EVENT = "_BaseServer__shutdown_request", "_BaseServer__is_shut_down"
ROWS: dict[str, tuple[type, ...]] = {
    "the standard library's own": (socketserver.TCPServer,),
    "no mix-in": (prefork.TCPServer,),
    **{f"{name}, {over}": (*mixins, BASES[over]) for name, mixins in MIXINS.items() for over in BASES},
}


class Sets(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        word = self.request.recv(100)
        if word == b"end":
            setattr(self.server, FLAG, True)
        self.request.sendall(str(getattr(self.server, FLAG)).encode() if word == b"ask" else word)


def made(bases: tuple[type, ...]) -> Any:
    return type("Server", bases, {"max_children": 1})(LOOPBACK, Sets)


def serve(server: Any, meanwhile: Callable[[], object]) -> list[object]:
    """Serve in this thread until the program has ended it, in another; return what it was told."""
    told: list[object] = []
    thread = threading.Thread(target=lambda: told.append(meanwhile()))
    with server:
        thread.start()
        server.serve_forever(0.01)
        thread.join(HUNG)
    return told


@pytest.mark.parametrize("row", ROWS)
def test_set_in_a_handler(row: str) -> None:
    """It ends the service, as `shutdown()` does there."""
    server = made(ROWS[row])
    assert serve(server, lambda: ask(server.server_address, b"end")) == [b"end"]


@pytest.mark.parametrize("row", ROWS)
def test_set_by_another_thread(row: str) -> None:
    """A thread ends the service by it, and waits for the end by the event; a request was told that it goes on."""
    server = made(ROWS[row])

    def end() -> object:
        told = ask(server.server_address, b"ask")
        setattr(server, FLAG, True)
        return told, getattr(server, EVENT).wait(HUNG), getattr(server, EVENT).is_set()

    assert serve(server, end) == [(b"False", True, True)]


@pytest.mark.parametrize("row", ROWS)
def test_set_in_a_signal_handler(row: str) -> None:
    """A program that takes SIGTERM for itself ends the service by it."""
    server = made(ROWS[row])
    before = signal.signal(signal.SIGTERM, lambda signum, frame: setattr(server, FLAG, True))

    def end() -> object:
        told = ask(server.server_address, b"word")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        return told

    try:
        assert serve(server, end) == [b"word"]
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("row", ROWS)
def test_a_wait_for_the_event_ends_nothing(row: str) -> None:
    """A thread that waits for it in vain leaves the service as it was; the next serving begins with nothing set."""
    server = made(ROWS[row])

    def end() -> object:
        told = (
            ask(server.server_address, b"word"),
            getattr(server, EVENT).wait(0.01),
            ask(server.server_address, b"ask"),
        )
        server.shutdown()
        return *told, getattr(server, FLAG)

    assert serve(server, end) == [(b"word", False, b"False", False)]
