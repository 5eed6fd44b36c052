"""Giving up privileges, as far as no process is changed: what is asked of the kernel afterwards."""

import os
import re
from pathlib import Path

import pytest

from prefork.workers import privileges
from prefork.workers.privileges import CAP_KILL, CAP_SETGID, CAP_SETUID, Privileges, capabilities, may_become_another

UID, GID = os.getuid(), os.getgid()
GROUPS = tuple(os.getgroups())


def test_capabilities_are_what_proc_says() -> None:
    """Effective, permitted and inheritable ones, all of their bits."""
    status = Path("/proc/self/status").read_text()
    names = ("CapEff", "CapPrm", "CapInh")
    found = tuple(int(re.findall(rf"{name}:\s*(\w+)", status)[0], 16) for name in names)
    assert capabilities() == found
    needed = 1 << CAP_KILL | 1 << CAP_SETGID | 1 << CAP_SETUID
    assert may_become_another() == (found[0] & needed == needed)


def test_nothing_to_drop_is_dropped() -> None:
    Privileges().drop()


@pytest.mark.parametrize("lacking", [CAP_KILL, CAP_SETGID, CAP_SETUID])
def test_each_of_three_capabilities_is_needed(lacking: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who could start a child of another user, and not signal it, may not start it."""
    monkeypatch.setattr(privileges, "capabilities", lambda: (2**41 - 1 - (1 << lacking), 2**41 - 1, 0))
    assert not may_become_another()


def kept(asked: Privileges, monkeypatch: pytest.MonkeyPatch, **has: object) -> str:
    """What a process is told to have kept that has become 701:801, but for this."""
    state: dict[str, object] = {
        "getresuid": (701,) * 3, "getresgid": (801,) * 3, "getgroups": [801, 802], "capabilities": (0, 0, 0),
        "can": (), "threads": True,
    } | has  # fmt: skip
    for name in ("getresuid", "getresgid", "getgroups"):
        monkeypatch.setattr(os, name, lambda name=name: state[name])
    ids = {os.setresuid: "user", os.setresgid: "group"}
    monkeypatch.setattr(privileges, "capabilities", lambda: state["capabilities"])
    monkeypatch.setattr(privileges, "_can", lambda become, number: ids[become] in state["can"])  # type: ignore[operator]
    monkeypatch.setattr(privileges, "_threads_alike", lambda: state["threads"])
    return asked._kept()


BECOME = Privileges(701, 801, (802, 801))


@pytest.mark.parametrize(
    ("has", "what"),
    [
        ({}, ""),
        ({"getresuid": (701, 701, 0)}, "another user than 701"),
        ({"getresuid": (0, 701, 701)}, "another user than 701"),
        ({"getresgid": (801, 0, 801)}, "another group than 801"),
        ({"getgroups": [801]}, "other groups than its user's"),
        ({"getgroups": [0, 801, 802]}, "other groups than its user's"),
        ({"capabilities": (1, 1, 0)}, "capabilities"),
        ({"capabilities": (0, 1, 0)}, "capabilities"),
        ({"capabilities": (0, 0, 1)}, "capabilities"),
        ({"can": ("user",)}, "the way back to root"),
        ({"can": ("group",)}, "the way back to root"),
        ({"threads": False}, "more in a thread that the program started at the fork"),
    ],
)
def test_whatever_is_kept_is_found(has: dict[str, object], what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each id in each of its three places, each group too many or too few, each set of capabilities, each way back."""
    assert kept(BECOME, monkeypatch, **has) == what


def test_root_may_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then there is nothing to be given up, but the groups are looked at; a group 0 is no way back."""
    root = {"getresuid": (0,) * 3, "getresgid": (0,) * 3, "getgroups": [0], "capabilities": (1, 1, 0), "can": ("user",)}
    assert kept(Privileges(0, 0, (0,)), monkeypatch, **root) == ""
    assert kept(Privileges(0, 0, (4,)), monkeypatch, **root) == "other groups than its user's"
    assert kept(Privileges(701, 0, (0,)), monkeypatch, getresgid=(0,) * 3, getgroups=[0], can=("group",)) == ""


def test_no_new_privs_is_looked_at() -> None:
    """What was not set is found."""
    before = Path("/proc/self/status").read_text()
    unset = "NoNewPrivs:\t0" in before
    assert Privileges(no_new_privs=True)._kept() == ("what an exec may give it" if unset else "")


def test_threads_have_what_their_process_has() -> None:
    """Those of this process are alike, as far as /proc tells."""
    assert privileges._threads_alike()
