"""The programs as the package index has them: an environment of their own, and their source distributions.

Owns a folder below the temporary one, which a run leaves for the next: what is in it depends on the pins of
pyproject.toml and the interpreter. Whatever cannot be had raises. Runs in the process that tests.
"""

import contextlib
import fcntl
import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")


class NotInstalled(Exception):
    """A program that the package index did not give."""


def _project() -> dict[str, Any]:
    with open(ROOT / "pyproject.toml", "rb") as file:
        found: dict[str, Any] = tomllib.load(file)["project"]
    return found


@cache
def pins() -> dict[str, str]:
    """The requirements of the extra `programs`, by the name of the distribution."""
    return {pin.partition("==")[0]: pin for pin in _project()["optional-dependencies"]["programs"]}


def _folder() -> Path:
    """Nobody else may write there: what is in it is run."""
    folder = Path(tempfile.gettempdir()) / f"prefork-programs-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    assert found.st_uid == os.getuid(), f"{folder} is another user's"
    assert not found.st_mode & 0o022, f"others may write to {folder}"
    return folder


@contextlib.contextmanager
def _once(kind: str, *what: str) -> Iterator[tuple[Path, bool]]:
    """The folder of this, and True until the block has ended well once; others who want it wait."""
    key = hashlib.sha256("\n".join((sys.version, *what)).encode()).hexdigest()[:16]
    folder = _folder() / f"{kind}-{key}"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder / "done"
        yield folder, not done.exists()
        done.touch()


@cache
def environment() -> Path:
    """The interpreter of an environment with all the programs and what prefork needs. Raises NotInstalled."""
    wanted = [*_project()["dependencies"], *pins().values()]
    with _once("environment", *wanted) as (folder, new):
        python = folder / "environment" / "bin" / "python"
        if new:
            _run(sys.executable, "-m", "venv", "--without-pip", "--clear", str(folder / "environment"))
            _run(*PIP, "--python", str(python), "install", "--no-compile", *wanted)
            (folder / "ours").mkdir(exist_ok=True)
            link = folder / "ours" / "prefork"
            link.unlink(missing_ok=True)
            link.symlink_to(ROOT / "prefork")
        return python


def source(name: str) -> Path:
    """The unpacked source distribution. Raises NotInstalled."""
    with _once("source", pins()[name]) as (folder, new):
        if new:
            archives = folder / "archives"
            _run(*PIP, "download", "--no-deps", "--no-binary", ":all:", "-d", str(archives), pins()[name])
            (archive,) = archives.iterdir()
            with tarfile.open(archive) as tar:
                tar.extractall(folder / "unpacked", filter="data")
        (found,) = (folder / "unpacked").iterdir()
        return found


def _run(*argv: str) -> None:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise NotInstalled(f"{' '.join(argv)}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
