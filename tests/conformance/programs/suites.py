"""A program's own tests, run over the standard socketserver and over ours, and compared outcome by outcome.

Each run is a pytest of its own in a copy of the source distribution; over ours, standing_in/ is on its PYTHONPATH, so
that processes which the tests start are served by us as well. Runs in the process that tests.
"""

import contextlib
import os
import re
import select
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from tests.support.programs.service import readable

from .catalogue import Program, Suite
from .installed import environment, source

HUNG = 600.0  # seconds; never reached unless something hangs
UNITTEST = re.compile(r"^\w+ \(([\w.]+)\)(?:\n.*?)? \.\.\. (ok|FAIL|ERROR|skipped)", re.MULTILINE)
WORDS = {"ok": "passed", "FAIL": "failure", "ERROR": "error", "skipped": "skipped"}
STANDING_IN = Path(__file__).with_name("standing_in")


@dataclass(frozen=True)
class Run:
    """The outcomes of one run, a word by test, and why for each that is not "passed"."""

    outcomes: Mapping[str, str]
    details: Mapping[str, str]
    cpu_s: float


@dataclass(frozen=True)
class Verdict:
    """What came of both runs. `wrong` is empty where the program does over us what it does over the original."""

    stock: Run
    ours: Run
    wrong: tuple[str, ...]

    def __str__(self) -> str:
        counts = Counter(self.ours.outcomes.values())
        return ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))


def run_suite(program: Program, folder: Path) -> Verdict:
    """Run the tests of this program both ways. Raises NotInstalled."""
    suite = program.suite
    assert suite is not None
    with ThreadPoolExecutor(1 if suite.alone else 2) as at_once:
        stock, ours = at_once.map(partial(_run, program, suite), (folder / "stock", folder / "ours"))
    return Verdict(stock, ours, tuple(_compared(suite, stock, ours)))


def _run(program: Program, suite: Suite, copy: Path) -> Run:
    python = environment()
    shutil.copytree(source(program.distribution), copy, symlinks=True)
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(open(_log(copy), "wb"))
        process = subprocess.Popen(
            [python, *suite.command], cwd=copy / suite.folder, env=_environ(python, copy),
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
        stack.enter_context(process)
        stack.callback(process.kill)  # before it is waited for; nothing when it has ended
        return _read(copy, _finished(process))


def _log(copy: Path) -> Path:
    return copy.with_suffix(".log")


def _environ(python: Path, copy: Path) -> dict[str, str]:
    paths = [*([STANDING_IN] if copy.name == "ours" else []), python.parents[2] / "ours"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHON"))}
    return {**environ, "PATH": f"{python.parent}:{os.environ['PATH']}", "PYTHONPATH": ":".join(map(str, paths))}


def _finished(process: "subprocess.Popen[bytes]") -> float:
    """Wait for the end; return the CPU seconds of the process and of all that it has waited for."""
    with readable(os.pidfd_open(process.pid)) as pidfd:
        assert select.select([pidfd], [], [], HUNG)[0], f"hung: {process.args!r}"
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime


def _read(copy: Path, cpu_s: float) -> Run:
    """The outcomes as pytest has written them, or as the lines of unittest's runner say."""
    log = _log(copy).read_text(errors="replace")
    outcomes, details = {}, {}
    for report in copy.rglob("outcomes.xml"):
        for case in ElementTree.parse(report).iter("testcase"):
            name = f"{case.get('classname')}::{case.get('name')}"
            trouble = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
            outcomes[name] = "passed" if trouble is None else trouble.tag
            details[name] = "" if trouble is None else f"{trouble.get('message')}\n{trouble.text}"
    if not outcomes:
        outcomes = {name: WORDS[word] for name, word in UNITTEST.findall(log)}
        details = dict.fromkeys(outcomes, log)
    assert outcomes, log
    return Run(outcomes, details, cpu_s)


def _compared(suite: Suite, stock: Run, ours: Run) -> Sequence[str]:
    """The sentences about what is not as it should be."""
    wrong = []
    for name in sorted(stock.outcomes.keys() | ours.outcomes.keys()):
        one, other = stock.outcomes.get(name, "absent"), ours.outcomes.get(name, "absent")
        if one != other and not _known(suite.differs, name):
            wrong.append(f"{name}: {one} over socketserver, {other} over prefork\n{ours.details.get(name, '')}")
        if one not in ("passed", "skipped") and not _known(suite.own_faults, name):
            wrong.append(f"{name}: {one} over socketserver already\n{stock.details.get(name, '')}")
    for known, runs in ((suite.differs, (ours,)), (suite.own_faults, (stock,))):
        missed = {pattern for pattern in known if not any(_fails(pattern, run) for run in runs)}
        wrong += [f"{pattern}: is recorded, and passes now" for pattern in sorted(missed)]
    if "passed" not in ours.outcomes.values():
        wrong.append("none has passed")
    return wrong


def _known(recorded: Mapping[str, str], name: str) -> bool:
    return any(re.search(pattern, name) for pattern in recorded)


def _fails(pattern: str, run: Run) -> bool:
    return any(re.search(pattern, name) and outcome != "passed" for name, outcome in run.outcomes.items())
