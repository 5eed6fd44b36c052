"""The state of a thread that stays: whether it is still that of a new one, so that no request finds what another left.

Runs in the thread itself. What `threading.local` objects hold for a thread ends with it, and in Python's own terms in
no other way: a thread that has used one has to end with its request, as it does in the standard library. Whether it has
is seen where PyThreadState_Clear() finds those values, which are only looked at, never changed:

    3.11, 3.12    the dict of PyThreadState_GetDict() holds them
    3.13 on       each `threading.local` that has values for it has a weak reference to an object of the thread's, in a
                  word of the PyThreadState, threading_local_sentinel (gh-120973)

The word is found by what changes as a thread first uses a `threading.local`. Where this Python has it otherwise, every
thread ends with its request. One `threading.local` is used before the first request: that of logging itself, of later
versions, which holds between two records what a new thread's does (gh-91555).

What the kernel keeps for a thread is the request's as well: `os.nice()`, `os.sched_setaffinity()` and
`signal.pthread_sigmask()` change the calling thread alone. To ask for it each time would cost a thirtieth of a short
request, so it is asked for at most once a millisecond: after each request that lasts so long.
"""

import ctypes
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextvars import Context, copy_context
from functools import cache
from time import monotonic_ns
from weakref import getweakrefcount

log = logging.getLogger("prefork.server")

_LOOKED_AT = 38 if sys.version_info < (3, 14) else 64  # words of a PyThreadState, which has more
ASK_KERNEL_EVERY_NS = 1_000_000
_REPR = "Py_Repr"  # CPython leaves a list there that is empty between two calls of repr()

_python = ctypes.PyDLL(None)  # whose functions are ours alone, unlike those of ctypes.pythonapi
_python.PyThreadState_Get.restype = ctypes.c_void_p
_python.PyThreadState_GetDict.restype = ctypes.c_void_p


def _words() -> memoryview:
    """Return the first words of this thread's PyThreadState, to be read."""
    address = _python.PyThreadState_Get()
    return memoryview((ctypes.c_uint64 * _LOOKED_AT).from_address(address)).cast("B").cast("Q").toreadonly()


def _dict() -> dict[object, object]:
    found: dict[object, object] = ctypes.cast(_python.PyThreadState_GetDict(), ctypes.py_object).value
    return found


def _locals_used(of_dict: dict[object, object], words: memoryview, at: int | None) -> int:
    """Return how many `threading.local` objects, or others, have something for this thread."""
    used = len(of_dict) - (_REPR in of_dict)
    if at is not None and words[at]:
        used += getweakrefcount(ctypes.cast(words[at], ctypes.py_object).value)
    return used


class _Unknown(Exception):
    """This Python keeps the values of threading.local elsewhere."""


def _found() -> int | None:
    """Return which word has the sentinel; None where the dict has all. Raises _Unknown. For a thread that has used none
    yet."""
    words, of_dict = _words(), _dict()
    before, local = words.tolist(), threading.local()
    local.value = 1
    begun = [at for at, (was, now) in enumerate(zip(before, words.tolist(), strict=True)) if now and not was]
    if of_dict:
        return None
    if len(begun) == 2 and begun[1] - begun[0] == 1 and _locals_used(of_dict, words, begun[1]) == 1:
        return begun[1]  # behind threading_local_key
    raise _Unknown


@cache
def _where() -> list[int | None]:
    """Return the word in a list, or nothing where it is unknown. It is looked for in a thread made for it."""
    found: list[int | None] = []

    def look() -> None:
        try:
            found.append(_found())
        except _Unknown:
            pass

    thread = threading.Thread(target=look, name="prefork: a look at threading.local")
    thread.start()
    thread.join()
    return found


def context_of_threads() -> Context:
    """Return the context in which a thread begins that is started here and now."""
    return copy_context() if getattr(sys.flags, "thread_inherit_context", False) else Context()


def _kernels() -> object:
    """Return what the kernel keeps for this thread, and a program can change: for itself, or for what it starts."""
    return (
        os.getpriority(os.PRIO_PROCESS, 0), os.sched_getaffinity(0), os.sched_getscheduler(0),
        signal.pthread_sigmask(signal.SIG_BLOCK, ()),
    )  # fmt: skip


def state_of_thread() -> Callable[[], bool]:
    """Return a function that says whether this thread is as it is now; if not, it has to end, and another to begin."""
    where = _where()
    if not where:
        return lambda: False
    of_dict, words, at = _dict(), _words(), where[0]
    log.isEnabledFor(logging.DEBUG)
    used = _locals_used(of_dict, words, at)
    thread, of_new = vars(threading.current_thread()), vars(threading)  # asked without a call: half the time
    size, name = len(thread), thread.get("_name")
    itself = threading.current_thread()
    weakly = getweakrefcount(itself)  # those by which something is kept for it, as in a WeakKeyDictionary
    hooks, get_hooks = sys.get_asyncgen_hooks(), sys.get_asyncgen_hooks
    depth, get_depth = sys.get_coroutine_origin_tracking_depth(), sys.get_coroutine_origin_tracking_depth
    trace, profile = sys.gettrace(), sys.getprofile()
    trace_of_new, profile_of_new = of_new.get("_trace_hook"), of_new.get("_profile_hook")
    gettrace, getprofile = sys.gettrace, sys.getprofile
    kernels, look_at_ns = _kernels(), 0

    def is_unchanged() -> bool:
        nonlocal look_at_ns
        if (now_ns := monotonic_ns()) >= look_at_ns:
            look_at_ns = now_ns + ASK_KERNEL_EVERY_NS
            if _kernels() != kernels:
                return False
        if (of_dict or at is not None) and _locals_used(of_dict, words, at) != used:
            return False
        return (
            len(thread) == size and thread.get("_name") is name
            and gettrace() is trace and getprofile() is profile
            and of_new.get("_trace_hook") is trace_of_new and of_new.get("_profile_hook") is profile_of_new
            and getweakrefcount(itself) == weakly and get_depth() == depth and get_hooks() == hooks
        )  # fmt: skip

    return is_unchanged
