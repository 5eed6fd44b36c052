"""A descriptor of ours: whether it still is one."""

import errno
import os
from pathlib import Path

import pytest

from prefork.workers import sinks
from prefork.workers.identity import Descriptors, DescriptorsLost, identity, is_marked, lost, mark
from prefork.workers.sinks import Sink

from .test_log_handing import close


def test_another_file_has_its_number(tmp_path: Path) -> None:
    """Closed by the program, or its number given to another file: it is lost. Else it is not."""
    fd = os.open(tmp_path / "ours", os.O_WRONLY | os.O_CREAT)
    known = identity(fd)
    assert not lost(fd, known)
    os.close(fd)
    assert lost(fd, known)
    assert os.open(tmp_path / "theirs", os.O_WRONLY | os.O_CREAT) == fd
    assert lost(fd, known)
    os.close(fd)


def test_a_mark(tmp_path: Path) -> None:
    """It is the description's: of each of its descriptors, but of no other file that gets the number."""
    fd = os.open(tmp_path / "ours", os.O_WRONLY | os.O_CREAT)
    assert not is_marked(fd)
    assert mark(fd)
    other = os.dup(fd)
    assert is_marked(other)
    os.close(fd)
    assert not is_marked(fd)
    assert not mark(fd)
    assert os.open(tmp_path / "ours", os.O_WRONLY) == fd
    assert not is_marked(fd), "it is another description of the same file"
    os.close(fd)
    os.close(other)


@pytest.mark.parametrize("can_mark", [True, False])
def test_a_log_whose_number_another_file_has(tmp_path: Path, can_mark: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one line goes there, whether the kernel lets us mark ours or not."""
    if not can_mark:
        monkeypatch.setattr(sinks, "mark", lambda fd: False)
    sink = Sink(str(tmp_path / "log"))
    assert sink.write(b"one\n")
    theirs = os.open(tmp_path / "theirs", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK)
    os.dup2(theirs, sink.fd)
    number = sink.fd
    assert sink.write(b"two\n")
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"
    assert (tmp_path / "theirs").read_bytes() == b""
    os.close(theirs)
    os.close(number)
    close(sink)


def test_a_kernel_that_cannot_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is short of memory: what is open stays ours, and is not opened a second time."""
    fd = os.open(tmp_path / "ours", os.O_WRONLY | os.O_CREAT)
    known = identity(fd)

    def refuse(fd: int) -> os.stat_result:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fstat", refuse)
        assert not lost(fd, known)
        assert identity(fd) is None
    assert not lost(fd, None), "nobody knows what it was"
    os.close(fd)


@pytest.mark.parametrize("reused", [False, True])
def test_the_program_has_closed_one(reused: bool) -> None:
    """One of them is enough, also where another file has its number; it is told as the reason of what failed by it."""
    read, write = os.pipe()
    ours, failed, theirs = Descriptors(read, write), OSError(errno.EBADF, "Bad file descriptor"), KeyError("x")
    assert not ours.lost()
    assert ours.told(failed) is failed
    os.close(write)
    if reused:
        assert os.open(os.devnull, os.O_RDONLY) == write
    assert ours.lost()
    assert isinstance(ours.told(failed), DescriptorsLost)
    assert ours.told(theirs) is theirs
    os.close(read)
    if reused:
        os.close(write)
