"""deploy/logrotate: the page's own lines, with a real logrotate, over a service that goes on writing."""

import getpass
import grp
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.process.test_log_operation import DEFINITIONS, wait_text
from tests.support.clients.connections import ask
from tests.support.programs.service import ROOT, Service, script
from tests.support.tools.guides import blocks

DEPLOY = ROOT / "deploy"
LOGROTATE = shutil.which("logrotate", path=f"{os.environ['PATH']}:/usr/sbin")
SETTINGS = '[prefork]\ntarget = "program:Server"\nbind = "127.0.0.1:0"\nmax_children = 2\naccess_log = true\n'

pytestmark = pytest.mark.skipif(LOGROTATE is None, reason="logrotate is not installed")


def inside(tmp_path: Path, text: str) -> str:
    """A text of the page or the file with its folders below the test's own, and whoever runs the test as its user."""
    group = grp.getgrgid(os.getgid()).gr_name
    text = text.replace("-o prefork -g prefork ", "").replace("su prefork prefork", f"su {getpass.getuser()} {group}")
    text = text.replace("/opt/prefork/bin/prefork", f"{sys.executable} -m prefork")
    return re.sub(r"(?<![\w/])/(var|run|etc)/", rf"{tmp_path}/\1/", text)


def test_a_log_is_rotated_by_the_page(tmp_path: Path) -> None:
    """What the page says, word for word: no line is lost, each stands in one file, and the next day rotates again."""
    for folder in ("etc/prefork", "etc/logrotate.d", "run/prefork/upper", "var/log"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "etc/prefork/upper.toml").write_text(SETTINGS)
    (page,) = (each.text for each in blocks(DEPLOY / "operating.md") if "logrotate" in each.text)
    environ = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin", "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    *lines, tried = inside(tmp_path, page).splitlines()
    subprocess.run(["sh", "-ec", "\n".join(lines)], cwd=DEPLOY, env=environ, check=True)
    rotate = tmp_path / "etc/logrotate.d/prefork"
    assert rotate.read_text() == (DEPLOY / "logrotate/prefork").read_text()
    rotate.write_text(inside(tmp_path, rotate.read_text()))
    assert "error" not in subprocess.run(["sh", "-ec", tried], env=environ, capture_output=True, text=True).stderr
    log, control = tmp_path / "var/log/prefork/upper/log", tmp_path / "run/prefork/upper/control.sock"
    argv = ["-m", "prefork", "run", "--config", str(tmp_path / "etc/prefork/upper.toml"), "--control", str(control)]
    with Service(tmp_path, script(DEFINITIONS), argv=argv) as service:
        service.wait_ready(2)
        for day in range(1, 4):
            assert int(ask(service.address, b"pid\n"))
            wait_text(log, lambda text: text.count(": request ") == 1)
            command = [str(LOGROTATE), "--force", "--state", str(tmp_path / "state"), str(rotate)]
            done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
            assert "error" not in done.stderr, done.stderr
            assert log.with_name("log.1").read_text().count(": request ") == 1
            assert len(list(log.parent.glob("log.*.gz"))) == day - 1
