"""Who may hold a lock of logging at a fork: another thread, and nobody where there is none."""

import gc
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from prefork.workers import log_locks
from prefork.workers.log_locks import is_alone


@pytest.fixture
def another() -> Iterator[None]:
    leave = threading.Event()
    thread = threading.Thread(target=leave.wait)
    thread.start()
    yield
    leave.set()
    thread.join()


def test_alone() -> None:
    assert is_alone()


def test_beside_another_thread(another: None) -> None:
    assert not is_alone()


@pytest.mark.parametrize("collects", [True, False])
def test_no_garbage_is_collected_meanwhile(collects: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is collected may wait for the lock that CPython holds then. The collector is left as it was."""
    seen = list[bool]()

    def frames() -> dict[int, object]:
        seen.append(gc.isenabled())
        return {1: None}

    monkeypatch.setattr(log_locks, "sys", SimpleNamespace(_current_frames=frames))
    try:
        if not collects:
            gc.disable()
        assert is_alone()
        assert (seen, gc.isenabled()) == ([False], collects)
    finally:
        gc.enable()
