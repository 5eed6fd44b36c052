"""What the old workers still have of what the program opened: found, let go of for all who have it, and taken again.

An old worker's copy of a descriptor is a duplicate here: for the kernel it is the same.
"""

import contextlib
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prefork.reload.still_held import StillHeld, addresses, found, locked

LOCAL: dict[int, Any] = {
    socket.AF_INET: ("127.0.0.1", 0),
    socket.AF_INET6: ("::1", 0),
    socket.AF_UNIX: "\0prefork-test-{}",
}


def opened(family: int, kind: int, *options: int, listens: bool = True) -> socket.socket:
    sock = socket.socket(family, kind)
    for option in options:
        sock.setsockopt(socket.SOL_SOCKET, option, 1)
    name = LOCAL[family]
    sock.bind(name.format(os.getpid()) if isinstance(name, str) else name)
    if listens and kind == socket.SOCK_STREAM:
        sock.listen()
    return sock


def again(sock: socket.socket, *options: int) -> socket.socket:
    """What the new program does: the same once more."""
    new = socket.socket(sock.family, sock.type)
    try:
        for option in options:
            new.setsockopt(socket.SOL_SOCKET, option, 1)
        new.bind(sock.getsockname())
        if sock.type == socket.SOCK_STREAM:
            new.listen()
    except OSError:
        new.close()
        raise
    return new


@pytest.fixture
def before() -> set[int]:
    """Sockets of the test's own process."""
    return set(found([]))


REUSED, SHARED = socket.SO_REUSEADDR, socket.SO_REUSEPORT


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_the_port_of_a_listener(family: int, before: set[int]) -> None:
    """Whoever has a copy, the port can be had anew; where the new program fails the old listener is one again."""
    with opened(family, socket.SOCK_STREAM, REUSED) as first, first.dup() as of_a_worker, first.dup() as first_too:
        assert set(found([])) - before == {first.fileno(), of_a_worker.fileno(), first_too.fileno()}
        with pytest.raises(OSError, match="in use"):
            again(first, REUSED)
        name, held = first.getsockname(), StillHeld([first.fileno(), first_too.fileno()])
        held.let_go()
        again(of_a_worker, REUSED).close()
        held.take_again()
        held.close()
        assert of_a_worker.getsockname() == name
        with socket.create_connection(name[:2]) as client, of_a_worker.accept()[0] as accepted:
            client.send(b"x")
            assert accepted.recv(1) == b"x"
        assert held.told() == ""


@pytest.mark.parametrize(
    ("family", "kind", "written"),
    [
        (socket.AF_INET, socket.SOCK_STREAM, "127.0.0.1:{}"),
        (socket.AF_INET, socket.SOCK_DGRAM, "udp://127.0.0.1:{}"),
        (socket.AF_INET6, socket.SOCK_DGRAM, "udp://[::1]:{}"),
        (socket.AF_UNIX, socket.SOCK_STREAM, "@prefork-test-{}"),
        (socket.AF_UNIX, socket.SOCK_DGRAM, "@prefork-test-{}"),
    ],
)
def test_what_nobody_can_let_go_of(family: int, kind: int, written: str, before: set[int]) -> None:
    """It is told by its address, and stays what it is."""
    with opened(family, kind) as sock:
        assert set(found([])) - before == {sock.fileno()}
        name = sock.getsockname()
        text = written.format(os.getpid() if isinstance(name, bytes) else name[1])
        assert [*addresses([sock.fileno()])] == [text]
        held = StillHeld([sock.fileno()])
        held.let_go()
        assert held.told().startswith(f"the old workers still have {text}, which the program opened before the fork: ")
        with pytest.raises(OSError, match="in use"):
            again(sock)
        held.take_again()
        assert os.fstat(sock.fileno())


def test_what_is_left_alone(before: set[int], tmp_path: Path) -> None:
    """What is prefork's, under any number; what the program hands on, or shares; clients; paths; and plain files."""
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(opened(socket.AF_INET, socket.SOCK_STREAM, REUSED))
        stack.enter_context(ours.dup())
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            stack.enter_context(opened(socket.AF_INET, kind, REUSED, SHARED))
        stack.enter_context(opened(socket.AF_INET, socket.SOCK_STREAM, REUSED)).set_inheritable(True)
        stack.enter_context(opened(socket.AF_INET, socket.SOCK_STREAM, REUSED, listens=False))
        stack.enter_context(socket.create_connection(ours.getsockname()))
        stack.enter_context(ours.accept()[0])
        client = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        client.connect(("127.0.0.1", 9))
        stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        at_a_path = stack.enter_context(socket.socket(socket.AF_UNIX))
        at_a_path.bind(str(tmp_path / "s"))
        at_a_path.listen()
        stack.enter_context((tmp_path / "file").open("w"))
        locked = stack.enter_context((tmp_path / "of fcntl").open("w"))
        fcntl.lockf(locked, fcntl.LOCK_EX)
        closed = os.dup(0)
        os.close(closed)
        assert set(found([ours.fileno(), closed])) - before == set()


@pytest.mark.parametrize("how", [fcntl.LOCK_EX, fcntl.LOCK_SH])
def test_a_lock(how: int, before: set[int], tmp_path: Path) -> None:
    """It can be had anew although a worker's copy has it, and is what it was where the new program fails."""
    path = tmp_path / "lock"
    with path.open("w") as first, path.open() as other:
        fcntl.flock(first, how)
        of_a_worker = os.dup(first.fileno())
        assert set(found([])) - before == {first.fileno(), of_a_worker}
        assert [*locked([first.fileno(), other.fileno()])] == [str(path)]
        assert [*addresses([first.fileno()])] == []
        held = StillHeld([first.fileno()])
        held.let_go()
        assert [*locked([first.fileno()])] == []
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(other, fcntl.LOCK_UN)
        held.take_again()
        if how == fcntl.LOCK_SH:
            fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(other, fcntl.LOCK_UN)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert held.told() == ""
        os.close(of_a_worker)


@pytest.mark.parametrize("end", [StillHeld.let_go, StillHeld.take_again, StillHeld.close])
def test_what_the_program_has_closed(end: Callable[[StillHeld], None]) -> None:
    """Nobody is hurt by a descriptor that is gone."""
    sock = opened(socket.AF_INET, socket.SOCK_STREAM, REUSED)
    held = StillHeld([sock.fileno(), sock.fileno()])
    sock.close()
    end(held)
    assert held.told() == ""


def test_closing() -> None:
    """Each is closed once."""
    sock = opened(socket.AF_INET, socket.SOCK_DGRAM)
    held = StillHeld([fd := sock.detach()])
    held.close()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)
    reused = os.dup(0)
    held.close()
    os.close(reused)


def test_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is found, and a reload goes on."""

    def listdir(path: str) -> Iterator[str]:
        raise FileNotFoundError(path)

    monkeypatch.setattr(os, "listdir", listdir)
    assert found([0]) == []
