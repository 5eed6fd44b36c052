"""Settings over a reload: what is changed is in force, what takes a restart is refused by name."""

import os
import re
import signal
import stat
from pathlib import Path

import pytest

from prefork.cli.launch import fields
from prefork.settings.fields import Field, show
from prefork.sockets.addresses import parse_address
from tests.support.clients.connections import ask, ask_datagram, free_port
from tests.support.clients.controlling import asked, ctl
from tests.support.programs.command import running
from tests.support.programs.releases import Released, numbered

pytestmark = pytest.mark.once  # nothing of it is the interpreter's


def test_what_takes_a_restart_is_refused_by_name(tmp_path: Path) -> None:
    """A reload that would change how the listener was made changes nothing, and says which setting it was."""
    with Released(tmp_path, numbered(1, "class Hooks:\n    dual_stack = False\n"), max_children=1) as service:
        service.expect("reload failed: could not change dual_stack from no to yes")
        service.wait_ready(1)
        service.release(numbered(2, "class Hooks:\n    dual_stack = True\n    max_requests = 7\n"))
        service.signal(signal.SIGHUP)
        service.wait_reloads(failed=1)
        assert "could not change dual_stack from no to yes by a reload: it needs a restart" in service.log
        assert service.answering() == "r1"
        service.release(numbered(3, "class Hooks:\n    dual_stack = False\n    max_requests = 7\n"))
        service.signal(signal.SIGHUP)
        service.wait_reloads(ok=1)
        service.wait_ready(1, replaced=1)
        assert service.answering() == "r3"


def test_what_takes_a_restart_is_each_listeners_own(tmp_path: Path) -> None:
    """The mode of a path that stands beside the first address cannot be changed either; that the addresses change their
    places, or the mode of a new path, is no change."""
    file = tmp_path / "s.toml"

    def write(*modes: tuple[str, str], first: str = "127.0.0.1:0") -> None:
        also = "".join(f"[[prefork.also]]\nbind = 'unix:{path}'\nsocket_mode = '{mode}'\n" for path, mode in modes)
        file.write_text(
            f"[prefork]\ntarget = 'prefork.examples:Upper'\nmax_children = 1\ncontrol = 'c'\nbind = '{first}'\n{also}"
        )

    write(("a", "0600"))
    with running(["run", "--config", "s.toml"], cwd=tmp_path) as run:
        run.expect("reload failed: could not change socket_mode from 0600 to 0666 by a reload")
        write(("a", "0666"))
        done = ctl(tmp_path / "c", "reload")
        assert "could not change socket_mode from 0600 to 0666 by a reload" in done.stdout + done.stderr
        write(("b", "0666"), ("a", "0600"), first="unix:d")
        done = ctl(tmp_path / "c", "reload")
        assert done.returncode == 0, done.stdout + done.stderr
        write(("a", "0600"), ("b", "0666"), first="unix:d")
        done = ctl(tmp_path / "c", "reload")
        assert done.returncode == 0, done.stdout + done.stderr
        assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"] == [0o600, 0o666]


FIXED = {name: field for name, field in fields().items() if not field.setting.reloadable}
VALUES = {  # what cannot be just anything
    "socket_owner": (f":{os.getgid()}", f"{os.getuid()}:{os.getgid()}"),
    "bind_to_device": ("lo", "off"),
}
INTERNET = ("bind_to_device", "freebind", "peer_affinity")  # of a host and a port
DATAGRAMS = ("peer_affinity",)


def two_values(field: Field) -> tuple[str, str]:
    """Two that are allowed, as a file says them."""
    if field.name in VALUES:
        return VALUES[field.name]
    if field.setting.choices:
        return field.setting.choices[0], field.setting.choices[1]
    by_type = {bool: ("no", "yes"), int: ("0600", "0660") if field.setting.unit == "mode" else ("2", "3")}
    return by_type[field.type]


