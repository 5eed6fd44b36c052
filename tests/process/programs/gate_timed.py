"""Tests that fail while the machine seems to stand still, for test_gate: what watches for that is stopped."""

import collections
import contextlib
import os
import select
import signal
from collections.abc import Iterator

import psutil
import pytest

from tests import conftest

STOPPED_S = 0.15
runs: "collections.Counter[str]" = collections.Counter()


def watching() -> Iterator[psutil.Process]:
    for each in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "standstill.py" in " ".join(each.cmdline()) and each.cwd() == os.getcwd():
                yield each


def stand_still() -> None:
    watch = conftest._standstill
    assert watch is not None
    before = watch.lost()
    while not watch.seconds(before):  # it may not have begun to watch
        for each in watching():
            each.send_signal(signal.SIGSTOP)
        select.select([], [], [], STOPPED_S)
        for each in watching():
            each.send_signal(signal.SIGCONT)


def fail(name: str, times: int, held_up: bool) -> None:
    """Fail in the first runs of the test of this name, which then prints how many there were."""
    runs[name] += 1
    if held_up:
        stand_still()
    assert runs[name] > times, f"{name}: run {runs[name]}"


@pytest.mark.timed
def test_held_up() -> None:
    fail("held_up", 2, held_up=True)


@pytest.mark.timed
def test_always_held_up() -> None:
    fail("always_held_up", 9, held_up=True)


def test_not_timed() -> None:
    try:
        fail("not_timed", 9, held_up=True)
    finally:
        for each in watching():  # so that the host has no say in what comes next
            each.kill()


@pytest.mark.timed
def test_slow_by_itself() -> None:
    fail("slow_by_itself", 9, held_up=False)
