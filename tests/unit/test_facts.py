"""The closed lists: a number that was once in use keeps its meaning, because two versions read the same memory."""

from enum import IntEnum

import pytest

from prefork.metrics import facts

# Written down here a second time on purpose: a reload maps memory that the version before it wrote.
NUMBERS: dict[str, dict[str, int]] = {
    "Activity": {"IDLE": 0, "ACCEPTING": 1, "BUSY": 2},
    "Condition": {"STARTING": 0, "READY": 1, "DRAINING": 2},
    "ChildKind": {"WORKER": 0, "REQUEST": 1, "SERVER": 2, "EXPORTER": 3, "REHEARSAL": 4},
    "Outcome": {"OK": 0, "ERROR": 1, "TIMEOUT": 2, "LOST": 3},
    "ForkFailure": {"EAGAIN": 0, "ENOMEM": 1, "EMFILE": 2, "ENFILE": 3, "OTHER": 4},
    "ExitReason": {
        "DRAINED": 1, "MAX_REQUESTS": 2, "MAX_LIFETIME": 3, "MAX_MEMORY": 4, "SCALED_DOWN": 5, "REPLACED": 6,
        "STOPPED": 7, "EXITED": 8, "TIMEOUT": 9, "BOOT_FAILED": 10, "CRASHED": 11, "OOM_SUSPECTED": 12, "KILLED": 13,
        "MASTER_DIED": 14,
    },
    "AcceptError": {"EMFILE": 0, "ENFILE": 1, "NOMEM": 2, "ABORTED": 3, "OTHER": 4},
    "ControlCommand": {
        "OTHER": 0, "STATUS": 1, "DRAIN": 2, "STOP": 3, "RELOAD": 4, "RESTART": 5, "SCALE": 6, "REOPEN": 7,
        "WORKERS": 8, "STACKS": 9, "LOG_LEVEL": 10, "VERSION": 11,
    },
    "ControlResult": {"OK": 0, "DENIED": 1, "BAD": 2},
}  # fmt: skip
LISTS = {
    name: members for name, members in vars(facts).items()
    if isinstance(members, type) and issubclass(members, facts.Fact) and members is not facts.Fact
}  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_keep_their_meaning(name: str) -> None:
    """No number of a list has changed its meaning or gone; new ones may follow."""
    now = {member.name: int(member) for member in LISTS[name]}
    assert now | NUMBERS[name] == now


@pytest.mark.parametrize("name", LISTS)
def test_each_number_is_one_member(name: str) -> None:
    """A list has no two names for a number, and its names for people are as Prometheus wants label values."""
    members = LISTS[name]
    assert issubclass(members, IntEnum)
    assert len(members.__members__) == len({int(member) for member in members})
    assert all(member.label == member.name.lower() for member in members)


def test_exit_reasons_are_those_of_the_documentation() -> None:
    """The reasons are the closed list that alerts are written against; zero is none of them: it is empty memory."""
    assert 0 not in set(map(int, facts.ExitReason))
    assert " ".join(reason.label for reason in facts.ExitReason) == (
        "drained max_requests max_lifetime max_memory scaled_down replaced stopped exited timeout boot_failed crashed "
        "oom_suspected killed master_died stalled"
    )
