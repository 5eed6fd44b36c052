"""The new log file of a service, handed from its master to whoever wants it; and a sink that goes on in it."""

import copy
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefork.workers import sinks
from prefork.workers.log_handing import LogHanding
from prefork.workers.sinks import Sink


@pytest.fixture
def handing() -> Iterator[LogHanding]:
    handing = LogHanding()
    yield handing
    handing._in.close()
    handing._out.close()


def same(fd: int | None, path: Path) -> bool:
    """True if this descriptor is of that file; it is closed."""
    assert fd is not None
    try:
        return os.path.samestat(os.fstat(fd), path.stat()) and not os.get_inheritable(fd)
    finally:
        os.close(fd)


def test_everybody_gets_a_copy(handing: LogHanding, tmp_path: Path) -> None:
    """As many as look, as often as they look, and only of the number that they ask for; the last one counts."""
    assert handing.look(1) is None
    for number in (1, 2):
        path = tmp_path / str(number)
        with path.open("w") as file:
            handing.hand(number, file.fileno())
        assert all(same(handing.look(number), path) for _ in range(3))
        assert handing.look(number - 1) is None
        assert handing.look(number + 1) is None


def test_no_descriptor_is_lost(handing: LogHanding, tmp_path: Path) -> None:
    """Neither by handing, nor by looking for what is not there."""
    before = len(os.listdir("/proc/self/fd"))
    with (tmp_path / "log").open("w") as file:
        for number in range(20):
            handing.hand(number, file.fileno())
            assert handing.look(number + 1) is None
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("how", [socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR])
@pytest.mark.parametrize("end", [0, 1])
def test_shut_down(end: int, how: int, handing: LogHanding, tmp_path: Path) -> None:
    """By a process that has a copy of it: there is another pair under its numbers, if it cannot be used any more."""
    before = len(os.listdir("/proc/self/fd"))
    with socket.socket(fileno=os.dup(handing.fds[end])) as copy_of_a_child, (tmp_path / "log").open("w") as file:
        copy_of_a_child.shutdown(how)
        handing.hand(1, file.fileno())
        assert handing.anew == (how in ((socket.SHUT_WR, socket.SHUT_RDWR), (socket.SHUT_RD, socket.SHUT_RDWR))[end])
        assert same(handing.look(1), tmp_path / "log")
        assert not any(map(os.get_inheritable, handing.fds))
        assert os.path.sameopenfile(copy_of_a_child.fileno(), handing.fds[end]) == (not handing.anew)
    assert len(os.listdir("/proc/self/fd")) == before


def refuse(*args: object) -> int:
    raise PermissionError


def sink_of_a_child(sink: Sink) -> Sink:
    """A sink as it is after a fork: what it shares, it shares."""
    other = copy.copy(sink)
    other.fd = os.dup(sink.fd)
    return other


def close(sink: Sink) -> None:
    assert sink._shared is not None
    for fd in (sink.fd, sink._shared.page):
        os.close(fd)
    for each in (sink._shared.handing._in, sink._shared.handing._out):
        each.close()
    sink.words.release()


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[Sink]:
    sink = Sink(str(tmp_path / "log"))
    yield sink
    close(sink)


def test_a_sink_goes_on_in_what_it_was_handed(sink: Sink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it could not open the path; it says which one it writes, and that of the next reopening, too."""
    child = sink_of_a_child(sink)
    for number in (1, 2):
        (tmp_path / "log").rename(tmp_path / f"log.{number}")
        sink.reopen()
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", refuse)
            patch.setattr(os, "stat", refuse)
            assert child.write(b"of number %d\n" % number)
        assert (child.number, child.kept) == (number, 0)
        assert (tmp_path / "log").read_text() == f"of number {number}\n"
    os.close(child.fd)


def test_a_sink_that_cannot_go_on(sink: Sink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither handed the file nor able to open it, it goes on in the old one, says so, and tries again in a second."""
    child, now = sink_of_a_child(sink), 1000.0
    monkeypatch.setattr(sinks, "monotonic", lambda: now)
    (tmp_path / "log").rename(tmp_path / "old")
    sink.reopen()
    with monkeypatch.context() as patch:
        patch.setattr(LogHanding, "look", lambda self, number: None)
        patch.setattr(os, "stat", refuse)
        assert child.write(b"kept\n")
    assert (child.number, child.kept) == (0, 1)
    assert child.write(b"kept\n"), "before it is time to try again"
    now += 1.1
    assert child.write(b"new\n")
    assert (child.number, child.kept) == (1, 1)
    assert ((tmp_path / "old").read_text(), (tmp_path / "log").read_text()) == ("kept\nkept\n", "new\n")
    os.close(child.fd)


def test_what_the_next_image_goes_on_with(sink: Sink, tmp_path: Path) -> None:
    """Page and pair: a child of the previous image follows the next one."""
    child = sink_of_a_child(sink)
    assert sink._shared is not None
    sinks.resume([os.dup(sink._shared.page), *map(os.dup, sink._shared.handing.fds)])
    after = Sink(str(tmp_path / "log"))
    (tmp_path / "log").rename(tmp_path / "old")
    after.reopen()
    assert child.write(b"new\n")
    assert (tmp_path / "log").read_text() == "new\n"
    os.close(child.fd)
    close(after)
