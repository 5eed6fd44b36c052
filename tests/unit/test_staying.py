"""Why a child has not left, in words: what the kernel knows of its signals, and what it says of itself."""

import io
import os
import signal
from collections.abc import Iterator

import pytest

from prefork.master import staying
from prefork.master.children import Child, ChildState
from prefork.master.staying import why_it_stays
from prefork.metrics.facts import ChildKind
from prefork.metrics.scoreboard import Slot, SlotReader, Stacks

URG, QUIT = int(signal.SIGURG), int(signal.SIGQUIT)
STATUS = (
    "Name:\tprefork\\n\nState:\t{state} (x)\nSigPnd:\t{0}\nShdPnd:\t{1}\nSigBlk:\t{0}\nSigIgn:\t{2}\nSigCgt:\t{3}\n"
)


@pytest.fixture
def child() -> Iterator[Child]:
    slot = Slot(1)
    yield Child(
        7, 2, ChildKind.WORKER, 3, 4711, -1, slot, Stacks(slot), SlotReader(slot, 2), started=1.0,
        state=ChildState.DRAINING,
    )  # fmt: skip
    slot.close()


def told(monkeypatch: pytest.MonkeyPatch, state: str = "S", *, pending: int = 0, ignored: int = 0, caught: int = URG,
         thread: int = 0) -> None:  # fmt: skip
    """The kernel says so of the process."""
    sets = [f"{1 << (each - 1) if each else 0:016x}" for each in (thread, pending, ignored, caught)]
    monkeypatch.setattr(
        staying, "open", lambda path, **how: io.StringIO(STATUS.format(*sets, state=state)), raising=False
    )


@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        ({}, ""),
        ({"pending": URG}, "it blocks SIGURG"),
        ({"thread": URG}, "it blocks SIGURG"),
        ({"pending": QUIT}, ""),
        ({"ignored": URG, "caught": 0}, "it ignores SIGURG"),
        ({"caught": 0}, "its handler of SIGURG is gone"),
        ({"state": "T", "pending": URG}, "it is stopped"),
        ({"state": "t"}, "a debugger has stopped it"),
        ({"state": "D"}, "it waits in the kernel"),
    ],
)
def test_what_the_kernel_knows(
    kernel: dict[str, object], said: str, child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the signal by which it was told."""
    told(monkeypatch, **kernel)  # type: ignore[arg-type]
    assert why_it_stays(child) == said


def test_who_was_stopped_was_told_by_another_signal(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    """QUIT; and who was told nothing did not hear nothing."""
    told(monkeypatch, pending=QUIT)
    child.state = ChildState.STOPPING
    assert why_it_stays(child) == "it blocks SIGQUIT"
    child.state = ChildState.STARTING
    assert why_it_stays(child) == ""
    told(monkeypatch, "T", pending=QUIT)
    assert why_it_stays(child) == "it is stopped"


@pytest.mark.parametrize(("busy", "said"), [(0, ""), (1, "it has 1 request in hand"), (3, "it has 3 requests in hand")])
def test_what_it_says_of_itself(busy: int, said: str, child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel knows of no reason, or of nothing at all."""
    told(monkeypatch)
    child.report = child.reader.look(0)._replace(busy_since_ns=(5,) * busy)
    assert why_it_stays(child) == said
    monkeypatch.undo()
    child.pid = -1
    assert why_it_stays(child) == said


def test_a_real_process() -> None:
    """What is parsed is what this kernel writes."""
    signal.signal(signal.SIGVTALRM, signal.SIG_IGN)
    try:
        assert staying._by_the_kernel(os.getpid(), signal.SIGVTALRM) == "it ignores SIGVTALRM"
    finally:
        signal.signal(signal.SIGVTALRM, signal.SIG_DFL)
    assert staying._by_the_kernel(os.getpid(), signal.SIGVTALRM) == "its handler of SIGVTALRM is gone"