@pytest.mark.parametrize("name", FIXED)
def test_each_that_takes_a_restart_is_refused_by_name(name: str, tmp_path: Path) -> None:
    """A reload that would change it exits with 1 and says which, from what, to what; nothing has changed, and what else
    is new is put in service by the next reload, which leaves it alone."""
    file, field = tmp_path / "s.toml", FIXED[name]
    before, after = two_values(field)
    bind = f"127.0.0.1:{free_port()}" if name in INTERNET else "unix:s.sock"
    target, bind = ("UpperDatagram", f"udp://{bind}") if name in DATAGRAMS else ("Upper", bind)
    address = parse_address(bind).address if name in INTERNET else os.path.relpath(tmp_path / "s.sock")

    def write(value: str, workers: int) -> None:
        file.write_text(
            f"[prefork]\ntarget = 'prefork.examples:{target}'\nbind = '{bind}'\ncontrol = 'unix:c.sock'\n"
            f"max_children = {workers}\n{field.key} = '{value}'\n"
        )

    def mode() -> int:
        return 0 if name in INTERNET else stat.S_IMODE((tmp_path / "s.sock").stat().st_mode)

    write(before, 1)
    with running(["run", "--config", "s.toml"], cwd=tmp_path) as run:
        run.expect(f"reload failed: could not change {field.key} from {before} to {after} by a reload")
        was = mode()
        write(after, 2)
        done = ctl(tmp_path / "c.sock", "reload")
        said = f"could not change {field.key} from {before} to {after} by a reload: it needs a restart"
        assert done.returncode == 1
        assert said in done.stdout + done.stderr
        assert asked(tmp_path / "c.sock", "status")["max_children"] == 1
        write(before, 2)
        assert ctl(tmp_path / "c.sock", "reload").returncode == 0
        assert asked(tmp_path / "c.sock", "status")["max_children"] == 2
        assert mode() == was
        assert (ask_datagram if name in DATAGRAMS else ask)(address, b"a\n") == b"A\n"


@pytest.mark.parametrize(("how", "wanted"), [("TTIN", 4), ("TTOU", 2), ("scale 1", 1), ("scale 5", 5)])
def test_a_reload_forgets_the_size_that_was_asked_for(how: str, wanted: int, tmp_path: Path) -> None:
    """After TTIN, TTOU or `scale` a reload puts the settings' own size in force again."""
    path = tmp_path / "c"
    with Released(tmp_path, max_children=3, control_socket=str(path)) as service:
        service.wait_ready(3)
        if how.startswith("TT"):
            service.signal(signal.Signals[f"SIG{how}"])
        else:
            assert ctl(path, *how.split()).returncode == 0
        service.wait_ready(wanted)
        service.signal(signal.SIGHUP)
        service.wait_reloads(ok=1)
        service.wait_ready(3, replaced=min(wanted, 3))
        status = asked(path, "status")
    assert (status["min_children"], status["max_children"]) == (3, 3)


def test_a_reload_forgets_the_level_that_was_asked_for(tmp_path: Path) -> None:
    """After `log-level` a reload puts the settings' own level in force again."""
    path = tmp_path / "c"
    with Released(tmp_path, max_children=1, control_socket=str(path)) as service:
        service.wait_ready(1)
        assert ctl(path, "log-level", "error").returncode == 0
        service.signal(signal.SIGHUP)
        service.wait_reloads(ok=1)
        assert re.search("INFO reload: generation [0-9]+ is in service", service.log)


def test_a_new_address_may_be_made_anew(tmp_path: Path) -> None:
    """What belongs to the listener may change with it."""
    file, path = tmp_path / "s.toml", tmp_path / "c.sock"
    text = "[prefork]\ntarget = 'prefork.examples:Upper'\ncontrol = 'unix:c.sock'\nmax_children = 1\n"
    file.write_text(f"{text}bind = 'unix:one'\nsocket_mode = '0600'\n")
    with running(["run", "--config", "s.toml"], cwd=tmp_path):
        file.write_text(f"{text}bind = 'unix:two'\nsocket_mode = '0660'\n")
        assert ctl(path, "reload").returncode == 0
        assert show(stat.S_IMODE((tmp_path / "two").stat().st_mode), "mode") == "0660"


def test_a_reload_reads_the_file_again(tmp_path: Path) -> None:
    """A changed file is in force after a reload; one with a mistake changes nothing, and the caller is told which."""
    file, path = tmp_path / "s.toml", tmp_path / "c.sock"
    text = "[prefork]\ntarget = 'prefork.examples:Upper'\nbind = '127.0.0.1:0'\ncontrol = 'unix:c.sock'\n"
    file.write_text(f"{text}max_children = 1\n")
    with running(["run", "--config", "s.toml"], cwd=tmp_path) as run:
        run.expect("(?s)reload failed: the rehearsal .*there is no setting max_childs")
        assert asked(path, "status")["max_children"] == 1
        file.write_text(f"{text}max_childs = 2\n")
        done = ctl(path, "reload")
        assert done.returncode == 1
        assert "there is no setting max_childs; did you mean max_children?" in done.stdout + done.stderr
        assert asked(path, "status")["max_children"] == 1
        file.write_text(f"{text}max_children = 2\n")
        done = ctl(path, "reload")
        assert done.returncode == 0, done.stderr
        assert asked(path, "status")["max_children"] == 2
