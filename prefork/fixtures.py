"""Fixtures for pytest. To use them, put `pytest_plugins = ["prefork.fixtures"]` in conftest.py.

No module and no entry point imports this one: only projects that ask for it load it.
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
    """Start a pool with each call of `prefork_running(Server, Handler, **settings)`; all end with the test.

    The arguments and errors are those of `prefork.testing.running()`. The pools' logs go to stderr, which pytest shows
    if the test fails.
    """
    with contextlib.ExitStack() as stack:

        def start(*args: Any, **settings: Any) -> Running:
            pool = stack.enter_context(running(*args, **settings))
            stack.callback(lambda: sys.stderr.write(pool.log))
            return pool

        yield start
