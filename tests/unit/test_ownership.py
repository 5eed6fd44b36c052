"""Mode and owner of a Unix path: what is asked of the kernel, in which order, and what is left of a failure."""

import errno
import io
import os
import re
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefork.errors import ConfigError
from prefork.sockets import ownership
from prefork.sockets.ownership import KEEP, Access, owner

US = (os.geteuid(), os.getegid())


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """One that nobody has asked for."""
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What chown(2) is asked for; nobody need be root for it."""
    asked: list[Any] = []

    def chown(path: str, uid: int, gid: int, *, follow_symlinks: bool) -> None:
        asked.append((uid, gid, _mode(Path(path)), follow_symlinks))

    monkeypatch.setattr(os, "chown", chown)
    return asked


def _mode(path: Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def bound(access: Access, path: Path) -> int:
    """Bind to the path; the mode that it had the moment that it was there."""
    with socket.socket(socket.AF_UNIX) as sock, access.given_to(sock, str(path)):
        sock.bind(str(path))
        return _mode(path)


@pytest.mark.parametrize(("mode", "user", "set_up", "name"), [
    (None, None, False, "socket_owner"), (0o600, None, True, "socket_mode"), (0o600, "0", True, "socket_mode"),
    (None, "0", True, "socket_owner"), (0, None, True, "socket_mode"),
])  # fmt: skip
def test_what_is_asked_for(mode: int | None, user: str | None, set_up: bool, name: str) -> None:
    """One of the two is enough; the setting that is named in an error is that of the mode, if there is one."""
    access = Access(mode, user)
    assert (bool(access), str(access)) == (set_up, name)
    assert str(Access(mode, user, "control")) == name.replace("socket", "control")


def test_nothing_is_asked_for(tmp_path: Path, asked: list[Any]) -> None:
    """The umask says it, as of any path."""
    assert bound(Access(), tmp_path / "s") == _mode(tmp_path / "s") == 0o750
    assert asked == []


@pytest.mark.parametrize(("mode", "first"), [(0o666, 0o600), (0o600, 0o600), (0o070, 0o000), (0o770, 0o700)])
def test_a_mode(mode: int, first: int, tmp_path: Path, asked: list[Any]) -> None:
    """To begin with it is its user's only, whatever the umask; nobody is asked for an owner."""
    assert bound(Access(mode), tmp_path / "s") == first & ~0o027
    assert _mode(tmp_path / "s") == mode
    assert asked == []


@pytest.mark.parametrize(("user", "ids"), [("7", (7, KEEP)), (":8", (KEEP, 8)), ("7:8", (7, 8)), ("0", (0, KEEP))])
def test_an_owner(user: str, ids: tuple[int, int], tmp_path: Path, asked: list[Any]) -> None:
    """The path is given to them while it is closed to everybody else, and then opened as the umask has it."""
    bound(Access(owner=user), tmp_path / "s")
    assert asked == [(*ids, 0o700, False)]
    assert _mode(tmp_path / "s") == 0o750


def test_what_the_kernel_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No path is left that others could get at."""

    def refuses(*arguments: object, **names: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuses)
    with pytest.raises(PermissionError):
        bound(Access(owner="7"), tmp_path / "s")
    assert not (tmp_path / "s").exists()


# A path that is there.


@pytest.mark.parametrize(("user", "ids"), [
    ("7", (7, US[1])), (":8", (US[0], 8)), ("7:8", (7, 8)),
])  # fmt: skip
def test_another_owner(user: str, ids: tuple[int, int], tmp_path: Path, asked: list[Any]) -> None:
    """Until it is theirs the path is open to nobody who had no right to it before, and to none but its user."""
    path = tmp_path / "s"
    path.touch()
    path.chmod(0o664)
    Access(0o666, user).change(str(path))
    assert asked == [(*ids, 0o600, False)]
    assert _mode(path) == 0o666


@pytest.mark.parametrize("access", [Access(0o606), Access(0o606, f"{US[0]}:{US[1]}"), Access(0o606, f":{US[1]}")])
def test_the_same_owner(access: Access, tmp_path: Path, asked: list[Any]) -> None:
    """Only the mode is changed, and in one step."""
    path = tmp_path / "s"
    path.touch()
    access.change(str(path))
    assert (asked, _mode(path)) == ([], 0o606)


def test_no_owner_is_this_processs_own(tmp_path: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that was another's is ours again, and has the mode that the umask gives."""
    path = tmp_path / "s"
    path.touch()
    path.chmod(0o666)
    monkeypatch.setattr(ownership, "_us", lambda: (7, 8))
    Access().change(str(path))
    assert asked == [(7, 8, 0o600, False)]
    assert _mode(path) == 0o750


