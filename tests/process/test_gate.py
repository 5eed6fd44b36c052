"""The gate of CI fails closed: over reports that a real pytest wrote of a small tree, and the script that asks it."""

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import psutil
import pytest

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[2]
HUNG = 60.0  # seconds; never reached unless something hangs
FILES = {"unit/test_plain.py": "gate_plain.py", "faults/test_marked.py": "gate_marked.py"}


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gate", ROOT / ".ci" / "gate.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["gate"] = importlib.util.module_from_spec(spec)  # dataclasses look there
    spec.loader.exec_module(module)
    return module


gate = load()


class Tree:
    """A checkout with a few tests, a list of allowed skips, and the report of pytest over it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tests = folder, folder / "tests"
        self.report, self.list = folder / "run.xml", folder / "allowed-skips"
        self.list.write_text("")
        (folder / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib -p no:cacheprovider\n")
        for name, program in FILES.items():
            self.write(name, (ROOT / "tests" / "process" / "programs" / program).read_text())

    def write(self, name: str, text: str) -> None:
        path = self.tests / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def run(self, *argv: str) -> None:
        """Have pytest report on it; what it found is for the gate."""
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", f"--junitxml={self.report}", *argv], cwd=self.folder,
            stdin=subprocess.DEVNULL, capture_output=True, timeout=HUNG, check=False,
        )  # fmt: skip

    def faults(self, expression: str = "") -> list[str]:
        found: list[str] = gate.faults_of_a_run(self.report, expression, self.tests, self.list)
        return found


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_all_is_well(tree: Tree) -> None:
    """Nothing is said of a run of everything, nor of one of these marks."""
    tree.run()
    assert tree.faults() == []
    assert gate.faults_of_the_tree([tree.report], tree.tests) == []
    tree.run("-m", "quick")
    assert tree.faults("quick and slow and faults") == []
    assert tree.faults("not unit and not once") == []


def test_a_failure_and_an_error_are_told(tree: Tree) -> None:
    """An expected failure whose reason is not in the list is told as well."""
    tree.write(
        "unit/test_bad.py",
        "import pytest\ndef test_bad(): assert 0\ndef test_no(nothing): pass\n"
        "@pytest.mark.xfail(reason='one day')\ndef test_xfail(): assert 0\n",
    )
    tree.run()
    assert tree.faults() == [
        "failed: tests.unit.test_bad.test_bad",
        "failed: tests.unit.test_bad.test_no",
        "skipped: tests.unit.test_bad.test_xfail: one day",
    ]


def test_a_skip_needs_its_own_reason(tree: Tree) -> None:
    """The reason of a skip stands in the list word for word: neither a part of it nor an empty line lets it pass."""
    tree.write("unit/test_skip.py", "import pytest\ndef test_skip(): pytest.skip('no such tool')\n")
    tree.run()
    tree.list.write_text("no such tool\n")
    assert tree.faults() == []
    for text in ("", "no such\n", "tool\n"):
        tree.list.write_text(text)
        assert tree.faults() == ["skipped: tests.unit.test_skip.test_skip: no such tool"]
    for text in ("\n", "no such tool\n\n", "no such tool\n \n"):
        tree.list.write_text(text)
        assert tree.faults() == ["allowed-skips has an empty line"]
    tree.list.unlink()
    assert "could not read the list of allowed skips" in tree.faults()[0]


def test_nothing_to_run_with_is_a_skip(tree: Tree) -> None:
    """A test whose parameters have come to be none is told."""
    tree.write("unit/test_none.py", "import pytest\n@pytest.mark.parametrize('x', [])\ndef test_none(x): pass\n")
    tree.run()
    assert "skipped: tests.unit.test_none.test_none" in tree.faults()[0]


@pytest.mark.parametrize("text", [None, "", "<testsuites>", "<testsuites/>"], ids=["gone", "empty", "cut", "no test"])
def test_no_report(tree: Tree, text: str | None) -> None:
    """A report that is not there, is cut off or has no test in it fails the run."""
    if text is not None:
        tree.report.write_text(text)
    for faults in (tree.faults(), gate.faults_of_the_tree([tree.report], tree.tests)):
        assert len(faults) == 1
        assert "report run.xml" in faults[0]


def test_pytest_that_is_killed(tree: Tree) -> None:
    """A pytest that was killed has left no report, though its first tests passed."""
    tree.write("unit/test_z.py", "import os\ndef test_z(): os.kill(os.getpid(), 9)\n")
    tree.run()
    assert "could not read the report run.xml" in tree.faults()[0]


@pytest.mark.parametrize(
    "argv",
    [("--deselect=tests/unit/test_plain.py::test_numbers",), ("--ignore=tests/unit",), ("-k", "quick"), ("-x",)],
    ids=lambda argv: argv[0],
)
def test_fewer_than_there_are(tree: Tree, argv: tuple[str, ...]) -> None:
    """A test of the tree that did not run is told, whatever kept it from running."""
    tree.write("faults/test_early.py", "def test_early(): assert 0\n")
    tree.run(*argv)
    assert "did not run: tests.unit.test_plain.test_numbers" in tree.faults()
    assert "no run has it: tests.unit.test_plain.test_numbers" in gate.faults_of_the_tree([tree.report], tree.tests)


def test_a_file_that_pytest_does_not_find(tree: Tree) -> None:
    """A test in a file by a name that pytest does not look at is one of the tree."""
    tree.write("unit/tests_of_ours.py", "def test_ours(): pass\n")
    tree.run()
    assert tree.faults() == ["did not run: tests.unit.tests_of_ours.test_ours"]


def test_marks_that_leave_nothing(tree: Tree) -> None:
    """An expression that no test of the tree meets is a failure, not a run of nothing."""
    tree.run()
    assert "is marked 'quik'" in tree.faults("quik")[0]


@pytest.fixture
def ci() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts .ci/run with these arguments; whatever of it is left at the end is ended."""
    started: list[subprocess.Popen[str]] = []

    def start(*argv: str) -> "subprocess.Popen[str]":
        # A shell catches no signal that it has inherited as ignored, as HUP is below nohup.
        command = ["env", "--default-signal=HUP", "bash", str(ROOT / ".ci" / "run"), *argv]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        return started[-1]

    yield start
    for process in started:
        process.terminate()
        process.communicate(timeout=HUNG)


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root runs CI")


