"""The latch by which a companion is told: set once, seen by all who wait."""

import os

from prefork.workers.latch import Latch


def test_a_latch_that_the_program_has_closed() -> None:
    """To set it raises nothing: that would be in a signal handler, anywhere in the program's code."""
    latch = Latch()
    os.close(latch._fd)
    latch.set()


def test_it_stays_set() -> None:
    """Not set, a wait ends after its time; set, every wait ends at once."""
    latch = Latch()
    assert not latch.wait(0.0)
    latch.set()
    assert latch.wait(60.0)
    assert latch.wait(60.0)
    os.close(latch._fd)
