"""The supervisor's clock, over a monotonic clock that the test turns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.master.clock import BetweenTurns, Clock


class Machine:
    ns = 5_000_000_000

    def __call__(self) -> int:
        return self.ns

    def passes(self, seconds: float) -> None:
        self.ns += round(seconds * 1e9)


def test_a_pause_is_not_counted() -> None:
    """After a pause the clock stands where it stood; from then on it runs again."""
    machine = Machine()
    clock = Clock(stamp_ns=machine)
    before = clock.now()
    machine.passes(60)
    clock.note_pause(60)
    assert clock.now() == before
    machine.passes(2)
    assert clock.now() == before + 2


def test_stamps_of_before_in_and_after_a_pause() -> None:
    """A stamp from before a pause keeps its place, one from within it falls on its moment, a later one runs on."""
    machine = Machine()
    clock = Clock(stamp_ns=machine)
    before, began = machine.ns, clock.now()
    machine.passes(1)
    machine.passes(30)
    within = machine.ns
    machine.passes(30)
    clock.note_pause(60)
    machine.passes(3)
    assert clock.at(before) == began
    assert clock.at(within) == began + 1
    assert clock.at(machine.ns) == clock.now() == began + 4


def test_stamps_of_before_several_pauses() -> None:
    """None of them counts for what began before: no request is over its time because the master was stopped twice."""
    machine = Machine()
    clock = Clock(stamp_ns=machine)
    before, began = machine.ns, clock.now()
    stamps = []
    for _ in range(3):
        machine.passes(30)
        clock.note_pause(30)
        machine.passes(1)
        stamps.append(machine.ns)
    assert clock.at(before) == began
    assert [clock.at(stamp) for stamp in stamps] == [began + 1, began + 2, began + 3]


def test_an_earlier_image_s_pauses() -> None:
    """Over an exec the clock goes on: what was noted before means the same."""
    machine = Machine()
    clock = Clock(stamp_ns=machine)
    before = machine.ns
    machine.passes(10)
    clock.note_pause(4)
    other = Clock(clock.paused, clock.pauses, stamp_ns=machine)
    assert other.now() == clock.now()
    assert other.at(before) == clock.at(before) == clock.now() - 6


@given(st.lists(st.tuples(st.floats(0, 100), st.booleans()), max_size=10))
def test_never_runs_back(spans: list[tuple[float, bool]]) -> None:
    """Whatever passes, and however much of it was a pause, now() never falls."""
    machine = Machine()
    clock = Clock(stamp_ns=machine)
    for seconds, paused in spans:
        before = clock.now()
        machine.passes(seconds)
        if paused:
            clock.note_pause(seconds)
        assert clock.now() >= before - 1e-6


def test_what_passes_between_two_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """What service_actions() takes in each turn is left out, before and after it calls the turn; what one takes beyond
    that is not, and where there is none nothing is."""
    at = 100.0
    monkeypatch.setattr("prefork.master.clock.monotonic", lambda: at)
    between = BetweenTurns(at)
    assert between.passed(at + 2, at + 1) == (1, 2)
    found = []
    for takes in (3, 3, 7):
        between.acting()
        at += takes
        found.append(between.passed(at, between.last + 1))
        between.last = at
        at += 1
        between.acted()
    assert found == [(2, 3), (0, 1), (3, 4)]
