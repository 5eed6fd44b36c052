"""deploy/container/Dockerfile without Docker: its own steps, in namespaces instead of an image.

Runs in the test's process, as root. The interpreter that runs the tests stands for the base image: it is seen at
/opt/python, since others than root may not look where it is.
"""

import contextlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import psutil

from tests.support.programs.service import HUNG, ROOT

HERE = ROOT / "deploy" / "container"
BUILD_HUNG = 300.0  # pip fetches the build system and the dependencies
SEEN = """
set -e
mount --make-rprivate /
mount --bind "$OPT" /opt
mount --rbind "$PYTHON" /opt/python
export LD_LIBRARY_PATH=/opt/python/lib PATH="/opt/python/bin:$PATH"
"""
# As PID 1: what compose.yaml takes away is gone, and only what the image has is in /etc and /srv.
RUN = """
ip link set lo up
cp /etc/passwd /etc/group /etc/nsswitch.conf /etc/ld.so.cache "$OPT/etc"
mount --bind "$OPT/etc" /etc
mount -t tmpfs -o mode=755 tmpfs /srv
mount -o remount,bind,ro /
cd "$WORKDIR"
export PATH="/opt/prefork/bin:$PATH" PYTHONUNBUFFERED=1
exec setpriv --reuid "$USER" --regid "$USER" --clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all "$@"
"""


def instructions() -> list[tuple[str, str]]:
    """Of the Dockerfile, in their order."""
    text = re.sub(r"^#.*\n", "", (HERE / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    pairs = (line.partition(" ")[::2] for line in text.splitlines() if line)
    return [(word, " ".join(rest.split())) for word, rest in pairs]


def last(word: str) -> str:
    """Return the text of the last of these instructions."""
    return [rest for found, rest in instructions() if found == word][-1]


def context() -> list[str]:
    """The files that the build is given."""
    lines = (HERE / "Dockerfile.dockerignore").read_text().splitlines()
    return [line[1:] for line in lines if line.startswith("!")]


class Image:
    """Built in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._opt, source = folder / "opt", folder / "src"
        (self._opt / "python").mkdir(parents=True)
        for path in (folder, self._opt):
            path.chmod(0o755)
        for name in context():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, source / name)
        build = next(rest for word, rest in instructions() if word == "RUN")
        done = self._start(["unshare", "--mount", "sh", "-c", SEEN + build], cwd=source)
        output, _ = done.communicate(timeout=BUILD_HUNG)
        assert done.returncode == 0, output
        for what in [rest.split() for word, rest in instructions() if word == "COPY" and not rest.startswith("--from")]:
            if what[1].startswith("/etc/"):
                target = self._opt / what[1].removeprefix("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source / what[0], target)

    def _start(self, argv: list[str], cwd: Path) -> "subprocess.Popen[str]":
        environ = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "OPT": str(self._opt), "PYTHON": sys.base_prefix,
            "WORKDIR": last("WORKDIR"), "USER": last("USER"), "HOME": str(Path.home()),
        }  # fmt: skip
        return subprocess.Popen(
            argv, cwd=cwd, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip

    @contextlib.contextmanager
    def run(self) -> Iterator["Container"]:
        """ENTRYPOINT and CMD, as USER, as PID 1."""
        command = json.loads(last("ENTRYPOINT")) + json.loads(last("CMD"))
        namespaces = ["--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "--mount-proc", "--kill-child"]
        process = self._start(["unshare", *namespaces, "sh", "-c", SEEN + RUN, "sh", *command], cwd=self._opt)
        try:
            yield Container(process)
        finally:
            for child in psutil.Process(process.pid).children() if process.poll() is None else []:
                child.kill()
            process.kill()
            process.communicate(timeout=HUNG)


class Container:
    """One that runs. `process` is what waits for it."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    @property
    def master(self) -> psutil.Process:
        """PID 1 of its namespace, as it is called here; once it is there."""
        deadline = monotonic() + HUNG
        while not (found := psutil.Process(self.process.pid).children()):
            assert monotonic() < deadline, "hung: unshare does not fork"
            assert self.process.poll() is None, self.process.communicate()
        return found[0]

    def healthy(self) -> bool:
        """Return the command of HEALTHCHECK."""
        command = json.loads(last("HEALTHCHECK").partition("CMD ")[2])
        enter = ["nsenter", "-t", str(self.master.pid), "--mount", "--pid", "--net", "--"]
        seen = ["env", "PATH=/opt/prefork/bin", "LD_LIBRARY_PATH=/opt/python/lib"]
        done = subprocess.run([*enter, *seen, *command], capture_output=True, timeout=HUNG, check=False)
        return done.returncode == 0
