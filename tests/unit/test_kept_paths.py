"""Paths that a program removes itself: what is kept, what is forgiven, and that nothing else is changed by it."""

import atexit
import contextlib
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prefork.sockets import kept_paths
from prefork.sockets.kept_paths import (
    REMOVING,
    is_one_of,
    keep_path_of,
    listened_on,
    may_be_gone,
    paths_kept,
    unlink_ours,
)


def forget() -> None:
    """What other tests of this process have removed, or this one."""
    kept_paths._removed.clear()
    kept_paths._passed.clear()
    for one in [*kept_paths._in_force]:
        kept_paths._end(one)


forget()
OWN = {name: getattr(os, name) for name in REMOVING}


@pytest.fixture(autouse=True)
def os_is_as_it_was() -> Iterator[None]:
    """Nothing of a test is left in the module os."""
    forget()
    able = set(os.supports_dir_fd)
    yield
    forget()
    assert {name: getattr(os, name) for name in REMOVING} == OWN
    assert os.supports_dir_fd == able


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is to be kept; the current folder is its own."""
    monkeypatch.chdir(tmp_path)
    (path := tmp_path / "kept").touch()
    (tmp_path / "other").touch()
    return path


WAYS: dict[str, Callable[[Any], object]] = {
    "unlink": lambda path: os.unlink(path),
    "remove": lambda path: os.remove(path),
    "pathlib": lambda path: Path(os.fsdecode(path)).unlink(),
    "by keyword": lambda path: os.unlink(path=path),
    "without a folder": lambda path: os.remove(path, dir_fd=None),
    "away": lambda path: os.rename(path, os.fsencode("away") if isinstance(path, bytes) else "away"),
    "over it": lambda path: os.replace("other", os.fsdecode(path)),
    "pathlib's rename": lambda path: Path("other").rename(os.fsdecode(path)),
}
SPELT: dict[str, Any] = {"text": "kept", "bytes": b"kept", "roundabout": "./folder/.././kept", "whole": Path.cwd}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("spelt", SPELT)
def test_what_is_kept(way: str, spelt: str, kept: Path) -> None:
    """By whatever function and name: it stays, and the program is told nothing; afterwards it is gone."""
    name = SPELT[spelt]() / "kept" if spelt == "whole" else SPELT[spelt]
    before = kept.stat().st_ino
    os.mkdir("folder")
    with paths_kept(lambda path: path == str(kept)):
        WAYS[way](name)
        assert kept.stat().st_ino == before
    WAYS[way](name)
    assert not kept.exists() or kept.stat().st_ino != before


def test_what_is_not_kept(kept: Path) -> None:
    """Anything else is removed, or fails, as it always did: so does what is no path, and a whole folder."""
    with paths_kept(lambda path: path == str(kept)):
        os.unlink("other")
        for wrong, error in (("other", FileNotFoundError), ("a\0b", ValueError), (None, TypeError), (b"", OSError)):
            with pytest.raises(error):
                os.unlink(wrong)  # type: ignore[arg-type]
        folder = os.open(".", os.O_RDONLY)
        os.unlink("kept", dir_fd=folder)
        os.close(folder)
        assert not kept.exists()
        os.mkdir("folder")
        Path("folder/file").touch()
        shutil.rmtree("folder")
    assert os.listdir(".") == []


@pytest.mark.parametrize("inside", [False, True])
def test_what_is_ours_to_remove(inside: bool, kept: Path) -> None:
    """We remove our own paths, whatever the program has to keep."""
    with paths_kept(lambda path: True) if inside else contextlib.nullcontext():
        unlink_ours("kept")
        with pytest.raises(FileNotFoundError):
            unlink_ours("kept")
    assert os.listdir(".") == ["other"]


def test_functions_that_a_program_has_taken(kept: Path) -> None:
    """A function imported inside works on afterwards, in a class as well, and keeps what is kept by then."""
    with paths_kept(lambda path: path == str(kept)):
        taken: Any = os.unlink

        class Cleaner:
            remove: Any = os.remove

    with paths_kept(lambda path: path == str(kept)):
        taken("kept")
        Cleaner().remove("kept")
        assert kept.exists()
    Cleaner().remove("other")
    taken("kept")
    assert os.listdir(".") == []
    assert (taken.__name__, taken.__doc__) == (os.unlink.__name__, os.unlink.__doc__)


def test_a_function_of_the_programs() -> None:
    """What the program puts into os itself stays there."""
    try:
        with paths_kept(lambda path: True):
            setattr(os, "unlink", print)  # noqa: B010
        assert os.unlink is print
    finally:
        setattr(os, "unlink", OWN["unlink"])  # noqa: B010


def test_one_within_another(kept: Path) -> None:
    """Each has its own paths and functions, and the end of one is not the end of the other, in either order."""
    first, second = (
        paths_kept(lambda path: path == str(kept)),
        paths_kept(lambda path: path.endswith("other"), ["remove"]),
    )
    first.__enter__()
    second.__enter__()
    os.remove("other")
    first.__exit__(None, None, None)
    os.remove("other")
    os.unlink("other")
    os.remove("kept")
    second.__exit__(None, None, None)
    assert os.listdir(".") == []


@pytest.mark.parametrize("exits", [False, True])
@pytest.mark.parametrize("registers", [False, True])
def test_until_the_end_of_the_process(exits: bool, registers: bool, kept: Path) -> None:
    """Where the process ends after the block, what was registered with atexit inside finds the path kept as well."""

    def at_the_end() -> None:
        os.unlink("kept")

    with paths_kept(lambda path: path == str(kept), exits=exits):
        if registers:
            atexit.register(at_the_end)
    atexit.unregister(at_the_end)
    at_the_end()
    assert kept.exists() == (exits and registers)


def test_what_may_be_gone(kept: Path) -> None:
    """What we have removed the program may remove, but neither miss it otherwise nor keep it when it is there again."""
    OWN["unlink"](kept)
    may_be_gone(str(kept))
    may_be_gone(str(kept.parent / "second"))
    os.unlink("kept")
    os.remove(kept)
    os.remove("second")
    with pytest.raises(FileNotFoundError):
        os.rename("kept", "elsewhere")
    with pytest.raises(FileNotFoundError):
        os.unlink("third")
    kept.touch()
    os.unlink(kept)
    assert not kept.exists()


def test_what_was_passed(kept: Path) -> None:
    """It stays as long as somebody has it, for who removes or moves it; other kinds of sockets have no path."""
    with contextlib.ExitStack() as stack:
        for name in ("s", "t"):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.bind(name)
            keep_path_of(sock)
        before = os.stat("s").st_ino
        os.unlink("s")
        os.rename("s", "u")
        os.replace("kept", "t")
        assert sorted(os.listdir(".")) == ["kept", "other", "s", "t"]
        assert os.stat("s").st_ino == before
    os.unlink("s")
    os.rename("t", "u")
    assert sorted(os.listdir(".")) == ["kept", "other", "u"]
    with socket.socket() as inet, socket.socket(socket.AF_UNIX) as abstract, socket.socket(socket.AF_UNIX) as unnamed:
        abstract.bind(f"\0prefork-test-{os.getpid()}")
        for sock in (inet, abstract, unnamed):
            keep_path_of(sock)
    os.unlink("u")


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_listened_on(kind: socket.SocketKind, kept: Path) -> None:
    """A socket is listened on until it is closed, and is not connected to; a file, or nothing, never is."""
    with socket.socket(socket.AF_UNIX, kind) as server:
        server.bind("s")
        if kind != socket.SOCK_DGRAM:
            server.listen()
        server.setblocking(False)
        assert listened_on("s")
        with pytest.raises(BlockingIOError):
            server.recv(1) if kind == socket.SOCK_DGRAM else server.accept()
    assert not listened_on("s")
    assert not listened_on("kept")
    assert not listened_on("nothing")


def test_is_one_of(kept: Path) -> None:
    """A path is known by any name of its folder, and by no other name in it."""
    os.symlink(".", "link")
    assert is_one_of("link/kept", [str(kept)])
    assert is_one_of(str(kept), ["other", "link/link/kept"])
    assert not is_one_of("link/other", [str(kept)])
    assert not is_one_of("kept", [])