@pytest.mark.parametrize("sets_group", [False, True])
def test_as_a_path_is(sets_group: bool, tmp_path: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Bound anew it has the mode and owner that it had; what a new path gets by itself is not asked for."""
    monkeypatch.setattr(os, "getegid", lambda: US[1] + 1)  # so that the folder's group is not ours
    tmp_path.chmod(0o2755 if sets_group else 0o755)
    path = tmp_path / "s"
    bound(Access(0o620), path)
    access = Access.of(str(path))
    path.unlink()
    bound(access, path)
    assert asked == ([] if sets_group else [(*US, 0o600, False)])
    assert _mode(path) == 0o620


# The mode, and nobody else's file.


def test_no_link_is_followed(tmp_path: Path) -> None:
    """Who puts a link in the path's place gets no file of ours opened."""
    (tmp_path / "ours").touch(0o600)
    (tmp_path / "s").symlink_to("ours")
    with pytest.raises(OSError):
        ownership._chmod(str(tmp_path / "s"), 0o666)
    assert _mode(tmp_path / "ours") == 0o600


@pytest.mark.parametrize(("number", "changed"), [(errno.EACCES, True), (errno.EPERM, False)])
def test_a_process_that_may_not_read_its_own_proc(
    number: int, changed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has given up root: the path itself is changed then. What it may not change is an error. Nothing stays open."""
    path = tmp_path / "s"
    path.touch(0o600)
    chmod = os.chmod

    def refuses(path: str, mode: int) -> None:
        if path.startswith("/proc/"):
            raise PermissionError(number, "refused")
        chmod(path, mode)

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "chmod", refuses)
    if changed:
        ownership._chmod(str(path), 0o666)
    else:
        with pytest.raises(PermissionError):
            ownership._chmod(str(path), 0o666)
    assert _mode(path) == (0o666 if changed else 0o600)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_descriptor_is_not_inherited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that is started at that moment has none of it."""
    (tmp_path / "s").touch()
    flags: list[int] = []
    open_ = os.open
    monkeypatch.setattr(os, "open", lambda path, asked: flags.append(asked) or open_(path, asked))  # type: ignore[func-returns-value]
    ownership._chmod(str(tmp_path / "s"), 0o666)
    assert flags == [os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC]


# Names.


@pytest.mark.parametrize(("text", "ids"), [
    ("root", (0, KEEP)), (":root", (KEEP, 0)), ("root:root", (0, 0)), ("123456789", (123456789, KEEP)),
    ("0:7", (0, 7)), ("0:", (0, KEEP)), ("4294967294:1234567890", (4294967294, 1234567890)),
])  # fmt: skip
def test_names_and_numbers(text: str, ids: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers need no module of names, which may be out of reach once the service runs."""
    for name in ("grp", "pwd") if "root" not in text else ():
        monkeypatch.setitem(sys.modules, name, None)
    assert owner(text) == ids


@pytest.mark.parametrize(("text", "reason"), [
    ("", "it must be USER, USER:GROUP or :GROUP"),
    (":", "it must be USER, USER:GROUP or :GROUP"),
    ("nobody-of-that-name", "there is no user nobody-of-that-name"),
    ("root:nobody-of-that-name", "there is no group nobody-of-that-name"),
    ("4294967295", "there is no user 4294967295"),
    ("-1", "there is no user -1"),
])  # fmt: skip
def test_who_is_not_there(text: str, reason: str) -> None:
    """A sentence that names the setting."""
    with pytest.raises(ConfigError, match=re.escape(f"could not set control_owner to {text!r}: {reason}")):
        owner(text, "control_owner")


def test_without_a_umask_in_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel does not say it nobody but the user gets in."""
    assert ownership._umask() == 0o027
    monkeypatch.setattr(ownership, "open", lambda path: io.StringIO("Name: python\n"), raising=False)
    assert ownership._umask() == 0o077
