"""The threads behind ThreadingMixIn."""

import threading
from collections.abc import Iterator

import pytest

from prefork.workers.threads import RequestThread, Threads


class Held:
    """A thread that runs until it is let go."""

    def __init__(self, threads: Threads, daemon: bool = False) -> None:
        self.go = threading.Event()
        self.thread = RequestThread(threads, self.go.wait, (), daemon=daemon)

    def end(self) -> None:
        self.go.set()
        if self.thread.ident is not None:
            self.thread.join()


@pytest.fixture
def threads() -> Threads:
    return Threads()


@pytest.fixture
def held(threads: Threads) -> Iterator[list[Held]]:
    made = [Held(threads) for _ in range(3)]
    yield made
    for each in made:
        each.end()


def test_finished_ones_are_forgotten(threads: Threads, held: list[Held]) -> None:
    """What is kept is what runs: the next append drops those that have ended."""
    for each in held[:2]:
        threads.append(each.thread)
        each.thread.start()
    assert len(threads) == 2
    held[0].end()
    threads.append(held[2].thread)
    assert len(threads) == 2


def test_not_started_yet_is_not_finished(threads: Threads, held: list[Held]) -> None:
    """A thread is appended before it is started, and is not taken for one that has ended."""
    for each in held[:2]:
        threads.append(each.thread)
    assert len(threads) == 2


def test_the_programs_own(threads: Threads, held: list[Held]) -> None:
    """A `process_request()` that is a copy of the standard library's appends threads that say nothing when they end:
    the next append drops those, and `join()` waits for the others. One that could not be started is no matter."""
    go = threading.Event()
    own = [threading.Thread(target=target) for target in (bool, bool, go.wait, bool)]
    for thread in own[:3]:
        threads.append(thread)
        thread.start()
    for thread in own[:2]:
        thread.join()
    assert len(threads) == 1
    threads.append(own[3])
    assert threads._theirs == own[2:]
    go.set()
    threads.join()
    assert not own[2].is_alive()


def test_one_that_could_not_be_started(threads: Threads, held: list[Held]) -> None:
    """It is forgotten: `join()`, which would raise for it, does not know it."""
    threads.append(held[0].thread)
    threads.forget(held[0].thread)
    threads.join()
    assert len(threads) == 0


def test_those_that_live_are_not_asked(threads: Threads, held: list[Held], monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one costs the same beside many: none that runs is looked at, one that has ended is, once."""
    asked: list[threading.Thread] = []
    is_alive = RequestThread.is_alive

    def asking(thread: RequestThread) -> bool:
        asked.append(thread)
        return is_alive(thread)

    for each in held[:2]:
        threads.append(each.thread)
        each.thread.start()
    monkeypatch.setattr(RequestThread, "is_alive", asking)
    threads.append(held[2].thread)
    threads.forget(held[2].thread)
    assert asked == []
    held[0].end()
    for _ in range(2):
        threads.append(held[2].thread)
        threads.forget(held[2].thread)
    assert asked == [held[0].thread]


def test_one_in_its_last_steps_is_waited_for(threads: Threads) -> None:
    """A thread that has served its request, and has said so, is still joined."""
    held = Held(threads)
    threads.append(held.thread)
    threads.note_end(held.thread)
    held.thread.start()
    assert len(threads) == 1
    held.end()
    threads.join()
    assert len(threads) == 0


def test_daemonic_ones_are_not_waited_for(threads: Threads) -> None:
    """Daemonic threads are not kept: `join()` returns while they run."""
    held = Held(threads, daemon=True)
    threads.append(held.thread)
    held.thread.start()
    threads.join()
    assert len(threads) == 0
    assert held.thread.is_alive()
    held.end()


def test_join_waits_for_all(threads: Threads, held: list[Held]) -> None:
    """`join()` returns when the last one has ended, and none is kept then."""
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
