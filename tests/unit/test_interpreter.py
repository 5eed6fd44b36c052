"""What we use of the interpreter's that is private to it: one list, which is all there is, and each is still there.

The first thing to run on the next interpreter's beta. Where one is gone, its sentence says what needs it, and what
there is instead.
"""

import _thread
import argparse
import ast
import atexit
import importlib
import inspect
import io
import logging
import re
import signal
import socket
import socketserver
import sys
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import BuiltinFunctionType, FunctionType
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import pytest

from .test_house import BUILDINGS, sources


def _signal_mask() -> object:
    mask = importlib.import_module("_signal").pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    after = importlib.import_module("_signal").pthread_sigmask(signal.SIG_SETMASK, mask)
    return {type(each) for each in after} == {int} and int(signal.SIGUSR2) in after


def _accept() -> object:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        fd, address = listener._accept()  # type: ignore[attr-defined]
        socket.close(fd)
        return address == client.getsockname()


def _socket_io() -> object:
    ours: Any
    ours, peer = socket.socketpair()
    with ours, peer, ours.makefile("rb", 0) as file:
        assert file._sock is ours
        assert file._timeout_occurred is False
        assert ours._io_refs == 1
        ours._decref_socketios()
        return ours._io_refs == 0


def _run_module_as_main() -> object:
    import runpy

    return inspect.signature(runpy._run_module_as_main).bind("module", False)  # type: ignore[attr-defined]


def _handlers() -> object:
    handler = logging.StreamHandler(io.StringIO())
    return handler in [reference() for reference in logging._handlerList]  # type: ignore[attr-defined]


def _actions() -> object:
    parser = argparse.ArgumentParser()
    parser.add_argument_group("more").add_argument("--here")
    return "--here" in [option for action in parser._actions for option in action.option_strings]


def _fill_text() -> object:
    class Formatter(argparse.HelpFormatter):
        def _fill_text(self, text: str, width: int, indent: str) -> str:
            return f"{indent}filled: {text}"

    return "filled: words" in argparse.ArgumentParser(description="words", formatter_class=Formatter).format_help()


def _start_new_thread() -> object:
    held = _thread.allocate_lock()
    held.acquire()
    _thread.start_new_thread(held.release, ())
    return held.acquire(timeout=30)


def _finalizers() -> object:
    called: list[int] = []
    thing = type("Thing", (), {})()
    each: Any = weakref.finalize(thing, called.append, 1)
    known = each in weakref.finalize._registry  # type: ignore[attr-defined]
    each.atexit = False
    return known and callable(weakref.finalize._exitfunc) and not called  # type: ignore[attr-defined]


def _of_module(name: str, attribute: str, kind: type) -> Callable[[], object]:
    return lambda: isinstance(getattr(importlib.import_module(name), attribute), kind)


def _executors_threads() -> object:
    with ThreadPoolExecutor() as executor:
        executor.submit(int).result()
        return set(executor._threads) <= set(importlib.import_module("concurrent.futures.thread")._threads_queues)


def _standard_loop() -> object:
    """The event is cleared as the loop begins, and set at its end; `shutdown()` waits for it."""

    class Event:
        calls: ClassVar[list[str]] = []

        def clear(self) -> None:
            self.calls.append("clear")
            vars(server)["_BaseServer__shutdown_request"] = True

        def set(self) -> None:
            self.calls.append("set")

        def wait(self) -> None:
            self.calls.append("wait")

    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as server:
        assert "_BaseServer__is_shut_down" in vars(server)
        vars(server)["_BaseServer__is_shut_down"] = Event()
        server.serve_forever()
        server.shutdown()
    return Event.calls == ["clear", "set", "wait"]


LOOP = "inheritance/standard_classes.py has our loop run where the program calls the standard library's by it"
FILES = ("SocketReader of workers/socket_files.py overrides what SocketIO does with it, and counts its files in "
         "`_io_refs`; socket.makefile() does the same, for more")  # fmt: skip
ENDING = "workers/ending.py ends a worker by it as Python ends a process; look at multiprocessing/popen_fork.py"


