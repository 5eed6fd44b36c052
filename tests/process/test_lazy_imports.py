"""What a program imports lazily (PEP 810, Python 3.15): found by check and rehearsal, and shared by the workers.

`__lazy_modules__` says it in a program that runs on older versions too: there the same holds, because the import is an
ordinary one.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.clients.connections import ask
from tests.support.clients.controlling import asked, ctl
from tests.support.programs.command import HUNG, MODULE, ROOT, running

PORT = "127.0.0.1:0"
APP = """
import prefork
{statement}

class Handler(prefork.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"%d" % helper.PID)
"""
STATEMENTS = {"in a list": "__lazy_modules__ = ['helper']\nimport helper"}
if sys.version_info >= (3, 15):
    STATEMENTS["by its keyword"] = "lazy import helper"
    STATEMENTS["through another"] = "lazy import between\nlazy from between import helper"
WHERE_IMPORTED = "import os\nPID = os.getpid()\n"


def release(here: Path, statement: str, helper: str) -> None:
    (here / "app.py").write_text(APP.format(statement=statement))
    (here / "between.py").write_text("lazy import helper")
    (here / "helper.py").write_text(helper)


def check(here: Path, **environ: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONPATH": str(ROOT), **environ}
    argv = [*MODULE, "check", "app:Handler", "--bind", PORT]
    return subprocess.run(argv, cwd=here, env=environment, capture_output=True, text=True, timeout=HUNG)


@pytest.mark.parametrize("statement", STATEMENTS.values(), ids=STATEMENTS)
def test_check_finds_what_cannot_be_imported(statement: str, tmp_path: Path) -> None:
    """A module that is imported lazily and raises fails the check, with its traceback; one that is fine does not."""
    release(tmp_path, statement, "1 / 0\n")
    done = check(tmp_path)
    assert done.returncode != 0
    assert "ZeroDivisionError: division by zero" in done.stderr
    assert 'helper.py", line 1' in done.stderr
    release(tmp_path, statement, WHERE_IMPORTED)
    assert check(tmp_path).returncode == 0


def test_check_where_every_import_is_lazy(tmp_path: Path) -> None:
    """PYTHON_LAZY_IMPORTS=all changes nothing of that."""
    release(tmp_path, "import helper", "raise LookupError('no such table')\n")
    done = check(tmp_path, PYTHON_LAZY_IMPORTS="all")
    assert done.returncode != 0
    assert "LookupError: no such table" in done.stderr
    release(tmp_path, "import helper", WHERE_IMPORTED)
    done = check(tmp_path, PYTHON_LAZY_IMPORTS="all")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("statement", STATEMENTS.values(), ids=STATEMENTS)
def test_rehearsal_finds_it_too(statement: str, tmp_path: Path) -> None:
    """A reload is refused by it, with the reason, and the old code serves on; what it uses, the master has imported."""
    release(tmp_path, statement, WHERE_IMPORTED)
    control = tmp_path / "c.sock"
    with running(["run", "app:Handler", "--bind", PORT, "--control", f"unix:{control}"], cwd=tmp_path) as run:
        address = ("127.0.0.1", run.port)
        assert ask(address, b"") == b"%d" % run.pid
        release(tmp_path, statement, "1 / 0\n")
        done = ctl(control, "reload")
        assert done.returncode == 1
        assert "ZeroDivisionError: division by zero" in done.stderr
        run.expect("ZeroDivisionError: division by zero")
        assert asked(control, "status")["generation"] == 1
        assert ask(address, b"") == b"%d" % run.pid


if sys.version_info >= (3, 15):

    def test_a_start_warns(tmp_path: Path) -> None:
        """What is imported lazily and cannot be is said at the start, which goes on: nobody may ever use it."""
        release(tmp_path, "lazy import never, missing\nlazy from between import nothing\nimport helper", WHERE_IMPORTED)
        with running(["run", "app:Handler", "--bind", PORT], cwd=tmp_path) as run:
            assert ask(("127.0.0.1", run.port), b"") == b"%d" % run.pid
            assert run.ended(signal.SIGTERM) == 0
        for name, why in (
            ("app.never", "No module named 'never'"),
            ("app.missing", "No module named 'missing'"),
            ("app.nothing", "cannot import name 'nothing' from 'between'"),
        ):
            assert run.log.count(f"could not import {name}, which is imported lazily: {why}") == 1
