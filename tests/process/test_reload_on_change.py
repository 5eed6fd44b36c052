"""`prefork run --reload-on-change`: an edited file is in service, a broken one is not and says why."""

from pathlib import Path
from time import monotonic

import pytest

from tests.support.clients.connections import ask
from tests.support.programs.command import HUNG, Run, running

pytestmark = pytest.mark.once  # nothing of it is the interpreter's

APP = """
import os
import prefork
from release import RELEASE

class Handler(prefork.StreamRequestHandler):
    def handle(self):
        self.wfile.write(f"{RELEASE} {os.getppid()}".encode())
"""


def edit(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


def wait_answer(run: Run, release: str) -> None:
    """Until a new connection is answered by this release; every one before was answered too."""
    deadline = monotonic() + HUNG
    while (answer := ask(("127.0.0.1", run.port), b"").decode()) != f"{release} {run.pid}":
        assert answer.endswith(f" {run.pid}")
        assert monotonic() < deadline, f"hung: {answer!r} instead of {release}"


def wait_log(run: Run, text: str) -> None:
    """Until a line of the log has this."""
    assert run.process.stderr is not None
    for line in run.process.stderr:
        run.lines.append(line)
        if text in line:
            return
    raise AssertionError(f"ended before its log had {text}")


def test_edited_code_answers_and_broken_code_does_not(tmp_path: Path) -> None:
    """A changed module, not the target's own, is in service by itself, with the same pid. One that cannot be loaded
    leaves the old one serving, and the log says why; mended, it is in service. So is a changed settings file."""
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "release.py").write_text("RELEASE = 'one'\n")
    settings = tmp_path / "s.toml"
    settings.write_text("[prefork]\nbind = '127.0.0.1:0'\nmax_children = 1\n")
    argv = ["run", "app:Handler", "--config", "s.toml", "--reload-on-change"]
    with running(argv, cwd=tmp_path) as run:
        run.expect(
            "(?s)reload failed: the rehearsal .*ZeroDivisionError: division by zero",
            "(?s)reload failed: the rehearsal .*No module named 'helping'",
            "(?s)reload failed: the rehearsal .*could not set max_requests to 'many'",
        )
        wait_answer(run, "one")
        edit(tmp_path / "release.py", "RELEASE = 'two'\n")
        wait_log(run, "changed: release.py")
        wait_answer(run, "two")
        edit(tmp_path / "release.py", "RELEASE = 1 / 0\n")
        wait_log(run, "ZeroDivisionError: division by zero")
        wait_answer(run, "two")
        edit(tmp_path / "release.py", "from helping import RELEASE\n")
        wait_log(run, "No module named 'helping'")
        wait_answer(run, "two")
        (tmp_path / "helping.py").write_text("RELEASE = 'three'\n")
        wait_answer(run, "three")
        edit(settings, settings.read_text() + "max_requests = 'many'\n")
        wait_log(run, "could not set max_requests to 'many' (from s.toml: max_requests)")
        wait_answer(run, "three")


def test_code_that_fails_only_in_service_is_mended_by_an_edit(tmp_path: Path) -> None:
    """A release that its rehearsal could not judge leaves the old workers serving; the next edit is still seen."""
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "release.py").write_text("RELEASE = 'one'\n")
    argv = ["run", "app:Handler", "--bind", "127.0.0.1:0", "--max-children", "1", "--reload-on-change"]
    with running(argv, cwd=tmp_path) as run:
        run.expect("ZeroDivisionError: division by zero", "reload failed: the program left with status 2")
        run.allow("reload failed: the service is about to end")
        wait_answer(run, "one")
        edit(tmp_path / "release.py", "import prefork\nif not prefork.rehearsing(): 1 / 0\nRELEASE = 'two'\n")
        wait_log(run, "reload failed")
        wait_answer(run, "one")
        edit(tmp_path / "release.py", "RELEASE = 'three'\n")
        wait_answer(run, "three")
