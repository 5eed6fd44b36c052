"""Giving up privileges, as far as no process is changed: what is asked of the kernel afterwards."""

import errno
import os
import re
from pathlib import Path
from typing import Any

import pytest

from prefork.workers import privileges
from prefork.workers.privileges import (
    CAP_KILL,
    CAP_SETGID,
    CAP_SETUID,
    Privileges,
    PrivilegesKept,
    capabilities,
    may_become_another,
)


def test_capabilities_are_what_proc_says() -> None:
    """Effective, permitted and inheritable ones, all of their bits."""
    status = Path("/proc/self/status").read_text()
    names = ("CapEff", "CapPrm", "CapInh")
    found = tuple(int(re.findall(rf"{name}:\s*(\w+)", status)[0], 16) for name in names)
    assert capabilities() == found
    needed = 1 << CAP_KILL | 1 << CAP_SETGID | 1 << CAP_SETUID
    assert may_become_another() == (found[0] & needed == needed)


class Kernel:
    """One process of a kernel: what it is, what it was asked for, in its order, and which call is refused."""

    def __init__(self, patch: pytest.MonkeyPatch, uid: int = 0, gid: int = 0, refused: str = "") -> None:
        self.uid, self.gid, self.groups, self.capable = [uid] * 3, [gid] * 3, [0, 4], uid == 0
        self.no_new_privs, self.asked, self._refused = 0, list[str](), refused
        for name in ("setgroups", "setresgid", "setresuid", "umask"):
            patch.setattr(os, name, getattr(self, name))
        patch.setattr(os, "getresuid", lambda: tuple(self.uid))
        patch.setattr(os, "getresgid", lambda: tuple(self.gid))
        patch.setattr(os, "getgroups", lambda: self.groups)
        patch.setattr(privileges, "_call", self.call)
        patch.setattr(privileges, "capabilities", lambda: (int(self.capable), 0, 0))

    def _note(self, what: str, *, may: bool) -> None:
        if not may or what.split()[0] == self._refused:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        self.asked.append(what)

    def umask(self, mask: int) -> None:
        self._note(f"umask {mask:o}", may=True)

    def setgroups(self, groups: tuple[int, ...]) -> None:
        self._note(f"setgroups {groups}", may=self.uid[1] == 0)
        self.groups = list(groups)

    def setresgid(self, *ids: int) -> None:
        self._note(f"setresgid {ids}", may=self.uid[1] == 0)
        self.gid = list(ids)

    def setresuid(self, *ids: int) -> None:
        self._note(f"setresuid {ids}", may=self.uid[1] == 0)
        self.uid = list(ids)

    def call(self, name: str, *arguments: Any) -> int:
        if name == "prctl" and arguments[0] == 39:
            return self.no_new_privs
        self._note(name, may=True)
        if name == "prctl":
            self.no_new_privs = arguments[1].value
        if name == "capset":
            self.capable = False
        return 0


ALL = Privileges(701, 801, (801, 802), 0o027, no_new_privs=True)
IN_ORDER = [
    "umask 27", "prctl", "setgroups (801, 802)", "setresgid (801, 801, 801)", "setresuid (701, 701, 701)", "capset",
]  # fmt: skip


def test_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user comes after the groups, which only root may set, and capabilities last."""
    kernel = Kernel(monkeypatch)
    ALL.drop()
    assert kernel.asked == IN_ORDER


@pytest.mark.parametrize(
    ("refused", "what"),
    [
        ("prctl", "could not set no_new_privs: "),
        ("setgroups", "could not set the groups of user 701: "),
        ("setresgid", "could not become group 801: "),
        ("setresuid", "could not become user 701: "),
        ("capset", "could not give up its capabilities: "),
    ],
)
def test_each_call_may_be_refused(refused: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nothing more is tried, and the sentence says which it was."""
    kernel = Kernel(monkeypatch, refused=refused)
    with pytest.raises(PrivilegesKept) as caught:
        ALL.drop()
    assert str(caught.value) == f"{what}operation not permitted"
    assert kernel.asked == IN_ORDER[: [each.split()[0] for each in IN_ORDER].index(refused)]


def test_what_is_so_already_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is that user without root asks for nothing; nor does one without any settings, or root for
    itself but for the groups."""
    kernel = Kernel(monkeypatch, 701, 801)
    Privileges(701, 801).drop()
    Privileges().drop()
    assert kernel.asked == []
    kernel = Kernel(monkeypatch)
    Privileges(0, 0, (0,)).drop()
    assert kernel.asked == ["setgroups (0,)"]


def test_a_kernel_that_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that says that it did what it did not is found out."""
    kernel = Kernel(monkeypatch)
    monkeypatch.setattr(os, "setresuid", lambda *ids: None)
    with pytest.raises(PrivilegesKept, match=r"^could not give up all privileges: it has kept another user than 701$"):
        ALL.drop()
    assert kernel.uid == [0, 0, 0]


def test_a_way_back_that_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found by going it: by the user, and by the group."""
    for name in ("setresuid", "setresgid"):
        with monkeypatch.context() as patch:
            kernel = Kernel(patch)
            step = getattr(kernel, name)
            patch.setattr(os, name, lambda *ids, step=step: None if ids[0] == -1 else step(*ids))
            with pytest.raises(PrivilegesKept, match="the way back to root"):
                ALL.drop()


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
