"""The user and the groups of a service: which ids its settings mean, and what is refused, by one sentence."""

import os
from types import SimpleNamespace
from typing import Any

import pytest

import prefork
from prefork.errors import ConfigError
from prefork.settings import users
from prefork.settings.fields import settings, validate
from prefork.settings.users import privileges_of
from prefork.workers.privileges import Privileges

ENTRIES = {"web": SimpleNamespace(pw_name="web", pw_uid=701, pw_gid=801)}
MEMBER_OF = {801: [801, 802, 803], 804: [804, 802, 803]}  # by the group that is given


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """One with a user, of several groups, and a process that may become him."""
    by_number = {entry.pw_uid: entry for entry in ENTRIES.values()}
    monkeypatch.setattr("pwd.getpwnam", lambda name: ENTRIES[name])
    monkeypatch.setattr("pwd.getpwuid", lambda uid: by_number[uid])
    monkeypatch.setattr("grp.getgrnam", lambda name: SimpleNamespace(gr_gid={"spool": 804}[name]))
    monkeypatch.setattr(os, "getgrouplist", lambda name, gid: MEMBER_OF[gid])
    monkeypatch.setattr(users, "may_become_another", lambda: True)


def server(**values: Any) -> Any:
    return type("Server", (prefork.PreForkingTCPServer,), values)


def sentence(origins: dict[str, str] | None = None, **values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        validate(server(**values), origins)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("user", "group", "ids"),
    [
        ("web", None, (701, 801, (801, 802, 803))),
        ("701", None, (701, 801, (801, 802, 803))),
        ("web", "spool", (701, 804, (802, 803, 804))),
        ("web", "804", (701, 804, (802, 803, 804))),
        ("99999", "spool", (99999, 804, (804,))),
        ("4294967294", "0", (4294967294, 0, (0,))),
    ],
)
def test_ids(user: str, group: str | None, ids: tuple[int, int, tuple[int, ...]]) -> None:
    """Names and numbers mean the same user, with all groups that a login of his has; a number need not be known."""
    found = privileges_of(server(user=user, group=group, umask=0o027, no_new_privs=True))
    assert found == Privileges(*ids, umask=0o027, no_new_privs=True)


def test_nothing_is_asked_for() -> None:
    """Then each process stays what it is; umask and no_new_privs need no user."""
    assert privileges_of(server()) is None
    assert privileges_of(server(umask=0)) == Privileges(umask=0)
    assert privileges_of(server(no_new_privs=True)) == Privileges(no_new_privs=True)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"user": "nobody-here"}, "there is no user nobody-here"),
        ({"user": "4294967295"}, "there is no user 4294967295"),
        ({"user": "99999"}, "there is no user of that number, so that group has to be set as well"),
        ({"user": ""}, "there is no user "),
        ({"user": "we\0b"}, "it must be without a null byte"),
        ({"user": "web", "group": "none-such"}, "there is no group none-such"),
        ({"user": "web", "group": "we\0b"}, "it must be without a null byte"),
        ({"group": "spool"}, "there is no user, which has to be set as well"),
        ({"user": 701}, "it must be a text, or None"),
        ({"umask": 0o1777}, "it must be an octal mode, or None"),
        ({"no_new_privs": 1}, "it must be yes or no"),
    ],
)
def test_refused(values: dict[str, Any], why: str) -> None:
    """What cannot be meant is refused before anything is bound, and the sentence says which class has it."""
    said = sentence(**values)
    assert said.startswith(f"could not set {[*values][-1]} to ")
    assert said.endswith(why)
    assert "Server" in said


def test_the_source_is_named() -> None:
    """It is what the command line has, in its words."""
    said = sentence({"user": "--user"}, user="nobody-here")
    assert said == "could not set user to 'nobody-here' (from --user): there is no user nobody-here"
    for origins in (None, {"user": "--user"}):
        with pytest.raises(ConfigError) as caught:
            privileges_of(server(user="nobody-here"), origins)
        notes = getattr(caught.value, "__notes__", [])
        assert ["prefork takes it for its setting user" in note for note in notes] == [True] * (origins is None)


def test_who_may_not_become_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process without root's rights may only be told to be what it is, and keeps its groups."""
    monkeypatch.setattr(users, "may_become_another", lambda: False)
    monkeypatch.setattr(os, "getresuid", lambda: (701, 701, 701))
    monkeypatch.setattr(os, "geteuid", lambda: 701)
    monkeypatch.setattr(os, "getresgid", lambda: (801, 801, 801))
    monkeypatch.setattr(os, "getegid", lambda: 801)
    assert privileges_of(server(user="web")) == Privileges(701, 801)
    assert privileges_of(server(user="web", group="801")) == Privileges(701, 801)
    assert "this process is of group 801, and may become no other" in sentence(user="web", group="spool")
    monkeypatch.setattr(os, "getresgid", lambda: (901, 901, 901))
    monkeypatch.setattr(os, "getegid", lambda: 901)
    assert privileges_of(server(user="web")) == Privileges(701, 901)
    monkeypatch.setattr(os, "getresuid", lambda: (701, 701, 0))
    assert "this process is of user 701, and may become no other" in sentence(user="web")


def test_a_value_that_the_object_computes() -> None:
    """A property is looked at on the object, not on its class."""
    cls = server(user=property(lambda self: "no-such"))
    validate(cls)
    with pytest.raises(ConfigError, match="there is no user no-such"):
        validate(cls.__new__(cls))


def test_they_can_be_changed_by_a_reload() -> None:
    assert all(settings(prefork.PreForkingTCPServer)[name].setting.reloadable for name in ("user", "group", "umask"))
