"""deploy/container: the Dockerfile by its linter, and its steps run by hand: tests have no Docker engine."""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path
from time import monotonic

import psutil
import pytest
import yaml

from tests.support.clients.connections import connect
from tests.support.hosts.image import Image, context
from tests.support.hosts.namespaces import network_of
from tests.support.programs.service import HUNG, Service
from tests.support.tools.figures import figure, ms

ROOT = Path(__file__).parents[2]
HERE = ROOT / "deploy" / "container"
STOP_S = 10.0  # what `docker stop` gives

ORPHAN = Path(__file__).parent / "programs" / "orphans_app.py"


def test_the_dockerfile_is_clean() -> None:
    """hadolint has nothing to say."""
    hadolint = Path(sys.executable).parent / "hadolint"
    lint = subprocess.run([hadolint, HERE / "Dockerfile"], capture_output=True, text=True, check=False)
    assert lint.returncode == 0, lint.stdout + lint.stderr


def test_the_dockerfile_keeps_its_promises() -> None:
    """Not root, exec form, the stop signal and a health check; what it copies is there and not ignored."""
    text = (HERE / "Dockerfile").read_text()
    assert "\nUSER 10001\n" in text
    assert '\nENTRYPOINT ["prefork"]\n' in text
    assert "\nSTOPSIGNAL SIGTERM\n" in text
    assert "\nHEALTHCHECK " in text
    for name in context():
        assert (ROOT / name).exists(), name
    assert {"prefork", "workers", "metrics", "pyproject.toml", "deploy/container/service.toml"} <= set(context())


def test_the_page_says_what_is_there() -> None:
    """The page's commands build this Dockerfile and run what they have built, with the ports that it serves."""
    lines = [line for line in (HERE / "README.md").read_text().splitlines() if line.startswith("    docker ")]
    build, run = map(shlex.split, lines)
    assert (ROOT / build[build.index("-f") + 1]).samefile(HERE / "Dockerfile")
    assert (build[1], build[-1], run[1], run[-1]) == ("build", ".", "run", build[build.index("-t") + 1])
    published = {word.rpartition(":")[2] for flag, word in pairwise(run) if flag == "-p"}
    served = tomllib.loads((HERE / "service.toml").read_text())["prefork"]
    assert published == {served[name].rpartition(":")[2] for name in ("bind", "metrics")}
    assert f"\nEXPOSE {' '.join(sorted(published, reverse=True))}\n" in (HERE / "Dockerfile").read_text()


def test_compose_mounts_what_is_there() -> None:
    """Every file that compose.yaml mounts or builds from is in the repository."""
    services = yaml.safe_load((HERE / "compose.yaml").read_text())["services"]
    for service in services.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (HERE / source).exists(), source
    build = services["service"]["build"]
    assert (HERE / build["context"] / build["dockerfile"]).exists()


needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare"
)


@pytest.mark.timed
@needs_namespaces
def test_the_image(tmp_path: Path) -> None:
    """The Dockerfile's own steps, without Docker: what it copies is enough to build and install; its command serves as
    its user and PID 1, without a capability or a file system to write to; its health check agrees; it ends on TERM."""
    with Image(tmp_path).run() as container:
        deadline = monotonic() + HUNG
        while not container.healthy():
            assert monotonic() < deadline, "hung: it does not get healthy"
            assert container.process.poll() is None, container.process.communicate()
        with network_of(container.master.pid), connect(("127.0.0.1", 9999)) as client:
            assert client.ask(b"hello") == b"HELLO"
        master = container.master
        assert {process.uids().real for process in [master, *master.children()]} == {10001}
        began = monotonic()
        master.terminate()
        assert container.process.wait(HUNG) == 0
    figure("the image's steps by hand: TERM to the end", ms(monotonic() - began), f"{STOP_S:g} s")
    assert monotonic() - began < STOP_S


@pytest.mark.timed
@needs_namespaces
def test_as_pid_1_it_reaps_orphans_and_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As PID 1 of a pid namespace, by the image's own command: orphans are reaped, and TERM ends it within 10 s."""
    shutil.copy(ORPHAN, tmp_path / "app.py")
    argv = ["-m", "prefork", "run", "app:Handler", "--bind", f"unix:{tmp_path}/s", "--max-children", "2"]
    before = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    with Service(tmp_path, argv=argv, before=before, accounts=False) as service:
        deadline = monotonic() + HUNG
        while "listening on" not in service.log or not (found := psutil.Process(service.pid).children()):
            assert monotonic() < deadline, "hung: it does not listen"
        master = found[0]
        monkeypatch.chdir(tmp_path)  # a socket's path must be short
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(HUNG)
            client.connect("s")
            client.sendall(b"x\n")
            assert client.makefile().readline()
            # The connection stays: the request is in hand when TERM comes, and its client says nothing more.
            while any(child.status() == psutil.STATUS_ZOMBIE for child in master.children(recursive=True)):
                assert monotonic() < deadline, "hung: a zombie stays"
            began = service.signal(signal.SIGTERM, master.pid)
            assert service.wait_exit() == 0
        figure("TERM to the end as PID 1, with a request that hangs", ms(monotonic() - began), f"{STOP_S:g} s")
        assert monotonic() - began < STOP_S
