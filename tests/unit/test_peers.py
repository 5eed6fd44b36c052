"""The peers of a worker's connections, found by its pidfd; the worker is this process."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

from prefork.sockets.peers import PEERS_MAX, peers_of

MANY = 20
SOON_S = 10.0


@pytest.fixture
def pidfd() -> Iterator[int]:
    fd = os.pidfd_open(os.getpid())
    yield fd
    os.close(fd)


@contextlib.contextmanager
def connected(listener: socket.socket, number: int) -> Iterator[set[str]]:
    """The addresses of so many clients, each of which was accepted here."""
    with contextlib.ExitStack() as stack:
        clients = set()
        for _ in range(number):
            client = stack.enter_context(socket.create_connection(listener.getsockname()))
            stack.enter_context(listener.accept()[0])
            clients.add("{}:{}".format(*client.getsockname()))
        yield clients


def test_sixteen_and_all(pidfd: int) -> None:
    """Of many peers the first are told, and each of them to whoever asks for all; no other socket is taken for one."""
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        socket.create_server(("127.0.0.1", 0)) as listener,
        connected(other, 1),
        connected(listener, MANY) as clients,
    ):
        until = monotonic() + SOON_S
        some = peers_of(os.getpid(), pidfd, listener, until)
        assert len(some) == PEERS_MAX == 16
        assert set(some) < clients
        assert set(peers_of(os.getpid(), pidfd, listener, until, None)) == clients
        assert peers_of(os.getpid(), pidfd, listener, monotonic()) == ()


def test_of_a_unix_listener(pidfd: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client there is its process, or the name that it has bound; a client of another path is none."""
    monkeypatch.chdir(tmp_path)
    with contextlib.ExitStack() as stack:
        here, other = (stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2))
        for listener, path in ((here, "here"), (other, "other")):
            listener.bind(path)
            listener.listen()
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.bind(f"client of {path}")
            client.connect(path)
            stack.enter_context(listener.accept()[0])
        assert peers_of(os.getpid(), pidfd, here, monotonic() + SOON_S) == ("client of here",)


def test_where_there_is_none(pidfd: int, tmp_path: Path) -> None:
    """Datagrams have no connection; without a listener, or of a process that is gone, nothing is found."""
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams, socket.create_server(("127.0.0.1", 0)) as listener:
        until = monotonic() + SOON_S
        assert peers_of(os.getpid(), pidfd, datagrams, until) == ()
        assert peers_of(os.getpid(), pidfd, None, until) == ()
        assert peers_of(2**22 + 1, pidfd, listener, until) == ()
