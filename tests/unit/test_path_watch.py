"""The watch on the Unix paths of a service."""

import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefork.master.path_watch import PathWatch
from prefork.sockets.listener import Listener


@pytest.fixture
def listener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    monkeypatch.chdir(tmp_path)
    with Listener(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind("s")
        yield listener


def test_a_path_that_comes_and_goes(listener: Listener, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Removed or replaced, that is said once, and the service is out of reach until the path leads to it again; what
    happens between two looks, a second apart, is seen at the next."""
    caplog.set_level(logging.INFO)
    watch, path = PathWatch([listener]), tmp_path / "s"
    assert watch.turn(10.0) == 11.0
    path.rename("kept")
    assert (watch.turn(10.5), watch.reachable) == (11.0, True)
    for now in (11.0, 12.0):
        watch.turn(now)
        assert not watch.reachable
    path.touch()
    assert (watch.turn(13.0), watch.reachable) == (14.0, False)
    os.rename("kept", path)
    watch.turn(14.0)
    assert watch.reachable
    assert [record.getMessage() for record in caplog.records] == [
        f"{path} was removed or replaced: no new client can connect there until a reload binds it anew",
        f"{path} leads here again",
    ]
    listener.unlink()
    watch.turn(15.0)
    assert watch.reachable
    assert len(caplog.records) == 2


def test_paths_of_others(listener: Listener, caplog: pytest.LogCaptureFixture) -> None:
    """That of the metrics or of the control socket is missed too, and the service is in reach all the same."""
    watch = PathWatch([])
    watch.add(listener)
    os.unlink("s")
    watch.turn(10.0)
    assert watch.reachable
    assert "was removed or replaced" in caplog.text
