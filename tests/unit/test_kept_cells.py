"""The cells of kept connections: who has one, and what is free again when a process has died."""

import os
from collections.abc import Iterator
from typing import Any

import pytest

from prefork.workers.kept_cells import CELLS_FEWEST, CELLS_MOST, KEPT_WORDS, ON_ITS_WAY, KeptCells

WORD = 0x0102_0304_0506_0708


@pytest.fixture
def words() -> Iterator[memoryview]:
    words = memoryview(bytearray(KEPT_WORDS * 8)).cast("Q")
    yield words
    words.release()


@pytest.fixture
def cells(words: memoryview) -> KeptCells:
    return KeptCells(words)


def found(cells: KeptCells) -> int:
    """How many connections are counted."""
    return cells.read().count(WORD.to_bytes(8, "little"))


def test_one_after_another(cells: KeptCells) -> None:
    """Each claim gets a cell of its own, and every one is read; more are looked at only when these are full."""
    numbers = {cells.claim(WORD) for _ in range(CELLS_FEWEST // 2)}
    assert (len(numbers), found(cells), len(cells.read())) == (CELLS_FEWEST // 2, CELLS_FEWEST // 2, CELLS_FEWEST * 8)
    numbers |= {cells.claim(WORD) for _ in range(CELLS_FEWEST)}
    assert (len(numbers), found(cells)) == (CELLS_FEWEST * 3 // 2, CELLS_FEWEST * 3 // 2)
    assert min(numbers) > 0
    for number in numbers:
        cells.drop(number)
    assert cells.read().count(0) == len(cells.read())


def test_several_processes(words: memoryview, monkeypatch: pytest.MonkeyPatch) -> None:
    """They try at different places, also those that were forked with the same object; the dead one's are freed, but
    not those that it has sent."""
    cells, others = KeptCells(words), KeptCells(words)
    first = cells.claim(WORD)
    sent, taken = cells.claim(WORD), cells.claim(WORD)
    cells.park(sent)
    cells.park(taken)
    before, another = cells._chance, os.getpid() + 1
    monkeypatch.setattr(os, "getpid", lambda: another)
    second = cells.claim(WORD)
    assert cells._chance not in (before, (before * 6364136223846793005 + 1442695040888963407) % (1 << 64))
    cells.take(taken)
    monkeypatch.undo()
    others.drop_all_of(os.getpid())
    assert (len({first, second, sent, taken}), found(others)) == (4, 3)
    others.drop_all_of(another)
    assert found(others) == 1
    others.take(sent)
    others.drop_all_of(os.getpid())
    assert found(others) == 0


def test_no_cell_is_free(cells: KeptCells, words: memoryview) -> None:
    """Then a connection is not counted, and its number is of none."""
    for index in range(1, CELLS_MOST + 1):
        words[index] = 1
    assert cells.claim(WORD) == 0
    for change in (cells.take, cells.park, cells.drop):
        change(0)
        change(CELLS_MOST + 1)
    assert words[0] == CELLS_MOST
    assert words[CELLS_MOST + 1 : KEPT_WORDS].tolist().count(0) == KEPT_WORDS - CELLS_MOST - 1


@pytest.mark.parametrize("cell", [1, CELLS_MOST])
def test_the_first_and_the_last_cell(cells: KeptCells, words: memoryview, cell: int) -> None:
    """They are taken, sent and dropped like any other."""
    words[0] = CELLS_MOST
    words[cell] = WORD
    cells.take(cell)
    assert words[CELLS_MOST + cell] == os.getpid()
    cells.park(cell)
    assert words[CELLS_MOST + cell] == ON_ITS_WAY
    assert found(cells) == 1
    cells.drop(cell)
    assert (found(cells), words[cell]) == (0, 0)


def test_killed_in_between() -> None:
    """A process is noted before its connection counts, and one step ends that: where it dies between two, nothing
    counts for ever."""

    class Seen(list[int]):
        def __setitem__(self, at: Any, value: Any) -> None:
            steps.append("process" if at > CELLS_MOST else "cell" if at else "number")
            super().__setitem__(at, value)

    steps: list[str] = []
    cells = KeptCells(Seen([0] * KEPT_WORDS))  # type: ignore[arg-type]
    cells.drop(cells.claim(WORD))
    assert steps == ["number", "process", "cell", "cell"]


def test_a_number_that_is_impossible(cells: KeptCells, words: memoryview) -> None:
    """Where a worker has scribbled, the number of cells is none that is looked at."""
    words[0] = 1 << 60
    assert len(cells.read()) == CELLS_MOST * 8
    assert 0 < cells.claim(WORD) <= CELLS_MOST
