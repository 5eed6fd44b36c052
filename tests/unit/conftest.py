"""A unit test is one of seconds: it starts no process. What does stands in tests/process."""

import sys
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest

from prefork.workers import lanes, loop, strays
from tests.support.programs.inside import Stray

STARTS = frozenset({"os.fork", "os.forkpty", "os.posix_spawn", "os.system", "subprocess.Popen"})
_started: list[str] = []


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if event in STARTS:
        _started.append(f"{event} {arguments}")


sys.addaudithook(_hear)  # it is never taken away again, so only the fixture asks


@pytest.fixture(autouse=True)
def no_process_is_started() -> Iterator[None]:
    """A unit test forks nothing and starts no program (CPython's audit events)."""
    _started.clear()
    yield
    assert _started == []


@pytest.fixture
def stray_ends(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The statuses of processes that a program forks, in a test that has only one: each end raises Stray."""
    statuses: list[int] = []

    def leave(status: int) -> NoReturn:
        statuses.append(status)
        raise Stray

    for module in (lanes, loop, strays):
        monkeypatch.setattr(module, "leave", leave)
    return statuses
