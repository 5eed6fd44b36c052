"""A program that makes itself a leader, where it is one already."""

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest

from prefork.surroundings.leading import BECOMING, may_lead_already

REFUSED = PermissionError(errno.EPERM, "Operation not permitted")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was asked of a kernel that refuses everything, of a process that leads its group."""
    calls: list[Any] = []

    def refuses(name: str) -> Callable[..., None]:
        def call(*args: int) -> None:
            calls.append((name, *args))
            raise REFUSED

        return call

    for name in BECOMING:
        monkeypatch.setattr(os, name, refuses(name))
    monkeypatch.setattr(os, "getpgrp", os.getpid)
    return calls


def test_a_leader_may_become_one(calls: list[Any]) -> None:
    """It is asked for and refused, and the program does not hear of it; afterwards it does."""
    before = {name: getattr(os, name) for name in BECOMING}
    with may_lead_already():
        os.setsid()
        os.setpgrp()
        os.setpgid(0, 0)
        os.setpgid(os.getpid(), os.getpid())
    assert calls == [("setsid",), ("setpgrp",), ("setpgid", 0, 0), ("setpgid", os.getpid(), os.getpid())]
    assert {name: getattr(os, name) for name in BECOMING} == before
    with pytest.raises(PermissionError):
        os.setsid()


@pytest.mark.parametrize("args", [(1, 0), (0, 1), (os.getpid(), 1)])
def test_what_is_another_matter(args: tuple[int, int], calls: list[Any]) -> None:
    """Another process, or the group of another, is not had without asking."""
    with may_lead_already(), pytest.raises(PermissionError):
        os.setpgid(*args)


def test_who_leads_nothing(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whom the kernel wants no leader for another reason hears that."""
    monkeypatch.setattr(os, "getpgrp", lambda: os.getpid() + 1)
    with may_lead_already(), pytest.raises(PermissionError):
        os.setsid()


def test_who_becomes_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel allows it nothing is different; what the program puts there itself stays."""
    done: list[Any] = []
    monkeypatch.setattr(os, "setpgid", lambda *args: done.append(args))
    with may_lead_already():
        os.setpgid(7, 8)
        monkeypatch.setattr(os, "setsid", done.append)
    assert done == [(7, 8)]
    assert getattr(os, "setsid") == done.append  # noqa: B009
