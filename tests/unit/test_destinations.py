"""Where lines of a log go, and whether its reader may go away."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from prefork.workers.destinations import PIPE_BUF, Opened, opened_stderr

WHOLE = 1 << 30  # written in one call, whatever its length


@contextmanager
def stderr_is(fd: int) -> Iterator[Opened]:
    """With this descriptor as the process's descriptor 2."""
    before = os.dup(2)
    os.dup2(fd, 2)
    try:
        opened = opened_stderr()
        yield opened
        os.close(opened.fd)
    finally:
        os.dup2(before, 2)
        os.close(before)


def fill(opened: Opened) -> None:
    while True:
        opened.write(opened.fd, bytes(1 << 16))


def test_a_file(tmp_path: Path) -> None:
    """It has no reader that could go, and its position is that of all who write there."""
    with (tmp_path / "log").open("wb") as file, stderr_is(file.fileno()) as opened:
        assert opened.write(opened.fd, b"line\n") == 5
        assert (opened.at_once, opened.ours, opened.breaks) == (WHOLE, False, False)
    assert (tmp_path / "log").read_bytes() == b"line\n"


def test_a_pipe() -> None:
    """It is opened anew, for nobody else may find it non-blocking; so much is written as stays whole."""
    reading, writing = os.pipe()
    with stderr_is(writing) as opened:
        assert (opened.at_once, opened.ours, opened.breaks) == (PIPE_BUF, True, True)
        assert not os.get_blocking(opened.fd)
        assert os.get_blocking(writing)
        assert opened.write(opened.fd, b"line\n") == 5
    assert os.read(reading, 100) == b"line\n"
    os.close(reading)
    os.close(writing)


def test_a_socket() -> None:
    """The journal's: it is not waited for, and its reader may go."""
    ours, theirs = socket.socketpair()
    with ours, theirs, stderr_is(ours.fileno()) as opened:
        assert (opened.at_once, opened.ours, opened.breaks) == (WHOLE, False, True)
        assert opened.write(opened.fd, b"line\n") == 5
        assert theirs.recv(100) == b"line\n"
        with pytest.raises(BlockingIOError):
            fill(opened)