# What is used, whether it still does what it is used for, and who needs it.
def _lock_of_logging() -> bool:
    free = bool(logging._lock.acquire(timeout=1.0))  # type: ignore[attr-defined]
    logging._lock.release()  # type: ignore[attr-defined]
    return free


def _logs_by_it() -> bool:
    logged = []

    class Logger(logging.Logger):
        def _log(self, *args: Any, stacklevel: int = 1, **kwargs: Any) -> None:
            logged.append((args, stacklevel))

    Logger("one").warning("%s", 1)
    return logged == [((logging.WARNING, "%s", (1,)), 1)]


def _remembers_levels() -> bool:
    asked = logging.getLogger("tests.asked")
    before = asked.isEnabledFor(logging.DEBUG), asked._cache  # type: ignore[attr-defined]
    there = asked._cache == {logging.DEBUG: before[0]}  # type: ignore[attr-defined]
    asked.setLevel(logging.INFO)  # which empties it
    return there and asked._cache == {} and asked._cache is before[1]  # type: ignore[attr-defined]


def _counts_callbacks() -> bool:
    before = atexit._ncallbacks()
    atexit.register(_counts_callbacks)
    counted = atexit._ncallbacks() == before + 1
    atexit.unregister(_counts_callbacks)
    return counted


PRIVATE: dict[str, tuple[Callable[[], object], str]] = {
    "_signal": (_signal_mask, "workers/signals.py sets the mask at each fork with it; "
                              "signal.pthread_sigmask() does the same, and makes enums of it all"),
    "socket.socket._accept": (_accept, "Listener.accept() takes a connection by it, a tenth cheaper; "
                                       "socket.accept() does the same"),
    "socket.SocketIO._sock": (_socket_io, FILES),
    "socket.SocketIO._timeout_occurred": (_socket_io, FILES),
    "runpy._run_module_as_main": (_run_module_as_main, "a reload runs `python -m MODULE` and archives again by it; "
                                                       "look at what `python -m` calls now (Modules/main.c)"),
    "atexit._clear": (_of_module("atexit", "_clear", BuiltinFunctionType), ENDING),
    "atexit._run_exitfuncs": (_of_module("atexit", "_run_exitfuncs", BuiltinFunctionType), ENDING),
    "atexit._ncallbacks": (_counts_callbacks, "sockets/kept_paths.py keeps what it keeps for them, if the program has "
                                              "registered any; without it that would have to be for good"),
    "_thread": (_start_new_thread, "workers/ending.py begins a thread with it in a signal handler; threading.Thread "
                                   "takes locks that the interrupted code may hold"),
    "threading._shutdown": (_of_module("threading", "_shutdown", FunctionType), ENDING),
    "weakref.finalize._registry": (_finalizers, ENDING),
    "weakref.finalize._exitfunc": (_finalizers, ENDING),
    "multiprocessing.process._children": (_of_module("multiprocessing.process", "_children", set), ENDING),
    "multiprocessing.util._finalizer_registry": (
        _of_module("multiprocessing.util", "_finalizer_registry", dict), ENDING),
    "multiprocessing.util._exit_function": (
        _of_module("multiprocessing.util", "_exit_function", FunctionType), ENDING),
    "multiprocessing.util._run_finalizers": (
        _of_module("multiprocessing.util", "_run_finalizers", FunctionType), ENDING),
    "multiprocessing.util._run_after_forkers": (
        _of_module("multiprocessing.util", "_run_after_forkers", FunctionType), ENDING),
    "concurrent.futures.thread._threads_queues": (_executors_threads, ENDING),
    "concurrent.futures.process._threads_wakeups": (
        _of_module("concurrent.futures.process", "_threads_wakeups", WeakKeyDictionary), ENDING),
    "logging._handlerList": (_handlers, "a process that leaves by os._exit() flushes the program's handlers, which it "
                                        "finds there; logging.shutdown() flushes them too, and closes them"),
    "logging._lock": (_lock_of_logging, "os.fork() waits for it, without a bound; workers/log_locks.py has one"),
    "logging.Logger._cache": (_remembers_levels, "a plain server asks there at each child's end whether DEBUG is "
                                                 "logged; Logger.isEnabledFor() says the same, by two functions"),
    "logging.Logger._log": (_logs_by_it, "our loggers override it, so that nothing that is raised below it reaches who "
                                         "logs; override each of debug(), info(), … instead"),
    "_BaseServer__is_shut_down": (_standard_loop, LOOP),
    "_BaseServer__shutdown_request": (_standard_loop, LOOP),
    "argparse.ArgumentParser._actions": (_actions, "a wrong option is told the nearest one, which is found there"),
    "argparse.RawDescriptionHelpFormatter._fill_text": (_fill_text, "the pages of help are filled by it, overridden"),
}  # fmt: skip


