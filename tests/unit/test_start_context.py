"""Origin: of a command line, what is the interpreter's and what is the program's."""

import io
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import pytest

from prefork.reload import start_context
from prefork.reload.start_context import ENTRY, StartContext, children, split, started_in, started_with

COMMANDS = {
    "a script": (["service.py", "-m", "x"], [], ["service.py", "-m", "x"]),
    "flags that take an argument": (["-W", "error", "-X", "dev", "s.py"], ["-W", "error", "-X", "dev"], ["s.py"]),
    "flags with it attached": (["-Werror", "-Xdev", "-BIO", "s.py"], ["-Werror", "-Xdev", "-BIO"], ["s.py"]),
    "a cluster that ends in one": (["-BW", "error", "s.py"], ["-BW", "error"], ["s.py"]),
    "a long option": (["--check-hash-based-pycs", "always", "s.py"], ["--check-hash-based-pycs", "always"], ["s.py"]),
    "a module": (["-B", "-m", "package", "--bind", "x"], ["-B"], ["-m", "package", "--bind", "x"]),
    "a module in a cluster": (["-Bm", "package"], ["-B"], ["-m", "package"]),
    "a module attached": (["-mpackage", "y"], [], ["-m", "package", "y"]),
    "a text": (["-c", "import a", "-W"], [], ["-c", "import a", "-W"]),
    "a text in a cluster": (["-Ic", "import a"], ["-I"], ["-c", "import a"]),
    "the end of the options": (["-B", "--", "-s.py", "x"], ["-B", "--"], ["-s.py", "x"]),
    "nothing": (["-i"], ["-i"], []),
    "stdin": (["-"], [], ["-"]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_flags_and_program(name: str) -> None:
    """What stands before the program is the interpreter's; what stands behind it is left alone."""
    arguments, flags, program = COMMANDS[name]
    assert split(["python", *arguments]) == (tuple(flags), tuple(program))


AGAIN = [name for name in COMMANDS if name not in ("nothing", "stdin", "the end of the options")]


@pytest.mark.parametrize("name", AGAIN)
def test_a_reloaded_program_is_told_apart_again(name: str) -> None:
    """A command line that a reload made splits into the same parts, so that reloads do not add up."""
    flags, program = split(["python", *COMMANDS[name][0]])
    origin = StartContext("python", flags, program, {}, "/")
    once_more = origin.command(7, "/")
    assert once_more[: len(flags) + 3] == ["python", *flags, ENTRY, "7"]
    assert split(once_more) == (flags, program)


def test_refused_by_name() -> None:
    """A program that was read from stdin is none that can be run again; any other is not refused."""
    assert StartContext("python", (), ("-",), {}, "/").refusal() == "its program was read from stdin"
    assert StartContext("python", (), ("-c", "pass"), {}, "/").refusal() is None
    assert StartContext("python", (), ("-m", "-"), {}, "/").refusal() is None
    forked = StartContext("python", (), ("-c", "pass"), {}, "/", pid=os.getppid())
    assert str(forked.refusal()).startswith("the program has started this process itself")


class Terminal:
    def __init__(self, there: bool) -> None:
        self.isatty = lambda: there


@pytest.mark.parametrize(("flag", "prompt", "stdin", "refusal"), [
    (0, False, Terminal(False), "its program was read from stdin"),
    (0, False, None, "its program was read from stdin"),
    (1, False, Terminal(False), "it is an interactive interpreter"),
    (0, True, Terminal(False), "it is an interactive interpreter"),
    (0, False, Terminal(True), "it is an interactive interpreter"),
])  # fmt: skip
@pytest.mark.parametrize("program", [(), ("-",)])
def test_an_interactive_interpreter_is_named(
    flag: int, prompt: bool, stdin: Terminal | None, refusal: str, program: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """By its option, by its prompt, or by the terminal that it reads; there may be no standard input at all."""
    monkeypatch.setattr(sys, "flags", SimpleNamespace(interactive=flag))
    monkeypatch.setattr(sys, "stdin", stdin)
    if prompt:
        monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    assert StartContext("python", (), program, {}, "/").refusal() == refusal


def test_the_directory_by_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """$PWD counts where it names the directory we are in: a symlink is kept, a stale or relative name is not."""
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "current").symlink_to("one")
    monkeypatch.chdir(tmp_path / "one")
    here = os.getcwd()
    for named, expected in (
        (str(tmp_path / "current"), str(tmp_path / "current")),
        (str(tmp_path / "other"), here),
        (str(tmp_path / "gone"), here),
        ("../one", here),
        ("", here),
    ):
        assert started_in({"PWD": named}) == expected


@pytest.mark.parametrize("path", ["bin/app.py", "./bin/app.py", "../started/bin/app.py"])
def test_the_directory_of_a_script_that_has_left_it(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is where the script's path leads to it, also if another one stands where the program has gone to."""
    for name in ("started", "left"):
        (tmp_path / name / "bin").mkdir(parents=True)
        (tmp_path / name / "bin" / "app.py").touch()
    file = os.path.join(tmp_path / "started", path.removeprefix("./"))
    for here in ("started", "left"):
        monkeypatch.chdir(tmp_path / here)
        found = started_in({"PWD": str(tmp_path / "started")}, (path, "argument"), file)
        assert found == str(tmp_path / "started")


ENVIRONMENTS = {
    "a name and a value": (b"A=1\0B=x=y\0E=\0", {"A": "1", "B": "x=y", "E": ""}),
    "a name that stands there twice": (b"A=1\0A=2\0", {"A": "1"}),
    "bytes that are no UTF-8": (b"A=\xff\0", {"A": "\udcff"}),
    "an empty one": (b"", {}),
    "one that a title was written over": (b"\0\0\0\0", None),
    "one that a long title was written over": (b" master app\0\0\0", None),
    "one that is cut": (b"A=1\0B=", None),
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_environment_at_the_start(name: str) -> None:
    """It is what the kernel was given, as long as that is still there."""
    content, expected = ENVIRONMENTS[name]
    otherwise = {"from": "os.environ"}
    assert started_with(content, otherwise) == (otherwise if expected is None else expected)


def test_a_relative_program_of_another_directory(tmp_path: Path) -> None:
    """In another directory than it was started in, a relative path is of that one where it leads to something there,
    else of the first; modules, texts and whole paths stay as they are."""
    started, other = tmp_path / "started", tmp_path / "other"
    for path in (started / "bin", other):
        path.mkdir(parents=True)
    (other / "there.py").touch()
    programs = {
        ("bin/prefork", "run"): (f"{started}/bin/prefork", "run"), ("there.py", "x"): ("there.py", "x"),
        ("/s.py",): ("/s.py",), ("-m", "prefork"): ("-m", "prefork"), ("-c", "import a"): ("-c", "import a"),
    }  # fmt: skip
    for program, expected in programs.items():
        origin = StartContext("python", (), program, {}, str(started))
        assert origin.command(7, str(other)) == ["python", ENTRY, "7", *expected]
        assert origin.command(7, str(started)) == ["python", ENTRY, "7", *program]


def test_children_that_were_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of every thread; one that has just ended has none."""
    of = {"/proc/self/task/1/children": "7 8 ", "/proc/self/task/3/children": "9 "}

    def opened(path: str) -> IO[str]:
        if path not in of:
            raise FileNotFoundError(path)
        return io.StringIO(of[path])

    monkeypatch.setattr(os, "listdir", lambda path: ["1", "2", "3"])
    monkeypatch.setattr(start_context, "open", opened, raising=False)
    assert children() == {7, 8, 9}


def test_a_program_that_is_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Does not tell where we were started."""
    monkeypatch.chdir(tmp_path)
    assert started_in({}, ("bin/app.py",), "/elsewhere/other.py") == str(tmp_path)
