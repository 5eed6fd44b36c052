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
from _pytest.runner import runtestprotocol
from hypothesis import HealthCheck, Phase, settings

from tests.support.tools.standstill import Standstill

# What CI tests with, from the seed that it gives; Hypothesis' own "ci" has the same examples at every commit.
settings.register_profile(
    "commit", derandomize=False, database=None, deadline=None, print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
# What everybody else tests with: an example may take its time, for the machine may stand still.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
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


# What has a figure of time to meet, over a host that has other guests.

RUNS = 3  # of such a test, at most
STOOD_STILL_S = 0.1  # what of it is worth another

_standstill: Standstill | None = None
_again: list[str] = []


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Run what is marked `faults` or `timed` once more if it failed while the host had taken the processors away."""
    global _standstill
    if item.get_closest_marker("faults") is None and item.get_closest_marker("timed") is None:
        return None
    if _standstill is None:
        _standstill = Standstill()
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for run in range(1, RUNS + 1):
        before = _standstill.lost()
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
        stood_still = _standstill.seconds(before)
        if not any(each.failed for each in reports) or stood_still < STOOD_STILL_S or run == RUNS:
            break
        _again.append(f"{item.nodeid}: failed while the machine stood still for {stood_still:.2f} s")
    for each in reports:
        item.ihook.pytest_runtest_logreport(report=each)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for each in _again:
        terminalreporter.write_line(f"run again: {each}")


def pytest_unconfigure() -> None:
    if _standstill is not None:
        _standstill.close()


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
