"""The new image: the program runs as the interpreter would run it, and who serves when it fails."""

import importlib.machinery
import os
import runpy
import signal
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prefork.commands import BY_SIGNAL
from prefork.reload import new_image
from prefork.reload.new_image import TookTooLong, take_over
from prefork.reload.program import run
from prefork.run_mode import RunMode
from prefork.workers import sinks
from prefork.workers.signals import EVERY, Signals
from prefork.workers.wakeup import Wakeup

# A program is run.


def _flags(**changed: bool) -> SimpleNamespace:
    """The interpreter's, with these changed."""
    all_of_them = {name: getattr(sys.flags, name) for name in dir(sys.flags) if not name.startswith("_")}
    return SimpleNamespace(**{**all_of_them, **changed})


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What a program changes of this process is put back. `modules`: those that runpy is to run, and how."""
    monkeypatch.setattr(sys, "argv", ["of the tests"])
    monkeypatch.setattr(sys, "path", ["of the tests"])
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    found = SimpleNamespace(modules=[], flags=_flags(safe_path=False))
    monkeypatch.setattr(sys, "flags", found.flags)
    monkeypatch.setattr(
        runpy, "_run_module_as_main", lambda *arguments: found.modules.append((*arguments, sys.argv, list(sys.path)))
    )
    return found


def main() -> Any:
    return sys.modules["__main__"]


def test_a_text(interpreter: SimpleNamespace) -> None:
    """`-c`: a new `__main__`, the arguments behind the text, and the directory as it is at each import."""
    run(["-c", "import sys; seen = __name__, '__file__' in globals(), sys.modules[__name__]", "a", "b"])
    assert main().seen == ("__main__", False, main())
    assert sys.argv == ["-c", "a", "b"]
    assert sys.path == ["", "of the tests"]
    assert main().__builtins__ is sys.modules["builtins"]
    assert (main().__spec__, main().__loader__) == (None, importlib.machinery.BuiltinImporter)
    assert "__cached__" not in vars(main())


def test_a_module(interpreter: SimpleNamespace) -> None:
    """`-m`: as the interpreter does it, with the directory by its name in front."""
    run(["-m", "package.app", "a"])
    assert interpreter.modules == [("package.app", ["-m", "a"], [os.getcwd(), "of the tests"])]


def test_a_script(interpreter: SimpleNamespace, tmp_path: Path) -> None:
    """Its folder, that of the file itself, is in front; `__file__` and the loader are the script's."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "app.py").write_bytes(b"# -*- coding: latin-1 -*-\nseen = __name__, '\xe4'\n")
    script = tmp_path / "app.py"
    script.symlink_to("real/app.py")
    run([str(script), "a", "b"])
    assert main().seen == ("__main__", "ä")
    assert sys.argv == [str(script), "a", "b"]
    assert sys.path == [str(tmp_path / "real"), "of the tests"]
    assert main().__file__ == str(script)
    assert (main().__loader__.name, main().__loader__.path) == ("__main__", str(script))


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_a_folder_or_an_archive(kind: str, interpreter: SimpleNamespace, tmp_path: Path) -> None:
    """It is in front itself, and its `__main__` is run."""
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("__main__.py", "")
    run([str(path), "a"])
    assert interpreter.modules == [("__main__", False, [str(path), "a"], [str(path), "of the tests"])]


def test_no_folder_of_the_programs_is_searched(interpreter: SimpleNamespace) -> None:
    """`-P` and PYTHONSAFEPATH say so."""
    interpreter.flags.safe_path = True
    run(["-c", ""])
    assert sys.path == ["of the tests"]


# Who serves.


class Image:
    """An image in which the program does what the test says. `done`: what happened, in order."""

    def __init__(self) -> None:
        self.done: list[Any] = []
        self.handed = SimpleNamespace(
            rehearsal=False, taken=False, early=None, on_taken=lambda: None, keeps=lambda path: path == "/kept",
            values={"mask": {int(signal.SIGHUP)}, "boot_timeout": 7.0},
        )  # fmt: skip
        self.program: Callable[[], object] = lambda: None

    def run(self, program: list[str]) -> None:
        self.done.append(("run", *program))
        self.program()

    def serve(self) -> None:
        """The program is ready to serve. Until then the service's path stays where it is, for whoever removes it."""
        os.unlink("/kept")
        self.handed.taken = True
        self.handed.on_taken()
        with pytest.raises(FileNotFoundError):
            os.unlink("/kept")

    def alarm(self, ring: Callable[[], None]) -> SimpleNamespace:
        self.ring = ring
        return SimpleNamespace(
            set=lambda seconds: self.done.append(("alarm", seconds)), cancel=lambda: self.done.append("no alarm")
        )

    def serve_degraded(self, handed: object, why: str) -> int:
        self.done.append(why)
        return 3


