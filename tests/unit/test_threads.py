"""The threads behind ThreadingMixIn."""

import threading
from collections.abc import Iterator

import pytest

from prefork.workers.threads import Threads


class Held:
    """A thread that runs until it is let go."""

    def __init__(self, daemon: bool = False) -> None:
        self.go = threading.Event()
        self.thread = threading.Thread(target=self.go.wait, daemon=daemon)

    def end(self) -> None:
        self.go.set()
        if self.thread.ident is not None:
            self.thread.join()


@pytest.fixture
def held() -> Iterator[list[Held]]:
    made = [Held() for _ in range(3)]
    yield made
    for each in made:
        each.end()


def test_finished_ones_are_forgotten(held: list[Held]) -> None:
    """What is kept is what runs: the next append drops those that have ended."""
    threads = Threads()
    for each in held[:2]:
        threads.append(each.thread)
        each.thread.start()
    assert len(threads) == 2
    held[0].end()
    threads.append(held[2].thread)
    assert len(threads) == 2


def test_not_started_yet_is_not_finished(held: list[Held]) -> None:
    """A thread is appended before it is started, and is not taken for one that has ended."""
    threads = Threads()
    threads.append(held[0].thread)
    threads.forget_finished()
    assert len(threads) == 1


def test_daemonic_ones_are_not_waited_for() -> None:
    """Daemonic threads are not kept: `join()` returns while they run."""
    threads, held = Threads(), Held(daemon=True)
    threads.append(held.thread)
    held.thread.start()
    threads.join()
    assert len(threads) == 0
    assert held.thread.is_alive()
    held.end()


def test_join_waits_for_all(held: list[Held]) -> None:
    """`join()` returns when the last one has ended, and none is kept then."""
    threads = Threads()
    for each in held:
        threads.append(each.thread)
        each.thread.start()
    joined = threading.Event()

    def join() -> None:
        threads.join()
        joined.set()

    joiner = threading.Thread(target=join)
    joiner.start()
    for each in held[:2]:
        each.end()
    assert not joined.wait(0.05)
    held[2].end()
    joiner.join()
    assert joined.is_set()
    assert len(threads) == 0