@needs_root
def test_without_a_python_there_is_no_pass(ci: Callable[..., "subprocess.Popen[str]"]) -> None:
    """To go without every Python is a failure too, and so is a word that is not understood."""
    for argv in (("3.99", "--without", "3.99"), ("--al",)):
        process = ci(*argv)
        said = process.communicate(timeout=HUNG)[0]
        assert process.returncode != 0
        assert "passed" not in said


@needs_root
def test_a_python_that_cannot_be_had(
    ci: Callable[..., "subprocess.Popen[str]"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no Debian can be fetched, a Python that the machine lacks is a failure that says how to go without it."""
    (tmp_path / "mmdebstrap").write_text("#!/bin/sh\necho no such mirror >&2\nexit 1\n")
    (tmp_path / "mmdebstrap").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    process = ci("3.99")
    said = process.communicate(timeout=HUNG)[0]
    assert process.returncode == 1
    assert "no such mirror" in said
    assert "FAILED: no Python 3.99 (--without VERSION goes without)" in said
    assert "passed" not in said


@needs_root
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP])
def test_interrupted_it_leaves_nothing(how: int, ci: Callable[..., "subprocess.Popen[str]"]) -> None:
    """No process, mount or file of it is left when it is interrupted in the midst of a job."""
    process = ci("3.99")
    assert process.stdout is not None
    said = ""
    while "of a Debian testing root" not in said:
        said = process.stdout.readline()
        assert said
        if folder := re.search(r"logs in (/tmp/pf\.\w+)/", said):
            work = Path(folder[1])
    assert work.exists()
    process.send_signal(how)
    assert process.wait(HUNG) == 128 + how
    assert not work.exists()
    assert str(work) not in Path("/proc/self/mounts").read_text()
    for each in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            assert str(work) not in " ".join(each.cmdline())


# What tests run in.


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare")
@pytest.mark.parametrize(("wanted", "status"), [("test_bootstrap.py", 0), ("nothing", 4)])
def test_the_tests_as_the_first_process(wanted: str, status: int, tmp_path: Path) -> None:
    """Of a container, say: they are a child of it, and it ends as they do."""
    argv = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-m", "pytest", "-q"]
    argv += ["-p", "no:cacheprovider", f"--basetemp={tmp_path / 'of-them'}", f"tests/unit/{wanted}"]
    ended = subprocess.run(argv, cwd=ROOT, check=False, capture_output=True, text=True, timeout=HUNG)
    assert ended.returncode == status, ended.stdout + ended.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_figure_is_measured_again(tmp_path: Path) -> None:
    """By three runs at most of a test that is marked, if the machine stood still while it failed; all are told."""
    shutil.copy(ROOT / "tests" / "process" / "programs" / "gate_timed.py", tmp_path / "test_timed.py")
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.conftest", "--rootdir=."]
    ended = subprocess.run(
        [*argv, f"--basetemp={tmp_path / 'of-them'}", "test_timed.py"], cwd=tmp_path, check=False, capture_output=True,
        text=True, timeout=HUNG, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    said = ended.stdout
    assert "3 failed, 1 passed" in said, said + ended.stderr
    for last in ("always_held_up: run 3", "slow_by_itself: run 1", "not_timed: run 1"):
        assert f"AssertionError: {last}" in said
    again = re.findall(r"run again: .*::test_(\w+): failed while the machine stood still for [0-9.]+ s", said)
    assert again == ["held_up"] * 2 + ["always_held_up"] * 2
