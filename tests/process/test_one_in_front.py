"""A pool that serves one queue of datagrams: one worker has them all while it keeps up, and the others are there when
it does not."""

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from time import monotonic

import pytest

from tests.support.programs.service import HUNG, Service, script

HANDLER = "from tests.process.programs.one_in_front import Handler\n"
KINDS = ["PreForkingUDPServer", "PreForkingUnixDatagramServer"]
IN_A_ROW = 100  # answers of one worker
ROUND = 1000  # times two datagrams; where the kernel alone says who is woken, every second answer is another worker's


class Client:
    def __init__(self, service: Service, path: Path, name: str) -> None:
        self.sock = socket.socket(
            socket.AF_UNIX if isinstance(service.address, str) else socket.AF_INET, socket.SOCK_DGRAM
        )
        self.sock.settimeout(HUNG)
        if isinstance(service.address, str):
            self.sock.bind(str(path / name))
        self.sock.connect(service.address)

    def ask(self, what: str = "") -> str:
        self.sock.send(what.encode())
        return self.sock.recv(100).decode()

    def until_one_has_all(self) -> int:
        """Ask until one worker has given so many answers in a row, and return its pid."""
        last, times, hung = "", 0, monotonic() + HUNG
        while times < IN_A_ROW:
            assert monotonic() < hung, "they have come by turns"
            pid = self.ask()
            times = times + 1 if pid == last else 1
            last = pid
        return int(last)

    def changes(self) -> int:
        """Have two datagrams on their way, a round long; return how often another worker has answered than before."""
        sock = self.sock
        answers: list[bytes] = []
        for _ in range(ROUND):
            sock.send(b"")
            sock.send(b"")
            answers += sock.recv(100), sock.recv(100)
        return sum(one != other for one, other in pairwise(answers))


def release(opened: contextlib.ExitStack, fifo: Path) -> None:
    """End the handler that waits for this, or will."""
    opened.callback(os.close, os.open(fifo, os.O_RDWR))


@contextlib.contextmanager
def served(bases: str, path: Path) -> Iterator[tuple[Service, Client, Client]]:
    """Four workers, and two clients."""
    address = str(path / "socket") if "Unix" in bases else ("127.0.0.1", 0)
    with Service(path, script(HANDLER, bases=bases, address=address, max_children=4)) as service:
        service.wait_ready(4)
        one, other = Client(service, path, "one"), Client(service, path, "other")
        with one.sock, other.sock:
            yield service, one, other


@pytest.mark.parametrize("bases", KINDS)
def test_one_has_them_all(bases: str, tmp_path: Path) -> None:
    """Though the next datagram comes before it waits again."""
    hung = monotonic() + HUNG
    with served(bases, tmp_path) as (_, client, _):
        while client.changes() > 2 * ROUND / 10:
            assert monotonic() < hung, "they have come by turns"


@pytest.mark.parametrize("bases", KINDS)
def test_one_that_is_held_up(bases: str, tmp_path: Path) -> None:
    """While one worker is in a long handler the others answer, and again one of them has all; down to the last."""
    with contextlib.ExitStack() as opened, served(bases, tmp_path) as (_, client, held), contextlib.ExitStack() as ends:
        seen = set()
        for number in range(3):
            assert client.until_one_has_all() not in seen
            fifo = tmp_path / f"fifo-{number}"
            os.mkfifo(fifo)
            ends.callback(release, opened, fifo)
            seen.add(int(held.ask(f"hold {fifo}")))
        assert client.until_one_has_all() not in seen
        assert len(seen) == 3


@pytest.mark.parametrize("bases", KINDS)
def test_one_that_is_killed(bases: str, tmp_path: Path) -> None:
    """One of the others has all from then on, though nobody has told it that the place is free."""
    with served(bases, tmp_path) as (service, client, _):
        for count in (1, 2):
            service.expect("killed by SIGKILL")
            killed = client.until_one_has_all()
            os.kill(killed, signal.SIGKILL)
            service.wait_ready(4, killed=count)
            assert client.until_one_has_all() != killed


@pytest.mark.parametrize("bases", KINDS)
def test_those_that_are_aside_hear(bases: str, tmp_path: Path) -> None:
    """That they are to be replaced, and to leave."""
    with served(bases, tmp_path) as (service, client, _):
        client.until_one_has_all()
        before = set(service.workers())
        service.signal(signal.SIGUSR2)
        while set(service.workers()) & before:
            client.until_one_has_all()
        service.signal(signal.SIGTERM)
        assert service.wait_exit() == 0