@pytest.fixture
def image(monkeypatch: pytest.MonkeyPatch) -> Iterator[Image]:
    image, before = Image(), {signum: signal.getsignal(signum) for signum in BY_SIGNAL}
    fd = signal.set_wakeup_fd(-1)
    monkeypatch.setattr(new_image, "receive", lambda fd: image.handed)
    monkeypatch.setattr(new_image, "run", image.run)
    monkeypatch.setattr(new_image, "run_as", lambda mode: image.done.append(mode))
    monkeypatch.setattr(new_image, "set_mask", lambda mask: image.done.append(("mask", mask)))
    monkeypatch.setattr(new_image, "Alarm", image.alarm)
    monkeypatch.setattr(new_image, "disarm", lambda: image.done.append("disarmed"))
    monkeypatch.setattr(Signals, "hold_still", lambda signums: image.done.append(("still", set(signums))))
    monkeypatch.setattr(new_image, "serve_degraded", image.serve_degraded)
    monkeypatch.setattr(new_image, "complain", lambda text: image.done.append(text))
    yield image
    if image.handed.early is not None:
        wakeup = Wakeup()
        image.handed.early.hand_over(Signals(wakeup))
        wakeup.close()
    for signum, handler in before.items():
        signal.signal(signum, handler)
    signal.set_wakeup_fd(fd)


BEGUN = ["disarmed", ("mask", {int(signal.SIGHUP)}), ("alarm", 7.0), ("run", "app.py")]
GONE_ON = [("mask", EVERY), "no alarm"]


def test_a_rehearsal(image: Image) -> None:
    """It is told that it is one, and holds still; a program that ends without a serve_forever() has failed."""
    image.handed.rehearsal = True
    assert take_over(9, ["app.py"]) == 1
    assert image.done == [
        "disarmed",
        RunMode.REHEARSE,
        ("still", set(BY_SIGNAL)),
        ("mask", {int(signal.SIGHUP)}),
        ("run", "app.py"),
    ]
    image.done.clear()
    del image.handed.values["mask"]  # of a master of an earlier version
    take_over(9, ["app.py"])
    assert image.done[3] == ("mask", ())


def test_a_program_that_serves(image: Image) -> None:
    """It has so long to come to that, and no alarm afterwards; when it is over so is the process."""
    image.program = image.serve
    assert take_over(9, ["app.py"]) == 0
    assert image.done == [*BEGUN, "no alarm"]


@pytest.mark.parametrize("handed_on", [True, False])
def test_the_log_goes_on(handed_on: bool, image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first line of the new image on, where the previous one wrote one."""
    monkeypatch.setattr(sinks, "resume", lambda log: image.done.append(f"log {log}"))
    image.program = image.serve
    if handed_on:
        image.handed.values["log"] = "here"
    assert take_over(9, ["app.py"]) == 0
    assert image.done[:2] == ["disarmed", "log here" if handed_on else image.done[1]]
    assert image.done.count("log here") == handed_on


def test_a_program_that_catches_the_alarm(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is ended by an exception once; at the second alarm the master goes on without it, in its place."""

    def program() -> None:
        image.handed.early.note(signal.SIGHUP)
        with pytest.raises(TookTooLong):
            image.ring()
        image.handed.early.note(signal.SIGTERM)
        image.ring()

    left: list[int] = []
    monkeypatch.setattr(new_image, "leave", left.append)
    image.program = program
    take_over(9, ["app.py"])
    gone_on = [*BEGUN, ("alarm", 0.5), *GONE_ON, "the service is about to end"]
    assert image.done[: len(gone_on)] == gone_on
    assert left == [3]


def raises(error: BaseException) -> Callable[[], object]:
    def program() -> None:
        raise error

    return program


FAILURES: list[tuple[Callable[[], object], str]] = [
    (lambda: None, "the program ended before its serve_forever() was ready"),
    (raises(TookTooLong()), "the program's serve_forever() was not ready within 7 s (boot_timeout)"),
    (raises(SystemExit(4)), "the program left with status 4 before its serve_forever() was ready"),
]


@pytest.mark.parametrize(("program", "why"), FAILURES)
def test_a_program_that_does_not_come_to_serve(program: Callable[[], object], why: str, image: Image) -> None:
    """The master goes on without it, and says why; no signal and no alarm comes in between."""
    image.program = program
    assert take_over(9, ["app.py"]) == 3
    assert image.done == [*BEGUN, *GONE_ON, why]


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt("mine")])
def test_a_program_that_fails(error: BaseException, image: Image) -> None:
    """Its traceback is printed too."""
    image.program = raises(error)
    assert take_over(9, ["app.py"]) == 3
    (text,) = (each for each in image.done if isinstance(each, str) and each.startswith("Traceback"))
    assert f"{type(error).__name__}: mine" in text
    assert image.done == [*BEGUN, text, *GONE_ON, f"the program failed: {type(error).__name__}: mine"]


@pytest.mark.parametrize("error", [SystemExit(4), ValueError("mine")])
def test_a_program_that_fails_after_it_has_served(error: BaseException, image: Image) -> None:
    """That is how the process ends; the workers have been its own."""

    def program() -> None:
        image.serve()
        raise error

    image.program = program
    with pytest.raises(type(error)):
        take_over(9, ["app.py"])
    assert image.done == [*BEGUN, "no alarm"]


def test_early_signals_are_noted(image: Image) -> None:
    """Each that is a command, from before the mask lets them come."""
    noted: list[dict[int, Any]] = []

    def program() -> None:
        early = image.handed.early
        assert early is not None
        noted.append({signum: signal.getsignal(signum) == early.note for signum in BY_SIGNAL})

    image.program = program
    take_over(9, ["app.py"])
    assert noted == [dict.fromkeys(BY_SIGNAL, True)]
