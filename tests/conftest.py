"""What holds for every test: nothing of it is left behind; random numbers are repeatable and say how."""

import contextlib
import gc
import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, Phase, settings

# What CI tests with, from the seed that it gives; Hypothesis' own "ci" has the same examples at every commit.
settings.register_profile(
    "commit", derandomize=False, database=None, deadline=None, print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
# What tests/mutants asks with: the first example that fails is enough.
settings.register_profile("mutants", settings.get_profile("commit"), phases=[Phase.explicit, Phase.generate])


def _descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def _children() -> set[int]:
    """Of every thread, by the kernel's list; proc(5)."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has ended
            found.update(map(int, (task / "children").read_text().split()))
    return found


def _be_init() -> None:
    """As the first process of a container, leave the tests to a child and do what an init does: what has lost its
    parent is reaped here, and is none of theirs."""
    tests = os.fork()
    while tests:
        pid, status = os.wait()
        if pid == tests:
            os._exit(os.waitstatus_to_exitcode(status))


def pytest_configure() -> None:
    """What tests start hears Ctrl-C and Ctrl-\\, which are ignored in what a shell runs in the background; and it holds
    back what it prints, as in production, whatever the environment of the tests says."""
    if os.getpid() == 1:
        _be_init()
    os.environ.pop("PYTHONUNBUFFERED", None)
    for signum, action in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
        if signal.getsignal(signum) is signal.SIG_IGN:
            signal.signal(signum, action)


def pytest_collection_finish() -> None:
    """What is there before a test is left out of the collection after it, which took a tenth of a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """After the test this process has no child, descriptor or thread that it did not have before."""
    threads, descriptors, children = set(threading.enumerate()), _descriptors(), _children()
    yield
    gc.collect()
    gc.freeze()  # anew: a pool in this process has put back what was frozen
    left = [f"child {psutil.Process(pid)}" for pid in _children() - children]
    left += [f"thread {thread.name}" for thread in set(threading.enumerate()) - threads]
    left += [f"descriptor {fd} {what}" for fd, what in _descriptors().items() if fd not in descriptors]
    assert left == []


@pytest.fixture
def rng() -> random.Random:
    """Random times of a test. The seed is printed; TEST_PREFORK_SEED=N repeats a run."""
    seed = int(os.environ.get("TEST_PREFORK_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"TEST_PREFORK_SEED={seed}")  # noqa: T201  # pytest shows it when the test fails
    return random.Random(seed)
