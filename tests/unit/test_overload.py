"""Full, and datagrams dropped: a line when it begins and one when it ends, in any order of looks."""

import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.master.overload import FULL_S, OVER_S, Overload
from prefork.metrics.log_events import LogEvent


class Looks:
    """Looks at a service, a tenth of a second apart, and what was logged of it."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.overload, self.now, self._caplog = Overload(), 100.0, caplog
        caplog.set_level(logging.INFO, "prefork.supervisor")

    def look(
        self, queued: int = 0, dropped: int | None = None, *, saturated: bool = False, seconds: float = 0.1
    ) -> None:
        until = self.now + seconds
        while self.now < until - 1e-6:
            self.now += 0.1
            self.overload.look(bool(queued), queued, dropped, self.now, saturated=saturated)

    @property
    def events(self) -> list[LogEvent]:
        return [record.__dict__["event"] for record in self._caplog.records]

    def last(self, field: str) -> Any:
        return self._caplog.records[-1].__dict__["fields"][field]


@pytest.fixture
def looks(caplog: pytest.LogCaptureFixture) -> Looks:
    return Looks(caplog)


def test_full_begins_and_ends(looks: Looks) -> None:
    """It is said once that clients wait and every lane is busy, and once that it is over: for how long, how many."""
    looks.look(3, saturated=True, seconds=FULL_S)
    assert looks.events == []
    looks.look(3, saturated=True, seconds=0.5)
    assert looks.events == [LogEvent.FULL]
    assert looks.last("queued") == 3
    looks.look(40, saturated=True, seconds=9.5)
    looks.look(0, seconds=OVER_S - 0.2)
    assert looks.events == [LogEvent.FULL]
    looks.look(0, seconds=0.5)
    assert looks.events == [LogEvent.FULL, LogEvent.FULL_ENDED]
    assert looks.last("queued") == 40
    assert looks.last("lasted_s") == pytest.approx(FULL_S + 0.5 + 9.5, abs=0.2)
    looks.look(0, seconds=60)
    assert len(looks.events) == 2


def test_a_short_break_is_none(looks: Looks) -> None:
    """A service at its limit, whose queue is empty for a moment again and again, does not fill the log."""
    for _ in range(20):
        looks.look(1, saturated=True, seconds=2)
        looks.look(0, seconds=1)
    assert looks.events == [LogEvent.FULL]


@pytest.mark.parametrize(("queued", "saturated"), [(0, True), (5, False)])
def test_what_is_not_full(queued: int, saturated: bool, looks: Looks) -> None:
    """Neither busy lanes without clients that wait, nor a queue beside an idle lane, is told."""
    looks.look(queued, saturated=saturated, seconds=30)
    assert looks.events == []


def test_moments_are_not_told(looks: Looks) -> None:
    """A queue that is emptied within FULL_S each time is not full, however often."""
    for _ in range(50):
        looks.look(9, saturated=True, seconds=FULL_S - 0.2)
        looks.look(0)
    assert looks.events == []


def test_how_many_is_of_this_time(looks: Looks) -> None:
    """Neither a queue that was not told nor one that was told is counted in the next."""
    looks.look(50)
    looks.look(0)
    for waiting in (7, 3):
        looks.look(waiting, saturated=True, seconds=2)
        looks.look(0, seconds=OVER_S + 1)
        assert (looks.events[-1], looks.last("queued")) == (LogEvent.FULL_ENDED, waiting)


def test_datagrams(looks: Looks) -> None:
    """The first that are dropped are told, and their sum at the end; what was dropped before we looked is not."""
    looks.look(dropped=1000, seconds=5)
    assert looks.events == []
    for dropped in (1002, 1007, 1007, 1010):
        looks.look(dropped=dropped, seconds=1)
    assert looks.events == [LogEvent.DATAGRAMS_DROPPED]
    assert looks.last("dropped") == 2
    looks.look(dropped=1010, seconds=OVER_S + 1)
    assert looks.events == [LogEvent.DATAGRAMS_DROPPED, LogEvent.DATAGRAMS_DROPPED_ENDED]
    assert looks.last("dropped") == 10
    assert looks.last("lasted_s") == pytest.approx(3.0, abs=0.2)


def test_a_new_image_goes_on_with_it(looks: Looks) -> None:
    """What was told to have begun is told to have ended by whichever image sees that, of another version too."""
    looks.look(3, 0, saturated=True, seconds=2)
    looks.overload = Overload.resumed({**looks.overload.pack(), "of a later version": 1})
    looks.look(3, 5, saturated=True, seconds=2)
    looks.overload.end()
    assert looks.events == [
        LogEvent.FULL, LogEvent.DATAGRAMS_DROPPED, LogEvent.FULL_ENDED, LogEvent.DATAGRAMS_DROPPED_ENDED,
    ]  # fmt: skip


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.booleans(), st.none() | st.integers(0, 3), st.floats(0.01, 10)), max_size=60
    )
)
def test_beginnings_and_ends_alternate(taken: list[tuple[int, bool, int | None, float]]) -> None:
    """Whatever is seen, no state begins twice without an end, and none ends that has not begun."""
    said: list[LogEvent] = []

    class Noting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.__dict__["event"])

    overload, now, dropped, handler = Overload(), 0.0, 0, Noting()
    logger = logging.getLogger("prefork.supervisor")
    logger.addHandler(handler)
    try:
        for waiting, saturated, more, seconds in taken:
            now += seconds
            dropped += more or 0
            overload.look(bool(waiting), waiting, None if more is None else dropped, now, saturated=saturated)
        overload.end()
    finally:
        logger.removeHandler(handler)
    for begins, ends in (
        (LogEvent.FULL, LogEvent.FULL_ENDED),
        (LogEvent.DATAGRAMS_DROPPED, LogEvent.DATAGRAMS_DROPPED_ENDED),
    ):
        these = [each for each in said if each in (begins, ends)]
        assert these == [begins, ends] * (len(these) // 2)
