"""For pytest, where a project asks for it: `pytest_plugins = ["prefork.fixtures"]` in its conftest.py.

Nothing imports this room, and no entry point does: who does not ask for it does not load it.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .testing import Running, running

__all__ = ["prefork_running"]


@pytest.fixture
def prefork_running() -> Iterator[Callable[..., Running]]:
    """Start a pool by `prefork_running(Server, Handler, **settings)`, as often as needed; each ends with the test. Its
    log is on stderr, which pytest shows when the test fails."""
    with contextlib.ExitStack() as stack:

        def start(*args: Any, **settings: Any) -> Running:
            pool = stack.enter_context(running(*args, **settings))
            stack.callback(lambda: sys.stderr.write(pool.log))
            return pool

        yield start
