"""A unit test is one of seconds: it starts no process. What does stands in tests/process."""

import sys
from collections.abc import Iterator
from typing import Any

import pytest

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
