"""A descriptor of ours: whether it still is one."""

import errno
import os
from pathlib import Path

import pytest

from prefork.workers.identity import Descriptors, DescriptorsLost, identity, lost


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
