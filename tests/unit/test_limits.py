"""When a worker is due: its count, its samples of memory, and the jitter that keeps workers from leaving together."""

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.metrics.facts import ExitReason
from prefork.workers.limits import WorkerLimits, jittered, sample

# What is documented, in seconds where the name says so: written out, so that a number cannot change unseen.
CONFIRM_EVERY_S = 1.0
JITTER = 0.1
SAMPLE_EVERY_S = 10.0
SAMPLES = 3

MIB = 1 << 20


@given(st.floats(0.001, 1e9))
def test_jitter_is_up_to_a_tenth_earlier(limit: float) -> None:
    """Never later than the limit, never more than a tenth before it."""
    found = jittered(limit)
    assert limit * (1 - JITTER) <= found <= limit


def test_jitter_spreads() -> None:
    """Workers with the same limit come to different ones."""
    assert len({round(jittered(1000)) for _ in range(50)}) > 25


@pytest.mark.parametrize(("served", "due"), [(0, False), (9, False), (10, True), (11, True)])
def test_requests(served: int, due: bool) -> None:
    """Due from the last request on, and so it stays."""
    assert WorkerLimits(10, None).due(served, deque()) is (ExitReason.MAX_REQUESTS if due else None)


@pytest.mark.parametrize(
    ("memory", "due"),
    [
        ([], False),
        ([101, 101], False),  # not enough samples
        ([101, 101, 101], True),
        ([101, 99, 101], False),  # it went down in between
        ([100, 100, 100], False),  # at the limit is within it
        ([99, 101, 101], False),  # one large request is no reason
    ],
)
def test_memory_over_several_samples(memory: list[int], due: bool) -> None:
    """Due when each of the last three samples was above the limit."""
    samples = deque((size * MIB for size in memory), maxlen=SAMPLES)
    assert WorkerLimits(None, 100 * MIB).due(5, samples) is (ExitReason.MAX_MEMORY if due else None)


def test_no_limits() -> None:
    """None is no limit."""
    assert WorkerLimits(None, None).due(10**9, deque([10**12] * SAMPLES, maxlen=SAMPLES)) is None


@pytest.mark.parametrize(
    ("memory", "seconds"), [([], SAMPLE_EVERY_S), ([99], SAMPLE_EVERY_S), ([99, 101], CONFIRM_EVERY_S)]
)
def test_samples_are_rare_until_one_is_too_large(memory: list[int], seconds: float) -> None:
    """Every ten seconds; every second while the last one was above."""
    samples = deque((size * MIB for size in memory), maxlen=SAMPLES)
    assert WorkerLimits(None, 100 * MIB).next_sample_s(samples) == seconds


def test_sample_of_this_process() -> None:
    """Private memory rises by what is written, descriptors are counted, CPU time has passed."""
    before = sample()
    kept = bytearray(b"x" * (64 * MIB))
    after = sample()
    assert before is not None
    assert after is not None
    assert 60 * MIB < after.private_memory - before.private_memory < 80 * MIB
    assert 0 < after.open_fds < after.fds_limit
    assert after.cpu_user_s + after.cpu_system_s > 0
    assert len(kept) == 64 * MIB
