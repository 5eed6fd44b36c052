"""A relay between clients and a TCP service that holds back what clients say, so that a request is in hand for as long
as a test likes, whatever the protocol and whoever the client.

Runs in the test's process, a thread for each connection.
"""

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self

HUNG = 30.0  # seconds; never reached unless something hangs


class Holding:
    """In its block, what connects to `address` is connected to the service, and heard by it once it is let go."""

    def __init__(self, service: tuple[str, int]) -> None:
        self._service = service
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()
        self._asked = threading.Event()
        self._let_go = threading.Event()
        self._threads: list[threading.Thread] = []

    def wait_asked(self) -> None:
        """Until a client is connected to the service, and wants to say something or waits for its word."""
        assert self._asked.wait(HUNG), "hung: no client has come"

    def let_go(self) -> None:
        self._let_go.set()

    def _run(self, work: object, *args: object) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed: the end
            while True:
                client, _ = self._listener.accept()
                client.settimeout(HUNG)
                self._run(self._relay, client)

    def _relay(self, client: socket.socket) -> None:
        try:
            service = socket.create_connection(self._service, HUNG)
        except OSError:
            client.close()
            return
        self._asked.set()
        backward = threading.Thread(target=_copy, args=(service, client), daemon=True)
        backward.start()
        with client, service:
            if self._let_go.wait(HUNG):
                _copy(client, service)
            backward.join(HUNG)

    def __enter__(self) -> Self:
        self._run(self._accept)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._let_go.set()
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()
        for thread in self._threads:
            thread.join(HUNG)
            assert not thread.is_alive(), "hung: a connection does not end"


def _copy(source: socket.socket, sink: socket.socket) -> None:
    """Until the source has ended; its end is handed on, and so is its reset, as an end."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
