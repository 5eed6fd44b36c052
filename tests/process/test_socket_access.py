"""Mode and owner of a Unix socket's path: what was asked for, from the first moment that the path is there."""

import grp
import os
import pwd
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefork import (
    BaseRequestHandler,
    BindError,
    ConfigError,
    PreForkingTCPServer,
    PreForkingUnixDatagramServer,
    PreForkingUnixStreamServer,
)
from prefork.sockets.ownership import owner
from tests.support.programs.served import RELOADS, Who
from tests.support.programs.service import ROOT, Service, script

ENV = {**os.environ, "PYTHONPATH": str(ROOT)}

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="not root")
NOBODY = pwd.getpwnam("nobody")


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize("base", [PreForkingUnixStreamServer, PreForkingUnixDatagramServer])
@pytest.mark.parametrize("wanted", [0o600, 0o660, 0o777, 0o000])
def test_mode_whatever_the_umask(base: type, wanted: int, umask: int, tmp_path: Path) -> None:
    """The path has the mode that was asked for, under every umask, and the umask is as it was."""
    with type("S", (base,), {"socket_mode": wanted})(str(tmp_path / "s"), BaseRequestHandler):
        assert mode(tmp_path / "s") == wanted
    assert os.umask(umask) == umask


def test_without_a_mode(umask: int, tmp_path: Path) -> None:
    """Where nothing was asked for the umask decides, as ever."""
    with PreForkingUnixStreamServer(str(tmp_path / "s"), Who):
        assert mode(tmp_path / "s") == 0o777 & ~umask


@pytest.mark.parametrize("given_to", ["", f":{os.getgid()}"], ids=["ours", "given"])
def test_never_wider(given_to: str, tmp_path: Path) -> None:
    """Between bind and the rest the path is open to its user alone, and to nobody more than it will be. Nothing is
    given away that nobody asked to: a hardened unit forbids chown(2)."""
    argv = [sys.executable, "-m", "tests.process.programs.path_watched", given_to]
    printed = subprocess.check_output(argv, cwd=tmp_path, env=ENV, text=True, timeout=30)
    assert printed.split() == [*(["os.chown", "600"] if given_to else []), "os.chmod", "600", "bound", "640"]


@needs_root
@pytest.mark.parametrize(
    ("text", "uid", "gid"),
    [
        ("nobody", NOBODY.pw_uid, 0),
        (f"nobody:{grp.getgrgid(NOBODY.pw_gid).gr_name}", NOBODY.pw_uid, NOBODY.pw_gid),
        (f":{NOBODY.pw_gid}", 0, NOBODY.pw_gid),
        ("4711:4712", 4711, 4712),
    ],
)
def test_owner(text: str, uid: int, gid: int, umask: int, tmp_path: Path) -> None:
    """The path belongs to the user and the group that were asked for, by name or number; its mode is the umask's."""
    with type("S", (PreForkingUnixStreamServer,), {"socket_owner": text})(str(tmp_path / "s"), Who):
        found = (tmp_path / "s").lstat()
        assert (found.st_uid, found.st_gid) == (uid, gid)
        assert mode(tmp_path / "s") == 0o777 & ~umask


@pytest.mark.parametrize("text", ["no-such-user", "root:no-such-group", ":", ""])
def test_owner_that_is_not_there(text: str, tmp_path: Path) -> None:
    """An owner that the system does not know is refused before anything is bound."""
    with pytest.raises(ConfigError, match="could not set socket_owner to"):
        owner(text)
    with pytest.raises(ConfigError, match="could not set socket_owner to"):
        type("S", (PreForkingUnixStreamServer,), {"socket_owner": text})(str(tmp_path / "s"), Who)
    assert not (tmp_path / "s").exists()


def test_no_path_has_no_mode() -> None:
    """A mode for what is no path is a mistake, not a wish."""
    with pytest.raises(ConfigError, match=r"could not set socket_mode of 127\.0\.0\.1:0: it is no Unix path"):
        type("S", (PreForkingTCPServer,), {"socket_mode": 0o600})(("127.0.0.1", 0), Who)
    with pytest.raises(ConfigError, match="could not set socket_owner of @"):
        type("S", (PreForkingUnixStreamServer,), {"socket_owner": "0"})(f"\0prefork-test-{os.getpid()}", Who)


@needs_root
def test_owner_that_may_not_be_given(tmp_path: Path) -> None:
    """Where the kernel refuses the owner nothing is left behind, and the sentence says why; a mode may be given by a
    program that has given up root."""
    path = tmp_path / "s"
    tmp_path.chmod(0o777)
    pid = os.fork()
    if pid == 0:  # as somebody who may not
        status = 1
        try:
            os.chdir(tmp_path)
            os.setgroups([])
            os.setgid(NOBODY.pw_gid)
            os.setuid(NOBODY.pw_uid)
            type("S", (PreForkingUnixStreamServer,), {"socket_mode": 0o620})("m", Who)
            type("S", (PreForkingUnixStreamServer,), {"socket_owner": "0"})("s", Who)
        except BindError as exc:
            said = "could not bind s: its socket_owner could not be set: operation not permitted"
            status = 0 if str(exc) == said and not os.path.exists("s") else 2
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert not path.exists()
    assert mode(tmp_path / "m") == 0o620


def test_mode_in_service(tmp_path: Path) -> None:
    """A served path keeps its mode over a reload, and is gone at the end."""
    source = script(bases="PreForkingUnixStreamServer", address="s", socket_mode=0o600, max_children=1)
    with Service(tmp_path, source, env={RELOADS: "1"}) as service:
        service.wait_ready(1)
        service.signal(signal.SIGHUP)
        service.wait_ready(1, replaced=1)
        assert mode(tmp_path / "s") == 0o600
        service.signal(signal.SIGTERM)
        assert service.wait_exit() == 0
    assert not (tmp_path / "s").exists()
