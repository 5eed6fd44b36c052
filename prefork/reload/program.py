"""Run a program as the interpreter would at start-up; see python(1).

Runs in a new image and in a rehearsal, after everything of ours is prepared. Owns `__main__` from then on: the program
must find there what it finds when it is started, and no name of ours.
"""

import builtins
import importlib.machinery
import importlib.util
import io
import marshal
import os
import runpy
import sys
from types import CodeType, ModuleType
from typing import Any

from .start_context import START

_Loader = importlib.machinery.SourceFileLoader | importlib.machinery.SourcelessFileLoader
CODE_AT = 16  # in a compiled file, after its magic number, flags and source's time and size; PEP 552


def run(program: list[str]) -> None:
    """Run a program: `-m module`, `-c text`, a script, a compiled file, a directory or a zip file."""
    kind = program[0]
    sys.orig_argv = [sys.orig_argv[0], *START.flags, *program]
    if kind == "-m":
        sys.argv = ["-m", *program[2:]]
        _insert_path(os.getcwd())
        _new_main()
        runpy._run_module_as_main(program[1])  # type: ignore[attr-defined]  # what `python -m` is
    elif kind == "-c":
        sys.argv = ["-c", *program[2:]]
        _insert_path("")
        exec(compile(program[1], "<string>", "exec", dont_inherit=True), _new_main())
    else:
        sys.argv = list(program)
        _run_path(os.path.abspath(kind))


def _run_path(path: str) -> None:
    if os.path.isdir(path) or _is_zip(path):
        sys.path.insert(0, path)
        _new_main()
        runpy._run_module_as_main("__main__", False)  # type: ignore[attr-defined]
        return
    _insert_path(os.path.dirname(os.path.realpath(path)))
    code, loader = _code(path)
    cached: dict[str, Any] = {"__cached__": None} if sys.version_info < (3, 15) else {}
    exec(code, _new_main(__file__=path, __loader__=loader("__main__", path), **cached))


def _code(path: str) -> tuple[CodeType, type[_Loader]]:
    with io.open_code(path) as file:
        content = file.read()
    if content.startswith(importlib.util.MAGIC_NUMBER):
        return marshal.loads(content[CODE_AT:]), importlib.machinery.SourcelessFileLoader
    return compile(content, path, "exec", dont_inherit=True), importlib.machinery.SourceFileLoader


def _insert_path(entry: str) -> None:
    if not sys.flags.safe_path:
        sys.path.insert(0, entry)


def _is_zip(path: str) -> bool:
    import zipfile

    return zipfile.is_zipfile(path)


def _new_main(**names: Any) -> dict[str, Any]:
    """Put a new, empty module in the place of takeover.py; return its names.

    What the program pickles or looks up in `__main__` is then found, and nothing else is.
    """
    old, module = sys.modules["__main__"], ModuleType("__main__")
    vars(module).update({"__builtins__": builtins, "__loader__": importlib.machinery.BuiltinImporter, **names})
    if "__annotations__" in vars(old):  # not any more since Python 3.14
        module.__annotations__ = {}
    sys.modules["__main__"] = module
    return vars(module)
