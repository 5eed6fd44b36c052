"""The state of a thread that stays, put back after each request: the next one finds that of a new thread.

Runs in the thread itself, which stays. What `threading.local` objects hold for a thread ends with it, and in Python's
own terms in no other way. So those references are dropped that PyThreadState_Clear() drops at the end of a thread:

    3.11, 3.12    what the dict of PyThreadState_GetDict() holds
    3.13 on       that, and two words, threading_local_key and threading_local_sentinel (gh-120973)

The two words are found by what changes as a thread first uses a `threading.local`. Where this Python has it otherwise,
nothing can be put back, and a thread that has served a request has to end.
"""

import ctypes
import sys
import threading
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any

_LOOKED_AT = 38 if sys.version_info < (3, 14) else 64  # words of a PyThreadState, which has more
_AGAIN = 3  # what is dropped may use a threading.local once more

_python = ctypes.PyDLL(None)  # whose functions are ours alone, unlike those of ctypes.pythonapi
_python.PyThreadState_Get.restype = ctypes.c_void_p
_python.PyThreadState_GetDict.restype = ctypes.c_void_p
_python.Py_DecRef.argtypes = [ctypes.c_void_p]
_python.Py_DecRef.restype = None

_where: range | None = None  # the words; found once, by the first thread
_looked = False


class Locals:
    """All that `threading.local` objects, and C code, hold for this thread."""

    def __init__(self, where: range) -> None:
        self._where = where
        self.words = _words() if where else memoryview(bytes(8)).cast("Q")
        self.key = where.start  # of the word that says whether a threading.local has been used; 0 where none does
        self.of_dict: dict[object, object] = ctypes.cast(_python.PyThreadState_GetDict(), ctypes.py_object).value

    def forget(self) -> bool:
        """Forget it, as at the end of the thread. Return False if there is always something left."""
        words = self.words
        for _ in range(_AGAIN):
            if not self.of_dict and not any(words[at] for at in self._where):
                return True
            self.of_dict.clear()
            for at in self._where:
                held, words[at] = words[at], 0
                _python.Py_DecRef(held)
        return False


def _words() -> memoryview:
    address = _python.PyThreadState_Get()
    return memoryview((ctypes.c_uint64 * _LOOKED_AT).from_address(address)).cast("B").cast("Q")


def _locals() -> Locals | None:
    """Return those of this thread, which has used none yet; None if they cannot be forgotten."""
    global _where, _looked
    if not _looked:
        _where = _tried(range(0) if sys.version_info < (3, 13) else _found())
        _looked = True
    return None if _where is None else Locals(_where)


def _found() -> range | None:
    before = _words().tolist()
    threading.local()
    after = _words().tolist()
    changed = [at for at, (was, now) in enumerate(zip(before, after, strict=True)) if was != now]
    if len(changed) == 2 and changed[1] - changed[0] == 1 and before[changed[0] : changed[1] + 1] == [0, 0]:
        return range(changed[0], changed[1] + 1)
    return None


def _tried(where: range | None) -> range | None:
    """Return `where` if that is the right place."""
    if where is None:
        return None
    local, ended = threading.local(), list[bool]()
    local.value = _Value(ended)
    return where if Locals(where).forget() and ended and not hasattr(local, "value") else None


class _Value:
    def __init__(self, ended: list[bool]) -> None:
        self._ended = ended

    def __del__(self) -> None:
        self._ended.append(True)


def context_of_threads() -> Context:
    """Return the context in which a thread begins that is started here and now."""
    return copy_context() if getattr(sys.flags, "thread_inherit_context", False) else Context()


def state_of_thread() -> Callable[[], bool]:
    """Return a function that puts the state of this thread back to what it is now.

    It returns False where that is not possible: then the thread has to end, and another to begin.
    """
    held = _locals()
    if held is None:
        return lambda: False
    thread, of_dict, words, key = threading.current_thread(), held.of_dict, held.words, held.key
    attributes, name, hooks = vars(thread), thread.name, _hooks()
    size, forget = len(attributes), held.forget

    def put_back() -> bool:
        if (of_dict or words[key]) and not forget():
            return False
        return thread.name is name and len(attributes) == size and _hooks() == hooks

    return put_back


def _hooks() -> tuple[Callable[..., Any] | None, ...]:
    """Return the functions for tracing and profiling, this thread's and those that a new one would have."""
    return sys.gettrace(), sys.getprofile(), threading.gettrace(), threading.getprofile()
