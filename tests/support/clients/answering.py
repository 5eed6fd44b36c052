"""A listener that answers one connection as a test wants, and the question of `prefork top` that fails there."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

import pytest

from prefork.errors import PreforkError
from prefork.top.http import get, parse_url

HUNG = 30.0  # seconds; never reached unless something hangs


@contextmanager
def answering(talk: Callable[[socket.socket], None]) -> Iterator[str]:
    """A listener that takes one connection and talks; its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(HUNG)

        def run() -> None:
            with listener.accept()[0] as sock:
                sock.settimeout(HUNG)
                try:
                    talk(sock)
                except OSError:
                    pass  # the client has had enough

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            thread.join(HUNG)


def ended(text: str, seconds: float) -> str:
    """Return the sentence with which the question fails; it must not take much longer than `seconds`."""
    began = monotonic()
    with pytest.raises(PreforkError) as caught:
        get(parse_url(text), began + seconds)
    assert monotonic() - began < seconds + HUNG / 3
    return str(caught.value)
