"""The new image, from the record to the end of the program. Called by takeover.py, which is run by its path.

Runs in the master's new image and in a rehearsal. Owns the signals until the pool takes them, and the alarm that ends
a program which does not reach its `serve_forever()`.
"""

import builtins
import importlib.machinery
import os
import runpy
import sys
import traceback
from types import ModuleType
from typing import Any

from prefork.workers.signals import EVERY, Signals, set_mask
from prefork.workers.wakeup import Wakeup

from ..commands import BY_SIGNAL
from ..logs import complain
from ..master.guard import attempt, insist
from ..process import RunMode, run_as
from ..surroundings.inherited import forget_inherited
from .degraded import serve_degraded
from .handover import Handed, receive


class TookTooLong(BaseException):
    """The program did not reach its serve_forever() within boot_timeout."""


def take_over(fd: int, program: list[str]) -> int:
    """Run the program with the record in descriptor `fd`; return the exit status of this process."""
    forget_inherited()
    handed = insist("read what was handed over", lambda: receive(fd))
    if handed.rehearsal:
        run_as(RunMode.REHEARSE)
        Signals.hold_still(BY_SIGNAL)
        set_mask(handed.values.get("mask", ()))
        run(program)
        return 1  # it did not reach a serve_forever()
    handed.early = insist("note signals", _early)
    handed.on_taken = lambda: _limit(0)
    set_mask(handed.values["mask"])
    _limit(handed.values["boot_timeout"])
    try:
        run(program)
        why = "the program ended before its serve_forever() was ready"
    except TookTooLong:
        why = f"the program's serve_forever() was not ready within {handed.values['boot_timeout']:g} s (boot_timeout)"
    except SystemExit as exc:
        if handed.taken:
            raise
        why = f"the program left with status {exc.code} before its serve_forever() was ready"
    except BaseException as exc:
        if handed.taken:
            raise
        text = traceback.format_exc()
        attempt("print what the program failed of", lambda: complain(text))  # in one write: the workers write there too
        why = f"the program failed: {type(exc).__name__}: {exc}"
    if handed.taken:
        return 0
    return _go_on(handed, why)


def _limit(seconds: float) -> None:
    """Have the program raise TookTooLong after this time; never, if 0."""
    attempt("limit the time of the program's start", lambda: Signals.raise_after(seconds, TookTooLong))


def _early() -> Signals:
    """Note the signals that come before the pool takes them."""
    early = Signals(Wakeup())
    early.take(dict.fromkeys(BY_SIGNAL, early.note))
    return early


def _go_on(handed: Handed, why: str) -> int:
    """Go on without the program, with the generation that is there."""
    set_mask(EVERY)
    _limit(0)
    return serve_degraded(handed, why)


def run(program: list[str]) -> None:
    """Run a program as the interpreter would at start-up: `-m module`, `-c text`, a script, a directory or a zip file;
    see python(1)."""
    kind = program[0]
    if kind == "-m":
        sys.argv = ["-m", *program[2:]]
        _insert_path(os.getcwd())
        runpy._run_module_as_main(program[1])  # type: ignore[attr-defined]  # what `python -m` is
    elif kind == "-c":
        sys.argv = ["-c", *program[2:]]
        _insert_path("")
        _execute(compile(program[1], "<string>", "exec"))
    else:
        sys.argv = list(program)
        if os.path.isdir(kind) or _is_zip(kind):
            sys.path.insert(0, kind)
            runpy._run_module_as_main("__main__", False)  # type: ignore[attr-defined]
        else:
            _insert_path(os.path.dirname(os.path.realpath(kind)))
            with open(kind, "rb") as file:
                source = file.read()
            _execute(compile(source, kind, "exec"), __file__=kind)


def _insert_path(entry: str) -> None:
    if not sys.flags.safe_path:
        sys.path.insert(0, entry)


def _is_zip(path: str) -> bool:
    import zipfile

    return zipfile.is_zipfile(path)


def _execute(code: Any, **names: str) -> None:
    """Execute code as `__main__`, in a new module: what it pickles or looks up there is then found."""
    module = ModuleType("__main__")
    vars(module).update(__builtins__=builtins, __spec__=None, __cached__=None, **names)
    if "__file__" in names:
        module.__loader__ = importlib.machinery.SourceFileLoader("__main__", names["__file__"])
    sys.modules["__main__"] = module
    exec(code, vars(module))
