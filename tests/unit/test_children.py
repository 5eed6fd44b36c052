"""Child and its states. (The table itself, over real and fake processes: tests/process/test_children.py.)"""

import logging
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefork.master.children import CHILD_MAY_FOLLOW, Child, ChildState, Exit
from prefork.metrics.facts import ChildKind
from prefork.metrics.scoreboard import Slot, SlotReader, Stacks

S = ChildState
ORDER = [S.STARTING, S.READY, S.DRAINING, S.STOPPING, S.KILLING, S.REAPED]
SOURCES = Path(__file__).parents[2]


@pytest.fixture
def child() -> Iterator[Child]:
    """A record of a process that there is not."""
    slot = Slot(1)
    yield Child(7, 2, ChildKind.WORKER, 3, 4711, -1, slot, Stacks(slot), SlotReader(slot, 2), started=1.0, changed=1.0)
    slot.close()


@pytest.mark.parametrize("after", ORDER)
@pytest.mark.parametrize("before", ORDER)
def test_states_follow_one_another(before: ChildState, after: ChildState, child: Child) -> None:
    """STARTING → READY → DRAINING → STOPPING → KILLING → REAPED, each may be left out, and none follows a later one."""
    child.state = before
    if ORDER.index(after) > ORDER.index(before):
        child.set_state(after, 2.0)
        assert (child.state, child.changed) == (after, 2.0)
    else:
        with pytest.raises(AssertionError, match=f"{after.name} cannot follow {before.name}"):
            child.set_state(after, 2.0)
        assert (child.state, child.changed) == (before, 1.0)


def test_every_state_is_in_the_table() -> None:
    """What may follow what is said for every state; nothing comes before the first."""
    assert list(CHILD_MAY_FOLLOW) == ORDER == list(ChildState)


def test_booted_is_remembered(child: Child) -> None:
    """Whoever was READY has booted, whatever becomes of it; whoever was not has not."""
    assert not child.booted
    child.set_state(S.READY, 2.0)
    child.set_state(S.DRAINING, 3.0)
    assert child.booted


def test_not_ready_is_not_booted(child: Child) -> None:
    """A child that drains before it was ready has not booted."""
    child.set_state(S.DRAINING, 2.0)
    assert not child.booted


def test_the_setter_logs(child: Child, caplog: pytest.LogCaptureFixture) -> None:
    """Each change is one line with who it is; that it is killed is said with why by who does it, and how it ended by
    who settles its account."""
    with caplog.at_level(logging.INFO, "prefork"):
        for state in ORDER[1:]:
            child.set_state(state, 2.0)
    assert caplog.messages == [f"worker slot=2 gen=3 pid=4711: {what}" for what in ("ready", "draining", "stopping")]


def test_one_setter() -> None:
    """Nobody else writes a child's state, or the phase of the supervisor. The state of a kept connection is not meant:
    that is whatever its handler has put there."""
    wrote = re.compile(r"^\s+\w[\w.]*\.(state|phase) = ", re.MULTILINE)
    found: dict[str, list[str]] = {}
    for path in [*SOURCES.glob("prefork/**/*.py"), *SOURCES.glob("workers/*.py"), *SOURCES.glob("metrics/**/*.py")]:
        for match in wrote.finditer(path.read_text()):
            found.setdefault(path.name, []).append(match[0].strip())
    assert found["children.py"] == ["self.state ="]
    assert found["supervisor.py"] == ["self.phase ="] * 2  # the first is the constructor's
    assert set(found) - {"stay.py", "keepalive.py", "keeping.py"} == {"children.py", "supervisor.py"}


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ((0, None), "exit status 0"),
        ((7, None), "exit status 7"),
        ((None, 9), "killed by SIGKILL"),
        ((None, 35), "killed by signal 35"),
        ((None, None), "ended, its status was taken by somebody else"),
    ],
)
def test_how_it_ended_in_words(end: tuple[Any, Any], said: str, child: Child) -> None:
    """The status, the signal by its name, or that nobody knows."""
    assert str(Exit(child, *end, 0.0, 0.0)) == said


def test_the_fields_of_its_log_events(child: Child) -> None:
    """A worker's number, a companion's name, and the generation of either; an exporter and a rehearsal have none."""
    place = (child.number, child.generation, child.pid)
    assert child.fields == {"kind": "worker", "slot": place[0], "gen": place[1], "pid": place[2]}
    child.name = "tidy"
    assert child.fields == {"kind": "worker", "companion": "tidy", "gen": place[1], "pid": place[2]}
    child.name, child.number = "", 0
    assert child.fields == {"kind": "worker", "pid": place[2]}


def test_a_child_of_which_nothing_is_known_yet(child: Child) -> None:
    """It serves, has been told nothing and has been asked for nothing; it hears the signals of this version."""
    assert child.state is ChildState.STARTING
    known = {"serial", "number", "kind", "generation", "pid", "pidfd", "slot", "stacks", "reader", "started", "state",
             "changed", "drain_signal", "cut_for", "processes"}  # fmt: skip
    assert {name for name in Child.__annotations__ if getattr(child, name)} <= known
    assert child.drain_signal == signal.SIGURG
    slot = Slot(0)
    younger = Child(8, 0, ChildKind.EXPORTER, 3, 4712, -1, slot, Stacks(slot), SlotReader(slot, 0), started=1.0)
    assert younger.changed == 0.0
    slot.close()
