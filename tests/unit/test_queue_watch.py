"""Who is idle beside a queue: at one look after the other, in a time that is written here."""

import pytest

from prefork.master.queue_watch import NOTHING_SEEN, QueueWatch, Unmoved


def idle(serial: int, tried_ns: int = 7, since: float = 0.0, *, empty_handed: bool = True) -> Unmoved:
    return Unmoved(serial, tried_ns, since, empty_handed)


def looked(before: QueueWatch, now: float, *workers: int, tried_ns: int = 7, accepted: int = 3) -> QueueWatch:
    """A look at a queue that has something in it, and at these idle workers."""
    return before.looked(True, [idle(serial, tried_ns, now) for serial in workers], accepted, now)


def test_the_moment_since_when_a_worker_has_not_moved() -> None:
    """It is that of the first look that found it so. One that has tried to accept, or whose requests have ended, is
    new; so is one that was busy in between; where nothing is queued nobody is looked at."""
    watch = looked(looked(NOTHING_SEEN, 10.0, 1, 2), 11.0, 1, 2, 3)
    assert [(each.serial, each.since) for each in watch.unmoved] == [(1, 10.0), (2, 10.0), (3, 11.0)]
    moved = watch.looked(True, [idle(1, 8, 12.0), idle(2, 7, 12.0, empty_handed=False), idle(3, 7, 12.0)], 3, 12.0)
    assert [each.since for each in moved.unmoved] == [12.0, 12.0, 11.0]
    assert [each.since for each in looked(looked(watch, 12.0), 13.0, 1).unmoved] == [13.0]
    assert watch.looked(False, [idle(1)], 3, 12.0) == NOTHING_SEEN
    assert (NOTHING_SEEN.unmoved, NOTHING_SEEN.untaken_since) == ((), None)


def test_who_is_to_be_woken() -> None:
    """Whoever was found idle at two looks, the second time with the same word."""
    first = looked(NOTHING_SEEN, 10.0, 1, 2)
    assert first.to_wake(NOTHING_SEEN) == ()
    assert looked(first, 11.0, 1, 2, 3).to_wake(first) == (1, 2)
    assert looked(first, 11.0, 1, tried_ns=8).to_wake(first) == ()


@pytest.mark.parametrize(("timeout", "now", "stuck"), [
    (5.0, 15.0, (1,)), (5.0, 14.9, ()), (4.0, 14.9, (1,)), (None, 99.0, ()), (5.0, 99.0, (1, 3)),
])  # fmt: skip
def test_who_is_stuck(timeout: float | None, now: float, stuck: tuple[int, ...]) -> None:
    """Whoever has nothing in hand and has not moved for so long; a worker of which one lane is free may be busy."""
    watch = QueueWatch((idle(1, since=10.0), idle(2, since=10.0, empty_handed=False), idle(3, since=12.0)), 3, 10.0)
    assert watch.stuck(timeout, now) == stuck


def test_what_nobody_answers() -> None:
    """Nothing was taken for so long although something was queued and there was a free lane."""
    watch = looked(looked(NOTHING_SEEN, 10.0, 1), 12.0, 1)
    assert watch.untaken_since == 10.0
    assert [watch.unanswered(5.0, now) for now in (14.9, 15.0, 99.0)] == [False, True, True]
    assert not watch.unanswered(None, 99.0)
    assert not NOTHING_SEEN.unanswered(5.0, 99.0)
    taken = looked(watch, 13.0, 1, accepted=4)
    assert taken.untaken_since == 13.0
    assert not taken.unanswered(5.0, 17.9)
    assert taken.unanswered(5.0, 18.0)
    busy = looked(watch, 16.0)
    assert busy.untaken_since == 10.0
    assert not busy.unanswered(5.0, 99.0), "every lane is busy"


def test_the_first_look_at_a_queue() -> None:
    """Begins the time, however many were accepted before."""
    assert looked(NOTHING_SEEN, 10.0, 1, accepted=0).untaken_since == 10.0
