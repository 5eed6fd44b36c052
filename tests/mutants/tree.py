"""Copies of the tree, in which mistakes are made and tests are run. Each process that judges has one for itself.

Nothing is compiled twice: the first copy has the bytecode of whatever will run, the others are copies of that, and a
file with a mistake in it is newer than its bytecode. What a test run leaves behind is ended: all of it descends from
the process that judges, which is asked to be its reaper.
"""

import compileall
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from time import monotonic

import psutil

ROOT = Path(__file__).parents[2]
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis")
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
PYTEST = (
    sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider",
    "-m", "not deploy", "--hypothesis-profile=mutants",
)  # fmt: skip
SLOWEST, GRACE_S = 3, 20.0  # takes so many times what is usual, and a while: it hangs, which is noticed too
UNKNOWN_S = 60.0  # for what nobody has timed
HUNG, SPEECHLESS = "the time that it took", "a test run that said nothing"


def make(root: Path, tests: Iterable[str]) -> None:
    """The first copy, with the bytecode of these tests, as pytest rewrites them, and of what they import or start."""
    shutil.copytree(ROOT, root, symlinks=True, ignore=LEFT_OUT)
    if any(not each.startswith("tests/unit") for each in tests):
        for part in ("prefork", "workers", "metrics", "tests/support"):
            compileall.compile_dir(root / part, quiet=2)
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run(
        [*PYTEST, "--collect-only", *tests],
        cwd=root, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True,
    )  # fmt: skip


class Tree:
    """The copy of this process."""

    def __init__(self, first: Path, folder: Path, seed: int) -> None:
        libc = ctypes.CDLL(None)
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup(1) ignores it, and so would the services of the tests
        self._root = folder / "tree"
        self._seed = seed
        shutil.copytree(first, self._root, symlinks=True)
        (folder / "t").mkdir()
        self._environ = os.environ | {"TMPDIR": str(folder / "t"), "PYTHONDONTWRITEBYTECODE": "1"}

    def usual(self, tests: Sequence[str]) -> float | None:
        """How long these tests take without any mistake; None when they fail, twice."""
        for _ in range(2):
            began = monotonic()
            if self._failed(tests, None) is None:
                return monotonic() - began
        return None

    def noticed(self, path: str, text: str, tests: Sequence[str], usual: float | None) -> str | None:
        """The test that fails when the file says this; None where all pass."""
        file = self._root / path
        whole, was = file.read_bytes(), file.stat()
        file.write_text(text)
        try:
            return self._failed_twice(tests, UNKNOWN_S if usual is None else SLOWEST * usual + GRACE_S)
        finally:
            file.write_bytes(whole)
            os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))  # its bytecode is valid again

    def _failed_twice(self, tests: Sequence[str], at_most: float | None) -> str | None:
        """A test of processes may fail for another reason, so what fails has to fail once more by itself."""
        passed: list[str] = []
        while failed := self._failed([*tests, *(f"--deselect={each}" for each in passed)], at_most):
            if failed in passed or "::" not in failed or "tests/unit" in failed or self._failed([failed], at_most):
                return failed
            passed.append(failed)
        return None

    def _failed(self, arguments: Sequence[str], at_most: float | None) -> str | None:
        with subprocess.Popen(
            [*PYTEST, f"--hypothesis-seed={self._seed}", *arguments],
            cwd=self._root, env=self._environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, start_new_session=True, text=True, errors="replace",
        ) as process:  # fmt: skip
            try:
                said, _ = process.communicate(timeout=at_most)
            except subprocess.TimeoutExpired:
                return HUNG
            finally:
                _end_all()
        ended_well = process.returncode == 0 and re.search(
            r"^\d+ passed", said, re.MULTILINE
        )  # os._exit(0) says nothing
        return None if ended_well else _who_failed(said)


def _who_failed(said: str) -> str:
    for line in said.splitlines():
        if line.startswith(("FAILED ", "ERROR ")):
            return line.split(" ", 1)[1].split(" - ", 1)[0]
    return SPEECHLESS


def _end_all() -> None:
    while left := psutil.Process().children(recursive=True):
        for each in left:
            each.kill()
        psutil.wait_procs(left, 10)