@pytest.mark.parametrize("name", PRIVATE)
def test_it_is_still_there(name: str) -> None:
    """What is private to the interpreter, and used, does what it is used for."""
    works, need = PRIVATE[name]
    try:
        assert works()
    except Exception as exc:
        pytest.fail(f"{name} of Python {sys.version.split()[0]} is gone, or not what it was ({exc!r}): {need}")


def test_nothing_else_is_used() -> None:
    """Every private name of the standard library's that the sources use, or override, stands in the list."""
    used = {name for building in BUILDINGS for _, tree in sources(building) for name in _private(tree)}
    assert used == set(PRIVATE)


def _private(tree: ast.Module) -> Iterator[str]:
    known: dict[str, str] = {}  # by what it is called here
    for node in ast.walk(tree):
        for called, name in _imported(node):
            known[called] = name
            if _is_private(name):
                yield name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in known:
            name = f"{known[node.value.id]}.{node.attr}"
            if _is_private(name) and name not in DOCUMENTED and not _is_private(known[node.value.id]):
                yield name
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and MANGLED.fullmatch(node.value):
            yield node.value
        elif isinstance(node, ast.ClassDef):
            for base in map(ast.unparse, node.bases):
                first, _, rest = base.partition(".")
                if first in known:
                    yield from _of_base(node, f"{known[first]}.{rest}".rstrip("."))


MANGLED = re.compile(r"_[A-Z][a-zA-Z]*__[a-z]\w*")
DOCUMENTED = {"os._exit", "sys._current_frames", "sys._getframe"}


def _imported(node: ast.AST) -> Iterator[tuple[str, str]]:
    """What an import brings from the standard library: (how it is called here, its dotted name). `_loaded("name")` is
    an import of what is there already."""
    if isinstance(node, ast.NamedExpr) and ast.unparse(node.value).startswith("_loaded("):
        assert isinstance(node.value, ast.Call)
        yield node.target.id, ast.literal_eval(node.value.args[0])
    if isinstance(node, ast.Import):
        for alias in node.names:
            if _is_standard(alias.name):
                yield (alias.asname, alias.name) if alias.asname else (alias.name.partition(".")[0],) * 2
    elif isinstance(node, ast.ImportFrom) and not node.level and _is_standard(str(node.module)):
        yield from ((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)


def _is_standard(name: str) -> bool:
    return name.partition(".")[0] in sys.stdlib_module_names


def _is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


def _assigned(cls: type) -> Iterator[str]:
    """The attributes that an instance is given in the methods of its class and its bases."""
    for base in getattr(cls, "__mro__", ()):  # NamedTuple is a function
        try:
            source = inspect.getsource(base)
        except (TypeError, OSError):  # it is written in C
            continue
        yield from re.findall(r"\bself\.(_\w+)\s*[=:]", source)


def _of_base(node: ast.ClassDef, base: str) -> Iterator[str]:
    """The private names of a class of the standard library that one of ours uses or defines."""
    module, _, name = base.rpartition(".")
    found: Any = getattr(importlib.import_module(module), name) if module else object
    private = {each for each in (*dir(found), *_assigned(found)) if _is_private(each)}
    for each in ast.walk(node):
        if isinstance(each, ast.FunctionDef) and each.name in private:
            yield f"{base}.{each.name}"
        elif (
            isinstance(each, ast.Attribute) and each.attr in private and ast.unparse(each.value) in ("self", "super()")
        ):
            yield f"{base}.{each.attr}"
