"""What holds for every test: nothing of it is left behind; random numbers are repeatable and say how."""

import contextlib
import gc
import os
import random
import threading
from collections.abc import Iterator

import psutil
import pytest


def _descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """After the test this process has no child, descriptor or thread that it did not have before."""
    threads, descriptors, children = set(threading.enumerate()), _descriptors(), psutil.Process().children()
    yield
    gc.collect()
    left = [f"child {child}" for child in psutil.Process().children() if child not in children]
    left += [f"thread {thread.name}" for thread in set(threading.enumerate()) - threads]
    left += [f"descriptor {fd} {what}" for fd, what in _descriptors().items() if fd not in descriptors]
    assert left == []


@pytest.fixture
def rng() -> random.Random:
    """Random times of a test. The seed is printed; TEST_PREFORK_SEED=N repeats a run."""
    seed = int(os.environ.get("TEST_PREFORK_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"TEST_PREFORK_SEED={seed}")  # noqa: T201  # pytest shows it when the test fails
    return random.Random(seed)
