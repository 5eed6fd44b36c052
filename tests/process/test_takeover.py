"""The first steps of a new image, before any module of prefork is there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.programs.command import HUNG, ROOT


def _run(tmp_path: Path, times: int, error: str) -> "subprocess.CompletedProcess[str]":
    package = tmp_path / "prefork"
    (package / "reload").mkdir(parents=True)
    for name in ("__init__.py", "reload/__init__.py"):
        (package / name).touch()
    shutil.copy(ROOT / "prefork/takeover.py", package)
    shutil.copy(ROOT / "tests/process/programs/short_image.py", package / "reload/new_image.py")
    (tmp_path / "tries").write_text("")
    command = [sys.executable, str(package / "takeover.py"), "5", "program.py", "argument"]
    env = {**os.environ, "TIMES": str(times), "ERROR": error}
    return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=HUNG)


@pytest.mark.parametrize("error", ["OSError", "ImportError"])
def test_what_is_short_for_a_moment(tmp_path: Path, error: str) -> None:
    """A new image whose import of prefork fails twice tries again, says so once, and goes on."""
    done = _run(tmp_path, 3, error)
    assert (done.stdout, done.returncode) == ("5 ['program.py', 'argument']\n", 7)
    assert done.stderr.count("trying again") == 1


@pytest.mark.once
def test_what_stays_so(tmp_path: Path) -> None:
    """An import that never succeeds ends the process with its traceback, after a while."""
    done = _run(tmp_path, 1000, "OSError")
    assert done.returncode == 1
    assert "Too many open files" in done.stderr.splitlines()[-1]
    assert len((tmp_path / "tries").read_text()) > 10
