"""Who is in front of a queue of datagrams, and how those that stand aside come back."""

import os
import select
import threading
from collections.abc import Callable, Iterator
from time import monotonic_ns

import pytest

from prefork.workers import front as module
from prefork.workers.front import IN_FRONT, UNTIL, Front, Standing
from prefork.workers.lanes import NEVER_NS

HUNG_S = 20.0
NOW = 1_000_000_000_000  # ns
SHORT, LONG = 1_000, 1_000_000_000


class Watched(Front):
    """Whose timer is wound only where the test says so, but for those that are aside."""

    def __init__(self) -> None:
        super().__init__()
        self.wound = 0
        self.runs = False

    def wind(self) -> None:
        self.wound += 1
        if self.runs:
            super().wind()


@pytest.fixture
def front() -> Iterator[Watched]:
    made = Watched()
    yield made
    made.close()


Make = Callable[..., Standing]


@pytest.fixture
def worker(front: Watched) -> Make:
    """Makes one with this pid."""

    def make(pid: int, heard: tuple[int, ...] = (), note: module.Note = list) -> Standing:  # type: ignore[assignment]
        made = Standing(front, heard, note)
        made.me = pid
        return made

    return make


def test_without_others() -> None:
    """Nobody has to be told of anything, and the words are its own."""
    alone = Standing(None, (), lambda ready: None)
    assert alone.at_ns == NEVER_NS
    assert alone.words[IN_FRONT] == alone.me
    alone.leave()


def test_the_first_is_in_front(front: Watched, worker: Make) -> None:
    """It need not say so again for a while; each other one asks each time; and who leaves makes room."""
    first, second = worker(1), worker(2)
    assert first.at_ns == second.at_ns == 0
    assert first.came(NOW) == NOW + module.WOUND_EVERY_NS
    assert second.came(NOW) == second.came(NOW + LONG) == 0
    assert front.words[IN_FRONT] == 1
    second.leave()
    assert front.words[IN_FRONT] == 1
    first.leave()
    assert front.words[IN_FRONT] == 0
    assert second.came(NOW)
    assert front.words[IN_FRONT] == 2
    assert first.came(NOW) == 0
    assert not front.wound, "nobody is aside"


def test_the_timer_is_wound_while_somebody_is_aside(front: Watched, worker: Make) -> None:
    """By the one in front alone."""
    first, second = worker(1), worker(2)
    first.came(NOW)
    front.words[UNTIL] = NOW + 1
    second.came(NOW)
    assert front.wound == 0
    first.came(NOW)
    assert front.wound == 1
    first.came(NOW + 1)
    assert front.wound == 1


@pytest.mark.parametrize("case", ["seldom", "long"])
def test_who_is_wanted_stays(case: str, front: Watched, worker: Make) -> None:
    """Where it seldom happens that it was not needed, or its last handler took long."""
    second = worker(2)
    second.stand_aside(NOW, SHORT)
    later = NOW + (module.RECENTLY_NS + 1 if case == "seldom" else 1)
    second.stand_aside(later, SHORT if case == "seldom" else module.SHORT_NS + 1)
    assert (front.wound, front.words[UNTIL]) == (0, 0)


def aside(standing: Standing) -> None:
    """Stand aside."""
    now_ns = monotonic_ns()
    standing.stand_aside(now_ns, SHORT)
    standing.stand_aside(now_ns, SHORT)


def test_back_when_the_timer_ends(front: Watched, worker: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says until when it may be aside, and is in front with the next datagram."""
    monkeypatch.setattr(module, "MOST_NS", int(HUNG_S * 1e9))
    first, second = worker(1), worker(2)
    first.came(NOW)
    front.runs = True
    began_ns = monotonic_ns()
    aside(second)
    assert began_ns + module.BACK_AFTER_NS <= monotonic_ns() < front.words[UNTIL]
    assert front.words[UNTIL] >= began_ns + HUNG_S * 1e9
    assert second.came(NOW)
    assert front.words[IN_FRONT] == 2
    assert first.came(NOW) == 0
    assert second.came(NOW)


def test_not_for_ever(front: Watched, worker: Make) -> None:
    """Whatever the others do with the timer, and then another one is in front as before."""
    first, second = worker(1), worker(2)
    first.came(NOW)
    aside(second)
    assert front.wound == 1
    assert second.came(NOW) == 0


def test_what_it_hears(front: Watched, worker: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wake-up ends it at once, is told, and is no reason to be in front."""
    monkeypatch.setattr(module, "MOST_NS", int(HUNG_S * 1e9))
    noted: list[list[tuple[int, int]]] = []
    wakeup = os.eventfd(1)
    try:
        second = worker(2, (wakeup,), noted.append)
        worker(1).came(NOW)
        aside(second)
        assert noted == [[(wakeup, select.EPOLLIN)]]
        assert second.came(NOW) == 0
    finally:
        os.close(wakeup)


def test_one_after_the_other(front: Watched, worker: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several that are aside one is back when the timer ends, which lets the next."""
    monkeypatch.setattr(module, "MOST_NS", int(HUNG_S * 1e9))
    let: list[int] = []
    may_let = threading.Event()

    def let_next() -> None:
        let.append(sum(each.is_alive() for each in threads))
        assert may_let.wait(HUNG_S)
        Front.let_next(front)

    monkeypatch.setattr(front, "let_next", let_next)
    threads = [threading.Thread(target=aside, args=(worker(pid),)) for pid in (2, 3, 4)]
    for each in threads:
        each.start()
    while front.wound < 3:
        threading.Event().wait(0.001)
    Front.wind(front)
    while not let:
        threading.Event().wait(0.001)
    may_let.set()
    for each in threads:
        each.join(HUNG_S)
        assert not each.is_alive()
    assert let == [3, 2, 1]


def test_no_descriptor_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Is said as an OSError."""
    monkeypatch.setattr(module, "_create", lambda clock, flags: -1)
    with pytest.raises(OSError):
        Front()
