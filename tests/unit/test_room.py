"""Room for a pool: how many descriptors it may take, whoever they are for. (Real limits: tests/faults/test_room.py.)"""

import pytest

from prefork import ConfigError
from prefork.surroundings import room
from prefork.surroundings.room import check_room
from prefork.workers import descriptor_limit

OPEN, RESERVE = 10, 32


@pytest.fixture(autouse=True)
def _counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten descriptors are open, and the hard limit is 200."""
    monkeypatch.setattr(room, "_open_now", lambda: OPEN)
    monkeypatch.setattr(descriptor_limit, "hard_limit", lambda: 200)


# max_children, companions, lent, rehearsing: the descriptors that it takes
NEEDED = [
    (20, 0, 0, False, OPEN + 80 + RESERVE),
    (20, 5, 0, False, OPEN + 100 + RESERVE),
    (20, 5, 70, False, OPEN - 70 + 50 + 70 + RESERVE),
    (20, 5, 0, True, OPEN + 100 + 2 * RESERVE),
]


@pytest.mark.parametrize(("most", "companions", "lent", "rehearsing", "needed"), NEEDED)
def test_what_it_takes(
    most: int, companions: int, lent: int, rehearsing: bool, needed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two for each child of both generations of a reload, companions among them, and a reserve, or two."""
    monkeypatch.setattr(descriptor_limit, "hard_limit", lambda: needed)
    check_room(most, companions, lent, rehearsing=rehearsing)
    monkeypatch.setattr(descriptor_limit, "hard_limit", lambda: needed - 1)
    with pytest.raises(ConfigError, match=f"may take {needed} descriptors, and {needed - 1} is the limit"):
        check_room(most, companions, lent, rehearsing=rehearsing)


@pytest.mark.parametrize(("companions", "asked"), [
    (0, "max_children=60"), (1, "max_children=60 and 1 companion"), (3, "max_children=60 and 3 companions"),
])  # fmt: skip
def test_companions_are_named(companions: int, asked: str) -> None:
    """A sentence says what does not fit."""
    with pytest.raises(ConfigError, match=f"could not serve with {asked}: with both generations"):
        check_room(60, companions)


def test_rows_of_the_board(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers and companions together are at most as many as the board has rows for."""
    monkeypatch.setattr(descriptor_limit, "hard_limit", lambda: 1 << 20)
    check_room(1020)
    check_room(1000, 20)
    with pytest.raises(ConfigError, match="max_children=1000 and 21 companions: together they must be at most 1020"):
        check_room(1000, 21)
