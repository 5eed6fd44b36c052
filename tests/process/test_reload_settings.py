"""Settings over a reload: what is changed is in force, what takes a restart is refused by name."""

import signal
from pathlib import Path

from tests.support.command import running
from tests.support.controlling import asked, ctl
from tests.support.releases import Released, numbered


def test_what_takes_a_restart_is_refused_by_name(tmp_path: Path) -> None:
    """A reload that would change how the listener was made changes nothing, and says which setting it was."""
    with Released(tmp_path, numbered(1, "class Hooks:\n    dual_stack = False\n"), max_children=1) as service:
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


def test_a_reload_reads_the_file_again(tmp_path: Path) -> None:
    """A changed file is in force after a reload; one with a mistake changes nothing, and the caller is told which."""
    file, path = tmp_path / "s.toml", tmp_path / "c.sock"
    text = "[prefork]\ntarget = 'prefork.examples:Upper'\nbind = '127.0.0.1:0'\ncontrol = 'unix:c.sock'\n"
    file.write_text(f"{text}max_children = 1\n")
    with running(["run", "--config", "s.toml"], cwd=tmp_path):
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
